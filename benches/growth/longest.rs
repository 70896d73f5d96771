//! The longest single call into the core when much ends or comes at once: so long everybody else has to wait.
//!
//! A call takes one packet, or does what is due in one turn. The core does the same in every run, so the median over all
//! runs is taken call by call, and then the longest of those: whatever else the machine did meanwhile is not in it.

use std::io;
use std::time::Instant;

use broker::broker::ConnectionId;
use broker::clock::Duration;
use broker::codec::QoS;

use crate::chart::{size_text, time_text};
use crate::clients::{
    PROTOCOL, PUBLISHER, connect_bytes, core_with_publisher, disconnect_bytes, ping_bytes, publish_bytes,
    subscribe_bytes, topic, unsubscribe_bytes,
};
use crate::core::{Core, connect};
use crate::queue::{message_bytes, with_absent_subscriber};
use crate::sessions::leave_session;
use crate::table::{Table, median};

const RUNS: usize = 5;

/// Messages that wait, or are retained, and filters in all.
const MANY: u64 = 1_000_000;

/// Filters of one client, and sessions that end at once.
const FILTERS: u64 = 100_000;
const SESSIONS: u64 = 100_000;

const FILTERS_PER_PACKET: usize = 1_000;

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
        self.call(|| core.input(slot, bytes));
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
    let mut table = Table::new(&["", "longest call", "calls", "all of them"]);
    for scenario in [queues, filters, memberships, retained, sessions] {
        let mut runs: Vec<Vec<Calls>> = (0..RUNS).map(|_| scenario()).collect();
        for part in 0..runs[0].len() {
            let calls: Vec<Vec<f32>> =
                runs.iter_mut().map(|run| std::mem::take(&mut run[part].nanos)).collect();
            table.add(row(&runs[0][part].name, &calls));
        }
    }
    println!("\n## Longest call into the core\n\n{table}");
    Ok(())
}

fn row(name: &str, runs: &[Vec<f32>]) -> Vec<String> {
    let count = runs[0].len();
    assert!(runs.iter().all(|run| run.len() == count), "the core does the same in every run");
    let medians = (0..count).map(|call| median(runs, |run| f64::from(run[call])));
    let (longest, sum) =
        medians.fold((0.0_f64, 0.0), |(longest, sum), nanos| (longest.max(nanos), sum + nanos));
    vec![name.to_owned(), time_text(longest), count.to_string(), time_text(sum)]
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
    vec![made, removed, removed_in_parts, lost, many]
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
    vec![waiting, expired]
}
