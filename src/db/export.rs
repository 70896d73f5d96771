//! Records to lines of JSON.

use std::fmt::Display;
use std::io::{self, Write};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::codec::PacketId;
use crate::journal::{
    DeliveryRecord, DueWillRecord, Key, Lsn, MessageRecord, Owner, ReceiptRecord, Record, RecordError,
    ReleaseRecord, SessionRecord, SubscriptionRecord, WillRecord,
};

use super::name_of;

/// Writes each record as a line, in the order in which they come, which is that of keys if they come from a store.
/// Returns how many there were.
///
/// # Errors
///
/// Those of `out`; [`io::ErrorKind::InvalidData`], with the name of the record, if bytes are those of none.
pub fn export(records: impl Iterator<Item = (Vec<u8>, Vec<u8>)>, out: &mut impl Write) -> io::Result<u64> {
    let mut count = 0;
    for (key, value) in records {
        export_record(&key, &value, out)?;
        count += 1;
    }
    Ok(count)
}

/// Writes one record as a line: for whoever is handed one at a time.
///
/// # Errors
///
/// Those of [`export`].
pub fn export_record(key: &[u8], value: &[u8], out: &mut impl Write) -> io::Result<()> {
    let damage =
        |error: RecordError| io::Error::new(io::ErrorKind::InvalidData, format!("{}: {error}", name_of(key)));
    let name = Key::read(key).map_err(damage)?;
    let record = Record::read(name, value).map_err(damage)?;
    write_record(Object::begin(out), name, &record)?;
    out.write_all(b"\n")
}

fn write_record<W: Write>(mut line: Object<'_, W>, key: Key<'_>, record: &Record<'_>) -> io::Result<()> {
    let Lsn(number) = key.lsn();
    match record {
        Record::Session(session) => {
            line.text("kind", "session")?;
            line.value("name", number)?;
            write_session(&mut line, session)?;
        }
        Record::Subscription(subscription) => {
            line.text("kind", "subscription")?;
            line.value("session", number)?;
            if let Key::Subscription(_, filter) = key {
                line.text("filter", filter)?;
            }
            write_subscription(&mut line, subscription)?;
        }
        Record::Message(message) => {
            line.text("kind", "message")?;
            line.value("record", number)?;
            write_message(&mut line, message)?;
        }
        Record::Retained(retained) => {
            line.text("kind", "retained")?;
            line.value("record", number)?;
            line.value("message", retained.message.0)?;
            line.value("qos", retained.qos.number())?;
        }
        Record::Delivery(delivery) => {
            line.text("kind", "delivery")?;
            line.value("record", number)?;
            write_delivery(&mut line, delivery)?;
        }
        Record::Release(ReleaseRecord { session, packet_id })
        | Record::Receipt(ReceiptRecord { session, packet_id }) => {
            let is_release = matches!(record, Record::Release(_));
            line.text("kind", if is_release { "release" } else { "receipt" })?;
            line.value("record", number)?;
            line.value("session", session.0)?;
            line.value("packet_id", packet_id.number())?;
        }
        Record::DueWill(DueWillRecord { session, will }) => {
            line.text("kind", "due_will")?;
            line.value("record", number)?;
            line.value("session", session.0)?;
            write_will(&mut line, will)?;
        }
    }
    line.end()
}

fn write_session<W: Write>(line: &mut Object<'_, W>, session: &SessionRecord<'_>) -> io::Result<()> {
    let SessionRecord { client_id, user, ends_with_connection, expiry, absent_since, will } = session;
    line.text("client_id", client_id)?;
    match user {
        Some(user) => line.text("user", user)?,
        None => line.null("user")?,
    }
    line.value("ends_with_connection", ends_with_connection)?;
    line.optional("expiry_ms", expiry.map(|expiry| expiry.0))?;
    line.optional("absent_since_ms", absent_since.map(|since| since.0))?;
    match will {
        Some(will) => write_will(line, will),
        None => line.null("will"),
    }
}

