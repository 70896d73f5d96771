use std::io;

use crate::clock::Duration;
use crate::codec::{PacketId, QoS};
use crate::journal::{
    DeliveryRecord, DueWillRecord, MessageRecord, Origin, Owner, ReceiptRecord, Record, ReleaseRecord,
    RetainedRecord, SessionRecord, SubscriptionRecord, WillRecord,
};

use super::*;

type Stored = Vec<(Vec<u8>, Vec<u8>)>;

fn bytes_of(key: Key<'_>, record: &Record<'_>) -> (Vec<u8>, Vec<u8>) {
    let (mut key_bytes, mut value) = (Vec::new(), Vec::new());
    key.write(&mut key_bytes);
    record.write(&mut value);
    (key_bytes, value)
}

fn exported(stored: &Stored) -> String {
    let mut out = Vec::new();
    assert_eq!(export(stored.iter().cloned(), &mut out).unwrap(), stored.len() as u64);
    String::from_utf8(out).unwrap()
}

fn imported(lines: &str) -> Result<Stored, ImportError> {
    let mut stored = Vec::new();
    let count = import(lines.as_bytes(), |key, record| {
        stored.push(bytes_of(key, record));
        Ok(())
    })?;
    assert_eq!(count, stored.len() as u64);
    Ok(stored)
}

fn import_error(lines: &str) -> String {
    imported(lines).expect_err(lines).to_string()
}

/// One line of each kind and more; a broker could start from them.
const LINES: &str = concat!(
    r#"{"kind":"session","name":1,"client_id":"till-1","user":"me","ends_with_connection":false,"expiry_ms":null,"#,
    r#""absent_since_ms":1700000000123,"will":{"qos":2,"retain":true,"message_expiry_ms":5,"delay_ms":9,"#,
    r#""due_at_ms":10,"topic":"w","payload":"","expires_at_ms":null}}"#,
    "\n",
    r#"{"kind":"session","name":2,"client_id":"\u001b[1m","user":null,"ends_with_connection":true,"expiry_ms":0,"#,
    r#""absent_since_ms":null,"will":null}"#,
    "\n",
    r#"{"kind":"subscription","session":1,"filter":"$share/g/a","qos":1,"no_local":false,"#,
    r#""retain_as_published":true,"subscription_id":null,"awaits_retained":false}"#,
    "\n",
    r#"{"kind":"subscription","session":1,"filter":"a/+","qos":1,"no_local":true,"retain_as_published":false,"#,
    r#""subscription_id":7,"awaits_retained":true}"#,
    "\n",
    r#"{"kind":"message","record":3,"topic":"a/ü","properties_base64":"AwABeA==","payload":"payload\n\"","#,
    r#""expires_at_ms":1700000000999}"#,
    "\n",
    r#"{"kind":"message","record":4,"topic":"a","payload_base64":"/wA=","expires_at_ms":null}"#,
    "\n",
    r#"{"kind":"retained","record":5,"message":3,"qos":0}"#,
    "\n",
    r#"{"kind":"delivery","record":6,"session":1,"message":3,"qos":2,"retain":true,"packet_id":9,"#,
    r#""subscription_ids":[5, 268435455],"origin":{"group":"$share/g/a","qos":1,"retain":true}}"#,
    "\n",
    r#"{"kind":"delivery","record":7,"group":"$share/g/a","message":4,"qos":1,"retain":false,"packet_id":null,"#,
    r#""origin":null}"#,
    "\n",
    r#"{"kind":"delivery","record":8,"session":2,"message":4,"qos":1,"retain":false,"packet_id":null,"origin":null}"#,
    "\n",
    r#"{"kind":"release","record":9,"session":1,"packet_id":1}"#,
    "\n",
    r#"{"kind":"receipt","record":10,"session":2,"packet_id":65535}"#,
    "\n",
    r#"{"kind":"due_will","record":11,"session":2,"will":{"qos":1,"retain":false,"message_expiry_ms":null,"delay_ms":0,"#,
    r#""due_at_ms":null,"topic":"w","payload":"gone","expires_at_ms":null}}"#,
    "\n",
);

