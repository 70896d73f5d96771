//! A single-threaded MQTT broker: one mio loop around one deterministic core.
//!
//! ```text
//! bytes                 frame              packet                    state change               bytes
//! socket ──> transport ──> codec::frame ──> codec::decode ──> broker::Broker ──> Outbox ──> transport ──> socket
//! ```
//!
//! The modules in layer order, each importing only from those above it:
//!
//! * ground: [`clock`], [`hash`], [`metrics`], [`wheel`];
//! * [`codec`]: bytes to packets and back;
//! * [`topics`]: names, filters, and who matches what;
//! * [`access`]: who is who;
//! * [`journal`]: what is kept beyond the process, as bytes;
//! * [`broker`]: the core. No socket, no clock, no thread, no log: the same inputs in the same order put the same
//!   bytes into the same outboxes;
//! * `db`: what is stored, as text and in numbers;
//! * `store`: files, and the two threads that write them; `db`: what can be done with a store at rest. Both belong to
//!   the feature `persistence`;
//! * [`transport`] and [`server`]: the loop that owns sockets and time;
//! * [`config`]: the command line, turned into the options of each layer.
//!
//! # Embedding
//!
//! ```
//! use broker::server::{Options, Server};
//!
//! let options = Options { addresses: vec!["127.0.0.1:0".parse()?], ..Options::default() };
//! let server = Server::bind(options)?;
//! let address = server.local_addresses()[0];
//! let handle = server.handle();
//! let thread = std::thread::spawn(move || server.run());
//!
//! // Any MQTT client can connect to `address` now.
//! assert!(std::net::TcpStream::connect(address).is_ok());
//!
//! handle.stop();
//! thread.join().expect("the loop does not panic")?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod access;
mod blocks;
pub mod broker;
pub mod clock;
pub mod codec;
pub mod config;
#[cfg(feature = "persistence")]
pub mod db;
mod divided_table;
pub mod hash;
pub mod journal;
pub mod metrics;
pub mod server;
#[cfg(feature = "persistence")]
pub mod store;
pub mod topics;
pub mod transport;
pub mod wheel;
