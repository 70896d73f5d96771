//! What sockets and a disk give to a server that does nothing but store: it appends a record of fixed length for each
//! PUBLISH, synchronizes the file, and acknowledges.
//!
//! It knows no topics, sessions or subscribers, looks at no packet beyond its head and its identifier, and keeps nothing in
//! memory. As in the broker, one thread has the sockets and another one the file; a write takes all that came while the
//! last one ran. It is this program, started once more.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use broker::codec::{Inbox, Packet, PacketId, QoS, ReasonCode, decode, encode};
use broker::store::SEGMENT_BYTES;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token, Waker};
use slab::Slab;

use crate::load::client::PROTOCOL;
use crate::measure::{self, accept_all};
use crate::raw::record_bytes;

/// Where it listens, and in which folder it writes.
const ADDRESS: &str = "DURABLE_BARE_ADDRESS";
const FOLDER: &str = "DURABLE_BARE_FOLDER";

const READ_BUFFER_BYTES: usize = 64 * 1024;
const PACKET_SIZE_MAX: u32 = 1 << 20;

const LISTENER: Token = Token(usize::MAX);
const WRITTEN: Token = Token(usize::MAX - 1);

/// A command that starts it.
pub(crate) fn command(is_pinned: bool, address: SocketAddr, folder: &Path) -> io::Result<Command> {
    let program = std::env::current_exe()?;
    let program = program.to_str().ok_or_else(|| io::Error::other("a path that is no text"))?;
    let mut command = measure::command(program, is_pinned);
    command.env(ADDRESS, address.to_string()).env(FOLDER, folder);
    Ok(command)
}

/// Serves until it is killed, if this process was started for that.
pub(crate) fn serve_if_asked() -> io::Result<()> {
    let (Ok(address), Some(folder)) = (std::env::var(ADDRESS), std::env::var_os(FOLDER)) else {
        return Ok(());
    };
    Server::start(address.parse().map_err(io::Error::other)?, PathBuf::from(folder))?.serve()
}

/// Messages that are written together: who sent them, under which identifiers.
type Together = Vec<(usize, PacketId)>;

struct Server {
    poll: Poll,
    listener: TcpListener,
    clients: Slab<Client>,
    /// What has come since the last write was begun.
    waiting: Together,
    is_writing: bool,
    to_disk: Sender<Together>,
    from_disk: Receiver<Together>,
}

struct Client {
    stream: TcpStream,
    inbox: Inbox,
    out: Vec<u8>,
}

impl Server {
    fn start(address: SocketAddr, folder: PathBuf) -> io::Result<Self> {
        let poll = Poll::new()?;
        let mut listener = TcpListener::bind(address)?;
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        let waker = Arc::new(Waker::new(poll.registry(), WRITTEN)?);
        let (to_disk, tasks) = channel();
        let (done, from_disk) = channel();
        std::thread::spawn(move || write(&folder, &tasks, &done, &waker).expect("the disk takes it"));
        let (clients, waiting) = (Slab::new(), Vec::new());
        Ok(Self { poll, listener, clients, waiting, is_writing: false, to_disk, from_disk })
    }

    fn serve(mut self) -> io::Result<()> {
        let (mut events, mut buffer) = (Events::with_capacity(1_024), vec![0; READ_BUFFER_BYTES]);
        loop {
            self.poll.poll(&mut events, None)?;
            for event in &events {
                match event.token() {
                    LISTENER => self.accept()?,
                    WRITTEN => self.acknowledge()?,
                    Token(at) => self.read(at, &mut buffer)?,
                }
            }
            if !self.is_writing && !self.waiting.is_empty() {
                self.is_writing = true;
                self.to_disk.send(std::mem::take(&mut self.waiting)).map_err(io::Error::other)?;
            }
        }
    }

    fn accept(&mut self) -> io::Result<()> {
        accept_all(&self.listener, |mut stream| {
            let entry = self.clients.vacant_entry();
            self.poll.registry().register(&mut stream, Token(entry.key()), Interest::READABLE)?;
            entry.insert(Client { stream, inbox: Inbox::default(), out: Vec::new() });
            Ok(())
        })
    }

    /// Reads until a read is short.
    fn read(&mut self, at: usize, buffer: &mut [u8]) -> io::Result<()> {
        loop {
            let Some(client) = self.clients.get_mut(at) else { return Ok(()) };
            let count = match client.stream.read(buffer) {
                Ok(count) if count > 0 => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                _ => {
                    self.clients.remove(at);
                    return Ok(());
                }
            };
            let mut input = &buffer[..count];
            while let Some(frame) =
                client.inbox.next(&mut input, PROTOCOL, PACKET_SIZE_MAX).map_err(io::Error::other)?
            {
                match decode::decode(frame, PROTOCOL).map_err(io::Error::other)? {
                    Packet::Publish(publish) => {
                        self.waiting.extend(publish.packet_id.map(|packet_id| (at, packet_id)));
                    }
                    Packet::Connect(_) => client.out.extend_from_slice(&[0x20, 2, 0, 0]),
                    Packet::Subscribe(subscribe) => {
                        let [high, low] = subscribe.packet_id.number().to_be_bytes();
                        client.out.extend_from_slice(&[0x90, 3, high, low, QoS::AtLeastOnce.number()]);
                    }
                    _ => {}
                }
            }
            client.flush()?;
            if count < buffer.len() {
                return Ok(());
            }
        }
    }

    /// Answers those whose messages are written.
    fn acknowledge(&mut self) -> io::Result<()> {
        while let Ok(together) = self.from_disk.try_recv() {
            self.is_writing = false;
            for (at, packet_id) in &together {
                if let Some(client) = self.clients.get_mut(*at) {
                    encode::puback(&mut client.out, *packet_id, ReasonCode::Success);
                }
            }
            for (at, _) in &together {
                if let Some(client) = self.clients.get_mut(*at) {
                    client.flush()?;
                }
            }
        }
        Ok(())
    }
}

impl Client {
    /// Its peer never has so much on its way that a socket would not take all answers.
    fn flush(&mut self) -> io::Result<()> {
        if !self.out.is_empty() {
            self.stream.write_all(&self.out)?;
            self.out.clear();
        }
        Ok(())
    }
}

/// Appends records and synchronizes them, in files that are as long as a segment of the log.
fn write(
    folder: &Path,
    tasks: &Receiver<Together>,
    done: &Sender<Together>,
    waker: &Waker,
) -> io::Result<()> {
    let (path, record_bytes) = (folder.join("bare"), record_bytes());
    let (mut file, mut length, mut bytes) = (File::create(&path)?, 0, Vec::new());
    while let Ok(together) = tasks.recv() {
        bytes.resize(together.len() * record_bytes, b'x');
        file.write_all_at(&bytes, length)?;
        file.sync_data()?;
        length += bytes.len() as u64;
        if length >= SEGMENT_BYTES {
            fs::remove_file(&path)?;
            (file, length) = (File::create(&path)?, 0);
        }
        done.send(together).map_err(io::Error::other)?;
        waker.wake()?;
    }
    Ok(())
}
