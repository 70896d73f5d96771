//! Any bytes as the two messages of a client, and as a file of verifiers: no panic, answers of the right form, and nobody is
//! let in who is not known.

#![no_main]

use std::sync::LazyLock;

use broker::access::{Exchange, Refused, Verifier, Verifiers};
use libfuzzer_sys::fuzz_target;

const NONCE: &str = "server";

const SEED: [u8; 32] = [7; 32];

static VERIFIERS: LazyLock<Verifiers> = LazyLock::new(|| {
    let lines = ["user", "u,=\u{e9}"].map(|name| {
        let verifier = Verifier::from_password("pencil", b"salt", 4_096).expect("a password");
        verifier.to_line(name).expect("a name")
    });
    Verifiers::parse(&lines.join("\n")).expect("lines of verifiers")
});

fuzz_target!(|bytes: &[u8]| {
    // Also as the file of verifiers itself.
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = Verifiers::parse(text);
        let _ = text.parse::<Verifier>();
    }
    // The messages stand on lines, since neither may be cut at will and still be read.
    let mut lines = bytes.split(|byte| *byte == b'\n');
    let (first, last) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let Ok((exchange, answer)) = Exchange::begin(&VERIFIERS, first, NONCE, &SEED) else { return };
    let answer = String::from_utf8(answer).expect("text");
    let nonce = answer.strip_prefix("r=").and_then(|rest| rest.split(',').next()).expect("a nonce");
    assert!(nonce.ends_with(NONCE) && nonce.len() > NONCE.len());
    assert!(answer.ends_with(",i=4096"), "a decoy looks like a user");
    match exchange.finish(last) {
        Ok((user, answer)) => {
            assert!(VERIFIERS.get(&user).is_some());
            assert!(answer.starts_with(b"v="));
        }
        Err(refused) => assert_ne!(refused, Refused::OtherIdentity, "that is found at once"),
    }
});
