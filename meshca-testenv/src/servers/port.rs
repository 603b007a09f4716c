//! Ports for servers that must be told theirs.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use super::Result;

/// Where systems by default take neither the ports of clients from nor those of who asks for any: Linux begins at 32768, others above.
const FIRST: u16 = 20_000;
const COUNT: u16 = 12_000;

/// A port on loopback that no other value of this type has, in any process, as long as this one lives.
///
/// A port that was free a moment ago is no such thing: until the server listens, or while it is restarted, somebody
/// else gets the port, and the tests of one talk to the server of the other until that is gone. Some servers would even share
/// it with another without a word: [`Envoy`](super::Envoy) does.
///
/// Nothing listens there. A server gets the number, and should be gone before this value is: a test makes the port first.
#[derive(Debug)]
pub struct Port {
    address: SocketAddr,
    // The system unlocks it when the process ends, however it ends.
    _lock: File,
}

impl Port {
    /// Takes one that is free.
    ///
    /// # Errors
    ///
    /// If none is, or the folder for temporary files cannot be written to: who has which port is told by locks there.
    pub fn free() -> Result<Self> {
        let mut random = [0; 2];
        aws_lc_rs::rand::fill(&mut random).map_err(|_| "no randomness")?;
        let start = u16::from_ne_bytes(random) % COUNT;
        (0..COUNT)
            .find_map(|next| Self::take(FIRST + (start + next) % COUNT))
            .ok_or_else(|| {
                let folder = std::env::temp_dir();
                let folder = folder.display();
                format!("no port is free, or {folder} cannot be written to").into()
            })
    }

    fn take(port: u16) -> Option<Self> {
        let file = std::env::temp_dir().join(format!("meshca-port-{port}.lock"));
        let lock = File::create(file).ok()?;
        lock.try_lock().ok()?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        // Taken, maybe, by what knows nothing of the locks.
        TcpListener::bind(address).ok()?;
        Some(Self {
            address,
            _lock: lock,
        })
    }

    /// Where to listen: `127.0.0.1:PORT`.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_else_gets_a_port_before_it_is_given_back() {
        let port = Port::free().unwrap();
        assert!(Port::take(port.address.port()).is_none());
        let again = port.address.port();
        drop(port);
        // Another test may have it now.
        if let Some(port) = Port::take(again) {
            assert_eq!(port.address().port(), again);
        }
    }

    #[test]
    fn a_port_with_a_listener_is_not_free() {
        let port = Port::free().unwrap();
        let listener = TcpListener::bind(port.address()).unwrap();
        let number = port.address().port();
        drop(port);
        assert!(Port::take(number).is_none());
        drop(listener);
    }
}
