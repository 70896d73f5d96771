//! SCRAM-SHA-256 without channel binding, the server's side: RFC 5802 with the hash of RFC 7677.
//!
//! ```text
//! client                                               server
//! n,,n=user,r=CLIENT_NONCE                        ──>  Exchange::begin
//!                                                 <──  r=BOTH_NONCES,s=SALT,i=ITERATIONS
//! c=biws,r=BOTH_NONCES,p=PROOF                    ──>  Exchange::finish
//!                                                 <──  v=SIGNATURE
//! ```
//!
//! Owns the [`Verifiers`], which are what the server keeps instead of passwords, and the [`Exchange`], which holds what
//! must be remembered between the two messages of a client: less than 8 KiB, however long the messages are.
//!
//! Nobody learns from an exchange which names exist. A name without a verifier gets a decoy, made from a seed and the
//! name, and is refused only at the end, by the same steps and with the same [`Refused::BadCredentials`] as a wrong
//! proof.
//!
//! Names and passwords are prepared with SASLprep (RFC 4013), so that two ways to write the same text count as one. A
//! password that may not be prepared is refused. A name that may not be is compared as it stands.
//!
//! Deliberately not here: channel binding, which would need TLS, making nonces, reading the file of verifiers, and
//! whatever carries the messages. The cryptography is that of the crates `hmac`, `sha2`, `pbkdf2` and `subtle`.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::hint::black_box;
use std::ops::RangeInclusive;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

/// The name of the method, as clients ask for it and verifiers begin with it.
pub const METHOD: &str = "SCRAM-SHA-256";

/// How often a password may be hashed. The lower bound is that of RFC 7677; the upper one keeps a slip of the pen from
/// locking clients up.
pub const ITERATIONS: RangeInclusive<u32> = 4096..=10_000_000;

/// The longest name of a user, in bytes of UTF-8.
pub const NAME_BYTES_MAX: usize = 1024;

/// The longest nonce of a client, in bytes.
pub const NONCE_BYTES_MAX: usize = 1024;

/// How long a salt may be, in bytes.
const SALT_BYTES: RangeInclusive<usize> = 1..=1024;

const KEY_BYTES: usize = 32;

type Key = [u8; KEY_BYTES];

/// What the server keeps instead of a password: enough to check a proof, not enough to make one.
///
/// Its text, as [`Display`](fmt::Display) writes and [`FromStr`] reads it, is
/// `SCRAM-SHA-256$ITERATIONS:SALT$STORED_KEY:SERVER_KEY` with salt and keys in Base64, the form that PostgreSQL uses.
/// Whoever has it can try passwords without the server's noticing, and pose as the server, so it is a secret;
/// [`Debug`](fmt::Debug) does not show the keys.
#[derive(Clone, PartialEq, Eq)]
pub struct Verifier {
    iterations: u32,
    salt: Box<[u8]>,
    stored_key: Key,
    server_key: Key,
}

impl Verifier {
    /// The verifier of a password. It takes time in proportion to the iterations, of the order of a second for
    /// ten million.
    ///
    /// The salt should be 16 random bytes, new for each verifier.
    ///
    /// # Errors
    ///
    /// If the password is empty or holds what SASLprep forbids (control characters, unassigned or private characters,
    /// letters that run left to right together with such that run right to left), if the salt has no byte or more than
    /// 1,024, or if the iterations are out of bounds.
    pub fn from_password(password: &str, salt: &[u8], iterations: u32) -> Result<Self, VerifierError> {
        let password = stringprep::saslprep(password).map_err(|_| {
            problem("the password holds a character, or a mixture of characters, that SASLprep forbids; choose another")
        })?;
        if password.is_empty() {
            return Err(problem("the password is empty; choose one with at least one visible character"));
        }
        check_iterations(iterations)?;
        check_salt(salt)?;
        let salted: Key =
            pbkdf2::pbkdf2_hmac_array::<Sha256, KEY_BYTES>(password.as_bytes(), salt, iterations);
        let client_key = hmac_of(&salted, &[b"Client Key"]);
        Ok(Self {
            iterations,
            salt: salt.into(),
            stored_key: Sha256::digest(client_key).into(),
            server_key: hmac_of(&salted, &[b"Server Key"]),
        })
    }

    /// The line of a file of verifiers that gives this one to a name, without a line break.
    ///
    /// # Errors
    ///
    /// If the name cannot stand in such a file; see [`Verifiers`].
    pub fn to_line(&self, name: &str) -> Result<String, VerifierError> {
        check_name(name)?;
        Ok(format!("{name}:{self}"))
    }
}

impl fmt::Display for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{METHOD}${}:{}${}:{}",
            self.iterations,
            BASE64.encode(&self.salt),
            BASE64.encode(self.stored_key),
            BASE64.encode(self.server_key)
        )
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").field("iterations", &self.iterations).finish_non_exhaustive()
    }
}

impl FromStr for Verifier {
    type Err = VerifierError;

    fn from_str(text: &str) -> Result<Self, VerifierError> {
        // The text is never repeated in an error: it may be a password, put here by mistake.
        let Some(fields) = text.strip_prefix(METHOD).and_then(|rest| rest.strip_prefix('$')) else {
            return Err(problem(
                "the verifier does not begin with 'SCRAM-SHA-256$'; other methods and plain passwords are not \
                 accepted, so make a SCRAM-SHA-256 verifier of the password",
            ));
        };
        let halves = fields
            .split_once('$')
            .and_then(|(how, keys)| Some((how.split_once(':')?, keys.split_once(':')?)));
        let Some(((iterations, salt), (stored_key, server_key))) = halves else {
            return Err(problem(
                "the verifier has not all its parts; write SCRAM-SHA-256$ITERATIONS:SALT$STORED_KEY:SERVER_KEY",
            ));
        };
        let digits = !iterations.is_empty() && iterations.bytes().all(|byte| byte.is_ascii_digit());
        if !digits {
            return Err(problem("the iterations are not a number; write digits only, such as 4096"));
        }
        // Too large for the type is too large for us.
        let iterations = iterations.parse().unwrap_or(u32::MAX);
        check_iterations(iterations)?;
        let salt = decode_field(salt, "salt")?;
        check_salt(&salt)?;
        Ok(Self {
            iterations,
            salt: salt.into(),
            stored_key: decode_key(stored_key, "stored key")?,
            server_key: decode_key(server_key, "server key")?,
        })
    }
}

fn check_iterations(iterations: u32) -> Result<(), VerifierError> {
    if ITERATIONS.contains(&iterations) {
        return Ok(());
    }
    let (low, high) = (ITERATIONS.start(), ITERATIONS.end());
    Err(problem(format!("the iterations are out of bounds; make the verifier again with {low} to {high}")))
}

fn check_salt(salt: &[u8]) -> Result<(), VerifierError> {
    if SALT_BYTES.contains(&salt.len()) {
        return Ok(());
    }
    let (low, high) = (SALT_BYTES.start(), SALT_BYTES.end());
    Err(problem(format!("the salt has {} bytes; make the verifier again with {low} to {high}", salt.len())))
}

