//! Measures storage engines as the journal of a broker: durable commits of groups of messages.
//!
//! A message is what one message of quality of service 1 costs for one persistent session: a body
//! of 120 bytes under an ascending number, an entry of 16 bytes in the queue of one of 1000
//! sessions, and later the deletion of both, in the order of arrival. Bodies are noise, so that
//! compression gains nothing.
//!
//! For each engine it measures messages a second, the time of a commit (median and 99th of a
//! hundred), processor seconds and bytes written for the messages, space on the disk and resident
//! memory: with a steady number of live messages, few or many, and with insertions only; then how
//! long it takes to open a journal with many live messages and to read them, after a clean close
//! and after the process was killed in the middle of commits. After the kill it checks that all
//! acknowledged commits are there, and none of them in part.
//!
//! Each measurement is made in a process of its own. The engines take turns within a case, in
//! several rounds, whose median is printed.
//!
//! Run: `engines DIRECTORY [SECONDS [ROUNDS [LIVE]]]`; the directory must not exist, is created on
//! the disk to be measured, and is removed at the end. The tables are Markdown.

mod engine;
mod usage;
mod workload;

use std::env;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use engine::{Kind, Outcome};

/// The sizes of a commit, in messages.
const SIZES: [u64; 4] = [1, 16, 256, 4096];
/// The size of a commit where only one is measured.
const SIZE: u64 = 256;
/// The live messages of the case with few.
const FEW: u64 = 10_000;
/// How many times longer the sustained measurement is than the others.
const SUSTAINED: u64 = 7;
/// A million bytes.
const MEGABYTE: f64 = 1e6;

fn main() -> Outcome<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["commits", kind, directory, numbers @ ..] => {
            workload::commits(Kind::named(kind)?, Path::new(directory), parsed(numbers)?)
        }
        ["fill", kind, directory, live] => {
            workload::fill(Kind::named(kind)?, Path::new(directory), live.parse()?)
        }
        ["load", kind, directory] => workload::load(Kind::named(kind)?, Path::new(directory)),
        ["victim", kind, directory, numbers @ ..] => {
            workload::victim(Kind::named(kind)?, Path::new(directory), parsed(numbers)?)
        }
        [directory, rest @ ..] => {
            let number =
                |place: usize, otherwise| rest.get(place).map_or(Ok(otherwise), |word| word.parse::<u64>());
            let benchmark = Benchmark {
                directory: PathBuf::from(directory),
                seconds: number(0, 3)?,
                rounds: number(1, 2)?,
                many: number(2, 1_000_000)?,
            };
            fs::create_dir(&benchmark.directory)?;
            let outcome = benchmark.run();
            fs::remove_dir_all(&benchmark.directory)?;
            outcome
        }
        [] => Err("usage: engines DIRECTORY [SECONDS [ROUNDS [LIVE]]]".into()),
    }
}

/// The numbers on a command line.
fn parsed<const COUNT: usize>(words: &[&str]) -> Outcome<[u64; COUNT]> {
    let numbers = words.iter().map(|word| word.parse()).collect::<Result<Vec<u64>, _>>()?;
    Ok(numbers.try_into().map_err(|_| "too many or few numbers")?)
}

/// What is to be measured.
struct Benchmark {
    /// Where the journals are.
    directory: PathBuf,
    /// The seconds of one measurement.
    seconds: u64,
    /// How many times each is made.
    rounds: u64,
    /// The live messages of the case with many.
    many: u64,
}

/// A child process that measures one engine.
fn child(action: &str, kind: Kind, directory: &Path, numbers: &[u64]) -> Outcome<Command> {
    let mut command = Command::new(env::current_exe()?);
    command.arg(action).arg(kind.name()).arg(directory);
    command.args(numbers.iter().map(u64::to_string));
    Ok(command)
}

/// The numbers a child reports.
fn measured(action: &str, kind: Kind, directory: &Path, numbers: &[u64]) -> Outcome<Vec<f64>> {
    let output = child(action, kind, directory, numbers)?.stderr(Stdio::inherit()).output()?;
    if !output.status.success() {
        return Err(format!("{action} {} failed", kind.name()).into());
    }
    numbers_of(&String::from_utf8(output.stdout)?)
}

