//! Requests that take several turns.
//!
//! To the model they do not, so nothing else happens meanwhile: no PUBLISH is taken that was put off before. Now and then
//! their sender goes away, or the process ends, when some of them is done; then so much of them is told to the model. Not of one that
//! makes a member of a group: if very many others have ended there, it takes as long as it takes to find that out.

use broker::broker::ConnectionId;
use broker::codec::packet::{Packet, Protocol, Subscribe, Unsubscribe};
use broker::codec::{decode, encode, frame};
use broker::topics::TopicFilter;

use super::World;

/// Whether a request has a filter that ends its connection.
fn breaks_a_rule(packet: &Packet<'_>, protocol: Protocol) -> bool {
    let is_bad = |filter: &str| !protocol.has_properties() && TopicFilter::parse(filter, 100).is_err();
    match packet {
        Packet::Subscribe(subscribe) => subscribe.requests.into_iter().any(|request| {
            let is_shared = request.filter.starts_with("$share/");
            (request.options.no_local && is_shared) || is_bad(request.filter)
        }),
        Packet::Unsubscribe(unsubscribe) => unsubscribe.filters.into_iter().any(is_bad),
        _ => false,
    }
}

/// Its filters.
fn filters_of(packet: &Packet<'_>) -> usize {
    match packet {
        Packet::Subscribe(subscribe) => subscribe.requests.count(),
        Packet::Unsubscribe(unsubscribe) => unsubscribe.filters.count(),
        _ => 0,
    }
}

/// Whether its sender becomes a member of a group.
fn joins_a_group(packet: &Packet<'_>) -> bool {
    let Packet::Subscribe(subscribe) = packet else { return false };
    subscribe.requests.into_iter().any(|request| request.filter.starts_with("$share/"))
}

/// The same request with the first of its filters only.
fn first_filters(packet: &Packet<'_>, count: usize, protocol: Protocol) -> Vec<u8> {
    let mut bytes = Vec::new();
    match packet {
        Packet::Subscribe(Subscribe { packet_id, properties, requests }) => {
            let first: Vec<_> =
                requests.take(count).map(|request| (request.filter, request.options)).collect();
            encode::subscribe(&mut bytes, protocol, *packet_id, *properties, &first);
        }
        Packet::Unsubscribe(Unsubscribe { packet_id, properties, filters }) => {
            let first: Vec<_> = filters.take(count).collect();
            encode::unsubscribe(&mut bytes, protocol, *packet_id, *properties, &first);
        }
        _ => panic!("it is no request"),
    }
    bytes
}

impl World {
    pub(super) fn finish_request(&mut self) {
        self.request_in_hand = true;
        self.timeout();
        self.request_in_hand = false;
    }

    fn finish_bad_request(&mut self, id: ConnectionId) {
        self.violator = Some(id);
        self.finish_request();
        self.violator = None;
        assert!(self.model.client_id(id).is_none(), "a violation ends its connection");
    }

    /// What is wrong with a request is found out in one of the next turns, before anything of it takes effect. False if there
    /// is nothing.
    pub(super) fn find_violation(&mut self, id: ConnectionId, packet: &Packet<'_>) -> bool {
        let is_bad = breaks_a_rule(packet, self.connections[&id].protocol);
        if is_bad {
            self.model.coverage.see("violation of a request of several turns");
            self.finish_bad_request(id);
        }
        is_bad
    }

    /// The same where it is malformed.
    pub(super) fn find_malformed(&mut self, id: ConnectionId) {
        if self.model.client_id(id).is_some() {
            self.model.coverage.see("malformed request of several turns");
            self.finish_bad_request(id);
        }
    }

    /// Whether it is known how many turns a request takes that was put off.
    pub(super) fn takes_turns(&self, packet: &Packet<'_>, is_decoded_later: bool) -> bool {
        let is_long = is_decoded_later || filters_of(packet) > self.broker.options().steps_per_turn;
        is_long && !joins_a_group(packet)
    }

    /// Its sender goes away, or the process ends, when some of it is done.
    pub(super) fn interrupt(&mut self, id: ConnectionId, packet: &Packet<'_>, is_decoded_later: bool) {
        let (count, steps) = (filters_of(packet), self.broker.options().steps_per_turn);
        // Each filter is judged and then takes effect. The first are judged as the packet comes, unless it is decoded later.
        let begun = if is_decoded_later { 0 } else { steps };
        let turns = self.random.below((2 * count - begun).div_ceil(steps));
        let done = (begun + turns * steps).saturating_sub(count);
        if done > 0 {
            let protocol = self.connections[&id].protocol;
            let bytes = first_filters(packet, done, protocol);
            let Ok(frame::Split::Complete { frame, .. }) = frame::split(&bytes, protocol, u32::MAX) else {
                panic!("it is whole")
            };
            let first = decode::decode(frame, protocol).expect("it is well-formed");
            match &first {
                Packet::Subscribe(subscribe) => self.model.subscribe(id, subscribe),
                Packet::Unsubscribe(unsubscribe) => self.model.unsubscribe(id, unsubscribe),
                _ => panic!("it is a request"),
            }
            self.model.forget_reply(id);
        }
        self.request_in_hand = true;
        (0..turns).for_each(|_| self.turn());
        self.request_in_hand = false;
        let Some(connection) = self.connections.get(&id) else { return };
        let client = connection.client;
        self.model.coverage.see_if("request ended while it was judged", done == 0);
        self.model.coverage.see_if("request ended while it took effect", done > 0);
        match self.random.below(3) {
            0 => self.cut(client, id),
            1 if self.is_stored => {
                if self.random.once_in(2) {
                    self.take_batch();
                    self.store_batches();
                }
                self.model.coverage.see("crash amid a request");
                self.crash();
            }
            _ => {
                self.model.coverage.see("take-over amid a request");
                self.connect(client);
                let other = *self.clients[client].open.last().expect("it is open");
                self.feed(other, usize::MAX);
                // It may be refused, for want of room in the store.
                if self.model.client_id(id).is_some() {
                    self.cut(client, id);
                }
            }
        }
        // It stands in line still, and would take a step of the next request.
        self.turn();
    }
}
