//! How soon a broker with much in its store is back.
//!
//! The files are in the system's memory, because they were written just before: what is measured is the work, not the
//! reading of a cold disk.

use std::io::{self, BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use broker::clock;
use broker::codec::QoS;
use broker::journal::{
    Batch, DeliveryRecord, Key, Lsn, MessageRecord, Owner, Record, RetainedRecord, SessionRecord,
    SubscriptionRecord,
};
use broker::store::{Claim, OpenError, Report, SEGMENT_BYTES, Store, Stored};

use crate::Settings;
use crate::load::plan::PAYLOAD_BYTES;
use crate::measure::process::{Killed, free_address};
use crate::measure::{Table, median, resident_bytes};
use crate::place::bytes_on_disk;
use crate::running::command;

/// Records that go into a store at once.
const BATCH_RECORDS: usize = 100_000;

/// What is in a store, as the broker counts it when it has loaded it.
#[derive(Clone, Copy)]
struct Content {
    name: &'static str,
    sessions: u64,
    subscriptions: u64,
    deliveries: u64,
    retained: u64,
    /// Whether it is all in the log, as after a crash, and not in the base.
    is_log: bool,
}

const NOTHING: Content =
    Content { name: "nothing", sessions: 0, subscriptions: 0, deliveries: 0, retained: 0, is_log: false };
const QUEUES: Content =
    Content { name: "1,000,000 queued in 100 sessions", sessions: 100, deliveries: 1_000_000, ..NOTHING };

const ALL: [Content; 5] = [
    NOTHING,
    QUEUES,
    Content { name: "the same, all in the log", is_log: true, ..QUEUES },
    Content {
        name: "100,000 sessions, 1 subscription each",
        sessions: 100_000,
        subscriptions: 100_000,
        ..NOTHING
    },
    Content { name: "1,000,000 retained", retained: 1_000_000, ..NOTHING },
];

/// What one start gave.
struct Start {
    seconds: f64,
    /// Resident bytes when it listens, and at most until then.
    resident: u64,
    peak: u64,
}

pub(crate) fn run(settings: &Settings) -> io::Result<()> {
    let mut table = Table::new(&[
        "in the store",
        "records",
        "seconds to make",
        "on disk MB",
        "s until it listens",
        "s after kill -9",
        "resident MB",
        "peak MB",
    ]);
    for content in ALL {
        eprintln!("recovery: {}", content.name);
        let store = settings.place.folder("recovery")?;
        let began = Instant::now();
        let records = make(&store, content).map_err(io::Error::other)?;
        let making = began.elapsed().as_secs_f64();
        settings.place.settle();
        let bytes = bytes_on_disk(&store, "")?;
        let first = start(settings, &store, content)?;
        // The one before has been killed.
        let mut starts = Vec::new();
        for _ in 0..settings.rounds {
            starts.push(start(settings, &store, content)?);
        }
        let megabytes = |bytes: f64| format!("{:.0}", bytes / 1e6);
        table.add(vec![
            content.name.to_owned(),
            records.to_string(),
            format!("{making:.1}"),
            megabytes(bytes as f64),
            format!("{:.2}", first.seconds),
            format!("{:.2}", median(&starts, |start| start.seconds)),
            megabytes(median(&starts, |start| start.resident as f64)),
            megabytes(median(&starts, |start| start.peak as f64)),
        ]);
    }
    println!("From the start of the process until it listens\n\n{table}");
    Ok(())
}

/// Takes records in batches.
struct Filler {
    target: Target,
    batch: Batch,
    last: Lsn,
    records: u64,
}

enum Target {
    Base(Box<Stored>),
    Log(Store, mpsc::Receiver<()>),
}

impl Filler {
    fn next(&mut self) -> Lsn {
        self.last = self.last.next();
        self.last
    }

    fn put(&mut self, key: Key<'_>, record: &Record<'_>) -> Result<(), OpenError> {
        self.batch.put(key, record);
        self.records += 1;
        if self.batch.len() < BATCH_RECORDS { Ok(()) } else { self.pass_on() }
    }

    fn pass_on(&mut self) -> Result<(), OpenError> {
        let mut batch = std::mem::take(&mut self.batch);
        batch.finish(self.last);
        match &mut self.target {
            Target::Base(stored) => stored.fill(&batch),
            Target::Log(store, reports) => {
                let last = batch.last();
                store.commit(batch);
                loop {
                    match store.poll() {
                        Some(Report::Stored(stored, _)) if stored.last().map(Batch::last) == Some(last) => {
                            return Ok(());
                        }
                        Some(Report::Failed(error) | Report::BaseFailed(error)) => return Err(error.into()),
                        Some(_) => {}
                        None => reports.recv().expect("the store lasts longer"),
                    }
                }
            }
        }
    }
}

/// Makes a store, and returns how many records it has.
fn make(path: &Path, content: Content) -> Result<u64, OpenError> {
    let claim = Claim::new(path)?;
    let stored = Stored::open(claim.medium())?;
    let target = if content.is_log {
        let (wake, reports) = mpsc::channel();
        let wake = Arc::new(move || {
            // Fails only if nobody waits any more.
            let _ = wake.send(());
        });
        // One segment, so that nothing of it goes into the base.
        Target::Log(stored.start(SEGMENT_BYTES * 1_024, wake), reports)
    } else {
        Target::Base(Box::new(stored))
    };
    let mut filler = Filler { target, batch: Batch::default(), last: Lsn::NONE, records: 0 };
    let payload = [b'x'; PAYLOAD_BYTES];
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
    let mut sessions = Vec::new();
    for number in 0..content.sessions {
        let name = filler.next();
        let record = SessionRecord {
            client_id: &format!("client-{number}"),
            user: None,
            ends_with_connection: false,
            expiry: None,
            absent_since: Some(clock::Instant(now)),
            will: None,
        };
        filler.put(Key::Session(name), &Record::Session(record))?;
        sessions.push(name);
    }
    for number in 0..content.subscriptions {
        let session = sessions[(number % content.sessions) as usize];
        let filter = format!("plant/{}/machine/{number}/command", number % 1_000);
        let record = SubscriptionRecord {
            qos: QoS::AtLeastOnce,
            no_local: false,
            retain_as_published: false,
            subscription_id: 0,
            streams: false,
        };
        filler.put(Key::Subscription(session, &filter), &Record::Subscription(record))?;
        filler.next();
    }
    for number in 0..content.deliveries {
        let session = number % content.sessions;
        let topic = format!("bench/queue/{session}");
        let message = filler.next();
        let record = MessageRecord { topic: &topic, properties: &[], payload: &payload, expires_at: None };
        filler.put(Key::Message(message), &Record::Message(record))?;
        let record = DeliveryRecord {
            owner: Owner::Session(sessions[session as usize]),
            message,
            qos: QoS::AtLeastOnce,
            retain: false,
            packet_id: None,
            subscription_ids: &[],
            origin: None,
        };
        let delivery = filler.next();
        filler.put(Key::Delivery(delivery), &Record::Delivery(record))?;
    }
    for number in 0..content.retained {
        let topic = format!("plant/{}/sensor/{number}/value", number % 1_000);
        let message = filler.next();
        let record = MessageRecord { topic: &topic, properties: &[], payload: &payload, expires_at: None };
        filler.put(Key::Message(message), &Record::Message(record))?;
        let retained = filler.next();
        let record = RetainedRecord { message, qos: QoS::AtLeastOnce };
        filler.put(Key::Retained(retained), &Record::Retained(record))?;
    }
    if !filler.batch.is_empty() {
        filler.pass_on()?;
    }
    Ok(filler.records)
}

/// Starts the broker, sees that it has loaded everything, and kills it.
fn start(settings: &Settings, store: &Path, content: Content) -> io::Result<Start> {
    let Content { sessions, subscriptions, deliveries, retained, .. } = content;
    let wanted = format!(
        "{sessions} sessions, {subscriptions} subscriptions, {deliveries} messages waiting, {retained} retained"
    );
    let mut command = command(settings, free_address()?, Some(store));
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let began = Instant::now();
    let mut child = Killed(command.args(["--recover", "strict"]).stderr(Stdio::piped()).spawn()?);
    let lines = BufReader::new(child.0.stderr.take().expect("it was piped")).lines();
    let mut is_complete = false;
    for line in lines {
        let line = line?;
        is_complete |= line.contains("loaded from") && line.trim_end().ends_with(&wanted);
        if line.contains("listening on") {
            let seconds = began.elapsed().as_secs_f64();
            if !is_complete {
                return Err(io::Error::other(format!("not everything has come back: {wanted}")));
            }
            // For what is freed behind the last line.
            std::thread::sleep(Duration::from_millis(100));
            let pid = child.0.id();
            return Ok(Start { seconds, resident: resident_bytes(pid)?, peak: peak_bytes(pid)? });
        }
        if line.contains("WARN") || line.contains("ERROR") {
            eprintln!("the broker said: {line}");
        }
    }
    Err(io::Error::other("the broker ended before it listened"))
}

/// The most that was resident so far, in bytes.
fn peak_bytes(pid: u32) -> io::Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next()).and_then(|text| text.parse::<u64>().ok());
    kib.map(|kib| kib * 1024).ok_or_else(|| io::Error::other("no VmHWM"))
}