/// Whether a name can stand in a file of verifiers.
fn check_name(name: &str) -> Result<(), VerifierError> {
    Err(problem(match name {
        "" => "there is no name before the first ':'; write NAME:VERIFIER".to_owned(),
        _ if name.len() > NAME_BYTES_MAX => {
            format!("the name has {} bytes; use one of at most {NAME_BYTES_MAX}", name.len())
        }
        _ if name.contains([':', '\r', '\n', '\0']) => {
            "the name holds a ':', a line break or a NUL character; use a name without".to_owned()
        }
        _ if name.starts_with('#') => {
            "the name begins with '#', which makes its line a comment; use another name".to_owned()
        }
        _ => return Ok(()),
    }))
}

fn decode_field(text: &str, what: &str) -> Result<Vec<u8>, VerifierError> {
    BASE64.decode(text).map_err(|_| {
        problem(format!(
            "the {what} is not Base64 with padding; copy the whole line again, or make a new verifier"
        ))
    })
}

fn decode_key(text: &str, what: &str) -> Result<Key, VerifierError> {
    let bytes = decode_field(text, what)?;
    let length = bytes.len();
    bytes.try_into().map_err(|_| {
        problem(format!(
            "the {what} has {length} bytes and not {KEY_BYTES}; copy the whole line again, or make a new verifier"
        ))
    })
}

/// What is wrong with a verifier, where, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifierError {
    line: Option<usize>,
    problem: Cow<'static, str>,
}

impl VerifierError {
    /// The number of the line in its file, from 1, if there is a file.
    pub fn line(&self) -> Option<usize> {
        self.line
    }
}

impl fmt::Display for VerifierError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        f.write_str(&self.problem)
    }
}

impl std::error::Error for VerifierError {}

fn problem(problem: impl Into<Cow<'static, str>>) -> VerifierError {
    VerifierError { line: None, problem: problem.into() }
}

/// Every user's verifier, by name.
///
/// The text it is read from has one line for each user:
///
/// ```text
/// NAME:SCRAM-SHA-256$ITERATIONS:SALT$STORED_KEY:SERVER_KEY
/// ```
///
/// Lines that begin with `#` and lines without a visible character are left out. A name may hold any character but
/// `:`, line breaks and NUL, has 1,024 bytes at most, and does not begin with `#`; spaces belong to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verifiers {
    /// Names as they were written, in the order of the text.
    users: Vec<(String, Verifier)>,
    /// The positions of users by their prepared names.
    positions: BTreeMap<String, usize>,
}

impl Verifiers {
    /// Reads the text of a file of verifiers.
    ///
    /// # Errors
    ///
    /// The first line that is neither a user nor left out, or whose name an earlier line has.
    pub fn parse(text: &str) -> Result<Self, VerifierError> {
        let mut verifiers = Self::default();
        let mut lines = Vec::new();
        // Some editors write a byte order mark, which nobody sees in a name.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        for (number, line) in (1..).zip(text.lines()) {
            if line.starts_with('#') || line.trim().is_empty() {
                continue;
            }
            let (name, verifier) =
                parse_line(line).map_err(|error| VerifierError { line: Some(number), ..error })?;
            match verifiers.positions.entry(prepare_name(name).into_owned()) {
                Entry::Vacant(vacant) => {
                    vacant.insert(verifiers.users.len());
                    verifiers.users.push((name.to_owned(), verifier));
                    lines.push(number);
                }
                Entry::Occupied(occupied) => {
                    let problem = format!(
                        "the name '{}' is that of line {}; remove one of the two lines",
                        name.escape_debug(),
                        lines[*occupied.get()]
                    );
                    return Err(VerifierError { line: Some(number), problem: problem.into() });
                }
            }
        }
        Ok(verifiers)
    }

    /// How many users there are.
    pub fn len(&self) -> usize {
        self.users.len()
    }

    /// Whether there is no user.
    pub fn is_empty(&self) -> bool {
        self.users.is_empty()
    }

    /// The verifier of a name.
    pub fn get(&self, name: &str) -> Option<&Verifier> {
        self.find(&prepare_name(name)).map(|(_, verifier)| verifier)
    }

    /// A seed for [`Exchange::begin`] that only who has the verifiers can know, and that stays the same as long as
    /// they do, through any number of restarts. Without users everybody can know it, but then there is no name to hide.
    pub fn decoy_seed(&self) -> [u8; 32] {
        let mut mac = keyed(b"decoy seed");
        for (_, verifier) in &self.users {
            mac.update(&verifier.stored_key);
            mac.update(&verifier.server_key);
        }
        mac.finalize().into_bytes().into()
    }

    fn find(&self, prepared: &str) -> Option<&(String, Verifier)> {
        self.positions.get(prepared).map(|position| &self.users[*position])
    }

    /// The verifier of a name that has none: nobody has its password, and it looks like one of the others.
    fn decoy(&self, seed: &[u8; 32], prepared: &str) -> Verifier {
        let part = |what: &[u8]| hmac_of(seed, &[what, prepared.as_bytes()]);
        // Iterations and salts are as frequent among decoys as among users.
        let like = match self.users.len() as u64 {
            0 => None,
            count => {
                let number =
                    part(b"like:").iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte));
                Some(&self.users[(number % count) as usize].1)
            }
        };
        let mut salt = vec![0; like.map_or(16, |verifier| verifier.salt.len())];
        for (number, chunk) in (0_u8..).zip(salt.chunks_mut(KEY_BYTES)) {
            chunk.copy_from_slice(&part(&[b's', number, b':'])[..chunk.len()]);
        }
        Verifier {
            iterations: like.map_or(*ITERATIONS.start(), |verifier| verifier.iterations),
            salt: salt.into(),
            stored_key: part(b"stored key:"),
            server_key: part(b"server key:"),
        }
    }
}

fn parse_line(line: &str) -> Result<(&str, Verifier), VerifierError> {
    let Some((name, verifier)) = line.split_once(':') else {
        return Err(problem(
            "there is no ':' between a name and its verifier; write \
             NAME:SCRAM-SHA-256$ITERATIONS:SALT$STORED_KEY:SERVER_KEY, or '#' before a comment",
        ));
    };
    check_name(name)?;
    Ok((name, verifier.trim_end().parse()?))
}

/// The form in which names are compared. A name that SASLprep forbids or leaves nothing of is its own form.
fn prepare_name(name: &str) -> Cow<'_, str> {
    match stringprep::saslprep(name) {
        Ok(prepared) if !prepared.is_empty() => prepared,
        _ => Cow::Borrowed(name),
    }
}

/// Why a client was not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refused {
    /// The message is not what the exchange expects here, for the reason in these words.
    Malformed(&'static str),
    /// The name has no verifier, or the proof is not that of its password; nothing tells which.
    BadCredentials,
    /// The client asks to act as another user than the one that it proves to be.
    OtherIdentity,
    /// The client asks for channel binding, or its second message repeats something else than its first one said about
    /// it.
    ChannelBinding,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(what) => write!(f, "malformed SCRAM message: {what}"),
            Self::BadCredentials => f.write_str("unknown user or wrong password"),
            Self::OtherIdentity => f.write_str("asks to act as another user"),
            Self::ChannelBinding => {
                f.write_str("channel binding is not available, or differs between two messages")
            }
        }
    }
}

impl std::error::Error for Refused {}

