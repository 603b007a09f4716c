//! The memory that clients may take before they have proven who they are.
//!
//! The first request of a stream is in memory before the authenticator can judge it. So what a connection may have there is bounded until one of
//! its streams is admitted: the next stream waits, unread, and HTTP/2 holds its client back. See [`SdsOptions::max_first_request`].
//!
//! A client that sends its streams in turns could fill the allowance with beginnings of requests, none of which is whole. So the first stream of
//! which something was read, the *head*, has room for its whole request reserved. HTTP/2 may still keep the rest of the head from coming, as unread
//! data of other streams fills the window of the connection. A connection in this state may be lent what all its streams can need, one
//! connection at a time.

use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use http_body::{Body, Frame};
use prost::bytes::{Buf, Bytes};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tonic::Status;
use tonic::codegen::{StdError, http};

#[cfg(doc)]
use crate::SdsOptions;

/// The most that all unproven clients of a server have in memory together.
pub(crate) const ALL: usize = 64 * 1024 * 1024;
/// The most that one read takes: the largest frame that this server lets clients send.
const FRAME: usize = 16 * 1024;
/// What stands before a message of gRPC.
const PREFIX: usize = 5;

/// The memory of all unproven clients of a server.
#[derive(derive_more::Debug)]
pub(crate) struct Memory {
    /// The most that one connection may have.
    each: usize,
    /// What one connection at a time may have instead.
    lent: usize,
    held: AtomicUsize,
    freed: Notify,
    loan: Arc<Semaphore>,
    /// Makes room, since nothing is left.
    #[debug(skip)]
    make_room: Box<dyn Fn() + Send + Sync>,
}

/// What one connection may have in memory, until it is lifted.
#[derive(Debug)]
pub(crate) struct Allowance {
    memory: Arc<Memory>,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    lifted: bool,
    next: u64,
    headers: usize,
    held: usize,
    head: Option<Head>,
    loan: Option<OwnedSemaphorePermit>,
}

#[derive(Debug)]
struct Head {
    stream: u64,
    held: usize,
    /// The length of its request, or the most that it may have.
    request: usize,
}

/// Why a stream may not be read.
enum Short {
    /// All unproven clients together have too much.
    Memory,
    /// Its connection has, and the head is judged: a matter of the authenticator's time.
    Allowance,
    /// Its connection has, and the head is not whole.
    Stuck,
}

impl Memory {
    pub(crate) fn new(
        each: usize,
        streams: u32,
        make_room: impl Fn() + Send + Sync + 'static,
    ) -> Arc<Self> {
        let streams = usize::try_from(streams).unwrap_or(usize::MAX);
        Arc::new(Self {
            each,
            lent: each.saturating_mul(streams),
            held: AtomicUsize::new(0),
            freed: Notify::new(),
            loan: Arc::new(Semaphore::new(1)),
            make_room: Box::new(make_room),
        })
    }

    /// The allowance of one connection.
    pub(crate) fn allowance(self: &Arc<Self>) -> Arc<Allowance> {
        Arc::new(Allowance {
            memory: Arc::clone(self),
            state: Mutex::default(),
            changed: Notify::new(),
        })
    }

    fn has_room(&self) -> bool {
        self.held.load(Ordering::Relaxed).saturating_add(FRAME) <= ALL
    }

    fn free(&self, bytes: usize) {
        self.held.fetch_sub(bytes, Ordering::Relaxed);
        self.freed.notify_waiters();
    }
}

