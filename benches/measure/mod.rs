//! What benchmarks that run a broker as a process have in common: the process, what it uses, and what is made of numbers.
//!
//! Shared by `durable` and `versus`; `growth` has only some of it.
//!
//! Deliberately not here: which broker it is and with which limits, and what is asked of it.

mod absentee;
mod accept;
mod awake;
pub(crate) mod bystander;
mod cores;
mod limits;
pub(crate) mod process;
mod round;
mod setting;
mod stopwatch;
mod system;
mod table;
mod times;
mod words;

pub(crate) use absentee::Absentee;
pub(crate) use accept::accept_all;
pub(crate) use awake::Awake;
pub(crate) use cores::{command, pin};
pub(crate) use limits::LIMITS;
pub(crate) use process::Process;
pub(crate) use round::{WARM_UP, round};
pub(crate) use setting::setting;
pub(crate) use stopwatch::{BUSY, Sample, Stopwatch};
pub(crate) use system::resident_bytes;
pub(crate) use table::{Table, median};
pub(crate) use times::Times;
pub(crate) use words::words;
