//! How bytes travel: the sockets, as one enum.
//!
//! A transport moves bytes and knows no packets. It is registered for reading and writing once, edge-triggered: an
//! event says that something changed, and from then on the owner reads or writes until the transport has no more.
//!
//! Deliberately not here: buffers. What comes in goes into the loop's read buffer, what goes out is lent by an outbox.

use std::io::{self, IoSlice, Read, Write};
use std::net::Shutdown;

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};

/// One connection's way to move bytes.
#[derive(Debug)]
pub enum Transport {
    /// Plain TCP.
    Tcp(TcpStream),
}

impl Transport {
    /// Registers for both directions at once: with edge-triggered events the writable one costs nothing until a
    /// write was short, and no later change of interest is needed.
    pub(crate) fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => registry.register(stream, token, Interest::READABLE | Interest::WRITABLE),
        }
    }

    /// Reads what is there, up to the length of the buffer.
    pub(crate) fn read_into(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
        }
    }

    /// Writes from several pieces with one call to the system.
    pub(crate) fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match (self, slices) {
            (Self::Tcp(stream), [slice]) => stream.write(slice),
            (Self::Tcp(stream), slices) => stream.write_vectored(slices),
        }
    }

    /// Ends the connection in order: the peer reads what was written and then the end.
    pub(crate) fn close(self, registry: &Registry) {
        match self {
            Self::Tcp(mut stream) => {
                // Both fail only if the peer was faster.
                let _ = registry.deregister(&mut stream);
                let _ = stream.shutdown(Shutdown::Write);
            }
        }
    }
}
