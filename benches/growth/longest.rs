//! The longest single call into the core when much ends or comes at once: so long everybody else has to wait.
//!
//! A call takes what came in one read, a packet or a piece of one, or does what is due in one turn. The core does the same in every run, so the times of all
//! runs are taken call by call, the lower quartile of each, and then the longest of those: whatever else the machine did
//! meanwhile is not in it. That is hardly ever the median where the machine is busy: who else runs on the same core has it for
//! 4 ms at a time, and of some hundreds of calls one is interrupted in most runs. Each run
//! is a process of its own, whose allocator is set as the program sets it: what a run before has left on the heap decides
//! whether a list of many megabytes is moved by the system or copied.

use std::env;
use std::io::{self, BufWriter, Write};
use std::ops::Range;
use std::process::{Command, Stdio};
use std::time::Instant;

use broker::broker::options::Redirect;
use broker::broker::{ConnectionId, Options};
use broker::clock::Duration;
use broker::codec::packet::Publish;
use broker::codec::property::PropertyList;
use broker::codec::{Packet, PacketId, Properties, Property, Protocol, QoS, ReasonCode, encode};
use broker::metrics::DropReason;

use crate::chart::{size_text, time_text};
use crate::clients::{
    PROTOCOL, PUBLISHER, connect_bytes, core_with_publisher, disconnect_bytes, message_bytes_of, ping_bytes,
    publish_bytes, publish_bytes_as, subscribe_bytes, topic, unsubscribe_bytes, with_publisher,
};
use crate::core::{Core, bytes_of, connect, list};
use crate::queue::{message_bytes, with_absent_subscriber};
use crate::sessions::{client_id, inbox, inbox_subscribe_bytes, leave_session};
use crate::table::Table;

const RUNS: usize = 5;

/// Which scenario a process is to run, and whose output is its times.
const SCENARIO: &str = "LONGEST_SCENARIO";

/// What `src/heap.rs` sets.
const ALLOCATOR: [(&str, &str); 3] = [
    ("MALLOC_MMAP_THRESHOLD_", "1048576"),
    ("MALLOC_TRIM_THRESHOLD_", "16777216"),
    ("GLIBC_TUNABLES", "glibc.malloc.mxfast=0"),
];

type Scenario = fn() -> Vec<Calls>;

const SCENARIOS: [Scenario; 19] = [
    fan_out,
    absent,
    queues,
    filters,
    memberships,
    retained,
    sessions,
    identifiers,
    answers,
    returns,
    endings,
    crowds,
    group_queues,
    large_packets,
    draining,
    outboxes,
    reports,
    overtaken,
    mixes,
];

/// Messages that wait, or are retained, filters in all, and subscribers who are away.
const MANY: u64 = 1_000_000;

/// Filters of one client, and sessions that end at once.
const FILTERS: u64 = 100_000;
const SESSIONS: u64 = 100_000;
const MESSAGES_PER_SESSION: usize = 5;

/// Clients who get the same message.
const RECEIVERS: u32 = 100_000;

/// Clients whose outboxes drain at once, what waits for each of them, and what has filled those.
const BUSY_CLIENTS: u32 = 10_000;
const WAITING_PER_CLIENT: u32 = 100;
const OUTBOX_BYTES: u32 = 16 << 10;

/// Members of the same groups that end at once, each with so many groups that they are not left at once.
const MEMBERS: u64 = 20_000;
const GROUPS: u64 = 64;

/// Levels of which each may be a text or a wildcard: a million filters that match one topic.
const LEVELS: u64 = 20;

/// A payload, which comes in reads and goes in pieces.
const LARGE_BYTES: usize = 16 << 20;

/// Messages to a group while its members that have ended are still being removed.
const MESSAGES: u64 = 100;

const FILTERS_PER_PACKET: usize = 1_000;

/// What the server reads at once, and the packets of a read that it takes at once.
const READ_BYTES: usize = 64 * 1024;
const PACKETS_AT_ONCE: usize = 2_048;

/// Of a client that says something as often as it must, and how long: the wheel of timers goes round several times.
const KEEP_ALIVE_SECS: u16 = 60;
const WAIT: Duration = Duration(1_200_000);

const CLIENT: u32 = 1;

/// Its connection.
const CONNECTION: ConnectionId = ConnectionId { slot: CLIENT, generation: 1 };

/// How long the calls of one part of a scenario took.
struct Calls {
    name: String,
    nanos: Vec<f32>,
}

impl Calls {
    fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), nanos: Vec::new() }
    }

    fn call(&mut self, call: impl FnOnce()) {
        let began = Instant::now();
        call();
        self.nanos.push(began.elapsed().as_nanos() as f32);
    }

    /// One packet, and all that follows from it.
    fn packet(&mut self, core: &mut Core, slot: u32, bytes: &[u8]) {
        for read in bytes.chunks(READ_BYTES) {
            self.call(|| core.input(slot, read));
        }
        self.settle(core);
    }

    fn settle(&mut self, core: &mut Core) {
        loop {
            self.call(|| core.broker.handle_timeout(core.now));
            if !core.hand_out() {
                break;
            }
        }
    }
}

