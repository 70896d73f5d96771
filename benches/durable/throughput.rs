//! How many messages a second are taken, with a store and without one.

use std::io;
use std::time::Duration;

use crate::Settings;
use crate::bare;
use crate::load::plan::PAYLOAD_BYTES;
use crate::measure::{Awake, BUSY, Process, Sample, Stopwatch, Table, WARM_UP, median};
use crate::place::bytes_on_disk;
use crate::raw::{self, RawSample};
use crate::running::{Running, Usage};
use crate::stored_flow::{Concurrency, StoredFlow};

/// What one round gave.
struct StoreSample {
    sample: Sample,
    usage: Usage,
    /// Bytes of the log that wait for the base at the end.
    log_bytes: u64,
    /// Microseconds from PUBLISH to PUBACK.
    half: f64,
    nearly_all: f64,
}

impl StoreSample {
    fn count(&self) -> f64 {
        self.sample.count.max(1) as f64
    }

    fn per_second(&self) -> f64 {
        self.sample.per_second()
    }
}

/// The broker with a store, as the table calls it.
const DURABLE: &str = "disk";

/// All rounds at one concurrency.
struct Cell {
    concurrency: Concurrency,
    raw: Vec<RawSample>,
    bare: Vec<StoreSample>,
    /// With the subscriber there, with it away; each without a store and with one.
    stores: [[Vec<StoreSample>; 2]; 2],
}

pub(crate) fn run(settings: &Settings) -> io::Result<()> {
    let is_wanted = |concurrency: &Concurrency| {
        settings.concurrency.is_none_or(|messages| messages == concurrency.messages())
    };
    let mut cells: Vec<Cell> = Concurrency::ALL
        .into_iter()
        .filter(is_wanted)
        .map(|concurrency| Cell {
            concurrency,
            raw: Vec::new(),
            bare: Vec::new(),
            stores: Default::default(),
        })
        .collect();
    for round in 1..=settings.rounds {
        for cell in &mut cells {
            let messages = cell.concurrency.messages();
            eprintln!("round {round} of {}: {messages} on their way", settings.rounds);
            let folder = settings.place.folder("raw")?;
            settings.place.settle();
            cell.raw.push(raw::run(&folder, messages, PAYLOAD_BYTES, settings.time)?);
            cell.bare.push(measure_bare(settings, cell.concurrency)?);
            for is_absent in [true, false] {
                for is_durable in [true, false] {
                    let sample = measure(settings, cell.concurrency, is_absent, is_durable)?;
                    cell.stores[usize::from(is_absent)][usize::from(is_durable)].push(sample);
                }
            }
        }
    }
    for is_absent in [true, false] {
        println!(
            "QoS 1 to a stored session whose client is {}\n\n{}",
            if is_absent { "away" } else { "there and acknowledges" },
            table(&cells, is_absent)
        );
    }
    println!(
        "of raw: as a share of the raw disk, which appends what has to be kept of each message, as many in one write as are \
         on their way; it can be passed where deliveries are acknowledged before they are stored, and where raw writes \
         had to wait for others. of bare: as a share of what a server takes that does nothing but store, over the same sockets and \
         with the same load. of memory: as a share of what is taken without a store. of least: as a share of the least of these three. CPU: of all threads of the \
         broker, and of those of its store. log, base: bytes that each of these passes to the system; disk: what the \
         system counts as written, in whole pages or the larger pieces in which it keeps files. Times are from PUBLISH to PUBACK, and for the raw disk those of one \
         write. broker, load: share of one core. log left: what waits for the base at the end. limit: who is busy for {} % \
         of the time; if nobody is, it is the disk, the round trips, or others on the machine.",
        BUSY * 100.0
    );
    Ok(())
}

fn measure(
    settings: &Settings,
    concurrency: Concurrency,
    is_absent: bool,
    is_durable: bool,
) -> io::Result<StoreSample> {
    let _awake = Awake::begin(settings.is_pinned);
    let running = Running::start(settings, is_durable)?;
    let mut flow = StoredFlow::start(running.process.address, concurrency, is_absent)?;
    flow.drive_for(WARM_UP)?;
    flow.take_times();
    let usage = running.usage()?;
    let stopwatch = Stopwatch::start(running.process.pid(), flow.acknowledged())?;
    flow.drive_for(settings.time)?;
    let sample = stopwatch.stop(flow.acknowledged())?;
    let usage = running.usage()?.since(usage);
    let log_bytes = if is_durable { bytes_on_disk(&running.store(), "log-")? } else { 0 };
    let mut times = flow.take_times();
    flow.finish()?;
    Ok(StoreSample { sample, usage, log_bytes, half: times.quantile(0.5), nearly_all: times.quantile(0.99) })
}

