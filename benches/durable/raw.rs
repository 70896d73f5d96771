//! What the disk gives to a program that does nothing but append to a file and synchronize it.
//!
//! The bytes are those that the log of the broker writes for as many messages, and there are as many in one write as the
//! load has on its way: more than that cannot be asked of a store that acknowledges only what is on disk.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use broker::codec::QoS;
use broker::journal::{Batch, DeliveryRecord, Key, Lsn, MessageRecord, Owner, Record};
use broker::store::SEGMENT_BYTES;

use crate::load::plan::PAYLOAD_BYTES;
use crate::measure::Times;

/// What the log puts before each batch.
const FRAME_HEAD_BYTES: usize = 24;

/// What one round gave.
pub(crate) struct RawSample {
    pub(crate) messages_per_second: f64,
    pub(crate) bytes_per_message: f64,
    /// Microseconds for one write and its synchronization.
    pub(crate) half: f64,
    pub(crate) nearly_all: f64,
}

/// What the log writes for so many messages to somebody who is away.
fn frame(messages: u64, payload_bytes: usize) -> Vec<u8> {
    let payload = vec![b'x'; payload_bytes];
    let mut batch = Batch::default();
    for number in 0..messages {
        let message = Lsn(number * 2 + 1);
        let record =
            MessageRecord { topic: "bench/flow/17", properties: &[], payload: &payload, expires_at: None };
        batch.put(Key::Message(message), &Record::Message(record));
        let record = DeliveryRecord {
            owner: Owner::Session(Lsn(1)),
            message,
            qos: QoS::AtLeastOnce,
            retain: false,
            packet_id: None,
            subscription_ids: &[],
            origin: None,
        };
        batch.put(Key::Delivery(message.next()), &Record::Delivery(record));
    }
    let mut frame = vec![0; FRAME_HEAD_BYTES];
    frame.extend_from_slice(&batch.to_bytes());
    frame
}

/// What it writes for one of many.
pub(crate) fn record_bytes() -> usize {
    const MANY: u64 = 1_000;
    frame(MANY, PAYLOAD_BYTES).len() / MANY as usize
}

/// Appends for so long, to files that are as long as a segment of the log.
pub(crate) fn run(
    folder: &Path,
    messages: u64,
    payload_bytes: usize,
    time: Duration,
) -> io::Result<RawSample> {
    let frame = frame(messages, payload_bytes);
    let path = folder.join("raw");
    let (mut times, mut length) = (Times::default(), u64::MAX);
    let mut file = None;
    let began = Instant::now();
    while began.elapsed() < time {
        if length >= SEGMENT_BYTES {
            if file.take().is_some() {
                fs::remove_file(&path)?;
            }
            length = 0;
        }
        let file = match &mut file {
            Some(file) => file,
            none => none.insert(File::create(&path)?),
        };
        let write_began = Instant::now();
        file.write_all_at(&frame, length)?;
        file.sync_data()?;
        times.add(write_began.elapsed());
        length += frame.len() as u64;
    }
    Ok(RawSample {
        messages_per_second: (times.count() * messages) as f64 / began.elapsed().as_secs_f64(),
        bytes_per_message: frame.len() as f64 / messages as f64,
        half: times.quantile(0.5),
        nearly_all: times.quantile(0.99),
    })
}
