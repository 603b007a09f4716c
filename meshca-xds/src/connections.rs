//! The connections that this crate serves: how many there may be, and which one gives way to a new one.
//!
//! A connection is *unproven* until the authenticator has named the proxy of one of its streams. Anybody can open unproven connections, so
//! the server accepts every connection and closes an unproven one where there is no room. A proven connection never gives way.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::future::pending;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use rustix::process::{Resource, getrlimit};
use tokio::sync::Notify;
use tokio::time::{Duration, Instant, sleep_until, timeout};

use crate::allowance::{Allowance, Memory};
use crate::options::SdsOptions;

/// How long an unproven connection stays at least, so that a flood of new ones leaves a proxy the time for a handshake and a request.
const GRACE: Duration = Duration::from_millis(250);
/// The most descriptors that are left to the rest of the process.
const RESERVE: u64 = 1024;

/// Who opened a connection, as far as the transport knows. Unproven connections of one peer are counted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Peer {
    /// Over TCP. Of an IPv6 address the network alone, since one host has as many addresses in it as it likes.
    Address(IpAddr),
    /// Over a Unix socket.
    User(u32),
    Unknown,
}

impl Peer {
    pub(crate) fn of_address(address: IpAddr) -> Self {
        const NETWORK: u128 = !0 << 64;
        Self::Address(match address.to_canonical() {
            IpAddr::V6(address) => IpAddr::V6((address.to_bits() & NETWORK).into()),
            address @ IpAddr::V4(_) => address,
        })
    }
}

/// The connections of one server, over all its sockets.
#[derive(Debug)]
pub(crate) struct Connections {
    most: usize,
    /// How long an unproven connection may take for its proof, with the TLS handshake.
    patience: Duration,
    memory: Arc<Memory>,
    seats: Mutex<Seats>,
    freed: Notify,
}

#[derive(Debug, Default)]
struct Seats {
    next: u64,
    /// All that are open, with those that are closing.
    taken: usize,
    /// By age. One that is closing is not among them.
    unproven: BTreeMap<u64, Arc<Connection>>,
    peers: HashMap<Peer, usize>,
}

/// What is known of one connection.
#[derive(Debug)]
pub(crate) struct Connection {
    number: u64,
    peer: Peer,
    /// Its time begins here, and not when it was accepted: it may have waited until a proven connection ended.
    seated: Instant,
    proven: AtomicBool,
    /// How many of its streams the authenticator judges now.
    judged: AtomicUsize,
    pub(crate) allowance: Arc<Allowance>,
    gives_way: Notify,
    connections: Arc<Connections>,
}

/// Room for a connection, until this is dropped.
#[derive(Debug)]
pub(crate) struct Seat(pub(crate) Arc<Connection>);

impl Connections {
    pub(crate) fn new(options: &SdsOptions) -> Arc<Self> {
        let memory = |connections: &Weak<Self>| {
            let connections = Weak::clone(connections);
            let make_room = move || {
                if let Some(connections) = connections.upgrade() {
                    connections.free_memory();
                }
            };
            Memory::new(options.max_first_request, options.max_streams, make_room)
        };
        Arc::new_cyclic(|this| Self {
            most: options.max_connections,
            patience: options.first_request.saturating_add(options.authentication),
            memory: memory(this),
            seats: Mutex::default(),
            freed: Notify::new(),
        })
    }

    /// Waits until there is room for a new connection, and takes it. Another connection is closed for it if one may be.
    pub(crate) async fn seat(self: &Arc<Self>, peer: Peer) -> Seat {
        let mut closes = false;
        loop {
            let mut freed = std::pin::pin!(self.freed.notified());
            // What is freed between the look and the wait counts.
            freed.as_mut().enable();
            let next = {
                let mut seats = self.seats();
                if seats.taken < most(self.most, descriptors()) {
                    return Seat(self.sit(&mut seats, peer));
                }
                match closes {
                    true => None,
                    false => seats.evict(Instant::now(), GRACE),
                }
            };
            match next {
                Some(Eviction::Closes) => closes = true,
                Some(Eviction::At(time)) => tokio::select! {
                    () = freed => {}
                    () = sleep_until(time) => {}
                },
                None => {
                    freed.await;
                    closes = false;
                }
            }
        }
    }

    fn sit(self: &Arc<Self>, seats: &mut Seats, peer: Peer) -> Arc<Connection> {
        let connection = Arc::new(Connection {
            number: seats.next,
            peer,
            seated: Instant::now(),
            proven: AtomicBool::new(false),
            judged: AtomicUsize::new(0),
            allowance: self.memory.allowance(),
            gives_way: Notify::new(),
            connections: Arc::clone(self),
        });
        seats.next += 1;
        seats.taken += 1;
        *seats.peers.entry(peer).or_default() += 1;
        seats
            .unproven
            .insert(connection.number, Arc::clone(&connection));
        connection
    }

