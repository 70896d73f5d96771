//! Lines of JSON to records. Strict: what is not understood is an error and not left out, because a typing mistake must
//! not lose a message.

use std::collections::{BTreeSet, HashSet};
use std::fmt;
use std::io::{self, BufRead};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Map, Value};

use crate::clock::{Duration, Instant};
use crate::codec::{PacketId, QoS};
use crate::journal::{
    DeliveryRecord, DueWillRecord, Key, Lsn, MessageRecord, Origin, Owner, ReceiptRecord, Record,
    ReleaseRecord, RetainedRecord, SessionRecord, SubscriptionRecord, WillRecord,
};

use super::name_of;

/// The longest text of MQTT.
const TEXT_BYTES_MAX: usize = 65_535;

/// No packet, and so no payload, is longer.
const BYTES_MAX: usize = 268_435_455;

/// The largest Subscription Identifier.
const SUBSCRIPTION_ID_MAX: u32 = 268_435_455;

/// Why lines are not records.
#[derive(Debug)]
pub enum ImportError {
    /// A line cannot be read, or its record not be put.
    Io {
        /// Its number, from 1.
        line: u64,
        /// Why.
        error: io::Error,
    },
    /// A line is not what a record looks like.
    Line {
        /// Its number, from 1.
        line: u64,
        /// The field, those of an inner object with the object's name before it: `will.qos`; `None` is the whole line.
        field: Option<String>,
        /// What is wrong with it, in words that can stand behind its name.
        problem: String,
    },
}

impl fmt::Display for ImportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io { line, error } => write!(f, "line {line}: {error}"),
            Self::Line { line, field: Some(field), problem } => write!(f, "line {line}: {field} {problem}"),
            Self::Line { line, field: None, problem } => write!(f, "line {line}: {problem}"),
        }
    }
}

impl std::error::Error for ImportError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { error, .. } => Some(error),
            Self::Line { .. } => None,
        }
    }
}

/// Reads records from lines, in any order, and hands each to `put`. Empty lines are skipped. Returns how many records
/// there were.
///
/// # Errors
///
/// The first line that is not a record or is a second one of the same name, that cannot be read, or that `put` refuses.
/// What came before it has been put.
pub fn import(
    mut lines: impl BufRead,
    mut put: impl FnMut(Key<'_>, &Record<'_>) -> io::Result<()>,
) -> Result<u64, ImportError> {
    // A record that is put twice would replace the first one.
    let mut keys: HashSet<Box<[u8]>> = HashSet::new();
    let mut text = Vec::new();
    let mut line = 0;
    loop {
        line += 1;
        text.clear();
        let io_error = |error| ImportError::Io { line, error };
        let line_error = |Problem { field, problem }| ImportError::Line { line, field, problem };
        if lines.read_until(b'\n', &mut text).map_err(io_error)? == 0 {
            return Ok(keys.len() as u64);
        }
        let text = text.trim_ascii();
        if text.is_empty() {
            continue;
        }
        let object = parse(text).map_err(line_error)?;
        let mut buffers = Buffers::default();
        let (key, record) = read_record(&object, &mut buffers).map_err(line_error)?;
        let mut key_bytes = Vec::new();
        key.write(&mut key_bytes);
        if keys.contains(&*key_bytes) {
            let problem = format!("{} stands on an earlier line too", name_of(&key_bytes));
            return Err(line_error(Problem { field: None, problem }));
        }
        put(key, &record).map_err(io_error)?;
        keys.insert(key_bytes.into());
    }
}

/// What is wrong with a line.
struct Problem {
    field: Option<String>,
    problem: String,
}

fn parse(line: &[u8]) -> Result<Map<String, Value>, Problem> {
    let whole = |problem| Problem { field: None, problem };
    let value = serde_json::from_slice(line).map_err(|error| {
        // It counts lines too, and there is only this one.
        let (place, text) =
            (format!(" at line {} column {}", error.line(), error.column()), error.to_string());
        whole(format!("is not JSON: {} at column {}", text.trim_end_matches(&place), error.column()))
    })?;
    let Value::Object(object) = value else { return Err(whole("is not a JSON object".to_owned())) };
    check_names(line)?;
    Ok(object)
}