/// Numbers that look random and are the same in each run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }

    fn flag(&mut self) -> bool {
        self.below(2) == 0
    }

    /// Small ones, and those that no floating-point number holds.
    fn millis(&mut self) -> u64 {
        if self.flag() { self.below(100) } else { u64::MAX - 1 - self.below(100) }
    }

    fn lsn(&mut self) -> Lsn {
        Lsn(1 + self.millis() % Lsn::MAX.0)
    }

    fn optional<T>(&mut self, make: impl FnOnce(&mut Self) -> T) -> Option<T> {
        self.flag().then(|| make(self))
    }

    fn qos(&mut self) -> QoS {
        QoS::new(self.below(3) as u8).unwrap()
    }

    fn packet_id(&mut self) -> PacketId {
        PacketId::new(1 + self.below(65_535) as u16).unwrap()
    }

    fn text(&mut self) -> String {
        let letters =
            ['a', '/', '+', '"', '\\', ':', '{', '\n', '\0', '\u{7f}', 'ü', '\u{2028}', '\u{feff}', '🦀'];
        (0..self.below(6)).map(|_| letters[self.below(letters.len() as u64) as usize]).collect()
    }

    fn bytes(&mut self) -> Vec<u8> {
        if self.flag() {
            self.text().into()
        } else {
            (0..self.below(6)).map(|_| self.below(256) as u8).collect()
        }
    }

    /// A record that a store could have, and its key.
    fn stored(&mut self) -> (Vec<u8>, Vec<u8>) {
        let (text, other_text, properties, payload) = (self.text(), self.text(), self.bytes(), self.bytes());
        let ids: Vec<u8> =
            (0..self.below(3)).flat_map(|_| (1 + self.below(9) as u32).to_be_bytes()).collect();
        let message = MessageRecord {
            topic: &text,
            properties: &properties,
            payload: &payload,
            expires_at: self.optional(Self::millis).map(Instant),
        };
        let number = self.lsn();
        let will = WillRecord {
            message,
            qos: self.qos(),
            retain: self.flag(),
            expiry: self.optional(Self::millis).map(Duration),
            delay: Duration(self.millis()),
            due_at: self.optional(Self::millis).map(Instant),
        };
        let (key, record) = match self.below(8) {
            0 => {
                let session = SessionRecord {
                    client_id: &other_text,
                    user: self.flag().then_some(&text),
                    ends_with_connection: self.flag(),
                    expiry: self.optional(Self::millis).map(Duration),
                    absent_since: self.optional(Self::millis).map(Instant),
                    will: self.flag().then_some(will),
                };
                (Key::Session(number), Record::Session(session))
            }
            1 => {
                let subscription = SubscriptionRecord {
                    qos: self.qos(),
                    no_local: self.flag(),
                    retain_as_published: self.flag(),
                    subscription_id: self.below(3) as u32,
                    streams: self.flag(),
                };
                (Key::Subscription(number, &text), Record::Subscription(subscription))
            }
            2 => (Key::Message(number), Record::Message(message)),
            3 => {
                let retained = RetainedRecord { message: self.lsn(), qos: self.qos() };
                (Key::Retained(number), Record::Retained(retained))
            }
            4 => {
                let origin = Origin { group: &other_text, qos: self.qos(), retain: self.flag() };
                let delivery = DeliveryRecord {
                    owner: if self.flag() { Owner::Session(self.lsn()) } else { Owner::Group(&text) },
                    message: self.lsn(),
                    qos: self.qos(),
                    retain: self.flag(),
                    packet_id: self.optional(Self::packet_id),
                    subscription_ids: &ids,
                    origin: self.flag().then_some(origin),
                };
                (Key::Delivery(number), Record::Delivery(delivery))
            }
            5 => {
                let release = ReleaseRecord { session: self.lsn(), packet_id: self.packet_id() };
                (Key::Release(number), Record::Release(release))
            }
            6 => {
                let due_will = DueWillRecord { session: self.lsn(), will };
                (Key::DueWill(number), Record::DueWill(due_will))
            }
            _ => {
                let receipt = ReceiptRecord { session: self.lsn(), packet_id: self.packet_id() };
                (Key::Receipt(number), Record::Receipt(receipt))
            }
        };
        bytes_of(key, &record)
    }
}

#[test]
fn each_kind_of_record_survives_both_ways() {
    let stored = imported(LINES).unwrap();
    assert_eq!(exported(&stored), LINES);
    assert!(stored.is_sorted());
    let kinds: Vec<u8> = stored.iter().map(|(key, _)| key[0]).collect();
    assert_eq!(kinds, [1, 1, 2, 2, 3, 3, 4, 5, 5, 5, 6, 7, 8]);
}

#[test]
fn the_documented_lines_are_what_is_written() {
    let lines = include_str!("mod.rs").lines().filter_map(|line| line.strip_prefix("//! {"));
    let lines: String = lines.map(|line| format!("{{{line}\n")).collect();
    let stored = imported(&lines).unwrap();
    assert_eq!((stored.len(), exported(&stored)), (8, lines));
    assert!(check(stored.into_iter(), Instant(0)).is_ok());
}