/// An exchange that has begun and waits for the client's second message.
pub struct Exchange {
    /// The name as the verifiers have it, or as the client wrote it if they have none.
    user: String,
    /// Whether the verifiers have the name. If not, all else is made from a decoy.
    known: bool,
    stored_key: Key,
    signatures: Signatures,
    /// The client's and the server's nonce in one.
    nonce: String,
    /// What the second message has to say about channel binding: the Base64 of the first one's header.
    channel_binding: String,
}

impl Exchange {
    /// Reads a client's first message and answers with the server's first message.
    ///
    /// The nonce of the server must never have been used before and must not be foreseeable: 18 random bytes or more,
    /// in Base64. The seed of decoys must be a secret and should stay the same as long as the verifiers do, as
    /// [`Verifiers::decoy_seed`] does: the salt of a user does not change, so that of a decoy should not either.
    ///
    /// # Errors
    ///
    /// Everything but [`Refused::BadCredentials`].
    ///
    /// # Panics
    ///
    /// If the server's nonce is empty or has other bytes than visible ASCII without the comma, which is the caller's
    /// mistake and not the peer's.
    pub fn begin(
        verifiers: &Verifiers,
        client_first: &[u8],
        server_nonce: &str,
        decoy_seed: &[u8; 32],
    ) -> Result<(Self, Vec<u8>), Refused> {
        assert!(is_nonce(server_nonce), "a server's nonce is visible ASCII without a comma");
        let first = ClientFirst::parse(client_first)?;
        let prepared = prepare_name(&first.name);
        if !first.identity.is_empty() && prepare_name(&first.identity) != prepared {
            return Err(Refused::OtherIdentity);
        }

        // Made for every name, so that known and unknown ones take the same time.
        let decoy = black_box(verifiers.decoy(decoy_seed, &prepared));
        let found = verifiers.find(&prepared);
        let (user, verifier) = found.map_or((&first.name, &decoy), |(name, verifier)| (name, verifier));

        let nonce = format!("{}{server_nonce}", first.nonce);
        let server_first = format!("r={nonce},s={},i={}", BASE64.encode(&verifier.salt), verifier.iterations);
        let mut signatures =
            Signatures { client: keyed(&verifier.stored_key), server: keyed(&verifier.server_key) };
        signatures.update(&[first.bare, ",", &server_first, ","]);
        let channel_binding = BASE64.encode(first.header);
        let exchange = Self {
            user: user.clone(),
            known: found.is_some(),
            stored_key: verifier.stored_key,
            signatures,
            nonce,
            channel_binding,
        };
        Ok((exchange, server_first.into_bytes()))
    }

    /// Reads the client's second message. Returns the name of the user, as the verifiers have it, and the server's
    /// second message, by which the client knows that the server has its verifier.
    ///
    /// # Errors
    ///
    /// Everything but [`Refused::OtherIdentity`]. The exchange is over; another try begins a new one.
    pub fn finish(mut self, client_final: &[u8]) -> Result<(String, Vec<u8>), Refused> {
        let last = ClientFinal::parse(client_final)?;
        if last.channel_binding != self.channel_binding {
            return Err(Refused::ChannelBinding);
        }
        if last.nonce != self.nonce {
            return Err(Refused::Malformed("the nonce is not that of this exchange"));
        }
        self.signatures.update(&[last.without_proof]);
        let mut client_key: Key = self.signatures.client.finalize().into_bytes().into();
        for (byte, proof) in client_key.iter_mut().zip(last.proof) {
            *byte ^= proof;
        }
        let stored_key: Key = Sha256::digest(client_key).into();
        let proven = stored_key.ct_eq(&self.stored_key) & Choice::from(u8::from(self.known));
        if !bool::from(proven) {
            return Err(Refused::BadCredentials);
        }
        let signature = BASE64.encode(self.signatures.server.finalize().into_bytes());
        Ok((self.user, format!("v={signature}").into_bytes()))
    }
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exchange")
            .field("user", &self.user)
            .field("known", &self.known)
            .finish_non_exhaustive()
    }
}

/// The signatures of client and server, as far as what they sign is known. Kept instead of the messages, because it is
/// smaller.
struct Signatures {
    client: Hmac<Sha256>,
    server: Hmac<Sha256>,
}

impl Signatures {
    fn update(&mut self, parts: &[&str]) {
        for part in parts {
            self.client.update(part.as_bytes());
            self.server.update(part.as_bytes());
        }
    }
}

fn keyed(key: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("HMAC takes keys of any length")
}

fn hmac_of(key: &[u8], parts: &[&[u8]]) -> Key {
    let mut mac = keyed(key);
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

/// A client's first message: `n,[a=IDENTITY],n=NAME,r=NONCE[,EXTENSIONS]`.
struct ClientFirst<'a> {
    /// Everything up to the second comma and with it.
    header: &'a str,
    /// Everything behind the header.
    bare: &'a str,
    /// Whom the client wants to act as; empty if it does not say.
    identity: String,
    name: String,
    nonce: &'a str,
}

impl<'a> ClientFirst<'a> {
    fn parse(message: &'a [u8]) -> Result<Self, Refused> {
        let message = message_text(message)?;
        let no_header = Refused::Malformed("the header does not end");
        let (flag, rest) = message.split_once(',').ok_or(no_header)?;
        match flag {
            // The client cannot bind the channel, or thinks that we cannot, in which it is right.
            "n" | "y" => {}
            _ if flag.starts_with("p=") => return Err(Refused::ChannelBinding),
            _ => return Err(Refused::Malformed("it does not begin with 'n' or 'y'")),
        }
        let (identity, bare) = rest.split_once(',').ok_or(no_header)?;
        let header = &message[..message.len() - bare.len()];
        let identity = match identity.strip_prefix("a=") {
            Some(identity) => decode_name(identity)?,
            None if identity.is_empty() => String::new(),
            None => return Err(Refused::Malformed("the header has something else than an identity")),
        };

        let mut attributes = bare.split(',');
        let name = attribute(attributes.next(), "n=", "no name")?;
        if name.is_empty() {
            return Err(Refused::Malformed("the name is empty"));
        }
        let name = decode_name(name)?;
        let nonce = attribute(attributes.next(), "r=", "no nonce")?;
        if !is_nonce(nonce) {
            return Err(Refused::Malformed("the nonce is empty or has bytes that it may not have"));
        }
        if nonce.len() > NONCE_BYTES_MAX {
            return Err(Refused::Malformed("the nonce is too long"));
        }
        check_extensions(attributes)?;
        Ok(Self { header, bare, identity, name, nonce })
    }
}

/// A client's second message: `c=CHANNEL_BINDING,r=NONCE[,EXTENSIONS],p=PROOF`.
struct ClientFinal<'a> {
    /// Everything before the comma before the proof.
    without_proof: &'a str,
    channel_binding: &'a str,
    nonce: &'a str,
    proof: Key,
}

impl<'a> ClientFinal<'a> {
    fn parse(message: &'a [u8]) -> Result<Self, Refused> {
        let message = message_text(message)?;
        let no_proof = "no proof at the end";
        let (without_proof, proof) = message.rsplit_once(',').ok_or(Refused::Malformed(no_proof))?;
        let proof = attribute(Some(proof), "p=", no_proof)?;
        let proof = BASE64.decode(proof).ok().and_then(|bytes| bytes.try_into().ok());
        let proof = proof.ok_or(Refused::Malformed("the proof is not Base64 of 32 bytes"))?;

        let mut attributes = without_proof.split(',');
        let channel_binding = attribute(attributes.next(), "c=", "no channel binding")?;
        let nonce = attribute(attributes.next(), "r=", "no nonce")?;
        check_extensions(attributes)?;
        Ok(Self { without_proof, channel_binding, nonce, proof })
    }
}