/// Makes sure that no field stands twice in an object, of which `serde_json` keeps only the last. The text is known to
/// be JSON, so that every colon outside of a string follows the name of a field.
fn check_names(json: &[u8]) -> Result<(), Problem> {
    let mut objects: Vec<BTreeSet<&[u8]>> = Vec::new();
    let mut string: &[u8] = &[];
    let mut bytes = json.iter().enumerate();
    while let Some((at, byte)) = bytes.next() {
        match byte {
            b'"' => {
                while let Some((end, byte)) = bytes.next() {
                    match byte {
                        b'"' => {
                            string = &json[at + 1..end];
                            break;
                        }
                        b'\\' => drop(bytes.next()),
                        _ => {}
                    }
                }
            }
            b'{' => objects.push(BTreeSet::new()),
            b'}' => drop(objects.pop()),
            b':' => {
                let problem = if string.contains(&b'\\') {
                    "is written with an escape"
                } else if objects.last_mut().is_some_and(|names| !names.insert(string)) {
                    "stands there twice"
                } else {
                    continue;
                };
                let field = Some(String::from_utf8_lossy(string).into_owned());
                return Err(Problem { field, problem: problem.to_owned() });
            }
            _ => {}
        }
    }
    Ok(())
}

/// What a record borrows that does not stand in its line as it is.
#[derive(Default)]
struct Buffers {
    properties: Vec<u8>,
    payload: Vec<u8>,
    subscription_ids: Vec<u8>,
}

fn read_record<'a>(
    object: &'a Map<String, Value>,
    buffers: &'a mut Buffers,
) -> Result<(Key<'a>, Record<'a>), Problem> {
    let mut fields = Fields { object, prefix: "", known: Vec::new() };
    let kind = fields.required("kind", text)?;
    let (key, record) = match kind {
        "session" => (
            Key::Session(fields.required("name", number)?),
            Record::Session(read_session(&mut fields, buffers)?),
        ),
        "subscription" => (
            Key::Subscription(fields.required("session", number)?, fields.required("filter", text)?),
            Record::Subscription(read_subscription(&mut fields)?),
        ),
        "message" => (
            Key::Message(fields.required("record", number)?),
            Record::Message(read_message(&mut fields, buffers)?),
        ),
        "retained" => (
            Key::Retained(fields.required("record", number)?),
            Record::Retained(RetainedRecord {
                message: fields.required("message", number)?,
                qos: fields.required("qos", qos)?,
            }),
        ),
        "delivery" => (
            Key::Delivery(fields.required("record", number)?),
            Record::Delivery(read_delivery(&mut fields, &mut buffers.subscription_ids)?),
        ),
        "release" => (
            Key::Release(fields.required("record", number)?),
            Record::Release(ReleaseRecord {
                session: fields.required("session", number)?,
                packet_id: fields.required("packet_id", packet_id)?,
            }),
        ),
        "receipt" => (
            Key::Receipt(fields.required("record", number)?),
            Record::Receipt(ReceiptRecord {
                session: fields.required("session", number)?,
                packet_id: fields.required("packet_id", packet_id)?,
            }),
        ),
        "due_will" => (
            Key::DueWill(fields.required("record", number)?),
            Record::DueWill(DueWillRecord {
                session: fields.required("session", number)?,
                will: read_will(&mut fields, buffers)?.ok_or_else(|| fields.problem("will", "is missing"))?,
            }),
        ),
        _ => return Err(fields.problem("kind", &format!("{kind:?} is unknown"))),
    };
    fields.finish(kind)?;
    Ok((key, record))
}

