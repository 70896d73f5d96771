//! Filters that idle clients hold, and that match nothing of the load although they begin alike.

use std::io;
use std::net::SocketAddr;

use broker::codec::QoS;

use crate::load::client::Client;
use crate::preparation::Preparation;

/// Clients that share them, each of which names all its filters in one SUBSCRIBE.
const HOLDERS: u64 = 100;

/// What they look like.
#[derive(Clone, Copy)]
pub(crate) enum Filters {
    Exact,
    /// Of each three one is exact, one has a `+` in the middle, and one a `#` at the end.
    Mixed,
}

impl Filters {
    fn filter(self, number: u64) -> String {
        match (self, number % 3) {
            (Self::Exact, _) | (Self::Mixed, 0) => {
                format!("bench/flow/{}/machine-{number}", number % 1_000)
            }
            (Self::Mixed, 1) => format!("bench/flow/+/machine-{number}"),
            (Self::Mixed, _) => format!("bench/flow/area-{number}/#"),
        }
    }
}

/// Connects the clients that hold so many filters together. They hold them for as long as they live.
pub(crate) fn hold(
    address: SocketAddr,
    filters: Filters,
    count: u64,
    preparation: &Preparation,
) -> io::Result<Vec<Client>> {
    (0..HOLDERS)
        .map(|holder| {
            preparation.check()?;
            let own: Vec<String> =
                (holder..count).step_by(HOLDERS as usize).map(|number| filters.filter(number)).collect();
            let own: Vec<_> = own.iter().map(|filter| (filter.as_str(), QoS::AtMostOnce)).collect();
            Client::connect(address, &format!("holder-{holder}"), &own)
        })
        .collect()
}
