//! A client with a stored session that is away, and takes what has waited for it when it comes back.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use broker::codec::packet::Publish;
use broker::codec::{Packet, QoS, ReasonCode, encode};
use mio::{Events, Poll, Token};

use crate::load::client::Client;
use crate::load::plan::PAYLOAD_BYTES;
use crate::load::{Faults, Plan};

const READ_BUFFER_BYTES: usize = 256 * 1024;

/// One that has gone.
pub(crate) struct Absentee {
    address: SocketAddr,
    client_id: String,
    publishers: usize,
}

impl Absentee {
    /// Subscribes as this subscriber of a plan, at QoS 1, and goes.
    pub(crate) fn leave(address: SocketAddr, plan: &Plan, subscriber: usize) -> io::Result<Self> {
        let client_id = format!("absentee-{subscriber}");
        let filter = plan.filter(subscriber);
        Client::connect_stored(address, &client_id, &[(&filter, QoS::AtLeastOnce)])?;
        Ok(Self { address, client_id, publishers: plan.publishers() })
    }

    /// Takes and acknowledges so many messages and looks at each. Returns the time from before its CONNECT.
    pub(crate) fn come_back(&self, messages: u64, patience: Duration) -> io::Result<(Duration, Faults)> {
        let began = Instant::now();
        let (mut client, is_present) = Client::connect_stored(self.address, &self.client_id, &[])?;
        if !is_present {
            return Err(io::Error::other("the session of the absent subscriber is gone"));
        }
        let mut poll = Poll::new()?;
        client.register(poll.registry(), Token(0))?;
        let (mut events, mut buffer) = (Events::with_capacity(8), vec![0; READ_BUFFER_BYTES]);
        let mut next = vec![0; self.publishers];
        let (mut came, mut faults) = (0, Faults::default());
        while came < messages {
            poll.poll(&mut events, Some(patience))?;
            if events.is_empty() {
                faults.lost += messages - came;
                break;
            }
            client.read(&mut buffer, |packet, out| match packet {
                Packet::Publish(publish) => {
                    came += 1;
                    check(&publish, &mut next, &mut faults);
                    if let Some(packet_id) = publish.packet_id {
                        encode::puback(out, packet_id, ReasonCode::Success);
                    }
                }
                _ => faults.strange += 1,
            })?;
            client.flush()?;
        }
        Ok((began.elapsed(), faults))
    }
}

/// Whether a message is the one that has to come next from its publisher.
fn check(publish: &Publish<'_>, next: &mut [u64], faults: &mut Faults) {
    let label = publish.payload.split_first_chunk().and_then(|(publisher, rest)| {
        let (number, _) = rest.split_first_chunk()?;
        Some((u32::from_be_bytes(*publisher) as usize, u64::from_be_bytes(*number)))
    });
    let Some((next, number)) = label.and_then(|(publisher, number)| Some((next.get_mut(publisher)?, number)))
    else {
        faults.strange += 1;
        return;
    };
    let is_alike = publish.payload.len() == PAYLOAD_BYTES && publish.qos == QoS::AtLeastOnce;
    faults.strange += u64::from(!is_alike);
    if number < *next {
        faults.repeated += 1;
    } else {
        faults.lost += number - *next;
        *next = number + 1;
    }
}