/// The numbers in a line.
fn numbers_of(line: &str) -> Outcome<Vec<f64>> {
    Ok(line.split_whitespace().map(str::parse).collect::<Result<_, _>>()?)
}

/// The median of each column.
fn medians(rows: &[Vec<f64>]) -> Vec<f64> {
    (0..rows[0].len())
        .map(|column| {
            let mut values: Vec<f64> = rows.iter().map(|row| row[column]).collect();
            values.sort_by(f64::total_cmp);
            let middle = values.len() / 2;
            if values.len() % 2 == 1 {
                values[middle]
            } else {
                f64::midpoint(values[middle - 1], values[middle])
            }
        })
        .collect()
}

/// Prints the title and the head of a table of commits.
fn commits_head(title: &str) {
    println!("\n## {title}\n");
    println!(
        "| messages a commit | engine | messages/s | spread | median ms | p99 ms | max ms \
         | processor s/million | written B/message | device B/message | flushes/commit \
         | disk MB | resident peak MB |"
    );
    println!("|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|");
}

/// Prints a row of a table of commits.
fn commits_row(size: u64, kind: Kind, rows: &[Vec<f64>]) {
    let row = medians(rows);
    let rates = rows.iter().map(|row| row[0]);
    let slowest = rates.clone().fold(f64::INFINITY, f64::min);
    let fastest = rates.fold(0.0, f64::max);
    println!(
        "| {size} | {} | {:.0} | {:.0}% | {:.2} | {:.2} | {:.1} | {:.1} | {:.0} | {:.0} | {:.1} | {:.0} | {:.0} |",
        kind.name(),
        row[0],
        (fastest / slowest - 1.0) * 100.0,
        row[1],
        row[2],
        row[3],
        row[4],
        row[5],
        row[6],
        row[7],
        row[8] / MEGABYTE,
        row[9] / MEGABYTE,
    );
}

/// The engines whose journals can be opened again.
fn reopening() -> impl Iterator<Item = Kind> {
    Kind::ALL.into_iter().filter(|kind| kind.reopens())
}

impl Benchmark {
    /// Measures everything and prints the tables.
    fn run(&self) -> Outcome<()> {
        let kinds: Vec<Kind> = reopening().collect();
        self.fresh(&format!("Steady, {FEW} live"), &kinds, FEW, true)?;
        self.fresh("Insertions only", &Kind::ALL, 0, false)?;
        self.many()
    }

    /// The directory of an engine.
    fn home(&self, kind: Kind) -> PathBuf {
        self.directory.join(kind.name())
    }

    /// Measures commits in journals that are new for each measurement.
    fn fresh(&self, title: &str, kinds: &[Kind], live: u64, deletes: bool) -> Outcome<()> {
        commits_head(title);
        for size in SIZES {
            let mut rows = vec![Vec::new(); kinds.len()];
            for _ in 0..self.rounds {
                for (kind, rows) in kinds.iter().zip(&mut rows) {
                    let home = self.home(*kind);
                    fs::create_dir(&home)?;
                    let numbers = [0, 0, live, size, u64::from(deletes), self.seconds];
                    rows.push(measured("commits", *kind, &home, &numbers)?);
                    fs::remove_dir_all(&home)?;
                }
            }
            for (kind, rows) in kinds.iter().zip(&rows) {
                commits_row(size, *kind, rows);
            }
        }
        Ok(())
    }