pub(crate) fn run() -> io::Result<()> {
    if let Some(scenario) = env::var(SCENARIO).ok().and_then(|number| number.parse::<usize>().ok()) {
        write_calls(&SCENARIOS[scenario]())?;
        std::process::exit(0); // The rest is said by the process that asked.
    }
    let mut table = Table::new(&["", "longest call", "calls", "all of them"]);
    for scenario in 0..SCENARIOS.len() {
        let mut runs = (0..RUNS).map(|_| run_in_process(scenario)).collect::<io::Result<Vec<_>>>()?;
        for part in 0..runs[0].len() {
            let calls: Vec<Vec<f32>> =
                runs.iter_mut().map(|run| std::mem::take(&mut run[part].nanos)).collect();
            table.add(row(&runs[0][part].name, &calls));
        }
    }
    println!("\n## Longest call into the core\n\n{table}");
    Ok(())
}

/// A line with the name and the number of times of each part, and then those.
fn write_calls(parts: &[Calls]) -> io::Result<()> {
    let mut out = BufWriter::new(io::stdout().lock());
    for Calls { name, nanos } in parts {
        writeln!(out, "{}\t{name}", nanos.len())?;
        nanos.iter().try_for_each(|nanos| out.write_all(&nanos.to_le_bytes()))?;
    }
    out.flush()
}

fn run_in_process(scenario: usize) -> io::Result<Vec<Calls>> {
    let mut command = Command::new(env::current_exe()?);
    command.args(["--bench", "longest"]).env(SCENARIO, scenario.to_string());
    command.envs(ALLOCATOR);
    let output = command.stderr(Stdio::inherit()).output()?;
    if !output.status.success() {
        return Err(io::Error::other("a run has failed"));
    }
    let (mut parts, mut rest) = (Vec::new(), &output.stdout[..]);
    while let Some(line_end) = rest.iter().position(|byte| *byte == b'\n') {
        let line = String::from_utf8_lossy(&rest[..line_end]).into_owned();
        let (count, name) = line.split_once('\t').expect("a number and a name");
        let bytes = 4 * count.parse::<usize>().expect("a number");
        let times = &rest[line_end + 1..][..bytes];
        let nanos = times.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        parts.push(Calls { name: name.to_owned(), nanos });
        rest = &rest[line_end + 1 + bytes..];
    }
    Ok(parts)
}

fn row(name: &str, runs: &[Vec<f32>]) -> Vec<String> {
    let count = runs[0].len();
    assert!(runs.iter().all(|run| run.len() == count), "the core does the same in every run");
    let quartiles = (0..count).map(|call| lower_quartile(runs.iter().map(|run| run[call]).collect()));
    let (longest, sum) =
        quartiles.fold((0.0_f64, 0.0), |(longest, sum), nanos| (longest.max(nanos), sum + nanos));
    vec![name.to_owned(), time_text(longest), count.to_string(), time_text(sum)]
}

fn lower_quartile(mut nanos: Vec<f32>) -> f64 {
    nanos.sort_unstable_by(f32::total_cmp);
    f64::from(nanos[nanos.len() / 4])
}

fn fan_out() -> Vec<Calls> {
    let mut core = core_with_publisher();
    for number in 0..RECEIVERS {
        let slot = CLIENT + number;
        core.open(slot, &connect_bytes(&client_id(number.into()), false));
        core.exchange(slot, &subscribe_bytes(&[topic(0)], QoS::AtLeastOnce));
    }
    let mut sent = |name: &str, qos| {
        let mut calls =
            Calls::new(format!("a message reaches {} clients, {name}", size_text(RECEIVERS.into())));
        calls.packet(&mut core, PUBLISHER, &publish_bytes(&topic(0), qos, false));
        calls
    };
    let first = sent("the first of its topic", QoS::AtMostOnce);
    let mut parts = vec![first, sent("at QoS 0", QoS::AtMostOnce), sent("at QoS 1", QoS::AtLeastOnce)];
    core.exchange(CLIENT, &subscribe_bytes(&[topic(0)], QoS::AtMostOnce));
    let mut changed = Calls::new("the same at QoS 0 after one of them has changed its subscription");
    changed.packet(&mut core, PUBLISHER, &publish_bytes(&topic(0), QoS::AtMostOnce, false));
    parts.push(changed);
    // Everybody twice, so that each has to be found in the list.
    for number in 0..RECEIVERS {
        core.exchange(CLIENT + number, &subscribe_bytes(&["#".to_owned()], QoS::AtMostOnce));
    }
    let mut overlapping = Calls::new("the same after each has made another subscription");
    overlapping.packet(&mut core, PUBLISHER, &publish_bytes(&topic(0), QoS::AtMostOnce, false));
    parts.push(overlapping);
    assert_eq!(core.deliveries, 5 * u64::from(RECEIVERS));
    parts
}

