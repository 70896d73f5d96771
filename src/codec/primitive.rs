//! The data types of the wire: integers, text, binary data and the remaining length.
//!
//! Deliberately not here: which of them a packet has.

use bytes::BufMut;

use super::error::DecodeError;
use super::packet::PacketId;

/// A cursor over the body of a packet. Every step checks that the bytes are there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(body: &'a [u8]) -> Self {
        Self { rest: body }
    }

    #[inline]
    pub(super) fn byte(&mut self) -> Result<u8, DecodeError> {
        let (byte, rest) = self.rest.split_first().ok_or(DecodeError::Truncated)?;
        self.rest = rest;
        Ok(*byte)
    }

    /// A two-byte integer, the high byte first.
    #[inline]
    pub(super) fn short(&mut self) -> Result<u16, DecodeError> {
        let (bytes, rest) = self.rest.split_first_chunk().ok_or(DecodeError::Truncated)?;
        self.rest = rest;
        Ok(u16::from_be_bytes(*bytes))
    }

    /// A packet identifier [MQTT-2.3.1-1].
    #[inline]
    pub(super) fn packet_id(&mut self) -> Result<PacketId, DecodeError> {
        PacketId::new(self.short()?).ok_or(DecodeError::PacketIdZero)
    }

    /// Binary data behind its two-byte length.
    #[inline]
    pub(super) fn binary(&mut self) -> Result<&'a [u8], DecodeError> {
        let length = usize::from(self.short()?);
        let (data, rest) = self.rest.split_at_checked(length).ok_or(DecodeError::Truncated)?;
        self.rest = rest;
        Ok(data)
    }

    /// UTF-8 text behind its two-byte length [MQTT-1.5.3-1]. U+FEFF is a character like any other [MQTT-1.5.3-3];
    /// so are control characters but U+0000.
    #[inline]
    pub(super) fn text(&mut self) -> Result<&'a str, DecodeError> {
        let text = std::str::from_utf8(self.binary()?).map_err(|_| DecodeError::InvalidUtf8)?;
        if text.as_bytes().contains(&0) {
            return Err(DecodeError::NulCharacter); // [MQTT-1.5.3-2]
        }
        Ok(text)
    }

    /// All that is left.
    pub(super) fn rest(self) -> &'a [u8] {
        self.rest
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Checks that nothing is left over.
    #[inline]
    pub(super) fn finish(self) -> Result<(), DecodeError> {
        if self.rest.is_empty() { Ok(()) } else { Err(DecodeError::TrailingBytes) }
    }
}

/// Writes binary data behind its two-byte length.
///
/// # Panics
///
/// If it has more than 65,535 bytes, which the callers have checked.
pub(super) fn put_binary(out: &mut Vec<u8>, data: &[u8]) {
    out.put_u16(u16::try_from(data.len()).expect("a field has at most 65,535 bytes"));
    out.put_slice(data);
}

/// Writes the remaining length: seven bits a byte, the low ones first, in as few bytes as possible.
#[inline]
pub(super) fn put_remaining_length(out: &mut Vec<u8>, mut length: usize) {
    while length >= 0x80 {
        out.put_u8(length as u8 | 0x80);
        length >>= 7;
    }
    out.put_u8(length as u8);
}
