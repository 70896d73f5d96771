//! Where one packet ends and the next begins.
//!
//! A frame is judged as early as its bytes allow: the first byte as soon as it is there, the length as soon as it is
//! known. That bytes are missing is no error.
//!
//! A remaining length that is not in its shortest form is accepted before 5.0: 3.1.1 has no rule against it.

use super::error::DecodeError;
use super::packet::Protocol;
use super::primitive::{Reader, VARIABLE_INTEGER_BYTES_MAX};

/// The fixed header of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FixedHeader {
    /// Packet type in the high four bits, flags in the low ones.
    pub first: u8,
    /// Bytes behind the fixed header.
    pub remaining_length: u32,
}

impl FixedHeader {
    /// The packet type, 1 to 15.
    pub const fn packet_type(self) -> u8 {
        self.first >> 4
    }

    /// The flags.
    pub const fn flags(self) -> u8 {
        self.first & 0x0F
    }

    /// Whether it begins a PUBLISH.
    pub const fn is_publish(self) -> bool {
        self.packet_type() == 3
    }

    /// Whether it begins a SUBSCRIBE or an UNSUBSCRIBE.
    pub const fn is_request(self) -> bool {
        matches!(self.packet_type(), 8 | 10)
    }
}

/// One packet, not yet decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Its fixed header.
    pub header: FixedHeader,
    /// The bytes behind the fixed header.
    pub body: &'a [u8],
}

impl Frame<'_> {
    /// The protocol that a CONNECT says to speak, even if the rest of it is malformed: it decides in which form it is
    /// refused. `None` for other packets and for protocols that are not served. A level above ours is answered in the
    /// form of the last one.
    pub fn claimed_protocol(self) -> Option<Protocol> {
        if self.header.packet_type() != 1 {
            return None;
        }
        let mut reader = Reader::new(self.body);
        match (reader.binary(), reader.byte()) {
            (Ok(b"MQTT"), Ok(5..0x80)) => Some(Protocol::Mqtt5),
            (Ok(b"MQTT"), Ok(4)) => Some(Protocol::Mqtt311),
            (Ok(b"MQIsdp"), Ok(3)) => Some(Protocol::Mqtt31),
            _ => None,
        }
    }
}

/// One packet that has taken the memory along in which it came, not yet decoded.
#[derive(Debug)]
pub struct OwnedFrame {
    header: FixedHeader,
    /// The body is the end of these.
    bytes: Vec<u8>,
}

impl OwnedFrame {
    /// `bytes` end with the body.
    pub(crate) fn new(header: FixedHeader, bytes: Vec<u8>) -> Self {
        debug_assert!(bytes.len() >= header.remaining_length as usize);
        Self { header, bytes }
    }

    /// The packet.
    pub fn as_frame(&self) -> Frame<'_> {
        let body = &self.bytes[self.bytes.len() - self.header.remaining_length as usize..];
        Frame { header: self.header, body }
    }

    /// Bytes of the memory.
    pub fn length(&self) -> usize {
        self.bytes.len()
    }

    /// The memory, which ends with the body.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

/// What stands at the beginning of a stretch of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split<'a> {
    /// A whole packet of `length` bytes, fixed header included.
    Complete {
        /// The packet.
        frame: Frame<'a>,
        /// Its length in bytes.
        length: usize,
    },
    /// The beginning of a packet.
    Partial {
        /// Bytes of the whole packet if that is known yet, else of its fixed header as far as it must go.
        needed: usize,
    },
}

/// The first bytes that may begin a packet of 3.1.1: nearly every packet is judged by this one look.
static FIRST_BYTES: [bool; 256] = {
    let mut table = [false; 256];
    let mut first = 0;
    while first < table.len() {
        table[first] = check_first(first as u8, Protocol::Mqtt311).is_ok();
        first += 1;
    }
    table
};

/// Checks the first byte of a packet [MQTT-2.2.2-2].
#[cold]
const fn check_first(first: u8, protocol: Protocol) -> Result<(), DecodeError> {
    let flags = first & 0x0F;
    let expected = match first >> 4 {
        15 if protocol.has_properties() => 0x00, // [MQTT5-3.15.1-1]
        0 | 15 => return Err(DecodeError::ReservedPacketType),
        3 => {
            return match flags & 0x0E {
                0x06 | 0x0E => Err(DecodeError::ReservedQoS), // [MQTT-3.3.1-4]
                0x08 => Err(DecodeError::DupAtQoS0),          // [MQTT-3.3.1-2]
                _ => Ok(()),
            };
        }
        // [MQTT-3.6.1-1] [MQTT-3.8.1-1] [MQTT-3.10.1-1]
        6 | 8 | 10 => 0x02,
        _ => 0x00,
    };
    // 3.1 had a client set DUP on what it sent again.
    let dup_is_allowed = expected == 0x02 && matches!(protocol, Protocol::Mqtt31);
    if flags == expected || (dup_is_allowed && flags == expected | 0x08) {
        Ok(())
    } else {
        Err(DecodeError::ReservedFlags)
    }
}

/// Looks for a packet at the beginning of `bytes`. `packet_size_max` counts the fixed header.
///
/// # Errors
///
/// A first byte that begins no packet, a length that goes on beyond four bytes, or a packet larger than allowed.
#[inline]
pub fn split(bytes: &[u8], protocol: Protocol, packet_size_max: u32) -> Result<Split<'_>, DecodeError> {
    let Some(&first) = bytes.first() else { return Ok(Split::Partial { needed: 2 }) };
    if !FIRST_BYTES[usize::from(first)] {
        check_first(first, protocol)?;
    }
    let (remaining_length, header_length) = match *bytes {
        [_, low, ..] if low < 0x80 => (u32::from(low), 2),
        [_, low, high @ 1..0x80, ..] => (u32::from(low & 0x7F) | u32::from(high) << 7, 3),
        _ => match long_remaining_length(bytes, protocol)? {
            Some(found) => found,
            None => return Ok(Split::Partial { needed: bytes.len() + 1 }),
        },
    };
    let length = header_length + remaining_length as usize;
    if length > packet_size_max as usize {
        return Err(DecodeError::PacketTooLarge);
    }
    match bytes.get(header_length..length) {
        Some(body) => {
            let frame = Frame { header: FixedHeader { first, remaining_length }, body };
            Ok(Split::Complete { frame, length })
        }
        None => Ok(Split::Partial { needed: length }),
    }
}

/// A remaining length of any form, with the length of the fixed header it ends; `None` while it is unfinished.
#[cold]
fn long_remaining_length(bytes: &[u8], protocol: Protocol) -> Result<Option<(u32, usize)>, DecodeError> {
    let mut remaining_length = 0;
    for (index, byte) in bytes.iter().enumerate().skip(1).take(VARIABLE_INTEGER_BYTES_MAX) {
        remaining_length |= u32::from(byte & 0x7F) << (7 * (index - 1));
        if *byte < 0x80 {
            if *byte == 0 && index > 1 && protocol.has_properties() {
                return Err(DecodeError::OverlongInteger); // [MQTT5-1.5.5-1]
            }
            return Ok(Some((remaining_length, index + 1)));
        }
    }
    if bytes.len() > VARIABLE_INTEGER_BYTES_MAX { Err(DecodeError::RemainingLengthTooLong) } else { Ok(None) }
}