/// Lists that are too long to be kept.
fn absent() -> Vec<Calls> {
    let mut core = core_with_publisher();
    let subscribe = subscribe_bytes(&[topic(0)], QoS::AtMostOnce);
    for number in 0..MANY {
        core.open(CLIENT, &connect_bytes(&client_id(number), true));
        core.exchange(CLIENT, &subscribe);
        core.exchange(CLIENT, &disconnect_bytes());
    }
    let mut calls = Calls::new(format!("a message at QoS 0 finds {} subscribers away", size_text(MANY)));
    calls.packet(&mut core, PUBLISHER, &publish_bytes(&topic(0), QoS::AtMostOnce, false));
    assert_eq!(core.broker.metrics().dropped[DropReason::AbsentAtQoS0 as usize], MANY);
    vec![calls]
}

fn large_packets() -> Vec<Calls> {
    let mut core = core_with_publisher();
    core.open(CLIENT, &connect_bytes("client", false));
    core.exchange(CLIENT, &subscribe_bytes(&[topic(0)], QoS::AtLeastOnce));
    let payload = vec![b'x'; LARGE_BYTES];
    let publish = message_bytes_of(PacketId::FIRST, &topic(0), QoS::AtLeastOnce, false, &payload);
    let mut calls = Calls::new(format!("a PUBLISH of {} MiB comes, and is taken", LARGE_BYTES >> 20));
    calls.packet(&mut core, PUBLISHER, &publish);
    assert_eq!(core.deliveries, 1);

    let mut core = with_publisher(Core::new(true));
    core.open(CLIENT, &connect_bytes("client", true));
    core.exchange(CLIENT, &subscribe_bytes(&[topic(0)], QoS::AtLeastOnce));
    core.exchange(CLIENT, &disconnect_bytes());
    let mut stored = Calls::new("the same for a client that is away, and its batch is handed to the store");
    for read in publish.chunks(READ_BYTES) {
        stored.call(|| core.input(PUBLISHER, read));
    }
    let mut batch = None;
    stored.call(|| batch = core.broker.poll_journal(core.now));
    assert!(batch.is_some_and(|batch| batch.length() > LARGE_BYTES));

    vec![calls, stored, large_text(), large_properties()]
}

fn large_text() -> Calls {
    let payload = "\u{20ac}".repeat(LARGE_BYTES / 3);
    let said = list(Protocol::Mqtt5, &[Property::PayloadIsText(true)]);
    large_publish(
        "one of as much text that is not ASCII, which is checked",
        said.as_properties(),
        payload.as_bytes(),
    )
}

fn large_properties() -> Calls {
    let count = LARGE_BYTES / 10;
    let said: PropertyList = (0..count).map(|_| Property::UserProperty("name", "v")).collect();
    large_publish(&format!("one of {} properties", size_text(count as u64)), said.as_properties(), b"x")
}

fn large_publish(name: &str, properties: Properties<'_>, payload: &[u8]) -> Calls {
    let mut core = Core::with_options(|options| Options { check_payload_format: true, ..options });
    for slot in [PUBLISHER, CLIENT] {
        core.open(slot, &connect(Protocol::Mqtt5, &client_id(slot.into()), false, 0));
    }
    core.exchange(CLIENT, &subscribe5_bytes(&topic(0), Properties::NONE, QoS::AtMostOnce));
    let publish = Publish {
        dup: false,
        qos: QoS::AtMostOnce,
        retain: false,
        topic: &topic(0),
        packet_id: None,
        properties,
        payload,
    };
    let mut calls = Calls::new(name);
    calls.packet(&mut core, PUBLISHER, &bytes_of(Protocol::Mqtt5, Packet::Publish(publish)));
    assert_eq!(core.deliveries, 1);
    calls
}

fn subscribe5_bytes(filter: &str, properties: Properties<'_>, qos: QoS) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode::subscribe(&mut bytes, Protocol::Mqtt5, PacketId::FIRST, properties, &[(filter, qos.into())]);
    bytes
}

fn draining() -> Vec<Calls> {
    let redirect = Some(Redirect { server_reference: "other.example".into(), permanently: false });
    let mut core = with_publisher(Core::with_options(|options| Options { redirect, ..options }));
    for number in 0..RECEIVERS {
        let slot = CLIENT + number;
        core.open(slot, &connect_bytes(&client_id(number.into()), true));
        core.exchange(slot, &subscribe_bytes(&["$share/group/t".to_owned()], QoS::AtLeastOnce));
    }
    let mut calls = Calls::new(format!("{} clients are sent to another server", size_text(RECEIVERS.into())));
    calls.call(|| assert!(core.broker.handle_drain(core.now)));
    calls.settle(&mut core);
    assert_eq!(core.broker.metrics().clients_connected, 0);
    vec![calls]
}

