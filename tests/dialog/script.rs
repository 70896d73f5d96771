//! Reading dialogs, and walking through one.

use std::collections::BTreeMap;
use std::path::Path;

use super::bytes::{parse, show};
use super::steps5;

/// Where a dialog happens. Actors are named by a word and exist from their first use.
pub(crate) trait World {
    /// Sends bytes.
    fn send(&mut self, actor: &str, bytes: &[u8]);
    /// The next `count` bytes that the actor receives, or fewer if the connection is closed or nothing more comes.
    fn receive(&mut self, actor: &str, count: usize) -> Vec<u8>;
    /// Whether the server has closed the connection, with nothing more to read.
    fn is_closed(&mut self, actor: &str) -> bool;
    /// Whether the connection is open right now.
    fn is_open(&mut self, actor: &str) -> bool;
    /// The actor ends its connection without a word; the next use of its name opens another.
    fn cut(&mut self, actor: &str);
    /// Time passes.
    fn wait(&mut self, millis: u64);
    /// The process ends without a word, and another one goes on with what was stored.
    fn restart(&mut self) {
        panic!("only a world with a store restarts");
    }
    /// From now on the store `works`, `stalls`, is `full`, or `fails`.
    fn set_store(&mut self, _state: &str) {
        panic!("only a world with a store has one");
    }
}

/// One dialog.
pub(crate) struct Dialog {
    place: String,
    title: String,
    /// Command line options of the broker.
    pub(crate) options: Vec<String>,
    steps: Vec<(usize, String)>,
}

/// The client identifiers that the server chose, by the actors that were given them.
pub(super) type Assigned = BTreeMap<String, String>;

/// All dialogs of a folder, in order.
pub(crate) fn read_dialogs(folder: &Path) -> Vec<Dialog> {
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .expect("the folder of dialogs is there")
        .map(|entry| entry.expect("its entries can be read").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "mqtt"))
        .collect();
    files.sort();
    files.iter().flat_map(|path| read_file(path)).collect()
}

fn read_file(path: &Path) -> Vec<Dialog> {
    let name = path.file_name().expect("a file has a name").to_string_lossy().into_owned();
    let text = std::fs::read_to_string(path).expect("a dialog can be read");
    let mut dialogs: Vec<Dialog> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(title) = line.strip_prefix("== ") {
            let place = format!("{name}:{}", index + 1);
            dialogs.push(Dialog { place, title: title.to_owned(), options: Vec::new(), steps: Vec::new() });
            continue;
        }
        let dialog = dialogs.last_mut().unwrap_or_else(|| panic!("{name}:{}: no title above", index + 1));
        match line.strip_prefix("options ") {
            Some(options) => dialog.options.extend(options.split_whitespace().map(str::to_owned)),
            None => dialog.steps.push((index + 1, line.to_owned())),
        }
    }
    assert!(!dialogs.is_empty(), "{name} has no dialog");
    dialogs
}

impl Dialog {
    /// Walks through the dialog.
    ///
    /// # Errors
    ///
    /// The first step that went another way.
    pub(crate) fn run(&self, world: &mut dyn World) -> Result<(), String> {
        let mut assigned = Assigned::new();
        for (line, step) in &self.steps {
            let written_out = assigned
                .iter()
                .fold(step.clone(), |step, (actor, client_id)| step.replace(&format!("@{actor}"), client_id));
            run_step(world, &mut assigned, &written_out).map_err(|error| {
                format!("{} (line {line}: {step}): {error}\n    in: {}", self.place, self.title)
            })?;
        }
        Ok(())
    }
}

