//! What came of a packet whose rest has not come yet, and packets that were put off.
//!
//! While packets come whole they are read in place and the inbox holds nothing; an empty inbox owns no memory. Its
//! buffer grows with the bytes that arrive and never by the length that a peer merely claims.

use super::error::DecodeError;
use super::frame::{Frame, Split, split};
use super::packet::Protocol;

/// The unread end of a stream of packets.
#[derive(Debug, Default)]
pub struct Inbox {
    /// Bytes kept, of which those before `start` belong to packets already handed out.
    bytes: Vec<u8>,
    start: usize,
}

/// What stands at the beginning of the kept bytes; only lengths, so that nothing is borrowed.
enum Kept {
    Complete(usize),
    Partial(usize),
}

impl Inbox {
    /// Whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.buffered() == 0
    }

    /// Bytes kept.
    pub fn buffered(&self) -> usize {
        self.bytes.len() - self.start
    }

    /// The next packet: from what is kept, then from `input`, of which the bytes used are cut off. `None` if there is
    /// no whole packet; then the rest of `input` has been kept.
    ///
    /// # Errors
    ///
    /// Those of [`split`]. The stream cannot be read any further.
    pub fn next<'a, 'i: 'a>(
        &'a mut self,
        input: &mut &'i [u8],
        protocol: Protocol,
        packet_size_max: u32,
    ) -> Result<Option<Frame<'a>>, DecodeError> {
        if self.is_empty() {
            self.release();
            return match split(input, protocol, packet_size_max)? {
                Split::Complete { frame, length } => {
                    *input = &input[length..];
                    Ok(Some(frame))
                }
                Split::Partial { .. } => {
                    self.stash(input);
                    *input = &[];
                    Ok(None)
                }
            };
        }
        loop {
            match self.kept(protocol, packet_size_max)? {
                Kept::Complete(length) => {
                    let packet = &self.bytes[self.start..][..length];
                    self.start += length;
                    return match split(packet, protocol, packet_size_max)? {
                        Split::Complete { frame, .. } => Ok(Some(frame)),
                        Split::Partial { .. } => unreachable!("it was complete a moment ago"),
                    };
                }
                Kept::Partial(_) if input.is_empty() => return Ok(None),
                Kept::Partial(needed) => {
                    let missing = (needed - self.buffered()).min(input.len());
                    let (now, later) = input.split_at(missing);
                    self.append(now, needed);
                    *input = later;
                }
            }
        }
    }

    /// Keeps bytes that are not to be handled yet: any number of packets, the last of which may be unfinished.
    pub fn stash(&mut self, input: &[u8]) {
        self.append(input, 0);
    }

    fn kept(&self, protocol: Protocol, packet_size_max: u32) -> Result<Kept, DecodeError> {
        Ok(match split(&self.bytes[self.start..], protocol, packet_size_max)? {
            Split::Complete { length, .. } => Kept::Complete(length),
            Split::Partial { needed } => Kept::Partial(needed),
        })
    }

    /// Appends bytes of a packet that will have `needed` bytes in all.
    fn append(&mut self, input: &[u8], needed: usize) {
        if input.is_empty() {
            return;
        }
        if self.start > 0 {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        let length = self.bytes.len() + input.len();
        if length > self.bytes.capacity() {
            // Doubling keeps the copying linear; the packet's own length keeps the last step from overshooting.
            let doubled = (self.bytes.capacity() * 2).min(needed).max(length);
            self.bytes.reserve_exact(doubled - self.bytes.len());
        }
        self.bytes.extend_from_slice(input);
    }

    fn release(&mut self) {
        if self.bytes.capacity() > 0 {
            self.bytes = Vec::new();
            self.start = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACKETS: &[&[u8]] = &[
        &[0xC0, 0x00],
        &[0x30, 0x06, 0, 3, b'a', b'/', b'b', b'x'],
        &[0xC0, 0x00],
        &[0x40, 0x02, 0, 1],
        &[0x30, 0x80, 0x01],
        &[0xE0, 0x00],
    ];

    fn stream() -> (Vec<u8>, Vec<Vec<u8>>) {
        let mut bytes = Vec::new();
        let mut bodies = Vec::new();
        for packet in PACKETS {
            bytes.extend_from_slice(packet);
            let mut body = packet[2..].to_vec();
            if packet[1] == 0x80 {
                body = vec![7; 128];
                bytes.extend_from_slice(&body);
            }
            bodies.push(body);
        }
        (bytes, bodies)
    }

    #[test]
    fn any_cut_and_any_stash_give_the_same_packets() {
        let (bytes, expected) = stream();
        for chunk in 1..=bytes.len() {
            for stash_every in [0, 1, 2, 3] {
                let mut inbox = Inbox::default();
                let mut bodies = Vec::new();
                for mut input in bytes.chunks(chunk) {
                    while let Some(frame) = inbox.next(&mut input, Protocol::Mqtt311, 1_000).unwrap() {
                        bodies.push(frame.body.to_vec());
                        if stash_every > 0 && bodies.len() % stash_every == 0 {
                            inbox.stash(input);
                            input = &[];
                        }
                    }
                }
                assert_eq!(bodies, expected, "chunks of {chunk}");
                assert!(inbox.is_empty());
                assert_eq!(inbox.next(&mut [].as_slice(), Protocol::Mqtt311, 1_000), Ok(None));
                assert_eq!(inbox.bytes.capacity(), 0, "an empty inbox owns no memory");
            }
        }
    }

    #[test]
    fn a_claimed_length_costs_nothing() {
        let mut inbox = Inbox::default();
        let mut input: &[u8] = &[0x30, 0xFF, 0xFF, 0xFF, 0x7F, 1, 2, 3];
        assert_eq!(inbox.next(&mut input, Protocol::Mqtt311, u32::MAX), Ok(None));
        assert_eq!(inbox.buffered(), 8);
        assert!(inbox.bytes.capacity() <= 16);
    }

    #[test]
    fn a_packet_that_arrives_in_many_pieces_is_not_overshot() {
        let mut inbox = Inbox::default();
        let length = 100_000;
        let mut packet = vec![0x30, 0xA0, 0x8D, 0x06];
        packet.resize(4 + length, 1);
        let mut frames = 0;
        for mut input in packet.chunks(1_000) {
            if let Some(frame) = inbox.next(&mut input, Protocol::Mqtt311, u32::MAX).unwrap() {
                assert_eq!(frame.body.len(), length);
                frames += 1;
            }
            assert!(inbox.bytes.capacity() <= packet.len());
        }
        assert_eq!(frames, 1);
    }
}
