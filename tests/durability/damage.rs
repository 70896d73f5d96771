//! A store that is not what was written, and folders that cannot be used.

use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use broker::codec::{Protocol, QoS};
use redb::{Database, TableDefinition};

use crate::connection::{Login, NEW, RESUMED};
use crate::folder::{TemporaryFolder, copy, last_segment, length, names, segments, written};
use crate::process::Broker;
use crate::wait_until;

/// In front of the first frame of a segment: its magic, its version and four zeros.
const SEGMENT_HEADER_BYTES: u64 = 16;

/// In front of the batch in a frame: its length, a checksum and two numbers.
const FRAME_HEAD_BYTES: u64 = 24;

/// Messages that wait in the folder that all damage is done to copies of.
const MESSAGES: usize = 10;

fn subscriber() -> Login {
    Login::stored("subscriber", Protocol::Mqtt311)
}

fn payload(number: usize) -> String {
    format!("message {number}")
}

/// Publishes these numbers, each in a batch of its own.
fn publish(broker: &Broker, numbers: std::ops::Range<usize>) {
    let login = Login::clean("publisher", Protocol::Mqtt5);
    let (mut connection, _) = login.connect(broker.address).expect("the broker is there");
    for number in numbers {
        connection.publish("news", &payload(number), false);
    }
}

/// A folder with something in its base and several frames in its log.
fn fill(folder: &Path) {
    let mut broker = Broker::start(folder, &[]);
    let (mut connection, connack) = subscriber().connect(broker.address).expect("the broker is there");
    assert_eq!(connack, NEW);
    assert_eq!(connection.subscribe("news", QoS::AtLeastOnce).expect("the broker answers"), [1]);
    connection.disconnect();
    publish(&broker, 0..MESSAGES / 2);
    let first = last_segment(folder);
    broker.terminate();
    let mut broker = Broker::start(folder, &[]);
    wait_until("the log was taken into the base", || !first.exists());
    publish(&broker, MESSAGES / 2..MESSAGES);
    broker.terminate();
}

/// Writes over a part of a file.
fn overwrite(file: &Path, position: u64, bytes: &[u8]) {
    let mut file = fs::File::options().write(true).open(file).expect("the file is there");
    file.seek(SeekFrom::Start(position)).expect("a place in it");
    file.write_all(bytes).expect("it can be written");
}

fn truncate(file: &Path, length: u64) {
    let file = fs::File::options().write(true).open(file).expect("the file is there");
    file.set_len(length).expect("it can be cut");
}

fn base(folder: &Path) -> std::path::PathBuf {
    folder.join("base.redb")
}

/// What was set aside.
fn damaged(folder: &Path) -> Vec<String> {
    names(folder).into_iter().filter(|name| name.starts_with("damaged-")).collect()
}

/// The payloads that the subscriber still gets.
fn expect_messages(broker: &Broker, count: usize) {
    let (mut connection, connack) = subscriber().connect(broker.address).expect("the broker is there");
    assert_eq!(connack, RESUMED);
    let expected: Vec<String> = (0..count).map(payload).collect();
    assert_eq!(connection.take_payloads(count), expected);
    connection.ping();
}

/// A store that was changed behind the broker's back is refused if so wanted, else set aside, never used.
#[test]
fn damage_is_set_aside_or_refused() {
    let parent = TemporaryFolder::new("damage");
    let sound = parent.join("sound");
    fill(&sound);
    type Harm = fn(&Path);
    let kinds: [(&str, Harm); 8] = [
        ("frame", |folder| {
            let segment = last_segment(folder);
            overwrite(&segment, SEGMENT_HEADER_BYTES + FRAME_HEAD_BYTES + 3, &[0xFF, 0x00, 0xFF]);
        }),
        ("missing-frames", |folder| {
            // The base alone knows nothing of them.
            let segment = last_segment(folder);
            let content = fs::read(&segment).expect("the file is there");
            let at = |position: u64| position as usize;
            let head = at(SEGMENT_HEADER_BYTES);
            let batch = u32::from_be_bytes(content[head..head + 4].try_into().expect("four bytes"));
            let second = at(SEGMENT_HEADER_BYTES + FRAME_HEAD_BYTES + u64::from(batch));
            fs::write(&segment, [&content[..head], &content[second..]].concat()).expect("it can be written");
        }),
        ("no-log", |folder| overwrite(&last_segment(folder), 0, b"something")),
        ("half-base", |folder| truncate(&base(folder), length(&base(folder)) / 2)),
        ("no-base", |folder| {
            overwrite(&base(folder), 0, &vec![0xA5; length(&base(folder)) as usize]);
        }),
        ("message-in-base", |folder| {
            let content = fs::read(base(folder)).expect("the file is there");
            let text = payload(0);
            let places = content.windows(text.len()).enumerate();
            for (at, _) in places.filter(|(_, window)| *window == text.as_bytes()) {
                overwrite(&base(folder), at as u64, b"M");
            }
        }),
        ("pages-of-base", |folder| {
            // Enough to have reading panic.
            let first = 4_096;
            overwrite(&base(folder), first, &vec![0xA5; (length(&base(folder)) - first) as usize]);
        }),
        ("empty-base", |folder| truncate(&base(folder), 0)),
    ];
    for (name, harm) in kinds {
        let folder = parent.join(name);
        copy(&sound, &folder);
        harm(&folder);
        let before = names(&folder);

        let text = Broker::refused(&folder, &["--recover", "strict"]);
        assert!(text.contains("cannot use the data directory") && text.contains("damaged"), "{name}: {text}");
        assert_eq!(names(&folder), before, "{name}: all is left as it is");

        let broker = Broker::start(&folder, &[]);
        let errors = broker.lines_with(" ERROR ");
        assert_eq!(errors.len(), 1, "{name}: {errors:#?}");
        let [aside] = &damaged(&folder)[..] else { panic!("{name}: {:?}", names(&folder)) };
        assert!(errors[0].contains(aside) && errors[0].contains("WITHOUT"), "{name}: {errors:#?}");
        let mut kept = before;
        kept.retain(|name| name != "lock");
        assert_eq!(names(&folder.join(aside)), kept, "{name}: for whoever can make something of it");
        // It is a store like any other.
        let (connection, connack) = subscriber().connect(broker.address).expect("the broker is there");
        assert_eq!(connack, NEW, "{name}");
        drop(connection);
        drop(broker);
        let broker = Broker::start(&folder, &["--recover", "strict"]);
        let (_, connack) = subscriber().connect(broker.address).expect("the broker is there");
        assert_eq!(connack, RESUMED, "{name}");
    }
}