    /// Closes an unproven connection, whatever its age, and waits a moment for its descriptor: the process has none left.
    pub(crate) async fn free_a_descriptor(&self) {
        let mut freed = std::pin::pin!(self.freed.notified());
        freed.as_mut().enable();
        self.seats().evict(Instant::now(), Duration::ZERO);
        // The process may free one elsewhere.
        let _ = timeout(Duration::from_millis(100), freed).await;
    }

    /// Closes the unproven connection that has most in memory.
    fn free_memory(&self) {
        let mut seats = self.seats();
        let rank = |it: &Connection| Reverse(it.allowance.held());
        let victim = seats.victim(Instant::now(), GRACE, rank);
        if let Some(victim) = victim
            && victim.allowance.held() > 0
        {
            seats.close(&victim);
        }
    }

    /// The memory of a stream whose connection is another server's.
    pub(crate) fn allowance(&self) -> Arc<Allowance> {
        self.memory.allowance()
    }

    fn seats(&self) -> MutexGuard<'_, Seats> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Eviction {
    /// A connection was told to close.
    Closes,
    /// None has had its time before this.
    At(Instant),
}

impl Seats {
    /// Tells an unproven connection to close that has had at least this long. `None`: all connections are proven, or closing.
    fn evict(&mut self, now: Instant, grace: Duration) -> Option<Eviction> {
        // No request was read of the ones that are not judged, or none that proved anything.
        let of_peer = |it: &Connection| self.peers.get(&it.peer).copied();
        let rank = |it: &Connection| {
            let judged = it.judged.load(Ordering::Relaxed) > 0;
            (judged, Reverse(of_peer(it)))
        };
        let Some(victim) = self.victim(now, grace, rank) else {
            let (_, oldest) = self.unproven.first_key_value()?;
            return Some(Eviction::At(oldest.seated + grace));
        };
        self.close(&victim);
        Some(Eviction::Closes)
    }

    /// The unproven connection of the least rank that has had this long; of several, the oldest.
    fn victim<R: Ord>(
        &self,
        now: Instant,
        grace: Duration,
        rank: impl Fn(&Connection) -> R,
    ) -> Option<Arc<Connection>> {
        let had_its_time = |it: &&Arc<Connection>| it.seated + grace <= now;
        let all = self.unproven.values().take_while(had_its_time);
        all.min_by_key(|it| rank(it)).map(Arc::clone)
    }

    fn close(&mut self, victim: &Connection) {
        self.forget(victim);
        victim.gives_way.notify_one();
    }

    /// It is unproven no longer. Returns whether it was until now.
    fn forget(&mut self, connection: &Connection) -> bool {
        if self.unproven.remove(&connection.number).is_none() {
            return false;
        }
        if let Some(count) = self.peers.get_mut(&connection.peer) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.peers.remove(&connection.peer);
            }
        }
        true
    }
}

impl Connection {
    /// A proxy has proven who it is. It cannot any more where the connection is giving way.
    pub(crate) fn prove(&self) {
        let unproven = self.connections.seats().forget(self);
        if unproven {
            self.proven.store(true, Ordering::Release);
            self.allowance.lift();
        }
    }

    /// The authenticator judges one of its streams until this is dropped.
    pub(crate) fn judge(self: &Arc<Self>) -> Judged {
        self.judged.fetch_add(1, Ordering::Relaxed);
        Judged(Arc::clone(self))
    }
}

#[derive(Debug)]
pub(crate) struct Judged(Arc<Connection>);

