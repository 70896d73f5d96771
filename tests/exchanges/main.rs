//! Exchanges beyond the plain ones: enhanced authentication, being sent away, work that takes several turns, and
//! answers in any order.
//!
//! `authentication` speaks SCRAM-SHA-256 over real sockets, `own_method` a method of an embedding program's own;
//! `answers`, `late_verdicts`, `long_work`, `long_publish`, `refills`, `fan_out`, `groups`, `bounds` and `mixes` ask the core alone; `redirection`
//! drains and stops servers.

mod answers;
mod authentication;
mod bounds;
mod fan_out;
mod fixture;
mod groups;
mod late_verdicts;
mod long_publish;
mod long_work;
mod mixes;
mod own_method;
mod redirection;
mod refills;
mod scram_client;
