//! Exchanges between clients of 5.0 and a server beyond the plain ones: enhanced authentication, and being sent away.
//!
//! `authentication` speaks SCRAM-SHA-256 over real sockets, `own_method` a method of an embedding program's own;
//! `late_verdicts` asks the core alone; `redirection` drains and stops servers.

mod authentication;
mod fixture;
mod late_verdicts;
mod own_method;
mod redirection;
mod scram_client;