fn run_step(world: &mut dyn World, assigned: &mut Assigned, step: &str) -> Result<(), String> {
    if let Some(seconds) = step.strip_prefix("wait ") {
        let seconds: f64 = seconds.parse().map_err(|_| "wait how many seconds?".to_owned())?;
        world.wait((seconds * 1_000.0) as u64);
        return Ok(());
    }
    if step == "restart" {
        world.restart();
        return Ok(());
    }
    if let Some(state) = step.strip_prefix("store ") {
        if !["works", "stalls", "full", "fails"].contains(&state) {
            return Err("a store works, stalls, is full, or fails".to_owned());
        }
        world.set_store(state);
        return Ok(());
    }
    let (actor, rest) = step.split_once(' ').ok_or("a step has an actor and an action")?;
    let (action, rest) = rest.split_once(' ').unwrap_or((rest, ""));
    let words: Vec<&str> = rest.split_whitespace().collect();
    match (action, words.as_slice()) {
        (">", _) => {
            world.send(actor, &parse(rest)?);
            Ok(())
        }
        ("<", _) => expect(world, actor, rest),
        // A new connection, the bytes, and a close without any answer; for the second kind behind a good CONNECT.
        ("opens-with", _) => fails(world, actor, rest),
        ("fails-with", _) => {
            connect(world, actor, &format!("fails-{actor}"), 0x02, 0)?;
            fails(world, actor, rest)
        }
        ("closed", []) => {
            if world.is_closed(actor) {
                Ok(())
            } else {
                Err("it is not closed".to_owned())
            }
        }
        ("silent", []) => {
            let received = world.receive(actor, usize::MAX);
            if received.is_empty() { Ok(()) } else { Err(format!("received {}", show(&received))) }
        }
        ("open", []) => {
            if world.is_open(actor) {
                Ok(())
            } else {
                Err("it is closed".to_owned())
            }
        }
        ("cut", []) => {
            world.cut(actor);
            Ok(())
        }
        // A clean session, a new persistent one, or one that was there before.
        ("connect", [id]) => connect(world, actor, id, 0x02, 0),
        ("connect", [id, "persistent"]) => connect(world, actor, id, 0x00, 0),
        ("resume", [id]) => connect(world, actor, id, 0x00, 1),
        ("will", [id, topic, qos, payload]) => {
            let flags = 0x06 | qos.parse::<u8>().map_err(|_| "will: which QoS?")? << 3;
            world.send(
                actor,
                &parse(&format!("10 ( s'MQTT' 04 {flags:02X} 00 00 s'{id}' s'{topic}' s'{payload}' )"))?,
            );
            expect(world, actor, "20 02 00 00")
        }
        ("subscribe", [filter, qos]) => {
            world.send(actor, &parse(&format!("82 ( 00 01 s'{filter}' 0{qos} )"))?);
            expect(world, actor, &format!("90 03 00 01 0{qos}"))
        }
        ("unsubscribe", [filter]) => {
            world.send(actor, &parse(&format!("A2 ( 00 01 s'{filter}' )"))?);
            expect(world, actor, "B0 02 00 01")
        }
        ("publish", [topic, qos, payload]) => publish(world, actor, topic, qos, payload, 0),
        ("retain", [topic, qos, payload]) => publish(world, actor, topic, qos, payload, 1),
        ("clear", [topic]) => publish(world, actor, topic, "0", "", 1),
        // At QoS 0 only: above it, identifiers matter and bytes are written out.
        ("gets", [topic, payload]) => expect(world, actor, &format!("30 ( s'{topic}' '{payload}' )")),
        ("gets-retained", [topic, payload]) => {
            expect(world, actor, &format!("31 ( s'{topic}' '{payload}' )"))
        }
        // Also shows that nothing else was on its way, for answers come in order.
        ("ping", []) => {
            world.send(actor, &[0xC0, 0]);
            expect(world, actor, "D0 00")
        }
        ("disconnect", []) => {
            world.send(actor, &[0xE0, 0]);
            let closed = world.is_closed(actor);
            world.cut(actor);
            if closed { Ok(()) } else { Err("it is not closed after DISCONNECT".to_owned()) }
        }
        _ => steps5::run(world, assigned, actor, action, rest),
    }
}

fn fails(world: &mut dyn World, actor: &str, notation: &str) -> Result<(), String> {
    world.send(actor, &parse(notation)?);
    let closed = world.is_closed(actor);
    world.cut(actor);
    if closed { Ok(()) } else { Err("it is not closed without an answer".to_owned()) }
}

fn connect(world: &mut dyn World, actor: &str, id: &str, flags: u8, present: u8) -> Result<(), String> {
    world.send(actor, &parse(&format!("10 ( s'MQTT' 04 {flags:02X} 00 00 s'{id}' )"))?);
    expect(world, actor, &format!("20 02 {present:02X} 00"))
}

/// A whole exchange with packet identifier 7.
fn publish(
    world: &mut dyn World,
    actor: &str,
    topic: &str,
    qos: &str,
    payload: &str,
    retain: u8,
) -> Result<(), String> {
    let (first, id, answers): (u8, &str, &[(&str, &str)]) = match qos {
        "0" => (0x30, "", &[]),
        "1" => (0x32, "00 07", &[("", "40 02 00 07")]),
        "2" => (0x34, "00 07", &[("", "50 02 00 07"), ("62 02 00 07", "70 02 00 07")]),
        _ => return Err("publish at which QoS?".to_owned()),
    };
    world.send(actor, &parse(&format!("{:02X} ( s'{topic}' {id} '{payload}' )", first | retain))?);
    for (send, answer) in answers {
        world.send(actor, &parse(send)?);
        expect(world, actor, answer)?;
    }
    Ok(())
}

/// Exactly these bytes come next.
pub(super) fn expect(world: &mut dyn World, actor: &str, notation: &str) -> Result<(), String> {
    let expected = parse(notation)?;
    let received = world.receive(actor, expected.len());
    if received == expected {
        Ok(())
    } else {
        Err(format!("expected {}\n    received {}", show(&expected), show(&received)))
    }
}