impl Allowance {
    /// A stream begins, with these headers.
    ///
    /// # Errors
    ///
    /// Headers cannot wait unread. If they alone are more than the allowance, the client is to come again: it may be proven then.
    pub(crate) fn enter(self: &Arc<Self>, headers: &http::HeaderMap) -> Result<Share, Status> {
        // As HTTP/2 counts them (RFC 9113 §6.5.2).
        const EACH: usize = 32;
        let sizes = headers.iter();
        let headers = sizes
            .map(|(name, value)| name.as_str().len() + value.len() + EACH)
            .sum();
        let mut state = self.state();
        if !state.lifted && state.headers > 0 && state.headers + headers > self.memory.each {
            return Err(Status::unavailable(
                "too many streams before it is proven whose connection this is: come again",
            ));
        }
        let stream = state.next;
        state.next += 1;
        state.headers += headers;
        Ok(Share {
            allowance: Arc::clone(self),
            stream,
            headers,
            held: 0,
            prefix: Vec::new(),
        })
    }

    /// A proxy has proven who it is: its connection may have what it needs.
    pub(crate) fn lift(&self) {
        let mut state = self.state();
        if !std::mem::replace(&mut state.lifted, true) {
            state.loan = None;
            self.memory.free(state.held);
            self.changed.notify_waiters();
        }
    }

    /// How much the connection has in memory.
    pub(crate) fn held(&self) -> usize {
        self.state().held
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn may_read(&self, stream: u64) -> Result<(), Short> {
        let state = self.state();
        if state.lifted {
            return Ok(());
        }
        if !self.memory.has_room() {
            return Err(Short::Memory);
        }
        let head = match &state.head {
            Some(head) if head.stream != stream => head,
            _ => return Ok(()),
        };
        let most = match state.loan {
            Some(_) => self.memory.lent,
            None => self.memory.each,
        };
        let reserved = head.request.saturating_sub(head.held);
        match state.headers + state.held + reserved + FRAME <= most {
            true => Ok(()),
            false if reserved > 0 && state.loan.is_none() => Err(Short::Stuck),
            false => Err(Short::Allowance),
        }
    }

    /// Waits until something of a stream may be read.
    async fn room(self: Arc<Self>, stream: u64) {
        let (mut loan, mut asked) = (None, false);
        loop {
            // What changes between the look and the wait counts.
            let (mut changed, mut freed) = (
                pin!(self.changed.notified()),
                pin!(self.memory.freed.notified()),
            );
            changed.as_mut().enable();
            freed.as_mut().enable();
            match self.may_read(stream) {
                Ok(()) => return,
                Err(Short::Memory) => {
                    if !std::mem::replace(&mut asked, true) {
                        (self.memory.make_room)();
                    }
                    tokio::select! {
                        () = changed => {}
                        () = freed => asked = false,
                    }
                }
                Err(Short::Allowance) => changed.await,
                Err(Short::Stuck) if loan.is_some() => {
                    self.state().loan = loan.take();
                    self.changed.notify_waiters();
                }
                Err(Short::Stuck) => {
                    let wanted = Arc::clone(&self.memory.loan).acquire_owned();
                    tokio::select! {
                        () = changed => {}
                        lent = wanted => loan = lent.ok(),
                    }
                }
            }
        }
    }
}

/// What one stream has of the allowance of its connection, until this is dropped.
#[derive(Debug)]
pub(crate) struct Share {
    allowance: Arc<Allowance>,
    stream: u64,
    headers: usize,
    held: usize,
    /// What was read of the prefix of its first message.
    prefix: Vec<u8>,
}

impl Share {
    /// This was read.
    ///
    /// # Errors
    ///
    /// The first request is longer than it may be before anything is proven.
    fn take(&mut self, data: &[u8]) -> Result<(), Status> {
        let missing = PREFIX - self.prefix.len();
        self.prefix.extend(data.iter().take(missing));
        let most = self.allowance.memory.each;
        let request = match *self.prefix {
            [_, a, b, c, d] => {
                let length = u32::from_be_bytes([a, b, c, d]);
                usize::try_from(length).unwrap_or(usize::MAX)
            }
            _ => most,
        };
        let mut state = self.allowance.state();
        if state.lifted {
            return Ok(());
        }
        if request > most {
            return Err(Status::resource_exhausted(format!(
                "the first request has {request} bytes, and may have {most} before it is proven whose connection this is: let the node \
                 have less metadata, or raise `max_first_request`"
            )));
        }
        self.held += data.len();
        state.held += data.len();
        let head = state.head.get_or_insert(Head {
            stream: self.stream,
            held: 0,
            request,
        });
        if head.stream == self.stream {
            head.held = self.held;
            head.request = PREFIX.saturating_add(request);
        }
        // Before the lock is given back: what is lifted was counted.
        let memory = &self.allowance.memory;
        memory.held.fetch_add(data.len(), Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let Allowance {
            memory, changed, ..
        } = &*self.allowance;
        let mut state = self.allowance.state();
        if state.lifted {
            return;
        }
        state.headers = state.headers.saturating_sub(self.headers);
        state.held = state.held.saturating_sub(self.held);
        state.head.take_if(|head| head.stream == self.stream);
        if state.held == 0 {
            state.loan = None;
        }
        drop(state);
        memory.free(self.held);
        changed.notify_waiters();
    }
}

/// The body of a stream, read as far as its connection may have it in memory.
pub(crate) struct Bounded<B> {
    body: Pin<Box<B>>,
    /// Until the allowance is lifted.
    share: Option<Share>,
    waits: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl<B> Bounded<B> {
    pub(crate) fn new(body: B, share: Share) -> Self {
        Self {
            body: Box::pin(body),
            share: Some(share),
            waits: None,
        }
    }

    /// Is ready when something may be read.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.share.take_if(|share| share.allowance.state().lifted);
        let Some(share) = &self.share else {
            self.waits = None;
            return Poll::Ready(());
        };
        if self.waits.is_none() && share.allowance.may_read(share.stream).is_ok() {
            return Poll::Ready(());
        }
        let room = || Box::pin(Arc::clone(&share.allowance).room(share.stream)) as _;
        ready!(self.waits.get_or_insert_with(room).as_mut().poll(cx));
        self.waits = None;
        Poll::Ready(())
    }
}

impl<B> Body for Bounded<B>
where
    B: Body,
    B::Error: Into<StdError>,
{
    type Data = Bytes;
    type Error = StdError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
        ready!(self.poll_room(cx));
        let Some(frame) = ready!(self.body.as_mut().poll_frame(cx)) else {
            return Poll::Ready(None);
        };
        let frame = frame.map_err(Into::into)?;
        let frame = frame.map_data(|mut data| data.copy_to_bytes(data.remaining()));
        if let (Some(share), Some(data)) = (&mut self.share, frame.data_ref()) {
            share.take(data)?;
        }
        Poll::Ready(Some(Ok(frame)))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use futures_util::FutureExt;
    use tonic::Code;

    use super::*;

    const EACH: usize = 64 * 1024;

    fn memory() -> (Arc<Memory>, Arc<AtomicBool>) {
        let asked = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&asked);
        let make_room = move || flag.store(true, Ordering::Relaxed);
        (Memory::new(EACH, 100, make_room), asked)
    }