fn outboxes() -> Vec<Calls> {
    let mut core = with_publisher(Core::with_options(|options| Options {
        in_flight_max: u16::MAX,
        outbox_bytes_max: OUTBOX_BYTES,
        ..options
    }));
    let slots = CLIENT..CLIENT + BUSY_CLIENTS;
    for slot in slots.clone() {
        core.open(slot, &connect_bytes(&client_id(slot.into()), false));
        core.exchange(slot, &subscribe_bytes(&[topic(0)], QoS::AtLeastOnce));
    }
    // Nobody takes anything as yet.
    let mut say = |bytes: &[u8]| {
        core.input(PUBLISHER, bytes);
        while core.broker.is_fanning_out() {
            core.broker.handle_timeout(core.now);
        }
    };
    let filling = vec![b'x'; OUTBOX_BYTES as usize];
    say(&message_bytes_of(PacketId::FIRST, &topic(0), QoS::AtMostOnce, false, &filling));
    let publish = publish_bytes(&topic(0), QoS::AtLeastOnce, false);
    (0..WAITING_PER_CLIENT).for_each(|_| say(&publish));
    let waiting = u64::from(BUSY_CLIENTS * WAITING_PER_CLIENT);
    assert_eq!(core.broker.metrics().queued_messages, waiting);
    let mut calls = Calls::new(format!(
        "the outboxes of {} clients drain at once, for each of whom {WAITING_PER_CLIENT} messages wait",
        size_text(BUSY_CLIENTS.into())
    ));
    core.deliveries = 0;
    core.hand_out();
    calls.settle(&mut core);
    assert_eq!(core.deliveries, u64::from(BUSY_CLIENTS) + waiting);
    vec![calls]
}

fn queues() -> Vec<Calls> {
    let mut core = with_absent_subscriber();
    let publish = message_bytes();
    let mut joining = Calls::new(format!("{} messages join a queue, one by one", size_text(MANY)));
    (0..MANY).for_each(|_| joining.packet(&mut core, PUBLISHER, &publish));

    let mut taken_over = Calls::new("the session of that queue ends: its client begins a new one");
    core.broker.handle_open(core.now, CONNECTION);
    taken_over.packet(&mut core, CLIENT, &connect_bytes("subscriber", false));

    let mut core = with_absent_subscriber();
    (0..MANY).for_each(|_| core.exchange(PUBLISHER, &publish));
    let mut expired = Calls::new("the session of that queue ends: it expires");
    core.now = core.now + core.broker.options().session_expiry.expect("that is the default");
    expired.settle(&mut core);
    assert_eq!(core.broker.status().sessions, 1);
    vec![joining, taken_over, expired]
}

fn filters() -> Vec<Calls> {
    let mut core = core_with_publisher();
    core.open(CLIENT, &connect_bytes("client", false));
    let filters: Vec<String> = (0..FILTERS).map(topic).collect();
    let subscribe = subscribe_bytes(&filters, QoS::AtMostOnce);

    let mut made = Calls::new(format!("{} filters in one SUBSCRIBE", size_text(FILTERS)));
    made.packet(&mut core, CLIENT, &subscribe);
    let mut removed = Calls::new(format!("{} filters in one UNSUBSCRIBE", size_text(FILTERS)));
    removed.packet(&mut core, CLIENT, &unsubscribe_bytes(&filters));

    core.exchange(CLIENT, &subscribe);
    let mut removed_in_parts =
        Calls::new(format!("{} filters, {FILTERS_PER_PACKET} in each UNSUBSCRIBE", size_text(FILTERS)));
    for filters in filters.chunks(FILTERS_PER_PACKET) {
        removed_in_parts.packet(&mut core, CLIENT, &unsubscribe_bytes(filters));
    }

    core.exchange(CLIENT, &subscribe);
    let mut lost = Calls::new(format!("a client with {} subscriptions is lost", size_text(FILTERS)));
    lost.call(|| core.broker.handle_lost(core.now, CONNECTION, true));
    lost.settle(&mut core);
    assert_eq!(core.broker.status().subscriptions, 0);

    let mut many = Calls::new(format!("{} filters, one in each SUBSCRIBE", size_text(MANY)));
    core.open(CLIENT, &connect_bytes("client", false));
    for number in 0..MANY {
        many.packet(&mut core, CLIENT, &subscribe_bytes(&[topic(number)], QoS::AtMostOnce));
    }

    let mut core = core_with_publisher();
    core.open(CLIENT, &connect_bytes("client", false));
    let mut shared = Calls::new(format!("{} shared filters, one in each SUBSCRIBE", size_text(MANY)));
    for number in 0..MANY {
        let filter = format!("$share/group/{}", topic(number));
        shared.packet(&mut core, CLIENT, &subscribe_bytes(&[filter], QoS::AtMostOnce));
    }
    vec![made, removed, removed_in_parts, lost, many, shared]
}

