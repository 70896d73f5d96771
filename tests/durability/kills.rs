//! The broker is killed under load, at any moment, again and again.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use broker::codec::{Protocol, QoS};

use crate::connection::Login;
use crate::folder::TemporaryFolder;
use crate::process::Broker;
use crate::publisher::{Progress, Publisher, Total};
use crate::random::Random;
use crate::subscriber::Subscriber;
use crate::wait_until;
use crate::whereabouts::Whereabouts;

/// How often the broker is killed, if nobody wants it otherwise.
const ROUNDS: u64 = 10;

/// The subscriber that is away comes back every so many rounds.
const ROUNDS_AWAY: u64 = 4;

/// Nothing is to be dropped because somebody is away, and the clients' own words are log lines enough.
const ARGUMENTS: [&str; 6] =
    ["--queued-messages-max", "100000000", "--queued-bytes-max", "100G", "--queued-bytes-total-max", "100G"];

fn number_from_environment(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is a number, not {text:?}")))
}

fn random_seed() -> u64 {
    let mut seed = [0; 8];
    getrandom::fill(&mut seed).expect("the system has random bytes");
    u64::from_ne_bytes(seed)
}

/// Everybody who talks to the broker.
struct Clients {
    /// Where all find the broker but the one that is away most of the time.
    whereabouts: Arc<Whereabouts>,
    whereabouts_of_absentee: Arc<Whereabouts>,
    progress: Arc<Progress>,
    totals: Arc<OnceLock<Vec<Total>>>,
    publishers: Vec<JoinHandle<Result<Vec<Total>, String>>>,
    subscribers: Vec<JoinHandle<Result<(), String>>>,
}

impl Clients {
    /// Brings all sessions and subscriptions into being, and has all clients wait for their broker.
    fn start(broker: &Broker, random: &mut Random) -> Self {
        let mut clients = Self {
            whereabouts: Arc::default(),
            whereabouts_of_absentee: Arc::default(),
            progress: Arc::default(),
            totals: Arc::default(),
            publishers: Vec::new(),
            subscribers: Vec::new(),
        };
        for (client_id, protocol, qos, is_present) in [
            ("subscriber-1", Protocol::Mqtt5, QoS::AtLeastOnce, true),
            ("subscriber-2", Protocol::Mqtt311, QoS::ExactlyOnce, true),
            ("subscriber-away", Protocol::Mqtt5, QoS::ExactlyOnce, false),
        ] {
            let subscriber = Subscriber::new(Login::stored(client_id, protocol), qos, broker.address);
            let whereabouts =
                if is_present { &clients.whereabouts } else { &clients.whereabouts_of_absentee };
            let (whereabouts, totals) = (Arc::clone(whereabouts), Arc::clone(&clients.totals));
            clients.subscribers.push(std::thread::spawn(move || subscriber.run(&whereabouts, &totals)));
        }
        for (client_id, protocol) in [("publisher-3", Protocol::Mqtt311), ("publisher-5", Protocol::Mqtt5)] {
            let publisher = Publisher::new(Login::stored(client_id, protocol), Random::new(random.number()));
            let (whereabouts, progress) = (Arc::clone(&clients.whereabouts), Arc::clone(&clients.progress));
            clients.publishers.push(std::thread::spawn(move || publisher.run(&whereabouts, &progress)));
        }
        clients
    }

    fn acknowledged(&self) -> u64 {
        self.progress.acknowledged.load(Ordering::Acquire)
    }

    /// Whether one of them has given up.
    fn has_failed(&self) -> bool {
        self.publishers.iter().any(JoinHandle::is_finished)
            || self.subscribers.iter().any(JoinHandle::is_finished)
    }

    /// A broker is there, until it is killed.
    fn appear(&self, broker: &Broker, with_absentee: bool) {
        self.whereabouts.appear(broker.address);
        if with_absentee {
            self.whereabouts_of_absentee.appear(broker.address);
        }
    }

    fn vanish(&self) {
        self.whereabouts.vanish();
        self.whereabouts_of_absentee.vanish();
    }

    /// Has the publishers finish and the subscribers take what is left, and says what went wrong, then or before.
    fn finish(self) -> Result<Vec<Total>, Vec<String>> {
        if self.has_failed() {
            self.whereabouts.close();
            self.whereabouts_of_absentee.close();
        }
        self.progress.is_finishing.store(true, Ordering::Release);
        let (mut totals, mut failures) = (Vec::new(), Vec::new());
        for publisher in self.publishers {
            match publisher.join().expect("a publisher does not panic") {
                Ok(published) => totals.extend(published),
                Err(failure) => failures.push(failure),
            }
        }
        self.totals.set(totals.clone()).expect("they were not known before");
        for subscriber in self.subscribers {
            failures.extend(subscriber.join().expect("a subscriber does not panic").err());
        }
        if failures.is_empty() { Ok(totals) } else { Err(failures) }
    }
}

/// One life of the broker, and its end.
fn run_round(round: u64, folder: &Path, clients: &Clients, random: &mut Random) {
    if random.once_in(4) {
        // Already while it loads what is stored.
        let mut broker = Broker::spawn(folder, &ARGUMENTS);
        std::thread::sleep(Duration::from_micros(random.below(60_000)));
        broker.kill();
    }
    let mut broker = Broker::start(folder, &ARGUMENTS);
    let before = clients.acknowledged();
    clients.appear(&broker, round % ROUNDS_AWAY == ROUNDS_AWAY - 1);
    if !random.once_in(4) {
        // Under full load. In the other rounds it is killed while its clients come back.
        wait_until("messages are acknowledged", || {
            clients.acknowledged() > before + 100 || clients.has_failed()
        });
    }
    std::thread::sleep(Duration::from_micros(random.below(200_000)));
    clients.vanish();
    broker.kill();
}

/// Nothing that was acknowledged is missing, nothing at QoS 2 comes twice, all is in order, and sessions stay.
#[test]
fn killed_again_and_again_under_load() {
    let rounds = number_from_environment("DURABILITY_ROUNDS").unwrap_or(ROUNDS);
    let seed = number_from_environment("DURABILITY_SEED").unwrap_or_else(random_seed);
    // Shown if the test fails.
    println!("DURABILITY_SEED={seed}");
    let mut random = Random::new(seed);
    let parent = TemporaryFolder::new("kills");
    let folder = parent.join("data");

    let mut broker = Broker::start(&folder, &ARGUMENTS);
    let clients = Clients::start(&broker, &mut random);
    broker.kill();
    for round in 0..rounds {
        run_round(round, &folder, &clients, &mut random);
        if clients.has_failed() {
            break;
        }
    }
    let mut broker = Broker::start(&folder, &ARGUMENTS);
    clients.appear(&broker, true);
    let totals = clients.finish().unwrap_or_else(|failures| panic!("{failures:#?}"));
    println!("{totals:?}");
    assert!(totals.iter().all(|total| total.count > 0), "there was load at every QoS");

    // Nothing is left behind of all these messages.
    broker.terminate();
    let broker = Broker::start(&folder, &ARGUMENTS);
    let line = broker.line("loaded from ");
    assert!(line.ends_with(" 5 sessions, 3 subscriptions, 0 messages waiting, 0 retained"), "{line}");
}