    /// Measures commits among many live messages, opening and reading, and what a kill costs.
    fn many(&self) -> Outcome<()> {
        println!("\n## {} live: filling, opening, reading\n", self.many);
        println!(
            "| engine | fill s | close s | disk MB | fill resident peak MB | open cold s \
             | read cold s | open warm s | read warm s | read resident peak MB |"
        );
        println!("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|");
        let kinds: Vec<Kind> = reopening().collect();
        for kind in &kinds {
            let home = self.home(*kind);
            fs::create_dir(&home)?;
            let fill = measured("fill", *kind, &home, &[self.many])?;
            usage::evict(&home)?;
            let cold = measured("load", *kind, &home, &[])?;
            let warm = measured("load", *kind, &home, &[])?;
            println!(
                "| {} | {:.1} | {:.2} | {:.0} | {:.0} | {:.2} | {:.2} | {:.2} | {:.2} | {:.0} |",
                kind.name(),
                fill[0],
                fill[1],
                fill[2] / MEGABYTE,
                fill[3] / MEGABYTE,
                cold[0],
                cold[1],
                warm[0],
                warm[1],
                cold[6] / MEGABYTE,
            );
        }

        commits_head(&format!("Steady, {} live", self.many));
        let mut ranges = vec![(0, self.many); kinds.len()];
        for size in SIZES {
            self.kept(&kinds, &mut ranges, size, self.seconds, self.rounds)?;
        }
        commits_head(&format!("Steady, {} live, sustained for {} s", self.many, self.seconds * SUSTAINED));
        self.kept(&kinds, &mut ranges, SIZE, self.seconds * SUSTAINED, 1)?;

        println!("\n## {} live: killed in the middle of commits of {SIZE}\n", self.many);
        println!(
            "| engine | disk MB | open cold s | read cold s | open again s | commits not acknowledged but there |"
        );
        println!("|---|--:|--:|--:|--:|--:|");
        for (kind, range) in kinds.iter().zip(ranges) {
            self.killed(*kind, range)?;
        }
        Ok(())
    }

    /// Measures commits in journals that are kept from one measurement to the next.
    fn kept(
        &self,
        kinds: &[Kind],
        ranges: &mut [(u64, u64)],
        size: u64,
        seconds: u64,
        rounds: u64,
    ) -> Outcome<()> {
        let mut rows = vec![Vec::new(); kinds.len()];
        for _ in 0..rounds {
            for ((kind, rows), range) in kinds.iter().zip(&mut rows).zip(&mut *ranges) {
                let numbers = [range.0, range.1, self.many, size, 1, seconds];
                let row = measured("commits", *kind, &self.home(*kind), &numbers)?;
                *range = (row[10] as u64, row[11] as u64);
                rows.push(row);
            }
        }
        for (kind, rows) in kinds.iter().zip(&rows) {
            commits_row(size, *kind, rows);
        }
        Ok(())
    }

    /// Kills a process that commits, and measures the next opening.
    fn killed(&self, kind: Kind, (first, next): (u64, u64)) -> Outcome<()> {
        let home = self.home(kind);
        let mut victim =
            child("victim", kind, &home, &[first, next, SIZE])?.stdout(Stdio::piped()).spawn()?;
        let acknowledged = last_words(&mut victim, Duration::from_secs(self.seconds))?;
        let disk = usage::bytes_on_disk(&home)?;
        usage::evict(&home)?;
        let cold = measured("load", kind, &home, &[])?;
        let again = measured("load", kind, &home, &[])?;
        if cold[2] as u64 != self.many {
            return Err(format!("{}: {} live after the kill", kind.name(), cold[2]).into());
        }
        let more = cold[5] - acknowledged;
        if more < 0.0 {
            return Err(format!("{}: lost {more} after the kill", kind.name()).into());
        }
        println!(
            "| {} | {:.0} | {:.2} | {:.2} | {:.2} | {:.1} |",
            kind.name(),
            disk as f64 / MEGABYTE,
            cold[0],
            cold[1],
            again[0],
            more / SIZE as f64,
        );
        fs::remove_dir_all(&home)?;
        Ok(())
    }
}

/// Lets the child commit for a time after its first words, kills it, and returns the next message
/// of the last commit that it acknowledged.
fn last_words(victim: &mut Child, time: Duration) -> Outcome<f64> {
    let mut lines = BufReader::new(victim.stdout.take().ok_or("no output")?).lines();
    let mut last = lines.next().ok_or("no commit at all")??;
    let start = Instant::now();
    while start.elapsed() < time {
        last = lines.next().ok_or("died by itself")??;
    }
    victim.kill()?;
    for line in lines {
        let line = line?;
        if numbers_of(&line)?.len() == 2 {
            last = line;
        }
    }
    victim.wait()?;
    Ok(numbers_of(&last)?[1])
}
