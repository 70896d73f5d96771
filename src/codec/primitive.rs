//! The data types of the wire: integers of fixed and of variable length, text and binary data.
//!
//! Deliberately not here: which of them a packet has.

use bytes::BufMut;

use super::error::DecodeError;
use super::packet::PacketId;
use super::property::{PROPERTIES_LENGTH_MAX, Place, Properties};

/// The fourth byte of a variable byte integer is its last.
pub(super) const VARIABLE_INTEGER_BYTES_MAX: usize = 4;

/// A cursor over the body of a packet. Every step checks that the bytes are there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) const fn new(body: &'a [u8]) -> Self {
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

    /// A four-byte integer, the high byte first.
    #[inline]
    pub(super) fn long(&mut self) -> Result<u32, DecodeError> {
        let (bytes, rest) = self.rest.split_first_chunk().ok_or(DecodeError::Truncated)?;
        self.rest = rest;
        Ok(u32::from_be_bytes(*bytes))
    }

    /// A variable byte integer of at most four bytes, in its shortest form [MQTT5-1.5.5-1].
    #[inline]
    pub(super) fn variable_integer(&mut self) -> Result<u32, DecodeError> {
        let mut value = 0;
        for index in 0..VARIABLE_INTEGER_BYTES_MAX {
            let byte = self.byte()?;
            value |= u32::from(byte & 0x7F) << (7 * index);
            if byte < 0x80 {
                let is_shortest = byte != 0 || index == 0;
                return if is_shortest { Ok(value) } else { Err(DecodeError::OverlongInteger) };
            }
        }
        Err(DecodeError::OverlongInteger)
    }

    /// Properties behind their length.
    #[inline]
    pub(super) fn properties(&mut self, place: Place) -> Result<Properties<'a>, DecodeError> {
        let bytes = self.unchecked_properties()?;
        match bytes.len() {
            0 => Ok(Properties::NONE),
            1..=PROPERTIES_LENGTH_MAX => Properties::check(bytes, place),
            _ => Err(DecodeError::TooManyProperties),
        }
    }

    /// The bytes of properties behind their length.
    #[inline]
    pub(super) fn unchecked_properties(&mut self) -> Result<&'a [u8], DecodeError> {
        let length = self.variable_integer()? as usize;
        let (bytes, rest) = self.rest.split_at_checked(length).ok_or(DecodeError::Truncated)?;
        self.rest = rest;
        Ok(bytes)
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
        text_of(self.binary()?)
    }

    /// The same where what it says does not matter yet.
    #[inline]
    pub(super) fn skip_text(&mut self) -> Result<(), DecodeError> {
        let bytes = self.binary()?;
        if is_plain(bytes) { Ok(()) } else { text_of(bytes).map(|_| ()) }
    }

    /// All that is left.
    pub(super) const fn rest(self) -> &'a [u8] {
        self.rest
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Checks that nothing is left over.
    #[inline]
    pub(super) fn finish(self) -> Result<(), DecodeError> {
        if self.rest.is_empty() { Ok(()) } else { Err(DecodeError::TrailingBytes) }
    }
}

#[inline]
fn text_of(bytes: &[u8]) -> Result<&str, DecodeError> {
    let text = std::str::from_utf8(bytes).map_err(|_| DecodeError::InvalidUtf8)?;
    // Without an early exit, which would keep the loop from taking many bytes at once.
    if text.bytes().fold(false, |found, byte| found | (byte == 0)) {
        return Err(DecodeError::NulCharacter); // [MQTT-1.5.3-2]
    }
    Ok(text)
}

/// Whether bytes are ASCII without U+0000, as most texts are: many at a time.
#[inline]
fn is_plain(bytes: &[u8]) -> bool {
    // Its highest bit is set for 0, and for what is not ASCII.
    const fn mark(byte: u8) -> u8 {
        byte | byte.wrapping_sub(1)
    }
    const LANES: usize = 16;
    let Some(last) = bytes.last_chunk::<LANES>() else {
        return bytes.iter().fold(0, |found, byte| found | mark(*byte)) < 0x80;
    };
    let mut found = last.map(mark);
    for chunk in bytes.as_chunks::<LANES>().0 {
        for (found, byte) in found.iter_mut().zip(chunk) {
            *found |= mark(*byte);
        }
    }
    found.iter().fold(0, |found, byte| found | byte) < 0x80
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

/// Writes a variable byte integer, such as the remaining length: seven bits a byte, the low ones first, in as few
/// bytes as possible.
#[inline]
pub(super) fn put_variable_integer(out: &mut Vec<u8>, mut value: usize) {
    while value >= 0x80 {
        out.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

/// How many bytes a variable byte integer takes.
#[inline]
pub(super) const fn variable_integer_length(value: usize) -> usize {
    match value {
        0..=0x7F => 1,
        0x80..=0x3FFF => 2,
        0x4000..=0x1F_FFFF => 3,
        _ => 4,
    }
}

/// Writes properties behind their length.
pub(super) fn put_properties(out: &mut Vec<u8>, properties: Properties<'_>) {
    put_variable_integer(out, properties.as_bytes().len());
    out.put_slice(properties.as_bytes());
}

/// How many bytes properties take with their length.
pub(super) const fn properties_length(properties: Properties<'_>) -> usize {
    let length = properties.as_bytes().len();
    variable_integer_length(length) + length
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_skipped_just_when_it_can_be_read() {
        // [MQTT-1.5.3-1] [MQTT-1.5.3-2]
        let parts: [&[u8]; 8] = [b"\0", b"\x01", b"\x7F", b"\x80", b"\xFF", b"\xC3\xA9", b"\xC3", b"\x81\0"];
        for length in 0..40 {
            for (part, at) in parts.iter().flat_map(|part| (0..=length).map(move |at| (*part, at))) {
                let mut text = vec![b'x'; length];
                text.splice(at..at, part.iter().copied());
                let mut bytes = Vec::new();
                put_binary(&mut bytes, &text);
                bytes.push(7);
                let (mut read, mut skipped) = (Reader::new(&bytes), Reader::new(&bytes));
                assert_eq!(skipped.skip_text(), read.text().map(|_| ()), "{text:?}");
                assert_eq!((skipped.rest(), skipped.rest()), (read.rest(), &[7][..]), "{text:?}");
            }
        }
    }
}