fn message_text(message: &[u8]) -> Result<&str, Refused> {
    let text = str::from_utf8(message).map_err(|_| Refused::Malformed("not UTF-8"))?;
    if text.contains('\0') { Err(Refused::Malformed("it holds a NUL character")) } else { Ok(text) }
}

/// The value of the attribute that has to come next.
fn attribute<'a>(text: Option<&'a str>, letter: &str, missing: &'static str) -> Result<&'a str, Refused> {
    let text = text.unwrap_or_default();
    match text.strip_prefix(letter) {
        Some(value) => Ok(value),
        None if text.starts_with("m=") => Err(MANDATORY_EXTENSION),
        None => Err(Refused::Malformed(missing)),
    }
}

const MANDATORY_EXTENSION: Refused = Refused::Malformed("it needs an extension that is not known");

/// Attributes that we do not know may stand behind the known ones and mean nothing to us.
fn check_extensions<'a>(attributes: impl Iterator<Item = &'a str>) -> Result<(), Refused> {
    for text in attributes {
        match text.as_bytes() {
            [b'm', b'=', ..] => return Err(MANDATORY_EXTENSION),
            // A known letter in the wrong place may be an attempt to have the message read in two ways.
            [b'a' | b'c' | b'e' | b'i' | b'n' | b'p' | b'r' | b's' | b'v', b'=', ..] => {
                return Err(Refused::Malformed("an attribute stands where it may not"));
            }
            [letter, b'=', _, ..] if letter.is_ascii_alphabetic() => {}
            _ => return Err(Refused::Malformed("an extension has no letter or no value")),
        }
    }
    Ok(())
}

/// A name in which `=2C` stands for a comma and `=3D` for an equals sign.
fn decode_name(text: &str) -> Result<String, Refused> {
    let mut parts = text.split('=');
    let mut name = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (character, rest) = match (part.strip_prefix("2C"), part.strip_prefix("3D")) {
            (Some(rest), _) => (',', rest),
            (_, Some(rest)) => ('=', rest),
            _ => return Err(Refused::Malformed("a name has '=' without 2C or 3D behind it")),
        };
        name.push(character);
        name.push_str(rest);
    }
    if name.len() > NAME_BYTES_MAX { Err(Refused::Malformed("a name is too long")) } else { Ok(name) }
}