fn write_will<W: Write>(line: &mut Object<'_, W>, will: &WillRecord<'_>) -> io::Result<()> {
    let WillRecord { message, qos, retain, expiry, delay, due_at } = will;
    let mut object = line.object("will")?;
    object.value("qos", qos.number())?;
    object.value("retain", retain)?;
    object.optional("message_expiry_ms", expiry.map(|expiry| expiry.0))?;
    object.value("delay_ms", delay.0)?;
    object.optional("due_at_ms", due_at.map(|due_at| due_at.0))?;
    write_message(&mut object, message)?;
    object.end()
}

fn write_subscription<W: Write>(line: &mut Object<'_, W>, record: &SubscriptionRecord) -> io::Result<()> {
    let SubscriptionRecord { qos, no_local, retain_as_published, subscription_id, streams } = *record;
    line.value("qos", qos.number())?;
    line.value("no_local", no_local)?;
    line.value("retain_as_published", retain_as_published)?;
    line.optional("subscription_id", (subscription_id != 0).then_some(subscription_id))?;
    line.value("awaits_retained", streams)
}

fn write_message<W: Write>(line: &mut Object<'_, W>, message: &MessageRecord<'_>) -> io::Result<()> {
    let MessageRecord { topic, properties, payload, expires_at } = message;
    line.text("topic", topic)?;
    if !properties.is_empty() {
        line.text("properties_base64", &BASE64.encode(properties))?;
    }
    match std::str::from_utf8(payload) {
        Ok(text) => line.text("payload", text)?,
        Err(_) => line.text("payload_base64", &BASE64.encode(payload))?,
    }
    line.optional("expires_at_ms", expires_at.map(|expires_at| expires_at.0))
}

fn write_delivery<W: Write>(line: &mut Object<'_, W>, delivery: &DeliveryRecord<'_>) -> io::Result<()> {
    let DeliveryRecord { owner, message, qos, retain, packet_id, subscription_ids, origin } = delivery;
    match owner {
        Owner::Session(session) => line.value("session", session.0)?,
        Owner::Group(group) => line.text("group", group)?,
    }
    line.value("message", message.0)?;
    line.value("qos", qos.number())?;
    line.value("retain", retain)?;
    line.optional("packet_id", packet_id.map(PacketId::number))?;
    if !subscription_ids.is_empty() {
        let (ids, _) = subscription_ids.as_chunks();
        let ids: Vec<u32> = ids.iter().map(|id| u32::from_be_bytes(*id)).collect();
        line.value("subscription_ids", format_args!("{ids:?}"))?;
    }
    let Some(origin) = origin else { return line.null("origin") };
    let mut object = line.object("origin")?;
    object.text("group", origin.group)?;
    object.value("qos", origin.qos.number())?;
    object.value("retain", origin.retain)?;
    object.end()
}

/// A JSON object that is being written. Unlike `serde_json`'s, its fields keep their order and need no memory.
struct Object<'a, W> {
    out: &'a mut W,
    /// What stands before the next field.
    separator: &'static str,
}

impl<'a, W: Write> Object<'a, W> {
    const fn begin(out: &'a mut W) -> Self {
        Self { out, separator: "{" }
    }

    fn field(&mut self, name: &'static str) -> io::Result<&mut W> {
        write!(self.out, "{}\"{name}\":", std::mem::replace(&mut self.separator, ","))?;
        Ok(self.out)
    }

    /// A number, a truth value, or a list of numbers: what JSON writes as Rust does.
    fn value(&mut self, name: &'static str, value: impl Display) -> io::Result<()> {
        write!(self.field(name)?, "{value}")
    }

    fn null(&mut self, name: &'static str) -> io::Result<()> {
        self.value(name, "null")
    }

    fn optional(&mut self, name: &'static str, value: Option<impl Display>) -> io::Result<()> {
        match value {
            Some(value) => self.value(name, value),
            None => self.null(name),
        }
    }

    fn text(&mut self, name: &'static str, text: &str) -> io::Result<()> {
        Ok(serde_json::to_writer(self.field(name)?, text)?)
    }

    fn object(&mut self, name: &'static str) -> io::Result<Object<'_, W>> {
        self.field(name).map(Object::begin)
    }

    fn end(self) -> io::Result<()> {
        self.out.write_all(b"}")
    }
}
