//! One row per setting: its option, its unit, its bounds, what it means, and where its value lives.

use crate::clock::Duration;
use crate::server::Options;

/// What a value measures, and so how it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Count,
    Bytes,
    /// A time in whole seconds.
    Time,
}

/// One setting.
pub(super) struct Setting {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    /// The least and the greatest value.
    pub(super) bounds: (u64, u64),
    pub(super) meaning: &'static str,
    pub(super) read: fn(&Options) -> u64,
    write: fn(&mut Options, u64),
}

const K: u64 = 1024;
const DAY_SECS: u64 = 24 * 60 * 60;
/// Ten thousand years: as good as for ever, and far from any overflow.
const TIME_MAX_SECS: u64 = 10_000 * 366 * DAY_SECS;

/// Every setting, in the order of `--help`.
pub(super) const SETTINGS: &[Setting] = &[
    Setting {
        name: "--connections-max",
        kind: Kind::Count,
        bounds: (1, u32::MAX as u64),
        meaning: "connected clients; one more is told to come later",
        read: |options| options.broker.connections_max.into(),
        write: |options, value| options.broker.connections_max = value as u32,
    },
    Setting {
        name: "--handshake-timeout",
        kind: Kind::Time,
        bounds: (1, DAY_SECS),
        meaning: "from accepting a connection to its complete CONNECT",
        read: |options| options.broker.handshake_timeout.as_secs(),
        write: |options, value| options.broker.handshake_timeout = Duration::from_secs(value),
    },
    Setting {
        name: "--stall-timeout",
        kind: Kind::Time,
        bounds: (1, DAY_SECS),
        meaning: "a client that reads nothing for so long, while bytes wait for it, is closed",
        read: |options| options.broker.stall_timeout.as_secs(),
        write: |options, value| options.broker.stall_timeout = Duration::from_secs(value),
    },
    Setting {
        name: "--packet-size-max",
        kind: Kind::Bytes,
        bounds: (64, 268_435_455),
        meaning: "largest packet from a client (at most 512K before its CONNECT is accepted)",
        read: |options| options.broker.packet_size_max.into(),
        write: |options, value| options.broker.packet_size_max = value as u32,
    },
    Setting {
        name: "--in-flight-max",
        kind: Kind::Count,
        bounds: (1, 65_535),
        meaning: "QoS 1 and 2 messages sent to one client and not yet acknowledged",
        read: |options| options.broker.in_flight_max.into(),
        write: |options, value| options.broker.in_flight_max = value as u16,
    },
    Setting {
        name: "--receive-max",
        kind: Kind::Count,
        bounds: (1, 65_535),
        meaning: "QoS 2 messages that a 5.0 client may have begun and not completed; one more closes it",
        read: |options| options.broker.receive_max.into(),
        write: |options, value| options.broker.receive_max = value as u16,
    },
    Setting {
        name: "--topic-alias-max",
        kind: Kind::Count,
        bounds: (0, 1_024),
        meaning: "topic aliases in each direction of a 5.0 connection; 0 is none",
        read: |options| options.broker.topic_alias_max.into(),
        write: |options, value| options.broker.topic_alias_max = value as u16,
    },
    Setting {
        name: "--keep-alive-max",
        kind: Kind::Time,
        bounds: (0, 65_535),
        meaning: "longest keep-alive of a 5.0 client, which is told; 0 leaves it to the client",
        read: |options| options.broker.keep_alive_secs_max.into(),
        write: |options, value| options.broker.keep_alive_secs_max = value as u16,
    },
    Setting {
        name: "--queued-messages-max",
        kind: Kind::Count,
        bounds: (0, u32::MAX as u64),
        meaning: "messages waiting for one client beyond those; new ones are dropped",
        read: |options| options.broker.queued_messages_max.into(),
        write: |options, value| options.broker.queued_messages_max = value as u32,
    },
    Setting {
        name: "--queued-bytes-max",
        kind: Kind::Bytes,
        bounds: (0, 1 << 50),
        meaning: "bytes of messages waiting for one client; new ones are dropped",
        read: |options| options.broker.queued_bytes_max,
        write: |options, value| options.broker.queued_bytes_max = value,
    },
    Setting {
        name: "--queued-bytes-total-max",
        kind: Kind::Bytes,
        bounds: (K * K, 1 << 50),
        meaning: "bytes of messages waiting in the whole broker; at the limit publishers are refused",
        read: |options| options.broker.queued_bytes_total_max,
        write: |options, value| options.broker.queued_bytes_total_max = value,
    },
    Setting {
        name: "--outbox-bytes-max",
        kind: Kind::Bytes,
        bounds: (K * K, 1 << 30),
        meaning: "outgoing buffer of one connection; QoS 0 beyond half of it is dropped",
        read: |options| options.broker.outbox_bytes_max.into(),
        write: |options, value| options.broker.outbox_bytes_max = value as u32,
    },
    Setting {
        name: "--retained-messages-max",
        kind: Kind::Count,
        bounds: (0, u32::MAX as u64),
        meaning: "retained messages",
        read: |options| options.broker.retained_messages_max.into(),
        write: |options, value| options.broker.retained_messages_max = value as u32,
    },
    Setting {
        name: "--retained-bytes-max",
        kind: Kind::Bytes,
        bounds: (0, 1 << 50),
        meaning: "bytes of retained messages",
        read: |options| options.broker.retained_bytes_max,
        write: |options, value| options.broker.retained_bytes_max = value,
    },
    Setting {
        name: "--subscriptions-max",
        kind: Kind::Count,
        bounds: (0, u32::MAX as u64),
        meaning: "subscriptions of one client; more are refused",
        read: |options| options.broker.subscriptions_max.into(),
        write: |options, value| options.broker.subscriptions_max = value as u32,
    },
    Setting {
        name: "--topic-levels-max",
        kind: Kind::Count,
        bounds: (1, 65_536),
        meaning: "levels of a topic; deeper ones are refused",
        read: |options| options.broker.topic_levels_max.into(),
        write: |options, value| options.broker.topic_levels_max = value as u32,
    },
    Setting {
        name: "--sessions-max",
        kind: Kind::Count,
        bounds: (1, u32::MAX as u64),
        meaning: "sessions, connected or stored; one more makes the longest absent go",
        read: |options| options.broker.sessions_max.into(),
        write: |options, value| options.broker.sessions_max = value as u32,
    },
    Setting {
        name: "--unstored-bytes-max",
        kind: Kind::Bytes,
        // What is stored at once has less than 4 GiB, with a packet of each publisher beyond this.
        bounds: (0, 1 << 30),
        meaning: "bytes on their way to the disk; beyond, publishers at QoS 1 and 2 have to wait",
        read: |options| options.broker.unstored_bytes_max,
        write: |options, value| options.broker.unstored_bytes_max = value,
    },
    Setting {
        name: "--session-expiry",
        kind: Kind::Time,
        bounds: (0, TIME_MAX_SECS),
        meaning: "how long a stored session waits for its client at most; 0 is for ever",
        read: |options| seconds_or_zero(options.broker.session_expiry),
        write: |options, value| options.broker.session_expiry = none_if_zero(value),
    },
    Setting {
        name: "--sys-interval",
        kind: Kind::Time,
        bounds: (0, DAY_SECS),
        meaning: "between two rounds of $SYS topics; 0 is never",
        read: |options| seconds_or_zero(options.broker.sys_interval),
        write: |options, value| options.broker.sys_interval = none_if_zero(value),
    },
    Setting {
        name: "--status-interval",
        kind: Kind::Time,
        bounds: (0, DAY_SECS),
        meaning: "between two status blocks in the log; 0 is never",
        read: |options| seconds_or_zero(options.status_interval),
        write: |options, value| options.status_interval = none_if_zero(value),
    },
];