fn memberships() -> Vec<Calls> {
    let mut core = core_with_publisher();
    core.open(CLIENT, &connect_bytes("client", true));
    let filters: Vec<String> = (0..FILTERS).map(|number| format!("$share/group/{}", topic(number))).collect();
    core.exchange(CLIENT, &subscribe_bytes(&filters, QoS::AtMostOnce));

    let mut lost = Calls::new(format!("a client with {} shared subscriptions is lost", size_text(FILTERS)));
    lost.call(|| core.broker.handle_lost(core.now, CONNECTION, true));
    lost.settle(&mut core);
    let mut back = Calls::new("it comes back");
    core.broker.handle_open(core.now, CONNECTION);
    back.packet(&mut core, CLIENT, &connect_bytes("client", true));
    let mut ended = Calls::new("its session ends: it begins a new one");
    core.broker.handle_lost(core.now, CONNECTION, true);
    core.hand_out();
    core.broker.handle_open(core.now, CONNECTION);
    ended.packet(&mut core, CLIENT, &connect_bytes("client", false));
    assert_eq!(core.broker.status().subscriptions, 0);
    vec![lost, back, ended]
}

fn retained() -> Vec<Calls> {
    let mut core = core_with_publisher();
    core.open(CLIENT, &connect_bytes("client", false));
    let mut set = Calls::new(format!("{} retained messages are set, one by one", size_text(MANY)));
    for number in 0..MANY {
        set.packet(&mut core, PUBLISHER, &publish_bytes(&topic(number), QoS::AtMostOnce, true));
    }
    let mut met = Calls::new(format!("# meets {} retained messages", size_text(MANY)));
    met.packet(&mut core, CLIENT, &subscribe_bytes(&["#".to_owned()], QoS::AtMostOnce));
    assert_eq!(core.deliveries, MANY);
    vec![set, met]
}

fn sessions() -> Vec<Calls> {
    let mut core = core_with_publisher();
    let mut made = Calls::new(format!("{} clients subscribe and leave, one by one", size_text(MANY)));
    leave_session(&mut core, 0);
    for number in 1..MANY {
        made.call(|| core.broker.handle_open(core.now, CONNECTION));
        made.packet(&mut core, CLIENT, &connect_bytes(&client_id(number), true));
        made.packet(&mut core, CLIENT, &inbox_subscribe_bytes(number));
        made.packet(&mut core, CLIENT, &disconnect_bytes());
    }
    assert_eq!(core.broker.status().sessions_absent as u64, MANY);

    let mut core = core_with_publisher();
    (0..SESSIONS).for_each(|number| leave_session(&mut core, number));
    let mut waiting = Calls::new(format!("pings while {} sessions wait", size_text(SESSIONS)));
    let began = core.now;
    core.open(CLIENT, &connect(PROTOCOL, "client", false, KEEP_ALIVE_SECS));
    while core.now < began + WAIT {
        core.now = core.now + Duration(1_000 * u64::from(KEEP_ALIVE_SECS));
        waiting.packet(&mut core, CLIENT, &ping_bytes());
    }
    core.exchange(CLIENT, &disconnect_bytes());
    let mut expired = Calls::new(format!("{} sessions expire at the same instant", size_text(SESSIONS)));
    core.now = began + core.broker.options().session_expiry.expect("that is the default");
    expired.settle(&mut core);
    assert_eq!(core.broker.status().sessions, 1);

    let mut core = with_publisher(Core::new(true));
    for number in 0..SESSIONS {
        leave_session(&mut core, number);
        let publish = publish_bytes(&inbox(number), QoS::AtLeastOnce, false);
        (0..MESSAGES_PER_SESSION).for_each(|_| core.exchange(PUBLISHER, &publish));
    }
    let mut stored =
        Calls::new(format!("the same where they are stored, {MESSAGES_PER_SESSION} messages in each"));
    core.now = core.now + core.broker.options().session_expiry.expect("that is the default");
    stored.settle(&mut core);
    assert_eq!(core.broker.status().sessions, 1);
    vec![made, waiting, expired, stored]
}

/// All packet identifiers there are.
fn packet_ids() -> impl Iterator<Item = PacketId> {
    (1..=u16::MAX).filter_map(PacketId::new)
}

/// A core with a store, whose clients may have as many messages under way as there are identifiers.
fn stored_core() -> Core {
    with_publisher(Core::with_in_flight_max(true, u16::MAX))
}

fn lose(core: &mut Core, calls: &mut Calls, slot: u32) {
    calls.call(|| core.broker.handle_lost(core.now, ConnectionId { slot, generation: 1 }, true));
    calls.settle(core);
}