fn read_session<'a>(fields: &mut Fields<'a>, buffers: &'a mut Buffers) -> Result<SessionRecord<'a>, Problem> {
    Ok(SessionRecord {
        client_id: fields.required("client_id", text)?,
        user: fields.optional("user", text)?,
        ends_with_connection: fields.required("ends_with_connection", flag)?,
        expiry: fields.optional("expiry_ms", millis)?.map(Duration),
        absent_since: fields.optional("absent_since_ms", millis)?.map(Instant),
        will: read_will(fields, buffers)?,
    })
}

/// The will in a record, if there is one.
fn read_will<'a>(of: &mut Fields<'a>, buffers: &'a mut Buffers) -> Result<Option<WillRecord<'a>>, Problem> {
    let Some(mut fields) = of.inner("will", "will.")? else { return Ok(None) };
    let will = WillRecord {
        message: read_message(&mut fields, buffers)?,
        qos: fields.required("qos", qos)?,
        retain: fields.required("retain", flag)?,
        expiry: fields.optional("message_expiry_ms", millis)?.map(Duration),
        delay: fields.required("delay_ms", millis).map(Duration)?,
        due_at: fields.optional("due_at_ms", millis)?.map(Instant),
    };
    fields.finish("will")?;
    Ok(Some(will))
}

fn read_subscription(fields: &mut Fields<'_>) -> Result<SubscriptionRecord, Problem> {
    Ok(SubscriptionRecord {
        qos: fields.required("qos", qos)?,
        no_local: fields.required("no_local", flag)?,
        retain_as_published: fields.required("retain_as_published", flag)?,
        subscription_id: fields.optional("subscription_id", subscription_id)?.unwrap_or(0),
        streams: fields.required("awaits_retained", flag)?,
    })
}

fn read_message<'a>(fields: &mut Fields<'a>, buffers: &'a mut Buffers) -> Result<MessageRecord<'a>, Problem> {
    let Buffers { properties, payload, .. } = buffers;
    *properties = fields.optional("properties_base64", base64)?.unwrap_or_default();
    Ok(MessageRecord {
        topic: fields.required("topic", text)?,
        properties,
        payload: match (fields.optional("payload", long_text)?, fields.optional("payload_base64", base64)?) {
            (Some(text), None) => text.as_bytes(),
            (None, Some(bytes)) => {
                *payload = bytes;
                payload
            }
            (None, None) => return Err(fields.problem("payload", "is missing")),
            (Some(_), Some(_)) => return Err(fields.problem("payload_base64", "stands beside payload")),
        },
        expires_at: fields.optional("expires_at_ms", millis)?.map(Instant),
    })
}

fn read_delivery<'a>(
    fields: &mut Fields<'a>,
    subscription_ids: &'a mut Vec<u8>,
) -> Result<DeliveryRecord<'a>, Problem> {
    *subscription_ids = fields.optional("subscription_ids", subscription_id_list)?.unwrap_or_default();
    Ok(DeliveryRecord {
        owner: match (fields.optional("session", number)?, fields.optional("group", text)?) {
            (Some(session), None) => Owner::Session(session),
            (None, Some(group)) => Owner::Group(group),
            (None, None) => return Err(fields.problem("session", "is missing, and group too")),
            (Some(_), Some(_)) => return Err(fields.problem("group", "stands beside session")),
        },
        message: fields.required("message", number)?,
        qos: fields.required("qos", qos)?,
        retain: fields.required("retain", flag)?,
        packet_id: fields.optional("packet_id", packet_id)?,
        subscription_ids,
        origin: match fields.inner("origin", "origin.")? {
            Some(mut fields) => {
                let origin = Origin {
                    group: fields.required("group", text)?,
                    qos: fields.required("qos", qos)?,
                    retain: fields.required("retain", flag)?,
                };
                fields.finish("origin")?;
                Some(origin)
            }
            None => None,
        },
    })
}

/// The fields of an object, each asked for by its name.
struct Fields<'a> {
    object: &'a Map<String, Value>,
    /// Stands before their names where people read them.
    prefix: &'static str,
    /// Those that were asked for.
    known: Vec<&'static str>,
}

