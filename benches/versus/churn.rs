//! Clients that come and go: connect, CONNECT, CONNACK, DISCONNECT, end of the connection, and again.
//!
//! The broker closes first, as the standard has it, so ports of the load are free again at once.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use crate::PATIENCE;
use crate::load::Faults;
use crate::load::client::connect_bytes;
use crate::measure::{Process, Stopwatch, WARM_UP};
use crate::outcome::Outcome;

const CONNACK: [u8; 4] = [0x20, 2, 0, 0];

const DISCONNECT: [u8; 2] = [0xE0, 0];

const SLEEP_MAX: Duration = Duration::from_millis(10);

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Connecting,
    AwaitingConnack,
    AwaitingEnd,
}

struct Churner {
    stream: TcpStream,
    state: State,
    connect: Vec<u8>,
}

impl Churner {
    fn open(address: SocketAddr, index: usize, poll: &Poll) -> io::Result<Self> {
        let connect = connect_bytes(&format!("churn-{index}"));
        Ok(Self { stream: stream(address, index, poll)?, state: State::Connecting, connect })
    }

    /// Goes as far as possible. True if a connection has come to its end, and the next one has begun.
    fn advance(&mut self, address: SocketAddr, index: usize, poll: &Poll) -> io::Result<bool> {
        loop {
            let result = match self.state {
                State::Connecting => self.stream.write(&self.connect).map(|count| {
                    assert_eq!(count, self.connect.len(), "a new socket takes a small packet");
                    self.state = State::AwaitingConnack;
                }),
                State::AwaitingConnack => {
                    let mut bytes = [0; 4];
                    // Four bytes are written, and so come, as one piece.
                    let count = match self.stream.read(&mut bytes) {
                        Ok(count) if bytes[..count] == CONNACK => self.stream.write(&DISCONNECT),
                        Ok(count) => Err(io::Error::other(format!("{:?} is no CONNACK", &bytes[..count]))),
                        Err(error) => Err(error),
                    };
                    count.map(|_| self.state = State::AwaitingEnd)
                }
                State::AwaitingEnd => match self.stream.read(&mut [0; 4]) {
                    Ok(0) => {
                        self.stream = stream(address, index, poll)?;
                        self.state = State::Connecting;
                        return Ok(true);
                    }
                    Ok(_) => Err(io::Error::other("something came behind the CONNACK")),
                    Err(error) => Err(error),
                },
            };
            match result {
                Ok(()) => {}
                Err(error) if is_temporary(&error) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
    }
}

fn is_temporary(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::NotConnected | io::ErrorKind::Interrupted
    )
}

fn stream(address: SocketAddr, index: usize, poll: &Poll) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(address)?;
    poll.registry().register(&mut stream, Token(index), Interest::READABLE | Interest::WRITABLE)?;
    Ok(stream)
}

/// Measures so many of them at once.
pub(crate) fn run(process: &Process, count: usize, time: Duration) -> io::Result<Outcome> {
    let mut poll = Poll::new()?;
    let mut churners = Vec::new();
    for index in 0..count {
        churners.push(Churner::open(process.address, index, &poll)?);
    }
    let mut served = 0;
    drive(&mut poll, &mut churners, process.address, WARM_UP, &mut served)?;
    let stopwatch = Stopwatch::start(process.pid(), served)?;
    drive(&mut poll, &mut churners, process.address, time, &mut served)?;
    Ok(Outcome::processor_time(stopwatch.stop(served)?, Faults::default()))
}

fn drive(
    poll: &mut Poll,
    churners: &mut [Churner],
    address: SocketAddr,
    time: Duration,
    served: &mut u64,
) -> io::Result<()> {
    let mut events = Events::with_capacity(1024);
    let began = Instant::now();
    let mut last_event = began;
    while began.elapsed() < time {
        match poll.poll(&mut events, Some(SLEEP_MAX)) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => result?,
        }
        if !events.is_empty() {
            last_event = Instant::now();
        } else if last_event.elapsed() > PATIENCE {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "nobody is served any more"));
        }
        for event in &events {
            let Token(index) = event.token();
            // An event of the connection before may come late: then there is nothing to do for this one.
            *served += u64::from(churners[index].advance(address, index, poll)?);
        }
    }
    Ok(())
}
