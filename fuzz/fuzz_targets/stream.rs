//! Any split of a stream, with packets put off at any point, gives the same packets and the same error.

#![no_main]

use broker::codec::{DecodeError, Inbox, Protocol};
use libfuzzer_sys::fuzz_target;

const PACKET_SIZE_MAX: u32 = 4_096;

type Bodies = Vec<(u8, Vec<u8>)>;

fn whole(mut input: &[u8]) -> (Bodies, Option<DecodeError>) {
    let mut inbox = Inbox::default();
    let mut bodies = Vec::new();
    loop {
        match inbox.next(&mut input, Protocol::Mqtt311, PACKET_SIZE_MAX) {
            Ok(Some(frame)) => bodies.push((frame.header.first, frame.body.to_vec())),
            Ok(None) => return (bodies, None),
            Err(error) => return (bodies, Some(error)),
        }
    }
}

fn split(input: &[u8], cuts: &[u8]) -> (Bodies, Option<DecodeError>) {
    let mut inbox = Inbox::default();
    let mut bodies = Vec::new();
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
            match inbox.next(&mut now, Protocol::Mqtt311, PACKET_SIZE_MAX) {
                Ok(Some(frame)) => bodies.push((frame.header.first, frame.body.to_vec())),
                Ok(None) => {
                    if rest.is_empty() && inbox.buffered() == buffered {
                        return (bodies, None);
                    }
                    break;
                }
                Err(error) => return (bodies, Some(error)),
            }
            left -= 1;
            if left == 0 {
                inbox.stash(now);
                break;
            }
        }
    }
    (bodies, None)
}

fuzz_target!(|bytes: &[u8]| {
    let Some((count, rest)) = bytes.split_first() else { return };
    let (cuts, input) = rest.split_at(usize::from(*count).min(rest.len()));
    assert_eq!(split(input, cuts), whole(input));
});
