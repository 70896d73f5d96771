//! The receiving half of QoS 2 in a session: which identifiers were taken and not yet released.

use crate::codec::PacketId;
use crate::journal::Lsn;

use super::thin_list::ThinList;

/// Identifiers of incoming QoS 2 messages that were taken and not yet released [MQTT-4.3.3-2].
///
/// Sorted: clients count upwards, so an insertion is an append and a look-up is short. In another order others are moved, half a
/// mebibyte where there are 65,535 (see `copies_of_change`).
#[derive(Debug, Default)]
pub(super) struct Receipts {
    list: ThinList<Receipt>,
    /// How many of them had their PUBLISH on the present connection, and how many may have.
    begun_here: u32,
    receive_max: u32,
}

#[derive(Clone, Copy, Debug)]
struct Receipt {
    packet_id: PacketId,
    begun_here: bool,
    record: Lsn,
}

/// So many receipts are moved in the time that one copy of a message takes.
const MOVED_PER_COPY: usize = 128;

/// What a QoS 2 PUBLISH is to the receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    New,
    Repeated,
    /// More are under way than the receive maximum allows.
    OneTooMany,
}

impl Receipts {
    /// A new connection: whatever is left of earlier ones does not count against its receive maximum.
    pub(super) fn begin_connection(&mut self, receive_max: u32) {
        self.list.iter_mut().for_each(|receipt| receipt.begun_here = false);
        (self.begun_here, self.receive_max) = (0, receive_max);
    }

    /// What a PUBLISH with this identifier is. A repetition counts as begun on the present connection from now on.
    pub(super) fn judge(&mut self, packet_id: PacketId) -> Arrival {
        let found = self.find(packet_id);
        let counts_anew = found.is_ok_and(|at| !self.list[at].begun_here);
        if self.begun_here >= self.receive_max && (counts_anew || found.is_err()) {
            return Arrival::OneTooMany;
        }
        let Some(receipt) = found.ok().and_then(|at| self.list.entry_mut(at)) else { return Arrival::New };
        receipt.begun_here = true;
        self.begun_here += u32::from(counts_anew);
        Arrival::Repeated
    }

    fn find(&self, packet_id: PacketId) -> Result<usize, usize> {
        self.list.binary_search_by_key(&packet_id, |receipt| receipt.packet_id)
    }

    /// Notes the identifier of a PUBLISH that was taken, and its record.
    pub(super) fn insert(&mut self, packet_id: PacketId, record: Lsn) {
        let at = self.find(packet_id).expect_err("it was judged to be new");
        self.list.insert(at, Receipt { packet_id, begun_here: true, record });
        self.begun_here += 1;
    }

    /// Takes back what was stored: begun on an earlier connection.
    pub(super) fn restore(&mut self, packet_id: PacketId, record: Lsn) {
        if let Err(at) = self.find(packet_id) {
            self.list.insert(at, Receipt { packet_id, begun_here: false, record });
        }
    }

    /// Forgets the identifier; returns its record, or `None` if it was not there.
    pub(super) fn remove(&mut self, packet_id: PacketId) -> Option<Lsn> {
        let at = self.find(packet_id).ok()?;
        let receipt = self.list.remove(at)?;
        self.begun_here -= u32::from(receipt.begun_here);
        Some(receipt.record)
    }

    /// What it takes to insert or remove this one, in copies of messages: nothing in the order of most clients.
    pub(super) fn copies_of_change(&self, packet_id: PacketId) -> u64 {
        if self.list.len() < MOVED_PER_COPY {
            return 0;
        }
        let (Ok(at) | Err(at)) = self.find(packet_id);
        (at.min(self.list.len() - at) / MOVED_PER_COPY) as u64
    }

    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    /// Forgets some identifier; returns its record.
    pub(super) fn pop(&mut self) -> Option<Lsn> {
        self.list.pop_back().map(|receipt| receipt.record)
    }

    /// The records of all identifiers.
    pub(super) fn records(&self) -> impl Iterator<Item = Lsn> {
        self.list.iter().map(|receipt| receipt.record)
    }
}
