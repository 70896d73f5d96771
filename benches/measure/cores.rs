//! Cores for broker and load.

use std::process::{Command, Stdio};

/// Gives this process the second core, if brokers can be given the first; false if not.
pub(crate) fn pin() -> bool {
    let succeeds = |arguments: &[&str]| {
        Command::new("taskset")
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    };
    succeeds(&["-c", "0", "true"]) && succeeds(&["-p", "-c", "1", &std::process::id().to_string()])
}

/// A command that starts a broker, on the first core if this process has the second.
pub(crate) fn command(program: &str, is_pinned: bool) -> Command {
    if is_pinned {
        // It becomes the program it is given, so the process is the broker's own.
        let mut command = Command::new("taskset");
        command.args(["-c", "0", program]);
        command
    } else {
        Command::new(program)
    }
}