    /// A stream without headers.
    fn enter(allowance: &Arc<Allowance>) -> Share {
        allowance.enter(&http::HeaderMap::new()).unwrap()
    }

    /// So many bytes of a message of this length, from its beginning.
    fn part(length: usize, bytes: usize) -> Vec<u8> {
        let mut part = vec![0];
        part.extend(u32::try_from(length).unwrap().to_be_bytes());
        part.resize(bytes, 0);
        part
    }

    fn room(share: &Share) -> impl Future<Output = ()> + use<> {
        Arc::clone(&share.allowance).room(share.stream)
    }

    fn has_room(share: &Share) -> bool {
        room(share).now_or_never().is_some()
    }

    #[test]
    fn the_head_has_room_for_all_of_its_request() {
        let (memory, _) = memory();
        let allowance = memory.allowance();
        let [mut head, mut second, third] = [(); 3].map(|()| enter(&allowance));
        assert!(has_room(&third), "nothing was read yet");
        head.take(&part(30_000, 10)).unwrap();
        assert!(has_room(&second));
        second.take(&part(20_000, FRAME)).unwrap();
        // 30,005 bytes are reserved, and 16,384 used.
        let lent = memory.loan.try_acquire().unwrap();
        assert!(has_room(&second));
        second.take(&[0; 3_621]).unwrap();
        assert!(!has_room(&second));
        assert!(!has_room(&third));
        assert!(has_room(&head));
        head.take(&[0; 29_995]).unwrap();
        assert!(!has_room(&third), "it is judged");
        drop(lent);
        assert!(!has_room(&third), "no loan is needed for that");
        allowance.lift();
        assert!(has_room(&third));
        drop((head, second, third));
        assert_eq!(memory.held.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn who_waits_goes_on_when_there_is_room() {
        let (memory, _) = memory();
        for lifts in [true, false] {
            let allowance = memory.allowance();
            let [mut head, waits] = [(); 2].map(|()| enter(&allowance));
            head.take(&part(EACH, FRAME)).unwrap();
            let _lent = memory.loan.acquire().await.unwrap();
            let mut room = Box::pin(room(&waits));
            assert!((&mut room).now_or_never().is_none());
            match lifts {
                true => allowance.lift(),
                false => drop(head),
            }
            room.await;
        }
    }

    #[test]
    fn one_connection_at_a_time_is_lent_what_it_needs() {
        let (memory, _) = memory();
        let mut stuck = Vec::new();
        for _ in 0..2 {
            let allowance = memory.allowance();
            let [mut head, mut second] = [(); 2].map(|()| enter(&allowance));
            head.take(&part(60_000, FRAME)).unwrap();
            let has_loan = has_room(&second);
            if has_loan {
                second.take(&part(60_000, FRAME)).unwrap();
            }
            stuck.push((head, second, has_loan));
        }
        let (head, second, has_loan) = stuck.remove(0);
        assert!(has_loan);
        let (_head, other, has_loan) = &stuck[0];
        assert!(!has_loan);
        drop((head, second));
        assert!(has_room(other));
    }

    #[test]
    fn all_together_have_a_limit() {
        let (memory, asked) = memory();
        let shares: Vec<_> = (0..ALL / EACH)
            .map(|_| {
                let mut share = enter(&memory.allowance());
                share.take(&part(EACH, EACH)).unwrap();
                share
            })
            .collect();
        let next = enter(&memory.allowance());
        let mut room = Box::pin(room(&next));
        assert!((&mut room).now_or_never().is_none());
        assert!(asked.load(Ordering::Relaxed), "somebody must give way");
        drop(shares);
        assert!(room.now_or_never().is_some());
    }

    #[test]
    fn a_request_that_is_too_long_is_refused_however_its_length_comes() {
        let (memory, _) = memory();
        let long = part(EACH + 1, 100);
        for cut in [1, 4, 5] {
            let mut share = enter(&memory.allowance());
            let (begin, end) = long.split_at(cut);
            let taken = share.take(begin).and_then(|()| share.take(end));
            assert_eq!(taken.unwrap_err().code(), Code::ResourceExhausted, "{cut}");
        }
        let mut share = enter(&memory.allowance());
        share.take(&part(EACH, 100)).unwrap();
    }

    #[test]
    fn headers_count_and_cannot_wait() {
        let (memory, _) = memory();
        let allowance = memory.allowance();
        let mut headers = http::HeaderMap::new();
        let token = http::HeaderValue::from_bytes(&[b'x'; 10_000]).unwrap();
        headers.insert("authorization", token);
        let enter = || allowance.enter(&headers);
        let shares: Vec<_> = (0..6).map(|_| enter().unwrap()).collect();
        assert_eq!(enter().unwrap_err().code(), Code::Unavailable);
        drop(shares);
        enter().unwrap();
        allowance.lift();
        let _all: Vec<_> = (0..100).map(|_| enter().unwrap()).collect();
    }
}
