//! The client's side of SCRAM-SHA-256 (RFC 5802, RFC 7677), without channel binding and written from the standard alone.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

fn hmac(key: &[u8], text: &str) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("a key of any length");
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().into()
}

/// One exchange.
pub(crate) struct ScramClient {
    password: String,
    nonce: String,
    /// The first message without its header.
    bare: String,
    /// By which a server shows that it knows the verifier.
    server_signature: Option<[u8; 32]>,
}

impl ScramClient {
    pub(crate) fn new(name: &str, password: &str, nonce: &str) -> Self {
        let bare = format!("n={},r={nonce}", name.replace('=', "=3D").replace(',', "=2C"));
        Self { password: password.to_owned(), nonce: nonce.to_owned(), bare, server_signature: None }
    }

    /// The first message.
    pub(crate) fn first(&self) -> Vec<u8> {
        format!("n,,{}", self.bare).into_bytes()
    }

    /// The second message, made from what the server answered to the first one.
    pub(crate) fn last(&mut self, server_first: &[u8]) -> Vec<u8> {
        let server_first = std::str::from_utf8(server_first).expect("text");
        let fields: Vec<&str> = server_first.split(',').collect();
        let [nonce, salt, iterations] = fields[..] else { panic!("three fields: {server_first}") };
        let nonce = nonce.strip_prefix("r=").expect("a nonce");
        assert!(nonce.len() >= self.nonce.len() + 18 && nonce.starts_with(&self.nonce), "{server_first}");
        let salt = BASE64.decode(salt.strip_prefix("s=").expect("a salt")).expect("Base64");
        let iterations: u32 = iterations.strip_prefix("i=").expect("a count").parse().expect("a number");
        assert!(iterations >= 4096, "{server_first}");

        let salted: [u8; 32] =
            pbkdf2::pbkdf2_hmac_array::<Sha256, 32>(self.password.as_bytes(), &salt, iterations);
        let client_key = hmac(&salted, "Client Key");
        let stored_key = Sha256::digest(client_key);
        // "biws" is the Base64 of the header, "n,,".
        let without_proof = format!("c=biws,r={nonce}");
        let signed = format!("{},{server_first},{without_proof}", self.bare);
        let client_signature = hmac(&stored_key, &signed);
        self.server_signature = Some(hmac(&hmac(&salted, "Server Key"), &signed));
        let mut proof = client_key;
        proof.iter_mut().zip(client_signature).for_each(|(byte, other)| *byte ^= other);
        format!("{without_proof},p={}", BASE64.encode(proof)).into_bytes()
    }

    /// Whether the server's last message proves that it knows the verifier.
    pub(crate) fn trusts(&self, server_last: &[u8]) -> bool {
        self.server_signature
            .is_some_and(|signature| server_last == format!("v={}", BASE64.encode(signature)).as_bytes())
    }
}

/// The example of RFC 7677, so that this client and the server do not merely share an error.
#[test]
fn the_example_of_the_standard() {
    let mut client = ScramClient::new("user", "pencil", "rOprNGfwEbeRWgbNEkqO");
    assert_eq!(client.first(), b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO");
    let last = client
        .last(b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096");
    assert_eq!(
        String::from_utf8_lossy(&last),
        "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
         p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
    );
    assert!(client.trusts(b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="));
    assert!(!client.trusts(b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G5="));
}
