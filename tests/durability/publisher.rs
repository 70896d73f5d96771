//! A publisher that numbers its messages and keeps each until the broker has taken it over, whatever becomes of the broker.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use broker::codec::packet::Publish;
use broker::codec::{Packet, PacketId, Properties, QoS, ReasonCode};

use crate::connection::{Connection, Login, Received, ack};
use crate::random::Random;

/// Messages under way at once.
const WINDOW: usize = 16;

/// Why a conversation did not come to its end.
#[derive(Debug)]
pub(crate) enum Break {
    /// The broker is gone: it is to be taken up again.
    Lost,
    /// The broker did what it must not do.
    Violation(String),
}

impl From<io::Error> for Break {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::TimedOut => Self::Violation("the broker does not answer".to_owned()),
            _ => Self::Lost,
        }
    }
}

/// What the test and its publishers tell each other.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// Messages that the broker has taken over, of all publishers.
    pub(crate) acknowledged: AtomicU64,
    /// Whether those under way are to be the last ones.
    pub(crate) is_finishing: AtomicBool,
}

/// How many messages were published, by a publisher at a QoS. They are numbered from 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Total {
    pub(crate) publisher: String,
    pub(crate) qos: QoS,
    pub(crate) count: u32,
}

#[derive(Debug)]
struct InFlight {
    packet_id: PacketId,
    qos: QoS,
    payload: Vec<u8>,
    /// PUBREC has come: only PUBREL is left to be sent.
    is_received: bool,
}

/// A publisher at QoS 1 and 2.
#[derive(Debug)]
pub(crate) struct Publisher {
    login: Login,
    random: Random,
    /// The next numbers, at QoS 1 and at QoS 2.
    next_numbers: [u32; 2],
    next_packet_id: PacketId,
    /// In the order in which they were sent first.
    in_flight: VecDeque<InFlight>,
    has_session: bool,
}

impl Publisher {
    /// Its client id is what its messages name as their source.
    pub(crate) fn new(login: Login, random: Random) -> Self {
        Self {
            login,
            random,
            next_numbers: [0; 2],
            next_packet_id: PacketId::FIRST,
            in_flight: VecDeque::new(),
            has_session: false,
        }
    }

    /// Publishes until it is to finish and everything was taken over.
    pub(crate) fn run(
        mut self,
        whereabouts: &crate::whereabouts::Whereabouts,
        progress: &Progress,
    ) -> Result<Vec<Total>, String> {
        while let Some(address) = whereabouts.wait() {
            match self.converse(address, progress) {
                Ok(()) => return Ok(self.totals()),
                // Whoever sets the whereabouts may not know yet.
                Err(Break::Lost) => std::thread::sleep(crate::LOOK_AGAIN),
                Err(Break::Violation(text)) => return Err(format!("{}: {text}", self.login.client_id)),
            }
        }
        Err(format!("{}: {} messages were not acknowledged", self.login.client_id, self.in_flight.len()))
    }

    fn totals(&self) -> Vec<Total> {
        let total = |(qos, count): (QoS, u32)| Total { publisher: self.login.client_id.clone(), qos, count };
        [QoS::AtLeastOnce, QoS::ExactlyOnce].into_iter().zip(self.next_numbers).map(total).collect()
    }

    fn converse(&mut self, address: SocketAddr, progress: &Progress) -> Result<(), Break> {
        let (mut connection, connack) = self.login.connect(address)?;
        if connack.reason != ReasonCode::Success || (self.has_session && !connack.session_present) {
            return Err(Break::Violation(format!("its session is lost: {connack:?}")));
        }
        self.has_session = true;
        self.resend(&mut connection)?;
        loop {
            let is_finishing = progress.is_finishing.load(Ordering::Acquire);
            while !is_finishing && self.in_flight.len() < WINDOW {
                self.publish_next(&mut connection)?;
            }
            if self.in_flight.is_empty() {
                return Ok(());
            }
            let received = connection.receive()?;
            self.handle(received, &mut connection, progress)?;
        }
    }

    /// Sends again what was not answered, in order.
    fn resend(&mut self, connection: &mut Connection) -> io::Result<()> {
        for message in &self.in_flight {
            if message.is_received {
                connection.send(&Packet::Pubrel(ack(message.packet_id)))?;
            } else {
                send(message, true, connection)?;
            }
        }
        Ok(())
    }

    fn publish_next(&mut self, connection: &mut Connection) -> io::Result<()> {
        let (qos, next_number) = if self.random.once_in(2) {
            (QoS::AtLeastOnce, &mut self.next_numbers[0])
        } else {
            (QoS::ExactlyOnce, &mut self.next_numbers[1])
        };
        let mut payload = format!("{} {} {next_number} ", self.login.client_id, qos.number()).into_bytes();
        *next_number += 1;
        // Most are small; some are larger than a block of the disk, or than a piece of the broker's reading.
        let padding = if self.random.once_in(50) { 20_000 } else { 200 };
        payload.resize(payload.len() + self.random.below(padding) as usize, b'.');
        while self.in_flight.iter().any(|message| message.packet_id == self.next_packet_id) {
            self.next_packet_id = self.next_packet_id.next();
        }
        let message = InFlight { packet_id: self.next_packet_id, qos, payload, is_received: false };
        self.next_packet_id = self.next_packet_id.next();
        self.in_flight.push_back(message);
        send(&self.in_flight[self.in_flight.len() - 1], false, connection)
    }

    fn handle(
        &mut self,
        received: Received,
        connection: &mut Connection,
        progress: &Progress,
    ) -> Result<(), Break> {
        let violation = || Err(Break::Violation(format!("{received:?} answers nothing")));
        let (packet_id, expected) = match received {
            Received::Puback(packet_id, ReasonCode::Success) => (packet_id, (QoS::AtLeastOnce, false)),
            Received::Pubrec(packet_id, ReasonCode::Success) => (packet_id, (QoS::ExactlyOnce, false)),
            // The broker may have released it before it was killed.
            Received::Pubcomp(packet_id, ReasonCode::Success | ReasonCode::PacketIdentifierNotFound) => {
                (packet_id, (QoS::ExactlyOnce, true))
            }
            _ => return violation(),
        };
        let Some(at) = self.in_flight.iter().position(|message| message.packet_id == packet_id) else {
            return violation();
        };
        let message = &mut self.in_flight[at];
        if (message.qos, message.is_received) != expected {
            return violation();
        }
        if let Received::Pubrec(..) = received {
            message.is_received = true;
            connection.send(&Packet::Pubrel(ack(packet_id)))?;
        } else {
            self.in_flight.remove(at);
        }
        if !matches!(received, Received::Pubcomp(..)) {
            progress.acknowledged.fetch_add(1, Ordering::Release);
        }
        Ok(())
    }
}

fn send(message: &InFlight, dup: bool, connection: &mut Connection) -> io::Result<()> {
    connection.send(&Packet::Publish(Publish {
        dup,
        qos: message.qos,
        retain: false,
        topic: "load",
        packet_id: Some(message.packet_id),
        properties: Properties::NONE,
        payload: &message.payload,
    }))
}
