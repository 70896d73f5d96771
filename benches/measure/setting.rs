//! What the user sets by the environment.

/// A number from the environment.
pub(crate) fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    match text.parse() {
        Ok(number) => Some(number),
        Err(error) => {
            eprintln!("{name}: {error}; the default is used");
            None
        }
    }
}
