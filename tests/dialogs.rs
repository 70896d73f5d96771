//! Runs the dialogs of `tests/dialogs` against the core with invented time, against a core that stores, and over TCP against
//! a server. Those in `tests/dialogs/stored` are about storing, and run against the core that does.
//!
//! A dialog is text: who sends which bytes, and what must come back. The notation is described in
//! `tests/dialogs/README.md`. A failure names file, line and what came instead.

mod dialog;

use std::path::Path;

use dialog::core_world::CoreWorld;
use dialog::script::{Dialog, read_dialogs};
use dialog::tcp_world::TcpWorld;

fn dialogs() -> Vec<Dialog> {
    let dialogs = read_dialogs(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/dialogs"));
    assert!(dialogs.len() > 50, "the dialogs are where they should be");
    dialogs
}

/// Fails with every message, so that one run shows all that is wrong.
fn report(failures: &[String], of: usize) {
    assert!(failures.is_empty(), "{} of {of} dialogs failed:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn core() {
    let dialogs = dialogs();
    let failures: Vec<String> =
        dialogs.iter().filter_map(|dialog| dialog.run(&mut CoreWorld::new(&dialog.options)).err()).collect();
    report(&failures, dialogs.len());
}

#[test]
fn core_that_stores() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/dialogs/stored");
    let mut dialogs = dialogs();
    dialogs.extend(read_dialogs(&folder));
    let failures: Vec<String> = dialogs
        .iter()
        .filter_map(|dialog| dialog.run(&mut CoreWorld::stored(&dialog.options)).err())
        .collect();
    report(&failures, dialogs.len());
}

#[test]
fn tcp() {
    let dialogs = dialogs();
    // Most of the time of a dialog is waiting, so many run at once.
    let next = std::sync::atomic::AtomicUsize::new(0);
    let failures: Vec<String> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..16)
            .map(|_| {
                scope.spawn(|| {
                    let mut failures = Vec::new();
                    while let Some(dialog) =
                        dialogs.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
                    {
                        failures.extend(dialog.run(&mut TcpWorld::new(&dialog.options)).err());
                    }
                    failures
                })
            })
            .collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("a worker does not panic")).collect()
    });
    report(&failures, dialogs.len());
}