/// The same with a server that does nothing but store.
fn measure_bare(settings: &Settings, concurrency: Concurrency) -> io::Result<StoreSample> {
    let _awake = Awake::begin(settings.is_pinned);
    let folder = settings.place.folder("bare")?;
    settings.place.settle();
    let process = Process::start(|address| bare::command(settings.is_pinned, address, &folder))?;
    let mut flow = StoredFlow::start(process.address, concurrency, true)?;
    flow.drive_for(WARM_UP)?;
    flow.take_times();
    let stopwatch = Stopwatch::start(process.pid(), flow.acknowledged())?;
    flow.drive_for(settings.time)?;
    let sample = stopwatch.stop(flow.acknowledged())?;
    let mut times = flow.take_times();
    let (half, nearly_all) = (times.quantile(0.5), times.quantile(0.99));
    Ok(StoreSample { sample, usage: Usage::default(), log_bytes: 0, half, nearly_all })
}

const HEADS: [&str; 20] = [
    "on their way",
    "connections",
    "store",
    "messages/s",
    "of raw",
    "of bare",
    "of memory",
    "of least",
    "CPU us/message",
    "of it store",
    "log B/message",
    "base B/message",
    "disk B/message",
    "messages/commit",
    "p50 us",
    "p99 us",
    "broker",
    "load",
    "log left MB",
    "limit",
];

fn table(cells: &[Cell], is_absent: bool) -> Table {
    let mut table = Table::new(&HEADS);
    for cell in cells {
        let raw = median(&cell.raw, |raw| raw.messages_per_second);
        let bare = median(&cell.bare, StoreSample::per_second);
        let [memory, disk] = &cell.stores[usize::from(is_absent)];
        let in_memory = median(memory, StoreSample::per_second);
        table.add(raw_row(cell.concurrency, &cell.raw));
        let limits = [raw, bare, in_memory];
        table.add(store_row(cell.concurrency, &cell.bare, "bare server", limits));
        table.add(store_row(cell.concurrency, disk, DURABLE, limits));
        table.add(store_row(cell.concurrency, memory, "memory", limits));
    }
    table
}

fn raw_row(concurrency: Concurrency, samples: &[RawSample]) -> Vec<String> {
    let of = |value: fn(&RawSample) -> f64| format!("{:.0}", median(samples, value));
    let mut row = vec!["-".to_owned(); HEADS.len()];
    row[0] = concurrency.messages().to_string();
    row[2] = "raw disk".to_owned();
    row[3] = of(|raw| raw.messages_per_second);
    row[10] = of(|raw| raw.bytes_per_message);
    row[13] = format!("{:.1}", concurrency.messages() as f64);
    row[14] = of(|raw| raw.half);
    row[15] = of(|raw| raw.nearly_all);
    row
}

fn store_row(concurrency: Concurrency, samples: &[StoreSample], name: &str, limits: [f64; 3]) -> Vec<String> {
    let is_durable = name == DURABLE;
    let of = |value: fn(&StoreSample) -> f64| median(samples, value);
    let micros = |value: fn(&StoreSample) -> Duration| {
        median(samples, |sample| value(sample).as_secs_f64() * 1e6 / sample.count())
    };
    let bytes = |value: fn(&Usage) -> u64| {
        let bytes = median(samples, |sample| value(&sample.usage) as f64 / sample.count());
        if is_durable { format!("{bytes:.0}") } else { "-".to_owned() }
    };
    let if_durable = |text: String| if is_durable { text } else { "-".to_owned() };
    let per_second = of(StoreSample::per_second);
    let [raw, bare, in_memory] = limits;
    let broker = of(|sample| sample.sample.broker_share());
    let load = of(|sample| sample.sample.load_share());
    vec![
        concurrency.messages().to_string(),
        concurrency.publishers.to_string(),
        name.to_owned(),
        format!("{per_second:.0}"),
        format!("{:.2}", per_second / raw),
        format!("{:.2}", per_second / bare),
        format!("{:.2}", per_second / in_memory),
        if_durable(format!("{:.2}", per_second / raw.min(bare).min(in_memory))),
        format!("{:.2}", micros(|sample| sample.sample.processor_time)),
        if_durable(format!("{:.2}", micros(|sample| sample.usage.store_time))),
        bytes(|usage| usage.log_bytes),
        bytes(|usage| usage.base_bytes),
        bytes(|usage| usage.disk_bytes),
        if_durable(format!("{:.1}", of(|sample| sample.count() / sample.usage.commits.max(1) as f64))),
        format!("{:.0}", of(|sample| sample.half)),
        format!("{:.0}", of(|sample| sample.nearly_all)),
        format!("{:.0} %", broker * 100.0),
        format!("{:.0} %", load * 100.0),
        if_durable(format!("{:.0}", of(|sample| sample.log_bytes as f64 / 1e6))),
        limit(broker, load, is_durable).to_owned(),
    ]
}

/// Who held up everybody.
fn limit(broker: f64, load: f64, is_durable: bool) -> &'static str {
    match (broker >= BUSY, load >= BUSY) {
        (true, true) => "broker and load",
        (true, false) => "broker",
        (false, true) => "load",
        (false, false) if is_durable => "disk",
        (false, false) => "round trips",
    }
}
