//! What is stored, for people and their tools: records to lines of JSON and back, checks and numbers.
//!
//! Owns the text form of a record. Each is one JSON object on a line of its own, which [`export`] writes and [`import`]
//! reads:
//!
//! ```json
//! {"kind":"session","name":1,"client_id":"till-1","user":null,"ends_with_connection":false,"expiry_ms":60000,"absent_since_ms":null,"will":null}
//! {"kind":"subscription","session":1,"filter":"a/+","qos":1,"no_local":false,"retain_as_published":false,"subscription_id":null,"awaits_retained":false}
//! {"kind":"message","record":3,"topic":"a/b","payload":"text","expires_at_ms":null}
//! {"kind":"retained","record":4,"message":3,"qos":1}
//! {"kind":"delivery","record":5,"session":1,"message":3,"qos":1,"retain":false,"packet_id":9,"origin":null}
//! {"kind":"release","record":6,"session":1,"packet_id":7}
//! {"kind":"receipt","record":7,"session":1,"packet_id":7}
//! {"kind":"due_will","record":8,"session":1,"will":{"qos":1,"retain":false,"message_expiry_ms":null,"delay_ms":0,"due_at_ms":null,"topic":"a/b","payload":"gone","expires_at_ms":null}}
//! ```
//!
//! * Every field survives exactly: times and spans are milliseconds (`_ms`), times by the wall clock since 1970. A
//!   number can be larger than 2^53, from where on some tools round.
//! * What there is not is `null`; on the way back it may also be left out. Left out both ways when they are empty are
//!   `properties_base64` and `subscription_ids`, a list of numbers.
//! * A payload that is not UTF-8 is `payload_base64` instead of `payload`; it is one of the two.
//! * A `will` is an object with `qos`, `retain`, `message_expiry_ms`, `delay_ms`, `due_at_ms` and the fields of a
//!   message. A delivery waits for a `session` or a `group`; its `origin` has `group`, `qos` and `retain`.
//! * What refers to another record gives its number: the `name` of a session, the `record` of anything else.
//!
//! Deliberately not here: their bytes (see `journal`), and the files that they are in (see `store`), which `command`
//! alone knows. That records
//! fit together is for [`check`] to say, not for [`import`], which meets them in any order.

pub mod command;
mod export;
mod import;
mod stats;

use crate::broker::options::Durability;
use crate::broker::{Broker, Options, Restored};
use crate::clock::Instant;
use crate::journal::{Key, Lsn};

pub use export::{export, export_record};
pub use import::{ImportError, import};
pub use stats::{SessionQueue, Stats, stats};

/// Whether a broker could start from records, given in the order of keys, and what it would have then.
///
/// # Errors
///
/// The name of the first record that does not fit, and why.
pub fn check(records: impl Iterator<Item = (Vec<u8>, Vec<u8>)>, now: Instant) -> Result<Restored, String> {
    let options = Options { durability: Durability::BeforeReply, ..Options::default() };
    let mut broker = Broker::new(options, now);
    let mut restore = broker.restore(Lsn::NONE);
    for (key, value) in records {
        restore.record(&key, &value).map_err(|error| format!("{}: {error}", name_of(&key)))?;
    }
    restore.finish().map_err(|error| error.to_string())
}

/// A record in words, by its key.
fn name_of(key: &[u8]) -> String {
    let (kind, Lsn(number)) = match Key::read(key) {
        Ok(Key::Subscription(Lsn(session), filter)) => {
            return format!("subscription {filter:?} of session {session}");
        }
        Ok(Key::Session(name)) => ("session", name),
        Ok(Key::Message(record)) => ("message", record),
        Ok(Key::Retained(record)) => ("retained", record),
        Ok(Key::Delivery(record)) => ("delivery", record),
        Ok(Key::Release(record)) => ("release", record),
        Ok(Key::Receipt(record)) => ("receipt", record),
        Ok(Key::DueWill(record)) => ("due_will", record),
        Err(_) => return format!("the key \"{}\"", key.escape_ascii()),
    };
    format!("{kind} {number}")
}

#[cfg(test)]
mod tests;