/// What a field should be, in words that can stand behind its name.
type Expected = &'static str;

impl<'a> Fields<'a> {
    fn problem(&self, field: &str, problem: &str) -> Problem {
        Problem { field: Some(format!("{}{field}", self.prefix)), problem: problem.to_owned() }
    }

    fn optional<T>(
        &mut self,
        name: &'static str,
        read: impl FnOnce(&'a Value) -> Result<T, Expected>,
    ) -> Result<Option<T>, Problem> {
        self.known.push(name);
        match self.object.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => read(value).map(Some).map_err(|expected| self.problem(name, expected)),
        }
    }

    fn required<T>(
        &mut self,
        name: &'static str,
        read: impl FnOnce(&'a Value) -> Result<T, Expected>,
    ) -> Result<T, Problem> {
        self.optional(name, read)?.ok_or_else(|| self.problem(name, "is missing"))
    }

    fn inner(&mut self, name: &'static str, prefix: &'static str) -> Result<Option<Self>, Problem> {
        let object = self.optional(name, |value| value.as_object().ok_or("must be an object"))?;
        Ok(object.map(|object| Fields { object, prefix, known: Vec::new() }))
    }

    /// Nothing else may be there.
    fn finish(&self, of: &str) -> Result<(), Problem> {
        match self.object.keys().find(|name| !self.known.contains(&name.as_str())) {
            Some(name) => Err(self.problem(name, &format!("is no field of a {of}"))),
            None => Ok(()),
        }
    }
}

fn text(value: &Value) -> Result<&str, Expected> {
    let text = value.as_str().ok_or("must be a text")?;
    if text.len() <= TEXT_BYTES_MAX { Ok(text) } else { Err("has more than 65,535 bytes") }
}

fn long_text(value: &Value) -> Result<&str, Expected> {
    let text = value.as_str().ok_or("must be a text")?;
    if text.len() <= BYTES_MAX { Ok(text) } else { Err("has more than 268,435,455 bytes") }
}

fn base64(value: &Value) -> Result<Vec<u8>, Expected> {
    let text = value.as_str().ok_or("must be a text")?;
    let bytes = BASE64.decode(text).map_err(|_| "must be base64 with padding")?;
    if bytes.len() <= BYTES_MAX { Ok(bytes) } else { Err("has more than 268,435,455 bytes") }
}

fn flag(value: &Value) -> Result<bool, Expected> {
    value.as_bool().ok_or("must be true or false")
}

fn number(value: &Value) -> Result<Lsn, Expected> {
    value.as_u64().map(Lsn).filter(|number| number.can_name()).ok_or("must be the number of a record, from 1")
}

/// The largest number says in a record that there is none.
fn millis(value: &Value) -> Result<u64, Expected> {
    value.as_u64().filter(|millis| *millis != u64::MAX).ok_or("must be milliseconds, a whole number")
}

fn qos(value: &Value) -> Result<QoS, Expected> {
    let level = value.as_u64().and_then(|level| u8::try_from(level).ok());
    level.and_then(QoS::new).ok_or("must be 0, 1 or 2")
}

fn packet_id(value: &Value) -> Result<PacketId, Expected> {
    let id = value.as_u64().and_then(|id| u16::try_from(id).ok());
    id.and_then(PacketId::new).ok_or("must be 1 to 65,535")
}

fn subscription_id(value: &Value) -> Result<u32, Expected> {
    let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
    id.filter(|id| (1..=SUBSCRIPTION_ID_MAX).contains(id)).ok_or("must be 1 to 268,435,455")
}

fn subscription_id_list(value: &Value) -> Result<Vec<u8>, Expected> {
    let expected = "must be a list of numbers from 1 to 268,435,455";
    let mut bytes = Vec::new();
    for id in value.as_array().ok_or(expected)? {
        bytes.extend_from_slice(&subscription_id(id).map_err(|_| expected)?.to_be_bytes());
    }
    Ok(bytes)
}