fn identifiers() -> Vec<Calls> {
    let mut core = stored_core();
    core.open(CLIENT, &connect_bytes("client", true));
    core.exchange(CLIENT, &subscribe_bytes(&[topic(0)], QoS::ExactlyOnce));
    core.is_mute = true;
    let (publish, mut pubrec) = (publish_bytes(&topic(0), QoS::ExactlyOnce, false), Vec::new());
    for id in packet_ids() {
        core.exchange(CLIENT, &publish_bytes_as(id, &topic(1), QoS::ExactlyOnce, false));
        core.exchange(PUBLISHER, &publish);
        let mut pubrel = Vec::new();
        encode::pubrel(&mut pubrel, PacketId::FIRST, ReasonCode::Success);
        core.exchange(PUBLISHER, &pubrel);
        pubrec.clear();
        encode::pubrec(&mut pubrec, id, ReasonCode::Success);
        core.exchange(CLIENT, &pubrec);
    }
    assert_eq!(core.broker.metrics().in_flight_messages, u64::from(u16::MAX));
    core.exchange(CLIENT, &disconnect_bytes());
    core.is_mute = false;
    let all = size_text(u16::MAX.into());
    let mut ended =
        Calls::new(format!("a stored session with {all} received and {all} released messages ends"));
    core.broker.handle_open(core.now, CONNECTION);
    ended.packet(&mut core, CLIENT, &connect_bytes("client", false));
    vec![ended]
}

/// As many messages as there are identifiers, which their receiver answers in this order.
fn answered(what: &str, order: impl Fn(usize) -> usize) -> Calls {
    let mut core = with_publisher(Core::with_in_flight_max(false, u16::MAX));
    core.open(CLIENT, &connect_bytes("client", false));
    core.exchange(CLIENT, &subscribe_bytes(&[topic(0)], QoS::AtLeastOnce));
    core.is_mute = true;
    let publish = publish_bytes(&topic(0), QoS::AtLeastOnce, false);
    packet_ids().for_each(|_| core.exchange(PUBLISHER, &publish));
    let ids: Vec<PacketId> = packet_ids().collect();
    let mut answers = Vec::new();
    for number in 0..ids.len() {
        encode::puback(&mut answers, ids[order(number)], ReasonCode::Success);
    }
    let all = size_text(u16::MAX.into());
    let mut calls = Calls::new(format!("{all} PUBACKs {what}"));
    // The server takes no more packets at once.
    for taken in answers.chunks(4 * PACKETS_AT_ONCE) {
        calls.packet(&mut core, CLIENT, taken);
    }
    assert_eq!(core.broker.metrics().in_flight_messages, 0);
    calls
}

fn answers() -> Vec<Calls> {
    let last = usize::from(u16::MAX) - 1;
    vec![
        answered("in order", |number| number),
        answered("backwards", |number| last - number),
        // So many places further each time: that number and all there are have no common divisor.
        answered("in no order", |number| number * 40_507 % (last + 1)),
    ]
}

/// A member of a group that has as many messages under way as it can, and another member.
fn member_with_unacknowledged(is_kept: bool) -> Core {
    let mut core = stored_core();
    let shared = subscribe_bytes(&[format!("$share/group/{}", topic(0))], QoS::AtLeastOnce);
    core.open(CLIENT, &connect_bytes("client", is_kept));
    core.exchange(CLIENT, &shared);
    core.is_mute = true;
    let publish = publish_bytes(&topic(0), QoS::AtLeastOnce, false);
    packet_ids().for_each(|_| core.exchange(PUBLISHER, &publish));
    assert_eq!(core.broker.metrics().in_flight_messages, u64::from(u16::MAX));
    core.is_mute = false;
    core.open(CLIENT + 1, &connect_bytes("other", is_kept));
    core.exchange(CLIENT + 1, &shared);
    core.deliveries = 0;
    core
}

fn returns() -> Vec<Calls> {
    let all = size_text(u16::MAX.into());
    let mut parts = Vec::new();
    for (is_kept, what) in [(false, "ends"), (true, "is lost, and kept")] {
        let mut core = member_with_unacknowledged(is_kept);
        let mut calls = Calls::new(format!("a session with {all} unacknowledged messages of a group {what}"));
        lose(&mut core, &mut calls, CLIENT);
        assert_eq!(core.deliveries, u64::from(u16::MAX), "somebody else gets them");
        parts.push(calls);
    }
    parts
}

fn endings() -> Vec<Calls> {
    let mut core = core_with_publisher();
    let filters: Vec<String> = (0..GROUPS).map(|number| format!("$share/group/{}", topic(number))).collect();
    let subscribe = subscribe_bytes(&filters, QoS::AtMostOnce);
    for number in 0..MEMBERS {
        core.open(CLIENT, &connect_bytes(&client_id(number), true));
        core.exchange(CLIENT, &subscribe);
        core.exchange(CLIENT, &disconnect_bytes());
    }
    core.open(CLIENT, &connect_bytes("client", false));
    core.exchange(CLIENT, &subscribe_bytes(&filters[..1], QoS::AtMostOnce));
    core.now = core.now + core.broker.options().session_expiry.expect("that is the default");
    let all = size_text(MEMBERS);
    let mut ending = Calls::new(format!("{all} members of {GROUPS} groups expire at the same instant"));
    while core.broker.status().sessions > 2 {
        ending.call(|| core.broker.handle_timeout(core.now));
        core.hand_out();
    }
    core.deliveries = 0;
    let mut sent = Calls::new(format!("a message to a group of which {all} members have just ended"));
    let publish = publish_bytes(&topic(0), QoS::AtMostOnce, false);
    (0..MESSAGES).for_each(|_| sent.call(|| core.input(PUBLISHER, &publish)));
    let mut joined = Calls::new(format!("SUBSCRIBE to a group all of whose {all} members have just ended"));
    joined.call(|| core.input(CLIENT, &subscribe_bytes(&filters[1..2], QoS::AtMostOnce)));
    ending.settle(&mut core);
    assert_eq!((core.deliveries, core.broker.status().subscriptions), (MESSAGES, 2));
    vec![ending, sent, joined]
}