#[test]
fn whatever_is_stored_survives_both_ways() {
    let mut numbers = Numbers(1);
    for _ in 0..20_000 {
        let stored = vec![numbers.stored()];
        let line = exported(&stored);
        assert_eq!(imported(&line).unwrap(), stored, "{line}");
        assert_eq!(line.lines().count(), 1);
        // An unlikely store is refused, but never with a panic.
        let _ = check(stored.into_iter(), Instant(0));
    }
}

#[test]
fn order_empty_lines_and_spaces_mean_nothing() {
    let mut stored = imported(LINES).unwrap();
    let backwards: Vec<&str> = LINES.lines().rev().collect();
    stored.reverse();
    assert_eq!(imported(&format!("\n  {}\r\n\n", backwards.join(" \r\n\t\n"))).unwrap(), stored);
    let short = r#"{"qos":1,"message" : 3,"retain":false,"group":"$share/g/a","record":1,"kind":"delivery"}"#;
    assert!(exported(&imported(short).unwrap()).contains(r#""packet_id":null,"origin":null"#));
    assert_eq!(imported("").unwrap(), []);
}

#[test]
fn a_mistake_is_named_with_its_line_and_field() {
    let release = r#"{"kind":"release","record":9,"session":1,"packet_id":1}"#;
    let line = |index: usize| LINES.lines().nth(index).unwrap();
    let changes = [
        (release, "\"release\"", "\"relaese\"", "kind \"relaese\" is unknown"),
        (release, "\"kind\":\"release\",", "", "kind is missing"),
        (release, "\"packet_id\":1", "\"packet_id\":1,\"qos\":1", "qos is no field of a release"),
        (release, "\"packet_id\":1", "\"packet_id\":1,\"packet_id\":2", "packet_id stands there twice"),
        (release, "packet_id", "p\\u0061cket_id", "p\\u0061cket_id is written with an escape"),
        (release, ":1}", ":null}", "packet_id is missing"),
        (release, ":1}", ":0}", "packet_id must be 1 to 65,535"),
        (release, ":1}", ":65536}", "packet_id must be 1 to 65,535"),
        (release, ":1}", ":1.0}", "packet_id must be 1 to 65,535"),
        (release, ":1}", ":1", "is not JSON: EOF while parsing an object at column 54"),
        (release, "{\"kind", "[]{\"kind", "is not JSON: trailing characters at column 3"),
        (release, release, "[1]", "is not a JSON object"),
        (release, "9", "0", "record must be the number of a record, from 1"),
        (release, "9", "4611686018427387905", "record must be the number of a record, from 1"),
        (line(0), "\"qos\":2", "\"qos\":3", "will.qos must be 0, 1 or 2"),
        (line(0), "\"qos\":2", "\"qos\":2,\"Qos\":2", "will.Qos is no field of a will"),
        (line(0), "\"delay_ms\":9", "\"delay_ms\":null", "will.delay_ms is missing"),
        (line(0), "\"me\"", "7", "user must be a text"),
        (line(1), "\"will\":null", "\"will\":[]", "will must be an object"),
        (line(1), "\"expiry_ms\":0", "\"expiry_ms\":-1", "expiry_ms must be milliseconds, a whole number"),
        (line(2), "\"no_local\":false", "\"no_local\":0", "no_local must be true or false"),
        (line(3), ":7", ":268435456", "subscription_id must be 1 to 268,435,455"),
        (line(4), "AwABeA==", "AwABeA", "properties_base64 must be base64 with padding"),
        (line(4), ",\"payload\"", ",\"pay_load\"", "payload is missing"),
        (line(4), "payload\"", "payload_base64\":\"\",\"payload\"", "payload_base64 stands beside payload"),
        (line(7), "[5", "[0", "subscription_ids must be a list of numbers from 1 to 268,435,455"),
        (line(7), "\"group\"", "\"grop\"", "origin.group is missing"),
        (line(8), "\"group\"", "\"session\":1,\"group\"", "group stands beside session"),
        (line(9), "\"session\":2,", "", "session is missing, and group too"),
    ];
    for (line, from, to, problem) in changes {
        let changed = line.replacen(from, to, 1);
        assert_eq!(import_error(&format!("\n{changed}\n")), format!("line 2: {problem}"), "{changed}");
    }
    let twice = format!("{release}\n{}", release.replace(":1}", ":2}"));
    assert_eq!(import_error(&twice), "line 2: release 9 stands on an earlier line too");
    let long = line(2).replace("$share", &"a".repeat(65_536));
    assert_eq!(import_error(&long), "line 1: filter has more than 65,535 bytes");
}

#[test]
fn errors_of_reading_and_putting_pass_through() {
    let error = import(LINES.as_bytes(), |_, _| Err(io::Error::other("full"))).unwrap_err();
    assert_eq!(error.to_string(), "line 1: full");
    assert!(import(&b"{\"kind\":\"\xff\"}"[..], |_, _| Ok(())).is_err());
    let cut = vec![(vec![5, 0, 0, 0, 0, 0, 0, 0, 7], vec![1])];
    let error = export(cut.into_iter(), &mut Vec::new()).unwrap_err();
    assert_eq!(
        (error.kind(), &*error.to_string()),
        (io::ErrorKind::InvalidData, "delivery 7: a record ends too early")
    );
}

#[test]
fn check_says_what_comes_back_or_which_record_does_not_fit() {
    let now = Instant(1_700_000_000_500);
    let stored = imported(LINES).unwrap();
    let restored = Restored { sessions: 2, subscriptions: 2, deliveries: 3, retained: 1, orphans: 0 };
    assert_eq!(check(stored.clone().into_iter(), now), Ok(restored));
    let error_without = |at: usize| {
        let mut stored = stored.clone();
        stored.remove(at);
        check(stored.into_iter(), now).unwrap_err()
    };
    assert_eq!(error_without(4), "retained 5: record 3 is missing");
    assert_eq!(error_without(5), "delivery 7: record 4 is missing");
    // What is left of a session that has ended belongs to nobody.
    let ended = stored[1..].to_vec();
    let left = Restored { sessions: 1, subscriptions: 0, deliveries: 1, retained: 1, orphans: 5 };
    assert_eq!(check(ended.into_iter(), now), Ok(left));
    let wildcard = imported(&LINES.replace("a/ü", "a/#")).unwrap();
    let error = check(wildcard.into_iter(), now).unwrap_err();
    assert_eq!(error, "message 3: a topic, a filter or properties are not valid");
    let unknown = vec![(vec![9; 9], vec![])];
    let error = check(unknown.into_iter(), now).unwrap_err();
    assert_eq!(error, r#"the key "\t\t\t\t\t\t\t\t\t": there is no record of kind 9"#);
    let (last, record) = stored.into_iter().next().unwrap();
    let numbered = |number: Lsn| {
        let key = [&last[..1], &number.0.to_be_bytes()].concat();
        check(vec![(key, record.clone())].into_iter(), now)
    };
    assert!(numbered(Lsn::MAX).is_ok());
    assert_eq!(
        numbered(Lsn::MAX.next()).unwrap_err(),
        "session 4611686018427387905: a record has a value that it cannot have"
    );
}

#[test]
fn stats_count_and_name_the_longest_queues() {
    let mut stored = imported(LINES).unwrap();
    stored.push((vec![9], vec![]));
    let text = stats(stored.into_iter()).to_string();
    let expected = "sessions           2 (1 absent)\n\
        subscriptions      2\n\
        messages           2 (20 bytes)\n\
        retained messages  1\n\
        queued             2 (1 in groups)\n\
        in flight          1\n\
        QoS 2 receipts     1\n\
        QoS 2 releases     1\n\
        due wills          1\n\
        unreadable         1\n\
        longest queues\n           \
        1  \\u{1b}[1m\n";
    assert_eq!(text, expected);
    assert!(!stats(std::iter::empty()).to_string().contains("queues"));

    let mut many = String::new();
    for session in 1..=12 {
        let client = LINES.lines().nth(1).unwrap().replace("\"name\":2", &format!("\"name\":{session}"));
        many += &client.replace("\\u001b[1m", &format!("c{session}"));
        many += "\n";
        for record in 0..session {
            let delivery =
                LINES.lines().nth(9).unwrap().replace("session\":2", &format!("session\":{session}"));
            many += &delivery.replace("record\":8", &format!("record\":{}", session * 100 + record));
            many += "\n";
        }
    }
    let stats = stats(imported(&many).unwrap().into_iter());
    let queues = stats.longest_queues();
    assert_eq!((queues.len(), &*queues[0].client_id, queues[0].queued), (10, "c12", 12));
    assert_eq!((&*queues[9].client_id, queues[9].queued), ("c3", 3));
}