/// Whether a text can be a nonce: visible ASCII without the comma.
fn is_nonce(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b',')
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEED: [u8; 32] = [7; 32];
    const SERVER_NONCE: &str = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
    /// The verifier of "pencil", made by another program.
    const PENCIL: &str = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:\
                          wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";
    const FIRST: &str = "n,,n=user,r=rOprNGfwEbeRWgbNEkqO";
    const FINAL: &str = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                         p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";

    fn pencil_for(names: &[&str]) -> Verifiers {
        let lines: Vec<String> = names.iter().map(|name| format!("{name}:{PENCIL}\n")).collect();
        Verifiers::parse(&lines.concat()).expect("a good file")
    }

    fn begin(verifiers: &Verifiers, first: &str) -> Result<(Exchange, String), Refused> {
        let (exchange, answer) = Exchange::begin(verifiers, first.as_bytes(), SERVER_NONCE, &SEED)?;
        Ok((exchange, String::from_utf8(answer).expect("an answer is text")))
    }

    /// Why a whole exchange of these two messages fails, or the user.
    fn judge(verifiers: &Verifiers, first: &str, last: &str) -> Result<String, Refused> {
        let (exchange, _) = begin(verifiers, first)?;
        exchange.finish(last.as_bytes()).map(|(user, _)| user)
    }

    /// The client's side, with a password that needs no preparation.
    struct Client<'a> {
        header: &'a str,
        bare: &'a str,
        password: &'a str,
    }

    impl Client<'_> {
        fn first(&self) -> String {
            format!("{}{}", self.header, self.bare)
        }

        /// The second message with some more attributes, and the answer that proves the server.
        fn last(&self, server_first: &str, more: &str) -> (String, String) {
            let fields: Vec<&str> = server_first.split(',').collect();
            let &[nonce, salt, iterations] = fields.as_slice() else {
                panic!("not three fields: {server_first}")
            };
            assert!(nonce.starts_with("r=") && salt.starts_with("s=") && iterations.starts_with("i="));
            let salt = BASE64.decode(&salt[2..]).expect("a salt in Base64");
            let iterations = iterations[2..].parse().expect("a number of iterations");
            let salted: Key =
                pbkdf2::pbkdf2_hmac_array::<Sha256, 32>(self.password.as_bytes(), &salt, iterations);

            let without_proof = format!("c={},{nonce}{more}", BASE64.encode(self.header));
            let signed = format!("{},{server_first},{without_proof}", self.bare);
            let client_key = hmac_of(&salted, &[b"Client Key"]);
            let stored_key: Key = Sha256::digest(client_key).into();
            let signature = hmac_of(&stored_key, &[signed.as_bytes()]);
            let proof: Vec<u8> = client_key.iter().zip(signature).map(|(key, byte)| key ^ byte).collect();
            let server_key = hmac_of(&salted, &[b"Server Key"]);
            let answer = format!("v={}", BASE64.encode(hmac_of(&server_key, &[signed.as_bytes()])));
            (format!("{without_proof},p={}", BASE64.encode(proof)), answer)
        }

        fn run(&self, verifiers: &Verifiers, more: &str) -> Result<String, Refused> {
            let (exchange, server_first) = begin(verifiers, &self.first())?;
            let (last, expected) = self.last(&server_first, more);
            let (user, answer) = exchange.finish(last.as_bytes())?;
            assert_eq!(answer, expected.as_bytes());
            Ok(user)
        }
    }

    #[test]
    fn the_published_exchange() {
        let salt = BASE64.decode("W22ZaJ0SNY7soEsUEjb6gQ==").expect("the published salt");
        let verifier = Verifier::from_password("pencil", &salt, 4096).expect("a good password");
        assert_eq!(verifier.to_string(), PENCIL);
        let line = verifier.to_line("user").expect("a good name");
        let verifiers = Verifiers::parse(&line).expect("a good file");

        let (exchange, server_first) = begin(&verifiers, FIRST).expect("a good message");
        assert_eq!(
            server_first,
            "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
        );
        let (user, answer) = exchange.finish(FINAL.as_bytes()).expect("the right proof");
        assert_eq!(user, "user");
        assert_eq!(answer, b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
    }

    #[test]
    fn a_client_of_our_own() {
        let verifiers = pencil_for(&["user", "a,b=c", "Jürgen", "spaces within "]);
        for (header, bare, user) in [
            ("n,,", "n=user,r=abc", "user"),
            ("y,,", "n=user,r=!\"=~", "user"),
            ("n,a=,", "n=user,r=abc", "user"),
            ("n,a=user,", "n=user,r=abc", "user"),
            ("y,a=a=2Cb=3Dc,", "n=a=2Cb=3Dc,r=abc", "a,b=c"),
            ("n,,", "n=Jürgen,r=abc,x=an extension,Z==,y=ü", "Jürgen"),
            ("n,,", "n=Ju\u{308}rgen,r=abc", "Jürgen"),
            ("n,a=Ju\u{308}rgen,", "n=Jürgen,r=abc", "Jürgen"),
            ("n,,", "n=spaces within ,r=abc", "spaces within "),
        ] {
            for more in ["", ",x=1", ",x=p=,y=2"] {
                let client = Client { header, bare, password: "pencil" };
                assert_eq!(client.run(&verifiers, more).as_deref(), Ok(user), "{header}{bare} {more}");
                let client = Client { password: "Pencil", ..client };
                assert_eq!(
                    client.run(&verifiers, more),
                    Err(Refused::BadCredentials),
                    "{header}{bare} {more}"
                );
            }
        }
    }

    #[test]
    fn an_unknown_user_is_refused_at_the_end_only() {
        let verifiers = pencil_for(&["user"]);
        for bare in
            ["n=nobody,r=abc", "n=User,r=abc", "n=user ,r=abc", "n=a:b,r=abc", "n=#,r=abc", "n=\u{7},r=abc"]
        {
            for password in ["pencil", ""] {
                let client = Client { header: "n,,", bare, password };
                assert_eq!(client.run(&verifiers, ""), Err(Refused::BadCredentials), "{bare}");
                assert_eq!(client.run(&Verifiers::default(), ""), Err(Refused::BadCredentials), "{bare}");
            }
        }
    }

    #[test]
    fn a_decoy_is_refused_even_by_its_own_keys() {
        // Nobody can have the key behind a decoy's stored key; here the exchange is given one.
        let verifiers = pencil_for(&["user"]);
        let client = Client { header: "n,,", bare: "n=nobody,r=abc", password: "pencil" };
        let (mut exchange, server_first) = begin(&verifiers, &client.first()).expect("a good message");
        let (last, _) = client.last(&server_first, "");
        let (signed, _) = last.rsplit_once(",p=").expect("a proof");
        let client_key = [1; 32];
        exchange.stored_key = Sha256::digest(client_key).into();
        exchange.signatures.client = keyed(&exchange.stored_key);
        let signature = hmac_of(&exchange.stored_key, &[signed.as_bytes()]);
        let proof: Vec<u8> = client_key.iter().zip(signature).map(|(key, byte)| key ^ byte).collect();
        let last = format!("{signed},p={}", BASE64.encode(proof));
        assert_eq!(exchange.finish(last.as_bytes()), Err(Refused::BadCredentials));
    }

    #[test]
    fn decoys_look_like_users() {
        let answer = |verifiers: &Verifiers, name: &str, seed: &[u8; 32]| {
            let first = format!("n,,n={name},r=abc");
            let (_, answer) =
                Exchange::begin(verifiers, first.as_bytes(), SERVER_NONCE, seed).expect("a good message");
            String::from_utf8(answer).expect("an answer is text")
        };
        let verifiers = pencil_for(&["user"]);
        let [one, again] = [(); 2].map(|()| answer(&verifiers, "one", &SEED));
        assert_eq!(one, again);
        assert_ne!(one, answer(&verifiers, "two", &SEED));
        assert_ne!(one, answer(&verifiers, "one", &[8; 32]));
        assert_eq!(answer(&verifiers, "ü", &SEED), answer(&verifiers, "u\u{308}", &SEED));
        assert_eq!(answer(&verifiers, "user", &SEED), answer(&verifiers, "user", &[8; 32]));
        // Without users there is nothing to look like.
        assert!(answer(&Verifiers::default(), "one", &SEED).ends_with(",i=4096"));

        // Of two kinds of users, both have decoys, and each of those is wholly like its kind.
        let long = Verifier::from_password("pencil", &[1; 100], 5000).expect("a good password");
        let long = long.to_line("long").expect("a good name");
        let verifiers = Verifiers::parse(&format!("user:{PENCIL}\n{long}\n")).expect("a good file");
        let mut kinds = BTreeMap::new();
        for number in 0..100 {
            let answer = answer(&verifiers, &format!("nobody{number}"), &SEED);
            let (salt, iterations) =
                answer.split_once(",s=").and_then(|(_, rest)| rest.split_once(",i=")).expect("both");
            let salt = BASE64.decode(salt).expect("a salt in Base64");
            assert!(salt.chunks(16).skip(1).all(|chunk| *chunk != salt[..chunk.len()]));
            *kinds.entry((salt.len(), iterations.to_owned())).or_insert(0) += 1;
        }
        let kinds: Vec<_> = kinds.into_iter().collect();
        let [((16, short), some), ((100, long), others)] = kinds.as_slice() else { panic!("{kinds:?}") };
        assert_eq!((short.as_str(), long.as_str()), ("4096", "5000"));
        assert!((30..70).contains(some) && (30..70).contains(others), "{kinds:?}");
    }

    #[test]
    fn the_seed_of_decoys_is_that_of_the_verifiers() {
        let verifiers = pencil_for(&["user"]);
        assert_eq!(verifiers.decoy_seed(), pencil_for(&["user"]).decoy_seed());
        assert_ne!(verifiers.decoy_seed(), pencil_for(&["user", "another"]).decoy_seed());
        assert_ne!(verifiers.decoy_seed(), Verifiers::default().decoy_seed());
    }

    #[test]
    fn an_identity_must_be_the_name() {
        let verifiers = pencil_for(&["user", "other"]);
        for first in ["n,a=other,n=user,r=abc", "y,a=User,n=user,r=abc", "n,a=user=2C,n=user,r=abc"] {
            assert_eq!(begin(&verifiers, first).map(drop), Err(Refused::OtherIdentity), "{first}");
        }
    }

    #[test]
    fn channel_binding_is_refused() {
        let verifiers = pencil_for(&["user"]);
        for first in ["p=tls-unique,,n=user,r=abc", "p=tls-exporter,a=user,n=user,r=abc", "p=,"] {
            assert_eq!(begin(&verifiers, first).map(drop), Err(Refused::ChannelBinding), "{first}");
        }
        // The echo of another header, even with a proof that covers it.
        let (exchange, server_first) = begin(&verifiers, FIRST).expect("a good message");
        let client = Client { header: "y,,", bare: &FIRST[3..], password: "pencil" };
        let (last, _) = client.last(&server_first, "");
        assert_eq!(exchange.finish(last.as_bytes()), Err(Refused::ChannelBinding));
        for echo in ["", "biw", "biws=", "Biws", "eSws", "biwsYWJj"] {
            let last = FINAL.replacen("biws", echo, 1);
            assert_eq!(judge(&verifiers, FIRST, &last), Err(Refused::ChannelBinding), "{last}");
        }
    }

    #[test]
    fn a_nonce_must_come_back() {
        let verifiers = pencil_for(&["user"]);
        let refused = Err(Refused::Malformed("the nonce is not that of this exchange"));
        let (client_nonce, server_nonce) = ("rOprNGfwEbeRWgbNEkqO", SERVER_NONCE);
        for nonce in [
            String::new(),
            client_nonce.to_owned(),
            server_nonce.to_owned(),
            format!("{client_nonce}{server_nonce}x"),
            format!("{client_nonce}{}", &server_nonce[..server_nonce.len() - 1]),
            format!("x{}{server_nonce}", &client_nonce[1..]),
            format!("{server_nonce}{client_nonce}"),
        ] {
            // With a proof that covers the wrong nonce.
            let client = Client { header: "n,,", bare: &FIRST[3..], password: "pencil" };
            let (exchange, server_first) = begin(&verifiers, FIRST).expect("a good message");
            let (_, rest) = server_first.split_once(',').expect("more than a nonce");
            let (last, _) = client.last(&format!("r={nonce},{rest}"), "");
            assert_eq!(exchange.finish(last.as_bytes()).map(drop), refused, "{nonce}");
        }
        // The messages of an earlier exchange.
        let (exchange, _) =
            Exchange::begin(&verifiers, FIRST.as_bytes(), "another", &SEED).expect("a good message");
        assert_eq!(exchange.finish(FINAL.as_bytes()).map(drop), refused);
        // A client that repeats its own nonce gets one that differs all the same, so the old proof is worth nothing.
        let (exchange, _) =
            Exchange::begin(&verifiers, FIRST.as_bytes(), "another", &SEED).expect("a good message");
        let last = FINAL.replacen(SERVER_NONCE, "another", 1);
        assert_eq!(exchange.finish(last.as_bytes()), Err(Refused::BadCredentials));
    }

    #[test]
    #[should_panic(expected = "visible ASCII without a comma")]
    fn a_servers_nonce_with_a_comma_is_the_callers_mistake() {
        let _ = Exchange::begin(&Verifiers::default(), FIRST.as_bytes(), "a,b", &SEED);
    }

    #[test]
    fn malformed_first_messages() {
        let verifiers = pencil_for(&["user"]);
        for first in [
            "",
            ",",
            ",,",
            ",,,,,,",
            "n",
            "n,",
            "n,,",
            "n,,,",
            "n,,,,",
            "n,n=user,r=abc",
            "N,,n=user,r=abc",
            "x,,n=user,r=abc",
            "nn,,n=user,r=abc",
            "p,,n=user,r=abc",
            "n=user,r=abc",
            "n=user,r=abc,,",
            "n,b=user,n=user,r=abc",
            "n,user,n=user,r=abc",
            "n,a,n=user,r=abc",
            "n,a==,n=user,r=abc",
            "n,a=user=,n=user,r=abc",
            "n,,user,r=abc",
            "n,,n,r=abc",
            "n,,n=,r=abc",
            "n,,N=user,r=abc",
            "n,,u=user,r=abc",
            "n,,r=abc,n=user",
            "n,, n=user,r=abc",
            "n,,n=user",
            "n,,n=user,",
            "n,,n=user,r",
            "n,,n=user,r=",
            "n,,n=user,r=a b",
            "n,,n=user,r=ä",
            "n,,n=user,r=a\u{7f}",
            "n,,n=user,r=a\tb",
            "n,,n=user, r=abc",
            "n,,n=user,x=1,r=abc",
            "n,,n=us=er,r=abc",
            "n,,n=user=,r=abc",
            "n,,n=user=2,r=abc",
            "n,,n=user=2c,r=abc",
            "n,,n=user=3d,r=abc",
            "n,,n=user=2D,r=abc",
            "n,,n=us\0er,r=abc",
            "n,,n=user,r=abc,x=\0",
            "n,,n=user,r=abc,",
            "n,,n=user,r=abc,,x=1",
            "n,,n=user,r=abc,x",
            "n,,n=user,r=abc,x=",
            "n,,n=user,r=abc,xy=1",
            "n,,n=user,r=abc,=1",
            "n,,n=user,r=abc,1=1",
            "n,,n=user,r=abc,ä=1",
            "n,,n=user,r=abc,n=admin",
            "n,,n=user,r=abc,r=def",
            "n,,m=1,n=user,r=abc",
            "n,,n=user,m=1,r=abc",
            "n,,n=user,r=abc,m=1",
            "n,,n=user,r=abc,x=1,m=",
        ] {
            let refused = begin(&verifiers, first).map(drop);
            assert!(matches!(refused, Err(Refused::Malformed(_))), "{first:?}: {refused:?}");
            if first.contains("m=") {
                assert_eq!(refused, Err(MANDATORY_EXTENSION), "{first:?}");
            }
        }
        for first in [&b"n,,n=us\xffer,r=abc"[..], b"\xc3", b"n,,n=user,r=abc,x=\xed\xa0\x80", b"\0"] {
            let refused = Exchange::begin(&verifiers, first, SERVER_NONCE, &SEED).map(drop);
            assert!(matches!(refused, Err(Refused::Malformed(_))), "{first:?}: {refused:?}");
        }
    }

    #[test]
    fn malformed_second_messages() {
        let verifiers = pencil_for(&["user"]);
        let nonce = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
        let proof = "p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
        assert_eq!(FINAL, format!("c=biws,{nonce},{proof}"));
        for last in [
            String::new(),
            ",".to_owned(),
            ",,".to_owned(),
            proof.to_owned(),
            format!(",{proof}"),
            format!("c=biws,{proof}"),
            format!("{nonce},{proof}"),
            format!("{nonce},c=biws,{proof}"),
            format!("c=biws,{nonce}"),
            format!("c=biws,{nonce},"),
            format!("c=biws,{nonce},p"),
            format!("c=biws,{nonce},p="),
            format!("c=biws,{nonce},p=AAAA"),
            format!("c=biws,{nonce},{proof}="),
            format!("c=biws,{nonce},{proof} "),
            format!("c=biws,{nonce},{proof},"),
            format!("c=biws,{nonce},{proof},x=1"),
            format!("c=biws,{nonce},{proof},{proof}"),
            format!("c=biws,{nonce},{}", proof.trim_end_matches('=').replacen('p', "p=", 1)),
            format!("c=biws,{nonce},{}", proof.replacen("VQ=", "VR=", 1)),
            format!("c=biws,{nonce},{}", proof.replacen('+', "-", 1)),
            format!("c=biws,{nonce},P={}", &proof[2..]),
            format!("c=biws,{nonce},,{proof}"),
            format!("c=biws,{nonce},x,{proof}"),
            format!("c=biws,{nonce},c=biws,{proof}"),
            format!("c=biws,{nonce},{nonce},{proof}"),
            format!("m=1,c=biws,{nonce},{proof}"),
            format!("c=biws,m=1,{nonce},{proof}"),
            format!("c=biws,{nonce},m=1,{proof}"),
            format!("c=biws,{nonce},x=\0,{proof}"),
            format!("C=biws,{nonce},{proof}"),
            FIRST.to_owned(),
            "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=".to_owned(),
        ] {
            let refused = judge(&verifiers, FIRST, &last);
            assert!(matches!(refused, Err(Refused::Malformed(_))), "{last:?}: {refused:?}");
        }
        let (exchange, _) = begin(&verifiers, FIRST).expect("a good message");
        let refused = exchange.finish(b"c=biws,\xff");
        assert_eq!(refused, Err(Refused::Malformed("not UTF-8")));
    }

    #[test]
    fn truncated_messages() {
        let verifiers = pencil_for(&["user", "us", "Jürgen"]);
        for first in [FIRST, "y,a=Jürgen,n=Jürgen,r=abc,x=yz", "n,a=a=2C=3D,n=a=2C=3D,r=abc"] {
            let nonce_at = first.find(",r=").expect("a nonce") + ",r=".len();
            for length in 0..first.len() {
                let cut = &first.as_bytes()[..length];
                match Exchange::begin(&verifiers, cut, SERVER_NONCE, &SEED) {
                    // A shorter nonce, a shorter extension, or none, is a good message, but another one.
                    Ok((exchange, _)) => {
                        assert!(length > nonce_at);
                        assert!(exchange.finish(FINAL.as_bytes()).is_err());
                    }
                    Err(refused) => {
                        assert!(matches!(refused, Refused::Malformed(_)), "{first} at {length}: {refused}");
                        let tail = &first[nonce_at..];
                        assert!(length <= nonce_at || tail.contains(','), "{first} at {length}: {refused}");
                    }
                }
            }
        }
        for length in 0..FINAL.len() {
            let refused = judge(&verifiers, FIRST, &FINAL[..length]);
            assert!(matches!(refused, Err(Refused::Malformed(_))), "at {length}: {refused:?}");
        }
    }

    #[test]
    fn every_changed_byte_of_a_second_message_costs_the_exchange() {
        let verifiers = pencil_for(&["user"]);
        for at in 0..FINAL.len() {
            for byte in 0..=u8::MAX {
                let mut last = FINAL.as_bytes().to_vec();
                if last[at] == byte {
                    continue;
                }
                last[at] = byte;
                let (exchange, _) = begin(&verifiers, FIRST).expect("a good message");
                assert!(exchange.finish(&last).is_err(), "{byte:02x} at {at}");
            }
        }
    }

    #[test]
    fn random_messages_do_no_harm() {
        let verifiers = pencil_for(&["user"]);
        let pieces = [
            "n", "y", "p", "a", "m", "c", "r", "x", "=", ",", "=2C", "=3D", "user", "biws", "abc", "ä", "\0",
        ];
        let mut state = 1_u64;
        let mut random = |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % below as u64) as usize
        };
        for _ in 0..20_000 {
            let message: String = (0..random(16)).map(|_| pieces[random(pieces.len())]).collect();
            let first = if random(2) == 0 { format!("n,,n=user,r={message}") } else { message.clone() };
            if let Ok((exchange, _)) = begin(&verifiers, &first) {
                assert!(exchange.finish(message.as_bytes()).is_err(), "{first} {message}");
            }
            if let Ok((exchange, _)) = begin(&verifiers, FIRST) {
                assert!(exchange.finish(format!("c=biws{message}").as_bytes()).is_err(), "{message}");
            }
        }
    }

    #[test]
    fn long_messages() {
        let longest = "u".repeat(NAME_BYTES_MAX);
        let verifiers = pencil_for(&[&longest]);
        // As long as authentication data can be.
        let fill = |message: &str| {
            let room = 65_535 - message.len() - ",x=".len();
            format!(",x={}", "z".repeat(room))
        };
        let header = format!("n,a={longest},");
        let bare = format!("n={longest},r={}", "r".repeat(NONCE_BYTES_MAX));
        let bare = format!("{bare}{}", fill(&format!("{header}{bare}")));
        let client = Client { header: &header, bare: &bare, password: "pencil" };
        assert_eq!(client.first().len(), 65_535);
        let (exchange, _) = begin(&verifiers, &client.first()).expect("a good message");
        let held = size_of::<Exchange>() + exchange.nonce.capacity() + exchange.channel_binding.capacity();
        assert!(held + NAME_BYTES_MAX < 8 * 1024, "{held}");
        assert_eq!(client.run(&verifiers, &fill(&"x".repeat(5000))).as_deref(), Ok(longest.as_str()));

        let too_long = "u".repeat(NAME_BYTES_MAX + 1);
        for (first, what) in [
            (format!("n,,n={too_long},r=abc"), "a name is too long"),
            (format!("n,a={too_long},n=user,r=abc"), "a name is too long"),
            (format!("n,,n={},r=abc", "=2C".repeat(21_000)), "a name is too long"),
            (format!("n,,n=user,r={}", "r".repeat(NONCE_BYTES_MAX + 1)), "the nonce is too long"),
            (",".repeat(65_535), "it does not begin with 'n' or 'y'"),
            (format!("n,,n=user,r=abc{}", ",".repeat(65_000)), "an extension has no letter or no value"),
        ] {
            assert_eq!(begin(&verifiers, &first).map(drop), Err(Refused::Malformed(what)));
        }
        for last in [",".repeat(65_535), format!("c=biws,r=abc,p={}", "A".repeat(65_000))] {
            assert!(matches!(judge(&verifiers, FIRST, &last), Err(Refused::Malformed(_))));
        }
        // Preparation makes the first one six times as long, and has much to sort in the second one.
        for name in ["\u{fdfa}".repeat(341), format!("a{}", "\u{301}\u{327}".repeat(255))] {
            assert!(begin(&verifiers, &format!("n,,n={name},r=abc")).is_ok());
        }
    }

    #[test]
    fn passwords_are_prepared() {
        let verifier = |password| Verifier::from_password(password, b"0123456789abcdef", 5000);
        // The verifier of "IX", made by another program.
        let nine = "SCRAM-SHA-256$5000:MDEyMzQ1Njc4OWFiY2RlZg==$+2pJad+gLqqp9N9gvah3l+96DPU1M7OpUhloCqtqlzc=:\
                    032wMrX9Zdea3zmq7BigtrQgHbWpgna7UlP54oW9F4U=";
        for password in ["IX", "I\u{ad}X", "\u{2168}"] {
            assert_eq!(verifier(password).expect("a good password").to_string(), nine, "{password}");
        }
        assert_ne!(verifier("ix").expect("a good password").to_string(), nine);
        for password in ["", "\u{ad}", "\u{7}", "a\nb", "\u{627}1", "\u{e000}", "\u{221}"] {
            assert!(verifier(password).is_err(), "{password:?}");
        }
        for (salt, iterations) in
            [(0, 4096), (1025, 4096), (16, 4095), (16, 0), (16, 10_000_001), (16, u32::MAX)]
        {
            assert!(
                Verifier::from_password("pencil", &vec![1; salt], iterations).is_err(),
                "{salt} {iterations}"
            );
        }
    }

    #[test]
    fn names_are_prepared() {
        let verifiers = pencil_for(&["\u{2168}", "\u{7}", "\u{ad}", "a\u{a0}b", "\u{ff1a}", "😀"]);
        assert_eq!(verifiers.len(), 6);
        for name in ["IX", "I\u{ad}X", "\u{2168}", "\u{7}", "\u{ad}", "a b", ":", "😀"] {
            assert!(verifiers.get(name).is_some(), "{name:?}");
        }
        for name in ["ix", "", "\u{8}", "ab"] {
            assert!(verifiers.get(name).is_none(), "{name:?}");
        }
        // The name of the user is that of the file, however the client writes it.
        let client = Client { header: "n,a=\u{2168},", bare: "n=IX,r=abc", password: "pencil" };
        assert_eq!(client.run(&verifiers, "").as_deref(), Ok("\u{2168}"));
        let client = Client { header: "n,,", bare: "n=\u{7},r=abc", password: "pencil" };
        assert_eq!(client.run(&verifiers, "").as_deref(), Ok("\u{7}"));
    }

    #[test]
    fn files_of_verifiers() {
        assert_eq!(Verifiers::parse("").map(|verifiers| verifiers.is_empty()), Ok(true));
        let text = format!(
            "\u{feff}# Users\r\n\n  \t\n one:{PENCIL}\r\n#two:{PENCIL}\nthree#, \"four\"=\u{1}\\:{PENCIL} \t\n\n5:{PENCIL}"
        );
        let verifiers = Verifiers::parse(&text).expect("a good file");
        assert_eq!(verifiers.len(), 3);
        assert!(!verifiers.is_empty());
        for name in [" one", "three#, \"four\"=\u{1}\\", "5"] {
            assert_eq!(verifiers.get(name).expect("a user").to_string(), PENCIL);
        }
        for name in ["one", "two", "#two", "", "three"] {
            assert!(verifiers.get(name).is_none(), "{name}");
        }
        // What is written is what was read.
        let lines = verifiers
            .users
            .iter()
            .map(|(name, verifier)| verifier.to_line(name).expect("a good name") + "\n");
        assert_eq!(Verifiers::parse(&lines.collect::<String>()), Ok(verifiers));
    }

    #[test]
    fn lines_that_are_no_verifiers() {
        let key = "WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=";
        let good = format!("SCRAM-SHA-256$4096:AAAA${key}:{key}");
        assert!(good.parse::<Verifier>().is_ok());
        let long = "u".repeat(1025);
        for (line, problem) in [
            ("user".to_owned(), "there is no ':'"),
            (" #".to_owned(), "there is no ':'"),
            (good.clone(), "the verifier does not begin with 'SCRAM-SHA-256$'"),
            (format!(":{good}"), "there is no name"),
            (format!("{long}:{good}"), "the name has 1025 bytes"),
            (format!("us\rer:{good}"), "the name holds"),
            (format!("us\0er:{good}"), "the name holds"),
            ("user:".to_owned(), "the verifier does not begin"),
            ("user:secret".to_owned(), "the verifier does not begin"),
            (format!("user: {good}"), "the verifier does not begin"),
            (format!("us:er:{good}"), "the verifier does not begin"),
            (format!("user:{}", good.to_lowercase()), "the verifier does not begin"),
            (format!("user:{}", good.replacen("256", "512", 1)), "the verifier does not begin"),
            ("user:SCRAM-SHA-256$".to_owned(), "the verifier has not all its parts"),
            ("user:SCRAM-SHA-256$4096".to_owned(), "the verifier has not all its parts"),
            ("user:SCRAM-SHA-256$4096:AAAA".to_owned(), "the verifier has not all its parts"),
            (format!("user:SCRAM-SHA-256$4096:AAAA${key}"), "the verifier has not all its parts"),
            (format!("user:SCRAM-SHA-256$4096${key}:{key}"), "the verifier has not all its parts"),
            (format!("user:SCRAM-SHA-256$:AAAA${key}:{key}"), "the iterations are not a number"),
            (format!("user:SCRAM-SHA-256$+4096:AAAA${key}:{key}"), "the iterations are not a number"),
            (format!("user:SCRAM-SHA-256$4k:AAAA${key}:{key}"), "the iterations are not a number"),
            (format!("user:SCRAM-SHA-256$0:AAAA${key}:{key}"), "the iterations are out of bounds"),
            (format!("user:SCRAM-SHA-256$4095:AAAA${key}:{key}"), "the iterations are out of bounds"),
            (format!("user:SCRAM-SHA-256$10000001:AAAA${key}:{key}"), "the iterations are out of bounds"),
            (format!("user:SCRAM-SHA-256$99999999999:AAAA${key}:{key}"), "the iterations are out of bounds"),
            (format!("user:SCRAM-SHA-256$4096:${key}:{key}"), "the salt has 0 bytes"),
            (format!("user:SCRAM-SHA-256$4096:AAA${key}:{key}"), "the salt is not Base64"),
            (format!("user:SCRAM-SHA-256$4096:A:AA${key}:{key}"), "the salt is not Base64"),
            (
                format!("user:SCRAM-SHA-256$4096:{}${key}:{key}", "AAAA".repeat(342)),
                "the salt has 1026 bytes",
            ),
            (format!("user:SCRAM-SHA-256$4096:AAAA$:{key}"), "the stored key has 0 bytes"),
            (format!("user:SCRAM-SHA-256$4096:AAAA$AAAA:{key}"), "the stored key has 3 bytes"),
            (format!("user:SCRAM-SHA-256$4096:AAAA$*{key}:{key}"), "the stored key is not Base64"),
            (format!("user:SCRAM-SHA-256$4096:AAAA${key}:"), "the server key has 0 bytes"),
            (format!("user:SCRAM-SHA-256$4096:AAAA${key}:{key}:"), "the server key is not Base64"),
            (format!("user:SCRAM-SHA-256$4096:AAAA${key}:{key}$"), "the server key is not Base64"),
            (
                format!("user:SCRAM-SHA-256$4096:AAAA${key}:{}", key.trim_end_matches('=')),
                "the server key is not Base64",
            ),
            (format!("first:{good}"), "the name 'first' is that of line 2; remove"),
            (format!("\u{ff46}irst:{good}"), "the name '\u{ff46}irst' is that of line 2; remove"),
        ] {
            let text = format!("# Users\nfirst:{good}\n\n{line}\nanother mistake\n");
            let error = Verifiers::parse(&text).expect_err(&line);
            assert_eq!(error.line(), Some(4), "{line:?}: {error}");
            let words = error.to_string();
            assert!(words.starts_with(&format!("line 4: {problem}")), "{line:?}: {words}");
            // It says what to do, and no secret.
            assert!([';', ','].iter().any(|mark| words.contains(*mark)), "{words}");
            assert!(!words.contains(key) && !words.contains("secret"), "{words}");
        }
        for length in 0..good.len() {
            assert!(good[..length].parse::<Verifier>().is_err(), "at {length}");
        }
    }

    #[test]
    fn names_that_cannot_stand_in_a_file() {
        let verifier: Verifier = PENCIL.parse().expect("a good verifier");
        assert_eq!(verifier.to_line("a b").expect("a good name"), format!("a b:{PENCIL}"));
        for name in ["", "a:b", "a\nb", "a\rb", "a\0b", "#a", &"u".repeat(1025)] {
            let error = verifier.to_line(name).expect_err(name);
            assert_eq!(error.line(), None);
            assert!(!error.to_string().starts_with("line"), "{error}");
        }
    }

    #[test]
    fn debug_shows_no_keys() {
        let verifiers = pencil_for(&["user"]);
        let (exchange, _) = begin(&verifiers, FIRST).expect("a good message");
        let shown = format!("{verifiers:?} {exchange:?}");
        assert!(shown.contains("user") && shown.contains("4096"), "{shown}");
        for secret in ["key", "salt", "signatures", "WG5d"] {
            assert!(!shown.contains(secret), "{shown}");
        }
    }

    #[test]
    fn refusals_in_words() {
        assert_eq!(Refused::Malformed("no nonce").to_string(), "malformed SCRAM message: no nonce");
        for refused in [Refused::BadCredentials, Refused::OtherIdentity, Refused::ChannelBinding] {
            assert!(!refused.to_string().is_empty());
        }
    }
}
