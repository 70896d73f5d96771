//! Any split of a stream, with packets put off at any point, gives the same packets and the same error. As in the
//! server, a CONNECT decides how what follows it is read.

#![no_main]

use broker::codec::{DecodeError, Frame, Inbox, Protocol};
use libfuzzer_sys::fuzz_target;

const PACKET_SIZE_MAX: u32 = 4_096;

/// What came of a stream so far.
#[derive(Debug, PartialEq, Eq)]
struct Stream {
    protocol: Protocol,
    bodies: Vec<(u8, Vec<u8>)>,
    error: Option<DecodeError>,
}

impl Stream {
    fn new(protocol: Protocol) -> Self {
        Self { protocol, bodies: Vec::new(), error: None }
    }

    fn take(&mut self, frame: Frame<'_>) {
        self.bodies.push((frame.header.first, frame.body.to_vec()));
        self.protocol = frame.claimed_protocol().unwrap_or(self.protocol);
    }
}

fn whole(mut input: &[u8], protocol: Protocol) -> Stream {
    let mut inbox = Inbox::default();
    let mut stream = Stream::new(protocol);
    loop {
        match inbox.next(&mut input, stream.protocol, PACKET_SIZE_MAX) {
            Ok(Some(frame)) => stream.take(frame),
            Ok(None) => return stream,
            Err(error) => return Stream { error: Some(error), ..stream },
        }
    }
}

fn split(input: &[u8], cuts: &[u8], protocol: Protocol) -> Stream {
    let mut inbox = Inbox::default();
    let mut stream = Stream::new(protocol);
    let mut rest = input;
    let mut cuts = cuts.iter().copied().cycle();
    while !rest.is_empty() || !inbox.is_empty() {
        let cut = cuts.next().unwrap_or(1);
        let (mut now, later) = rest.split_at((usize::from(cut & 0x3F) + 1).min(rest.len()));
        rest = later;
        // The high bits say after how many packets the others are put off.
        let mut left = usize::from(cut >> 6) + 1;
        let buffered = inbox.buffered();
        loop {
            match inbox.next(&mut now, stream.protocol, PACKET_SIZE_MAX) {
                Ok(Some(frame)) => stream.take(frame),
                Ok(None) => {
                    if rest.is_empty() && inbox.buffered() == buffered {
                        return stream;
                    }
                    break;
                }
                Err(error) => return Stream { error: Some(error), ..stream },
            }
            left -= 1;
            if left == 0 {
                inbox.stash(now);
                break;
            }
        }
    }
    stream
}

fuzz_target!(|bytes: &[u8]| {
    let Some((count, rest)) = bytes.split_first() else { return };
    let (cuts, input) = rest.split_at(usize::from(*count).min(rest.len()));
    for protocol in [Protocol::Mqtt31, Protocol::Mqtt311, Protocol::Mqtt5] {
        assert_eq!(split(input, cuts, protocol), whole(input, protocol));
    }
});
