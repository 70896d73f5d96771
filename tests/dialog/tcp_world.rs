//! Dialogs over TCP, against a server of their own.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread::JoinHandle;
use std::time::Duration;

use broker::server::{Handle, Options, Server};

use super::core_world::configuration;
use super::script::World;

/// Long enough for a slow machine: only a dialog that fails waits so long.
const PATIENCE: Duration = Duration::from_secs(10);

/// A server on a thread, and who talks to it.
pub(crate) struct TcpWorld {
    address: SocketAddr,
    handle: Handle,
    thread: Option<JoinHandle<std::io::Result<()>>>,
    actors: BTreeMap<String, TcpStream>,
}

impl TcpWorld {
    /// A server with these command line options, on a port that the system chooses.
    pub(crate) fn new(options: &[String]) -> Self {
        let options = Options { signals: false, ..configuration(options).server };
        let server = Server::bind(options).expect("a server can be bound to a free port");
        let address = server.local_addresses()[0];
        let handle = server.handle();
        let thread = Some(std::thread::spawn(move || server.run()));
        Self { address, handle, thread, actors: BTreeMap::new() }
    }

    fn actor(&mut self, name: &str) -> &mut TcpStream {
        let address = self.address;
        self.actors.entry(name.to_owned()).or_insert_with(|| {
            let stream = TcpStream::connect(address).expect("the server accepts");
            stream.set_nodelay(true).expect("a socket option");
            stream.set_read_timeout(Some(PATIENCE)).expect("a socket option");
            stream.set_write_timeout(Some(PATIENCE)).expect("a socket option");
            stream
        })
    }
}

impl World for TcpWorld {
    fn send(&mut self, name: &str, bytes: &[u8]) {
        // The server may close before it has read everything, as it should with some of these bytes.
        let _ = self.actor(name).write_all(bytes);
    }

    fn receive(&mut self, name: &str, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        let mut filled = 0;
        while filled < count {
            match self.actor(name).read(&mut bytes[filled..]) {
                Ok(0) | Err(_) => break,
                Ok(read) => filled += read,
            }
        }
        bytes.truncate(filled);
        bytes
    }

    fn is_closed(&mut self, name: &str) -> bool {
        match self.actor(name).read(&mut [0]) {
            Ok(read) => read == 0,
            Err(error) => error.kind() == ErrorKind::ConnectionReset,
        }
    }

    fn is_open(&mut self, name: &str) -> bool {
        let stream = self.actor(name);
        stream.set_nonblocking(true).expect("a socket option");
        let peeked = stream.peek(&mut [0]);
        stream.set_nonblocking(false).expect("a socket option");
        match peeked {
            Ok(count) => count > 0,
            Err(error) => error.kind() == ErrorKind::WouldBlock,
        }
    }

    fn cut(&mut self, name: &str) {
        self.actors.remove(name);
    }

    fn wait(&mut self, millis: u64) {
        std::thread::sleep(Duration::from_millis(millis));
    }
}

impl Drop for TcpWorld {
    fn drop(&mut self) {
        self.actors.clear();
        self.handle.stop();
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the loop does not panic").expect("the loop does not fail");
        }
    }
}
