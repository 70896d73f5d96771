//! Who answers for the methods of enhanced authentication: a trait for the embedding program, and SCRAM-SHA-256.
//!
//! Deliberately not here: the exchange of packets (see `broker`), and the arithmetic of SCRAM (see `access`).

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::access::scram::{self, Exchange, Verifiers};
use crate::broker::{AuthenticationStep, ConnectionId, Verdict};
use crate::codec::ReasonCode;

/// Random bytes of a nonce.
const NONCE_BYTES: usize = 24;

/// Answers for methods of enhanced authentication. It is asked on the thread of the loop, which waits for it.
pub trait Authenticator: fmt::Debug + Send {
    /// The names of the methods.
    fn methods(&self) -> Vec<Box<str>>;

    /// Judges one step of an exchange.
    fn step(&mut self, step: &AuthenticationStep) -> Verdict;

    /// The connection is gone, with its exchange, if it had one.
    fn forget(&mut self, connection: ConnectionId);
}

/// SCRAM-SHA-256.
#[derive(Debug)]
pub struct Scram {
    verifiers: Verifiers,
    decoy_seed: [u8; 32],
    /// Those that wait for the client's second message. A hash table of very many would have to move them all to grow.
    exchanges: BTreeMap<ConnectionId, Exchange>,
}

impl Scram {
    /// For the users of a verifier file.
    pub fn new(verifiers: Verifiers) -> Self {
        Self { decoy_seed: verifiers.decoy_seed(), verifiers, exchanges: BTreeMap::new() }
    }
}

impl Authenticator for Scram {
    fn methods(&self) -> Vec<Box<str>> {
        vec![scram::METHOD.into()]
    }

    fn step(&mut self, step: &AuthenticationStep) -> Verdict {
        let earlier = self.exchanges.remove(&step.connection);
        if step.is_first {
            let mut nonce = [0; NONCE_BYTES];
            if let Err(error) = getrandom::fill(&mut nonce) {
                log::error!(target: super::LOG_TARGET, "cannot authenticate: the system has no random bytes: {error}");
                return Verdict::Refuse(ReasonCode::ServerBusy);
            }
            let nonce = STANDARD.encode(nonce);
            return match Exchange::begin(&self.verifiers, &step.data, &nonce, &self.decoy_seed) {
                Ok((exchange, answer)) => {
                    self.exchanges.insert(step.connection, exchange);
                    Verdict::Continue(answer.into())
                }
                Err(_) => Verdict::Refuse(ReasonCode::NotAuthorized),
            };
        }
        match earlier.map(|exchange| exchange.finish(&step.data)) {
            Some(Ok((user, answer))) => {
                Verdict::Accept { user: Some(user.into()), data: Some(answer.into()) }
            }
            _ => Verdict::Refuse(ReasonCode::NotAuthorized), // [MQTT5-4.12.0-4]
        }
    }

    fn forget(&mut self, connection: ConnectionId) {
        self.exchanges.remove(&connection);
    }
}
