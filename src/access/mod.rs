//! Who a client is: how it proves to be a user that the server knows.
//!
//! Owns the table of users' verifiers and the server's side of a SCRAM-SHA-256 exchange, as a pure state machine: no
//! clock, no file, no randomness but what the caller hands in. Knows nothing of MQTT: the caller takes the messages out
//! of authentication data and puts the answers there.
//!
//! Deliberately not here: which packets carry an exchange and which reason codes end it, reading files, and what a user
//! may do once known.

pub mod scram;

pub use scram::{Exchange, Refused, Verifier, VerifierError, Verifiers};
