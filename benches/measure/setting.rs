//! What the user asks for: by the environment, and by words on the command line.

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

/// The words of the command line, or none if this is no benchmark: `cargo test` runs benches to see that they start.
pub(crate) fn words() -> Option<Vec<String>> {
    let (options, words): (Vec<_>, Vec<_>) =
        std::env::args().skip(1).partition(|argument| argument.starts_with('-'));
    options.iter().any(|option| option == "--bench").then_some(words)
}
