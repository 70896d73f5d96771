//! New connections, for servers that are compared with a broker.

use std::io;

use mio::net::{TcpListener, TcpStream};

/// Takes all that wait.
pub(crate) fn accept_all(
    listener: &TcpListener,
    mut take: impl FnMut(TcpStream) -> io::Result<()>,
) -> io::Result<()> {
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        };
        // As the broker has it.
        stream.set_nodelay(true)?;
        take(stream)?;
    }
}
