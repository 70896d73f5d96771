//! A core that never sleeps.
//!
//! Whoever writes to a peer that waits on a sleeping core wakes that core. Between the cores of a virtual machine this may
//! take half a millisecond, for which the writer stands still, and all who wait for it. Clients in the field have machines of
//! their own, so here it is no part of what is measured of a broker.
//!
//! It is not free where two cores are one with two threads: what spins on one slows the other down a little. So it is for
//! what is compared with each other under it, and only where broker and load have cores of their own.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

/// Spins until its input ends, which it does at the latest with this process. It says that it has begun.
const SPIN: &str =
    "while :; do :; done & trap 'kill $!' EXIT; trap 'exit 1' HUP INT TERM; echo awake; read -r _; exit 0";

/// Keeps the core of the load awake until it is dropped, and steps back for whoever else wants it. It is a process, so
/// that its time is not taken for the load's.
pub(crate) struct Awake(Option<Child>);

impl Awake {
    /// Has no effect if the load has no core of its own.
    pub(crate) fn begin(is_pinned: bool) -> Self {
        if !is_pinned {
            return Self(None);
        }
        let mut command = Command::new("chrt");
        command.args(["--idle", "0", "sh", "-c", SPIN]).stderr(Stdio::null());
        // What ends it is the end of its input: a signal to the group of this process would miss the part that spins.
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0);
        let mut child = command.spawn().ok();
        let output = child.as_mut().and_then(|child| child.stdout.take());
        let mut line = [0; "awake\n".len()];
        let is_awake = output.is_some_and(|mut output| output.read_exact(&mut line).is_ok());
        if !is_awake {
            eprintln!("without chrt, and the right to use it, waking the load is part of what is measured");
        }
        Self(child)
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            drop(child.stdin.take());
            // Nothing of it is needed any more.
            let _ = child.wait();
        }
    }
}
