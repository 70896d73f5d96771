//! Bytes to packets and back.
//!
//! Owns the wire format and nothing else: no state beyond an unfinished frame, no meaning. What is wrong with the
//! bytes is a [`DecodeError`]; whether a well-formed packet may be sent now is for the layers above to say.
//! This layer imports nothing of ours.
//!
//! Deliberately not here: the syntax of topic names and filters (see `topics`), and what a packet does (see `broker`).

pub mod decode;
pub mod encode;
pub mod error;
pub mod frame;
pub mod inbox;
pub mod packet;
mod primitive;
pub mod property;
pub mod reason;

pub use error::DecodeError;
pub use frame::{Frame, OwnedFrame};
pub use inbox::Inbox;
pub use packet::{Packet, PacketId, Protocol, QoS};
pub use property::{Properties, Property};
pub use reason::ReasonCode;