fn seconds_or_zero(duration: Option<Duration>) -> u64 {
    duration.map_or(0, Duration::as_secs)
}

fn none_if_zero(secs: u64) -> Option<Duration> {
    (secs > 0).then(|| Duration::from_secs(secs))
}

impl Setting {
    /// Sets the value that `text` says, or says what is wrong with it.
    pub(super) fn apply(&self, options: &mut Options, text: &str) -> Result<(), String> {
        let (low, high) = self.bounds;
        match self.kind.parse(text) {
            Some(value) if (low..=high).contains(&value) => {
                (self.write)(options, value);
                Ok(())
            }
            Some(_) => Err(format!(
                "{}: {text} is out of bounds ({} to {})",
                self.name,
                self.kind.show(low),
                self.kind.show(high)
            )),
            None => Err(format!("{}: '{}' is not {}", self.name, text.escape_debug(), self.kind.article())),
        }
    }
}

impl Kind {
    /// The units that may stand behind a number, the largest first.
    fn units(self) -> &'static [(char, u64)] {
        match self {
            Self::Count => &[],
            Self::Bytes => &[('G', K * K * K), ('M', K * K), ('K', K)],
            Self::Time => &[('d', DAY_SECS), ('h', 60 * 60), ('m', 60), ('s', 1)],
        }
    }

    fn parse(self, text: &str) -> Option<u64> {
        for (letter, factor) in self.units() {
            if let Some(number) = text.strip_suffix(*letter) {
                return number.parse::<u64>().ok()?.checked_mul(*factor);
            }
        }
        text.parse().ok()
    }

    /// The value with the largest unit that leaves it whole.
    pub(super) fn show(self, value: u64) -> String {
        for (letter, factor) in self.units() {
            if value > 0 && value.is_multiple_of(*factor) {
                return format!("{}{letter}", value / factor);
            }
        }
        value.to_string()
    }

    pub(super) fn placeholder(self) -> &'static str {
        match self {
            Self::Count => "COUNT",
            Self::Bytes => "BYTES",
            Self::Time => "TIME",
        }
    }

    fn article(self) -> &'static str {
        match self {
            Self::Count => "a number",
            Self::Bytes => "a number of bytes such as 65536 or 64K",
            Self::Time => "a time such as 90, 90s, 5m, 12h or 14d",
        }
    }
}
