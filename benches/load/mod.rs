//! Load for a broker behind a socket: clients that publish and subscribe, all on the thread of the caller.
//!
//! Shared by `durable`, `tcp` and `versus`. It is written to be cheap beside the broker it measures: one poll, one read buffer,
//! packets written from a template, and everything that came in one turn answered with one write per client.
//!
//! Deliberately not here: what is measured, and any broker.

pub(crate) mod client;
mod faults;
mod flow;
pub(crate) mod plan;
mod publisher;
mod subscriber;

pub(crate) use faults::Faults;
pub(crate) use flow::Flow;
pub(crate) use plan::{Plan, Shape};
