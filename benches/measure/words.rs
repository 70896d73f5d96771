//! What the user asks for on the command line.

/// The words of the command line, or none if this is no benchmark: `cargo test` runs benches to see that they start.
pub(crate) fn words() -> Option<Vec<String>> {
    let (options, words): (Vec<_>, Vec<_>) =
        std::env::args().skip(1).partition(|argument| argument.starts_with('-'));
    options.iter().any(|option| option == "--bench").then_some(words)
}
