//! The dialogs' notation, and the two worlds in which they run.

pub(crate) mod bytes;
pub(crate) mod core_world;
pub(crate) mod script;
mod steps5;
pub(crate) mod tcp_world;
