//! What came of a packet whose rest has not come yet, and packets that were put off.
//!
//! While packets come whole they are read in place and the inbox holds nothing. What it must keep it copies: of an
//! unfinished packet exactly the bytes that it still needs, so that the packets behind it are read in place again. So a
//! packet that did not come in one read has memory of its own, which it can take along.
//!
//! * An inbox with nothing unread owns no memory once `next` or `stash` has been called again, for until then the last
//!   packet is lent from here.
//! * Memory grows with the bytes that arrive and never by the length that a peer merely claims.
//! * Every byte is copied a bounded number of times on average, however the stream is cut and whatever is put off.
//!
//! Deliberately not here: how much may be kept. A packet is limited by `packet_size_max`, and who puts packets off
//! stops reading.

use super::error::DecodeError;
use super::frame::{FixedHeader, Frame, OwnedFrame, Split, split};
use super::packet::Protocol;

/// The unread end of a stream of packets.
#[derive(Clone, Debug, Default)]
pub struct Inbox {
    /// Bytes kept, of which those before `start` belong to packets already handed out. Owns memory only while it is
    /// not empty.
    bytes: Vec<u8>,
    start: usize,
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
    #[inline]
    pub fn next<'a, 'i: 'a>(
        &'a mut self,
        input: &mut &'i [u8],
        protocol: Protocol,
        packet_size_max: u32,
    ) -> Result<Option<Frame<'a>>, DecodeError> {
        if !self.bytes.is_empty() {
            return self.next_kept(input, protocol, packet_size_max);
        }
        match split(input, protocol, packet_size_max)? {
            Split::Complete { frame, length } => {
                *input = &input[length..];
                Ok(Some(frame))
            }
            Split::Partial { needed } => {
                self.append(input, needed);
                *input = &[];
                Ok(None)
            }
        }
    }

    fn next_kept<'a, 'i: 'a>(
        &'a mut self,
        input: &mut &'i [u8],
        protocol: Protocol,
        packet_size_max: u32,
    ) -> Result<Option<Frame<'a>>, DecodeError> {
        if self.is_empty() {
            *self = Self::default();
            return self.next(input, protocol, packet_size_max);
        }
        let (header, length) = loop {
            match split(&self.bytes[self.start..], protocol, packet_size_max)? {
                Split::Complete { frame, length } => break (frame.header, length),
                Split::Partial { needed } => {
                    if self.start > 0 {
                        // Moved out, not down: the packets before it may have left a large buffer behind.
                        self.bytes = self.bytes[self.start..].to_vec();
                        self.start = 0;
                    }
                    if input.is_empty() {
                        return Ok(None);
                    }
                    let (now, later) = input.split_at((needed - self.bytes.len()).min(input.len()));
                    self.append(now, needed);
                    *input = later;
                }
            }
        };
        let end = self.start + length;
        self.start = end;
        let body = &self.bytes[end - header.remaining_length as usize..end];
        Ok(Some(Frame { header, body }))
    }

    /// Gives the packet away that `next` has just lent from what was kept before. Only where others stand behind it is it
    /// copied.
    ///
    /// # Panics
    ///
    /// If nothing with this header was lent from here.
    pub fn give_away(&mut self, header: FixedHeader) -> OwnedFrame {
        if self.is_empty() {
            let Self { bytes, .. } = std::mem::take(self);
            return OwnedFrame::new(header, bytes);
        }
        let body_at = self.start - header.remaining_length as usize;
        OwnedFrame::new(header, self.bytes[body_at..self.start].to_vec())
    }

    /// The memory of what is kept, for whoever does not want that any more.
    pub fn into_memory(self) -> Vec<u8> {
        self.bytes
    }

    /// Keeps bytes that are not to be handled yet: any number of packets, the last of which may be unfinished.
    pub fn stash(&mut self, input: &[u8]) {
        if self.is_empty() {
            *self = Self::default();
        } else if self.start >= self.buffered() {
            // Moves no more bytes than have been handed out since the last time.
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        self.append(input, usize::MAX);
    }

    /// Appends bytes of something that will not have more than `length_max` bytes in all.
    fn append(&mut self, input: &[u8], length_max: usize) {
        let length = self.bytes.len() + input.len();
        if length > self.bytes.capacity() {
            // Doubling keeps the copying linear; the packet's own length keeps the last step from overshooting.
            let capacity = (self.bytes.capacity() * 2).min(length_max).max(length);
            self.bytes.reserve_exact(capacity - self.bytes.len());
        }
        self.bytes.extend_from_slice(input);
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

    #[test]
    fn memory_goes_with_what_was_read() {
        let mut inbox = Inbox::default();
        let mut bytes = [0xC0, 0x00].repeat(1_000);
        bytes.push(0xC0);
        inbox.stash(&bytes);
        for _ in 0..1_000 {
            assert!(inbox.next(&mut [].as_slice(), Protocol::Mqtt311, 1_000).unwrap().is_some());
        }
        assert_eq!(inbox.next(&mut [].as_slice(), Protocol::Mqtt311, 1_000), Ok(None));
        assert_eq!(inbox.bytes.capacity(), 1, "one byte does not hold the memory of many");

        let mut input: &[u8] = &[0x00, 0xE0];
        assert!(inbox.next(&mut input, Protocol::Mqtt311, 1_000).unwrap().is_some());
        assert_eq!(input, [0xE0], "what is behind the unfinished packet is read in place");
        inbox.stash(&[]);
        assert_eq!(inbox.bytes.capacity(), 0, "a client whose packets are put off owns no memory for it");
    }

    #[test]
    fn bytes_put_off_again_and_again_are_not_copied_each_time() {
        let mut inbox = Inbox::default();
        let mut growths = 0;
        let mut capacity = 0;
        for round in 0..10_000 {
            inbox.stash(&[0xC0, 0x00, 0xC0, 0x00]);
            assert!(inbox.next(&mut [].as_slice(), Protocol::Mqtt311, 1_000).unwrap().is_some());
            growths += u32::from(inbox.bytes.capacity() != capacity);
            capacity = inbox.bytes.capacity();
            assert_eq!(inbox.buffered(), 2 * (round + 1));
        }
        assert!(growths < 20, "{growths}");
    }

    #[test]
    fn a_packet_takes_its_memory_along_unless_others_stand_behind_it() {
        let packet: &[u8] = &[0x82, 0x06, 0, 1, 0, 1, b'a', 0];
        let mut inbox = Inbox::default();
        let (mut first, mut rest) = packet.split_at(3);
        assert_eq!(inbox.next(&mut first, Protocol::Mqtt311, 1_000), Ok(None));
        let frame = inbox.next(&mut rest, Protocol::Mqtt311, 1_000).unwrap().unwrap();
        let (header, memory) = (frame.header, frame.body.as_ptr());
        let owned = inbox.give_away(header);
        assert_eq!((owned.as_frame().header, owned.as_frame().body), (header, &packet[2..]));
        assert_eq!(owned.as_frame().body.as_ptr(), memory, "nothing was copied");
        assert_eq!(inbox.bytes.capacity(), 0);

        inbox.stash(&[0xC0, 0x00]);
        inbox.stash(packet);
        inbox.stash(&[0xC0, 0x00]);
        let none: &mut &[u8] = &mut [].as_slice();
        assert!(inbox.next(none, Protocol::Mqtt311, 1_000).unwrap().is_some());
        let header = inbox.next(none, Protocol::Mqtt311, 1_000).unwrap().unwrap().header;
        assert_eq!(inbox.give_away(header).as_frame().body, &packet[2..]);
        assert_eq!(inbox.next(none, Protocol::Mqtt311, 1_000).unwrap().unwrap().header.packet_type(), 12);
        inbox.stash(packet);
        let header = inbox.next(none, Protocol::Mqtt311, 1_000).unwrap().unwrap().header;
        assert_eq!(inbox.give_away(header).as_frame().body, &packet[2..]);
        assert!(inbox.is_empty());
    }
}