impl Drop for Judged {
    fn drop(&mut self) {
        self.0.judged.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Seat {
    /// Waits until the connection must be closed, and returns the reason. It is pending for ever once the connection is proven.
    pub(crate) async fn closes(&self) -> &'static str {
        let connection = &self.0;
        let late = async {
            let patience = connection.connections.patience;
            match connection.seated.checked_add(patience) {
                Some(time) => sleep_until(time).await,
                None => pending().await,
            }
            if connection.proven.load(Ordering::Acquire) {
                pending::<()>().await;
            }
        };
        tokio::select! {
            () = connection.gives_way.notified() => "it gave way to another one before a proxy had proven on it who it is",
            () = late => "no proxy has proven on it in time who it is",
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let connections = &self.0.connections;
        let mut seats = connections.seats();
        seats.forget(&self.0);
        seats.taken = seats.taken.saturating_sub(1);
        drop(seats);
        connections.freed.notify_waiters();
    }
}

/// How many descriptors the process may have, as the kernel says now.
fn descriptors() -> Option<u64> {
    getrlimit(Resource::Nofile).current
}

/// How many connections there may be: as many as the options allow, and a quarter of the descriptors, [`RESERVE`] at most, is left to what
/// else the process has open.
fn most(allowed: usize, descriptors: Option<u64>) -> usize {
    let Some(descriptors) = descriptors else {
        return allowed;
    };
    let ours = descriptors - RESERVE.min(descriptors / 4);
    allowed.min(usize::try_from(ours).unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use futures_util::FutureExt;

    use super::*;

    const ONE: Peer = Peer::User(1);
    const TWO: Peer = Peer::User(2);

    fn connections(most: usize) -> Arc<Connections> {
        let options = SdsOptions {
            max_connections: most,
            ..SdsOptions::default()
        };
        Connections::new(&options)
    }

    async fn seats<const N: usize>(of: &Arc<Connections>, peers: [Peer; N]) -> Vec<Seat> {
        let mut seats = Vec::new();
        for peer in peers {
            seats.push(of.seat(peer).await);
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        seats
    }

    /// A connection comes. Which of these is closed for it?
    async fn gives_way(connections: &Arc<Connections>, seats: &mut Vec<Seat>, peer: Peer) -> usize {
        let next = connections.seat(peer);
        let closed = async {
            let closes = seats.iter().map(|seat| Box::pin(seat.closes()));
            let (why, index, _) = futures_util::future::select_all(closes).await;
            assert!(why.contains("gave way"), "{why}");
            index
        };
        let mut next = std::pin::pin!(next);
        let index = tokio::select! {
            biased;
            _ = &mut next => panic!("there was room"),
            index = closed => index,
        };
        seats.remove(index);
        seats.push(next.await);
        index
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_gives_way_after_its_time() {
        let connections = connections(3);
        let mut seats = seats(&connections, [ONE; 3]).await;
        let begun = Instant::now();
        assert_eq!(gives_way(&connections, &mut seats, ONE).await, 0);
        let took = begun.elapsed();
        assert!(took > GRACE / 2 && took <= GRACE, "{took:?}");
        assert_eq!(gives_way(&connections, &mut seats, TWO).await, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn the_peer_with_the_most_gives_way_first_and_what_is_judged_last() {
        let connections = connections(4);
        let mut seats = seats(&connections, [TWO, ONE, ONE, ONE]).await;
        tokio::time::advance(GRACE).await;
        let judged = seats[1].0.judge();
        assert_eq!(gives_way(&connections, &mut seats, TWO).await, 2);
        drop(judged);
        tokio::time::advance(GRACE).await;
        // Two of each: the oldest.
        assert_eq!(gives_way(&connections, &mut seats, TWO).await, 0);
        // The ones of `TWO` are too young.
        assert_eq!(gives_way(&connections, &mut seats, TWO).await, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_proven_stays_and_is_waited_for() {
        let connections = connections(2);
        let mut seats = seats(&connections, [ONE, ONE]).await;
        seats[0].0.prove();
        tokio::time::advance(GRACE).await;
        assert_eq!(gives_way(&connections, &mut seats, TWO).await, 1);
        seats[1].0.prove();
        let mut next = Box::pin(connections.seat(TWO));
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert!(next.as_mut().now_or_never().is_none());
        assert!(seats[0].closes().now_or_never().is_none());
        seats.pop();
        next.await;
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_too_late_for_a_proof_when_it_gives_way() {
        let connections = connections(1);
        let seat = connections.seat(ONE).await;
        tokio::time::advance(GRACE).await;
        let mut next = Box::pin(connections.seat(ONE));
        assert!(next.as_mut().now_or_never().is_none());
        seat.0.prove();
        seat.closes().await;
        drop(seat);
        next.await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_proof_has_one_deadline() {
        let connections = connections(1);
        let begun = Instant::now();
        let seat = connections.seat(ONE).await;
        tokio::time::advance(Duration::from_secs(15)).await;
        assert!(seat.closes().await.contains("in time"));
        let took = begun.elapsed();
        assert_eq!(took.as_secs(), 20, "{took:?}");
    }

    #[test]
    fn a_host_is_one_peer_in_its_network() {
        let [one, other, elsewhere] = [
            [0x2001, 0xdb8, 0, 1, 0, 0, 0, 1],
            [0x2001, 0xdb8, 0, 1, 7, 7, 7, 7],
            [0x2001, 0xdb8, 0, 2, 0, 0, 0, 1],
        ]
        .map(|it: [u16; 8]| Peer::of_address(Ipv6Addr::from(it).into()));
        assert_eq!(one, other);
        assert_ne!(one, elsewhere);
        let v4 = Ipv4Addr::new(192, 0, 2, 1);
        assert_eq!(
            Peer::of_address(v4.to_ipv6_mapped().into()),
            Peer::Address(v4.into())
        );
        assert_ne!(
            Peer::of_address(v4.into()),
            Peer::of_address(Ipv4Addr::new(192, 0, 2, 2).into())
        );
    }

    #[test]
    fn descriptors_are_left_to_the_rest_of_the_process() {
        for (descriptors, expected) in [
            (Some(256), 192),
            (Some(1024), 768),
            (Some(10_000), 8_976),
            (Some(1_000_000), 20_000),
            (None, 20_000),
        ] {
            assert_eq!(most(20_000, descriptors), expected, "{descriptors:?}");
        }
    }
}