/// Who has a connection, or loses it, without a turn in between.
fn come_and_go(core: &mut Core, slots: Range<u32>, is_coming: bool) {
    for slot in slots {
        let id = ConnectionId { slot, generation: 1 };
        if is_coming {
            core.broker.handle_open(core.now, id);
            core.make_room(slot);
            core.input(slot, &connect_bytes(&client_id(slot.into()), true));
        } else {
            core.broker.handle_lost(core.now, id, true);
        }
    }
}

/// Groups with the same members, whose window has room for one message.
fn crowd(members: u32) -> Core {
    let mut core = with_publisher(Core::with_in_flight_max(false, 1));
    let filters: Vec<String> = (0..GROUPS).map(|number| format!("$share/{number}/{}", topic(0))).collect();
    let subscribe = subscribe_bytes(&filters, QoS::AtLeastOnce);
    for slot in CLIENT..CLIENT + members {
        core.open(slot, &connect_bytes(&client_id(slot.into()), true));
        core.exchange(slot, &subscribe);
    }
    core
}

fn crowds() -> Vec<Calls> {
    let all = size_text(MEMBERS);
    let slots = CLIENT..CLIENT + MEMBERS as u32;
    let mut core = crowd(MEMBERS as u32);
    come_and_go(&mut core, slots.clone(), false);
    while core.broker.poll_close().map(|id| core.broker.handle_closed(id)).is_some() {}
    let publish = publish_bytes(&topic(0), QoS::AtMostOnce, false);
    let mut gone =
        Calls::new(format!("a message to {GROUPS} groups whose {all} members have just been lost"));
    gone.packet(&mut core, PUBLISHER, &publish);
    assert_eq!(core.broker.metrics().dropped[DropReason::AbsentAtQoS0 as usize], GROUPS);

    let mut core = crowd(MEMBERS as u32);
    core.is_mute = true;
    let own = subscribe_bytes(&[topic(1)], QoS::AtLeastOnce);
    slots.clone().for_each(|slot| core.exchange(slot, &own));
    core.exchange(PUBLISHER, &publish_bytes(&topic(1), QoS::AtLeastOnce, false));
    come_and_go(&mut core, slots.clone(), false);
    gone.settle(&mut core);
    come_and_go(&mut core, slots, true);
    let mut back =
        Calls::new(format!("the same at QoS 1 when all {all} have just come back, and have no room"));
    back.packet(&mut core, PUBLISHER, &publish_bytes(&topic(0), QoS::AtLeastOnce, false));
    assert_eq!(core.broker.metrics().queued_messages, GROUPS);
    vec![gone, back, busy_group()]
}

/// Nobody in it may be sent more.
fn busy_group() -> Calls {
    let mut core = with_publisher(Core::with_in_flight_max(false, 1));
    core.is_mute = true;
    let subscribe = subscribe_bytes(&[format!("$share/group/{}", topic(0))], QoS::AtLeastOnce);
    for slot in CLIENT..CLIENT + RECEIVERS {
        core.open(slot, &connect_bytes(&client_id(slot.into()), true));
        core.exchange(slot, &subscribe);
    }
    let publish = publish_bytes(&topic(0), QoS::AtLeastOnce, false);
    (0..RECEIVERS).for_each(|_| core.exchange(PUBLISHER, &publish));
    assert_eq!(core.broker.metrics().in_flight_messages, u64::from(RECEIVERS));
    let all = size_text(RECEIVERS.into());
    let mut waits =
        Calls::new(format!("a message at QoS 1 to a group whose {all} members have full windows"));
    waits.packet(&mut core, PUBLISHER, &publish);
    assert_eq!(core.broker.metrics().queued_messages, 1);
    waits
}

fn group_queues() -> Vec<Calls> {
    let mut core = with_publisher(Core::new(true));
    core.is_mute = true;
    let filters = [format!("$share/group/{}", topic(0))];
    let subscribe = subscribe_bytes(&filters, QoS::AtLeastOnce);
    core.open(CLIENT, &connect_bytes("client", false));
    core.exchange(CLIENT, &subscribe);
    let publish = publish_bytes(&topic(0), QoS::AtLeastOnce, false);
    (0..MANY).for_each(|_| core.exchange(PUBLISHER, &publish));
    let all = size_text(MANY);
    let mut joined =
        Calls::new(format!("the first stored member joins a group in which {all} messages wait"));
    core.open(CLIENT + 1, &connect_bytes("stored", true));
    joined.packet(&mut core, CLIENT + 1, &subscribe);
    let mut left = Calls::new("the last stored member leaves it");
    left.packet(&mut core, CLIENT + 1, &unsubscribe_bytes(&filters));
    vec![joined, left]
}

