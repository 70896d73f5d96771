//! How often something was seen: a test that never saw a thing has not tested it.

use std::collections::BTreeMap;

/// Counts by name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Coverage {
    pub(crate) counts: BTreeMap<&'static str, u64>,
}

impl Coverage {
    pub(crate) fn see(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    pub(crate) fn see_if(&mut self, what: &'static str, seen: bool) {
        if seen {
            self.see(what);
        }
    }
}

/// What every long enough run has to see.
pub(crate) const EXPECTED: &[&str] = &[
    "QoS 0 delivery",
    "QoS 1 delivery",
    "QoS 2 delivery",
    "repetition",
    "repetition of what was not heard",
    "repetition after its expiry",
    "repeated QoS 2 PUBLISH",
    "retained delivery",
    "retained delivery with an expiry",
    "retain handling 1: new",
    "retain handling 1: not new",
    "retain handling 2",
    "retain as published",
    "no local",
    "no local, and another subscription delivers",
    "several subscription identifiers",
    "forwarded properties",
    "properties dropped for 3.1.1",
    "will",
    "will: delayed and published",
    "will: cancelled by the client's return",
    "will: published at the end of its session",
    "will: DISCONNECT with a code",
    "will: put off",
    "will: put off, and a crash",
    "will: published after it had waited",
    "connection that waits for wills",
    "a packet amid a message to many",
    "a packet amid a message to groups",
    "PUBLISH put off",
    "PUBLISH looked at in several turns",
    "a subscription changes while receivers are listed",
    "crash amid a message to many",
    "take-over",
    "session begun",
    "session resumed",
    "session resumed with another protocol",
    "session expired or evicted",
    "session expiry capped",
    "session expiry changed by DISCONNECT",
    "keep-alive imposed",
    "keep-alive timeout",
    "stalled reader closed",
    "queue full",
    "refused",
    "window full",
    "window smaller on resume",
    "delivery with an expiry",
    "delivery with a shortened expiry",
    "expired before delivery",
    "message expiry 0, delivered at once",
    "too large for its client",
    "given up at QoS 2 for its size",
    "alias of the broker set",
    "alias of the broker used",
    "alias of the client used",
    "alias of the client set anew",
    "nobody matches",
    "only an absent or shared subscription matches",
    "publish refused",
    "identifier not found",
    "delivery refused at QoS 1",
    "delivery refused at QoS 2",
    "delivery refused with a full window",
    "violation told by its code",
    "violation of a request of several turns",
    "malformed request of several turns",
    "request decoded in several turns",
    "request ended while it was judged",
    "request ended while it took effect",
    "take-over amid a request",
    "crash amid a request",
    "receive maximum exceeded",
    "session expiry raised by DISCONNECT",
    "shared delivery QoS 0",
    "shared delivery QoS 1",
    "shared delivery QoS 2",
    "shared delivery to 3.1.1",
    "shared delivery passed to another member",
    "shared delivery out of the group's queue",
    "group ended",
    "group at rest with members away",
    "sent to another server",
    "amid the sending of clients to another server",
    "refused while clients are sent to another server",
];

/// The same where state is stored.
pub(crate) const EXPECTED_OF_CRASHES: &[&str] = &[
    "crash",
    "crash amid the remains of a session",
    "session back after a crash",
    "stored, and nobody was told",
    "acknowledged before it was stored",
    "read again when the store had caught up",
    "a batch behind another",
];

/// The same where the broker's own store does that.
#[cfg(feature = "persistence")]
pub(crate) const EXPECTED_ON_DISK: &[&str] = &[
    "batches stored as one",
    "commit that failed and is tried again",
    "segments taken into the base",
    "base that failed and is opened anew",
    "power cut amid a commit",
    "power cut amid the taking of segments into the base",
    "power cut amid recovery",
    "process killed while the power stays on",
];