/// A base is empty only before it gets its name: without a log as well, an empty one is damage and not a new store.
#[test]
fn an_empty_base_is_damage() {
    let parent = TemporaryFolder::new("empty-base");
    let folder = parent.join("data");
    fill(&folder);
    fs::remove_file(last_segment(&folder)).expect("it can be removed");
    truncate(&base(&folder), 0);
    let text = Broker::refused(&folder, &["--recover", "strict"]);
    assert!(text.contains("damaged"), "{text}");
}

/// A batch that was torn was not acknowledged: no word about it, and nothing else is lost with it.
#[test]
fn a_torn_batch_did_not_happen() {
    let parent = TemporaryFolder::new("torn");
    let sound = parent.join("sound");
    fill(&sound);
    for (cut, is_shorter) in [(1, true), (10, true), (1, false), (10, false)] {
        let folder = parent.join(&format!("cut-{cut}-{is_shorter}"));
        copy(&sound, &folder);
        let segment = last_segment(&folder);
        let end = written(&segment);
        if is_shorter {
            truncate(&segment, end - cut);
        } else {
            overwrite(&segment, end - cut, &vec![0; cut as usize]);
        }
        let broker = Broker::start(&folder, &["--recover", "strict"]);
        assert_eq!(broker.complaints(), [""; 0]);
        assert_eq!(damaged(&folder), [""; 0]);
        expect_messages(&broker, MESSAGES - 1);
    }
    let broker = Broker::start(&sound, &["--recover", "strict"]);
    expect_messages(&broker, MESSAGES);
}

/// An older broker touches nothing that a later one has written.
#[test]
fn a_store_of_a_later_version_is_refused() {
    let parent = TemporaryFolder::new("later");
    let sound = parent.join("sound");
    fill(&sound);
    type Harm = fn(&Path);
    let kinds: [(&str, Harm); 2] = [
        ("log", |folder| overwrite(&last_segment(folder), 8, &2_u32.to_be_bytes())),
        ("base", |folder| {
            let database = Database::open(base(folder)).expect("it is one");
            let transaction = database.begin_write().expect("nobody else writes");
            let facts = TableDefinition::<&str, u64>::new("facts");
            let mut table = transaction.open_table(facts).expect("the table is there");
            table.insert("format", 2).expect("it can be written");
            drop(table);
            transaction.commit().expect("it can be written");
        }),
    ];
    for (name, harm) in kinds {
        let folder = parent.join(name);
        copy(&sound, &folder);
        harm(&folder);
        let before = names(&folder);
        for arguments in [&[] as &[&str], &["--recover", "strict"]] {
            let text = Broker::refused(&folder, arguments);
            assert!(text.contains("was written by a later version of the broker"), "{name}: {text}");
            assert_eq!(names(&folder), before, "{name}");
        }
    }
}

/// Two brokers on one folder would destroy it.
#[test]
fn a_folder_in_use_is_refused() {
    let parent = TemporaryFolder::new("in-use");
    let folder = parent.join("data");
    let mut broker = Broker::start(&folder, &[]);
    for arguments in [&[] as &[&str], &["--recover", "strict"]] {
        let text = Broker::refused(&folder, arguments);
        assert!(text.contains("another broker is using it"), "{text}");
        assert!(text.contains(folder.to_str().expect("the path is text")), "{text}");
    }
    assert_eq!(damaged(&folder), [""; 0]);
    publish(&broker, 0..1);
    broker.kill();
    Broker::start(&folder, &[]).terminate();
}

/// A folder that cannot be made or written to is an error at the start.
#[test]
fn a_folder_that_is_none_is_refused() {
    let parent = TemporaryFolder::new("no-folder");
    let file = parent.join("file");
    fs::write(&file, "").expect("a file can be made");
    for folder in [file.clone(), file.join("below")] {
        let text = Broker::refused(&folder, &[]);
        let path = folder.to_str().expect("the path is text");
        assert!(text.contains(&format!("cannot use the data directory {path}: ")), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
    }
    assert_eq!(segments(parent.join("file").parent().expect("it has one")).len(), 0);
}