/// Clients whom a slow disk keeps waiting for their CONNACK.
fn reports() -> Vec<Calls> {
    let mut core = stored_core();
    let all = size_text(SESSIONS);
    come_and_go(&mut core, CLIENT..CLIENT + SESSIONS as u32, true);
    let mut taken = Calls::new(format!("the records of {all} clients who have come are taken"));
    let mut batch = None;
    taken.call(|| batch = core.broker.poll_journal(core.now));
    let last = batch.expect("their sessions are to be stored").last();
    let mut told = Calls::new("they are stored, and all are told");
    told.call(|| core.broker.handle_stored(core.now, last));
    told.settle(&mut core);
    let first = core.broker.outbox(CONNECTION).expect("it is connected");
    assert!(first.is_empty() && core.broker.metrics().packets_sent >= SESSIONS);
    vec![taken, told]
}

/// Topics whose retained messages were to be sent to a slow client, and have changed before that.
fn overtaken() -> Vec<Calls> {
    let mut core = with_publisher(Core::with_in_flight_max(false, 1));
    let topics = FILTERS;
    let set = |core: &mut Core, number| {
        core.exchange(PUBLISHER, &publish_bytes(&topic(number), QoS::AtLeastOnce, true))
    };
    (0..topics).for_each(|number| set(&mut core, number));
    core.open(CLIENT, &connect_bytes("client", false));
    core.is_mute = true;
    core.exchange(CLIENT, &subscribe_bytes(&["#".to_owned()], QoS::AtLeastOnce));
    (0..topics).for_each(|number| set(&mut core, number));
    let mut ended = Calls::new(format!(
        "a slow client that was overtaken by {} retained messages is lost",
        size_text(topics)
    ));
    lose(&mut core, &mut ended, CLIENT);
    vec![ended]
}

/// Filters that all match one topic, each in a way of its own, from ten clients; and then all of one of them have a retained
/// message to be sent.
fn mixes() -> Vec<Calls> {
    let mix = |number: u64, last: &str| {
        let level = |at: u64| if number >> at & 1 == 0 { "a" } else { "+" };
        (0..LEVELS).map(level).chain([last]).collect::<Vec<_>>().join("/")
    };
    let mut core = with_publisher(Core::with_in_flight_max(false, 1));
    let clients = (MANY / FILTERS) as u32;
    for (slot, first) in (CLIENT..CLIENT + clients).zip((0..MANY).step_by(FILTERS as usize)) {
        core.open(slot, &connect_bytes(&format!("client{slot}"), false));
        let filters: Vec<String> = (first..first + FILTERS).map(|number| mix(number, "+")).collect();
        core.exchange(slot, &subscribe_bytes(&filters, QoS::AtMostOnce));
    }
    let mut matched =
        Calls::new(format!("a message on a topic that {} different filters match", size_text(MANY)));
    matched.packet(&mut core, PUBLISHER, &publish_bytes(&mix(0, "b"), QoS::AtMostOnce, false));
    assert_eq!(core.deliveries, u64::from(clients));

    let filters: Vec<String> = (0..FILTERS).map(|number| mix(number, "+")).collect();
    let named = CLIENT + clients;
    core.open(named, &connect(Protocol::Mqtt5, "named", false, 0));
    for (filter, id) in filters.iter().zip(1..) {
        let said = list(Protocol::Mqtt5, &[Property::SubscriptionId(id)]);
        core.exchange(named, &subscribe5_bytes(filter, said.as_properties(), QoS::AtLeastOnce));
    }
    let mut identified = Calls::new(format!(
        "the same at QoS 1, and to one more client whose {} filters have identifiers",
        size_text(FILTERS)
    ));
    core.deliveries = 0;
    identified.packet(&mut core, PUBLISHER, &publish_bytes(&mix(0, "d"), QoS::AtLeastOnce, false));
    assert_eq!(core.deliveries, u64::from(clients) + 1);
    lose(&mut core, &mut Calls::new(""), named);

    for last in ["b", "c"] {
        core.exchange(PUBLISHER, &publish_bytes(&mix(0, last), QoS::AtLeastOnce, true));
    }
    let slow = named + 1;
    core.open(slow, &connect_bytes("slow", false));
    core.is_mute = true;
    core.exchange(slow, &subscribe_bytes(&filters, QoS::AtLeastOnce));
    let mut preceded = Calls::new(format!(
        "the same at QoS 1, and for {} of its filters a slow client has yet to get what is retained",
        size_text(FILTERS)
    ));
    preceded.packet(&mut core, PUBLISHER, &publish_bytes(&mix(0, "c"), QoS::AtLeastOnce, false));
    vec![matched, identified, preceded]
}
