//! The options with which this broker is measured.

/// Nothing is dropped, and nothing is done but for the load. More is in flight than the load has on its way, and yet few
/// of all packet identifiers: where nearly all are in use, the search for a free one would be what is measured.
pub(crate) const LIMITS: [&str; 7] = [
    "--in-flight-max=16384",
    "--queued-messages-max=4294967295",
    "--queued-bytes-max=1024G",
    "--queued-bytes-total-max=1024G",
    "--outbox-bytes-max=1G",
    "--sys-interval=0",
    "--status-interval=0",
];
