//! The limit on open files: each connection takes one.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the soft limit on open files to the hard one and returns what holds now.
///
/// # Errors
///
/// If the system refuses.
pub fn raise_descriptor_limit() -> io::Result<String> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum {
        setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?;
    }
    Ok(maximum.map_or_else(|| "unlimited".to_owned(), |limit| limit.to_string()))
}
