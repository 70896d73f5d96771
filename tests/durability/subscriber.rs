//! A subscriber with a stored session, which judges what it gets: nothing is missing, nothing at QoS 2 comes twice, and
//! all is in order.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use broker::codec::{Packet, PacketId, QoS, ReasonCode};

use crate::PATIENCE;
use crate::connection::{Connection, Login, Message, NEW, Received, ack};
use crate::publisher::{Break, Total};
use crate::whereabouts::Whereabouts;

/// So often it looks up from its connection.
const LOOK_UP: Duration = Duration::from_millis(20);

/// Which message a payload is, in the words of its publisher.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Name {
    publisher: String,
    /// That it was published at.
    qos: QoS,
    number: u32,
}

impl Name {
    fn parse(payload: &[u8]) -> Option<Self> {
        let mut words = str::from_utf8(payload).ok()?.split(' ');
        let publisher = words.next()?.to_owned();
        let qos = QoS::new(words.next()?.parse().ok()?)?;
        Some(Self { publisher, qos, number: words.next()?.parse().ok()? })
    }
}

/// A subscriber.
#[derive(Debug)]
pub(crate) struct Subscriber {
    login: Login,
    qos: QoS,
    /// Which number is due from each publisher at each QoS. All messages before it came.
    due: HashMap<(String, QoS), u32>,
    /// Identifiers of QoS 2 messages that were not released yet.
    receipts: HashMap<PacketId, Name>,
}

impl Subscriber {
    /// Makes its session and its subscription, and goes away.
    pub(crate) fn new(login: Login, qos: QoS, address: SocketAddr) -> Self {
        let (mut connection, connack) = login.connect(address).expect("the broker is there");
        assert_eq!(connack, NEW);
        assert_eq!(connection.subscribe("load", qos).expect("the broker answers"), [qos.number()]);
        Self { login, qos, due: HashMap::new(), receipts: HashMap::new() }
    }

    /// Takes messages until it has as many as were published, which it is told when that is known.
    pub(crate) fn run(
        mut self,
        whereabouts: &Whereabouts,
        totals: &OnceLock<Vec<Total>>,
    ) -> Result<(), String> {
        let mut deadline = None;
        while let Some(address) = whereabouts.wait() {
            match self.converse(address, whereabouts, totals, &mut deadline) {
                Ok(()) => return Ok(()),
                // Whoever sets the whereabouts may not know yet.
                Err(Break::Lost) => std::thread::sleep(crate::LOOK_AGAIN),
                Err(Break::Violation(text)) => return Err(format!("{}: {text}", self.login.client_id)),
            }
        }
        Err(format!("{}: ended before everything had come", self.login.client_id))
    }

    fn converse(
        &mut self,
        address: SocketAddr,
        whereabouts: &Whereabouts,
        totals: &OnceLock<Vec<Total>>,
        deadline: &mut Option<Instant>,
    ) -> Result<(), Break> {
        let (mut connection, connack) = self.login.connect(address)?;
        if connack.reason != ReasonCode::Success || !connack.session_present {
            return Err(Break::Violation(format!("its session is lost: {connack:?}")));
        }
        while whereabouts.is_at(address) {
            if let Some(received) = connection.receive_within(LOOK_UP)? {
                self.handle(received, &mut connection)?;
            }
            let Some(totals) = totals.get() else { continue };
            if self.has_all(totals) {
                return self.finish(connection);
            }
            if *deadline.get_or_insert_with(|| Instant::now() + PATIENCE) < Instant::now() {
                let Self { due, receipts, .. } = self;
                return Err(Break::Violation(format!(
                    "of {totals:?} these are due: {due:?}; not released: {receipts:?}"
                )));
            }
        }
        Err(Break::Lost)
    }

    fn has_all(&self, totals: &[Total]) -> bool {
        let count_of =
            |total: &Total| self.due.get(&(total.publisher.clone(), total.qos)).copied().unwrap_or(0);
        self.receipts.is_empty() && totals.iter().all(|total| count_of(total) == total.count)
    }

    /// Sees to it that the broker knows what was acknowledged, and that nothing comes behind the last message.
    fn finish(&mut self, mut connection: Connection) -> Result<(), Break> {
        connection.send(&Packet::Pingreq)?;
        loop {
            match connection.receive()? {
                Received::Pingresp => return Ok(()),
                received => self.handle(received, &mut connection)?,
            }
        }
    }

    fn handle(&mut self, received: Received, connection: &mut Connection) -> Result<(), Break> {
        match received {
            Received::Publish(message) => self.handle_message(&message, connection),
            Received::Pubrel(packet_id) => {
                // An unknown one is repeated: the answer to the first one was lost.
                self.receipts.remove(&packet_id);
                Ok(connection.send(&Packet::Pubcomp(ack(packet_id)))?)
            }
            other => Err(Break::Violation(format!("{other:?} is not for a subscriber"))),
        }
    }

    fn handle_message(&mut self, message: &Message, connection: &mut Connection) -> Result<(), Break> {
        let name = Name::parse(&message.payload)
            .ok_or_else(|| Break::Violation("a message that nobody published".to_owned()))?;
        let violation = |what: &str| Err(Break::Violation(format!("{name:?}: {what}")));
        if message.qos != name.qos.min(self.qos) {
            return violation("not at its QoS");
        }
        let Some(packet_id) = message.packet_id else { return violation("without an identifier") };
        if message.qos == QoS::AtLeastOnce {
            self.take(&name, true)?;
            return Ok(connection.send(&Packet::Puback(ack(packet_id)))?);
        }
        match self.receipts.get(&packet_id) {
            Some(earlier) if *earlier != name => return violation("its identifier is in use"),
            Some(_) if !message.dup => return violation("sent again without DUP"),
            Some(_) => {}
            None => {
                self.take(&name, false)?;
                self.receipts.insert(packet_id, name);
            }
        }
        Ok(connection.send(&Packet::Pubrec(ack(packet_id)))?)
    }

    /// Hands a message to the application.
    fn take(&mut self, name: &Name, may_be_repeated: bool) -> Result<(), Break> {
        let due = self.due.entry((name.publisher.clone(), name.qos)).or_insert(0);
        if name.number > *due {
            return Err(Break::Violation(format!("{name:?} comes where {due} is due")));
        }
        if name.number < *due {
            return if may_be_repeated {
                Ok(())
            } else {
                Err(Break::Violation(format!("{name:?} comes twice")))
            };
        }
        *due += 1;
        Ok(())
    }
}
