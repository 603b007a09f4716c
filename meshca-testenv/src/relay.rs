//! A TCP relay on loopback that delays, cuts, resets and goes silent as told.
//!
//! It stands between a client under test and a real or [canned](crate::http) server, and gives the
//! network's own failures, which no server can give of itself.
//!
//! It needs a tokio runtime with I/O and time, on real time: paused time jumps ahead while a socket is
//! waited for.
//!
//! ```
//! use meshca_testenv::relay::Relay;
//! use tokio::io::AsyncReadExt;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> std::io::Result<()> {
//! # let server = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
//! # let target = server.local_addr()?;
//! let relay = Relay::start(target).await?;
//! relay.cut();
//! let outcome = match tokio::net::TcpStream::connect(relay.address()).await {
//!     Ok(mut client) => client.read_u8().await.map(|_| ()),
//!     Err(error) => Err(error),
//! };
//! assert!(outcome.is_err());
//! relay.restore();
//! # Ok(())
//! # }
//! ```

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::watch;

use crate::listener::Listener;

/// What the relay does now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Forward,
    /// Neither forwards nor closes.
    Silent,
    /// Resets a connection when the target answers on it.
    ResetAnswers,
    /// Resets every connection.
    Cut,
}

#[derive(Clone, Copy, Debug)]
struct Control {
    mode: Mode,
    latency: Duration,
    /// How often the open connections were reset; one that sees it rise is among them.
    resets: u64,
}

/// A relay from a free port of 127.0.0.1 to a target. It stops, with all its connections, when it is
/// dropped.
#[derive(Debug)]
pub struct Relay {
    listener: Listener,
    control: watch::Sender<Control>,
}

impl Relay {
    /// Starts a relay that forwards everything. The target need not listen yet.
    ///
    /// # Errors
    ///
    /// If no port of 127.0.0.1 can be listened on.
    pub async fn start(target: SocketAddr) -> io::Result<Self> {
        let control = watch::Sender::new(Control {
            mode: Mode::Forward,
            latency: Duration::ZERO,
            resets: 0,
        });
        let told = control.subscribe();
        // What was told so far holds for a new connection; only what is told from now on resets it.
        let listener = Listener::start(move |client| connect(client, target, told.clone()));
        Ok(Self {
            listener: listener.await?,
            control,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.listener.address
    }

    /// How many connections it accepted so far, those that it reset at once included.
    pub fn connections(&self) -> usize {
        self.listener.accepted()
    }

    /// Delays whatever it forwards by this much, in both directions.
    pub fn set_latency(&self, latency: Duration) {
        self.control
            .send_modify(|control| control.latency = latency);
    }

    /// Resets the connections that are open now (TCP RST, not an orderly end). New ones work.
    pub fn reset(&self) {
        self.control.send_modify(|control| control.resets += 1);
    }

    /// Lets requests through, and resets a connection as soon as the target answers on it: the
    /// request was carried out, and nobody learns of it.
    pub fn reset_answers(&self) {
        self.set_mode(Mode::ResetAnswers);
    }

    /// Stops forwarding without closing anything, as a firewall that lost its state does. What
    /// is sent meanwhile is delivered after [`restore`](Self::restore).
    pub fn go_silent(&self) {
        self.set_mode(Mode::Silent);
    }

    /// Resets the open connections, and every new one as soon as it is accepted.
    pub fn cut(&self) {
        self.set_mode(Mode::Cut);
    }

    /// Forwards again. The latency stays.
    pub fn restore(&self) {
        self.set_mode(Mode::Forward);
    }

    fn set_mode(&self, mode: Mode) {
        self.control.send_modify(|control| control.mode = mode);
    }
}

async fn connect(mut client: TcpStream, target: SocketAddr, mut control: watch::Receiver<Control>) {
    let resets = control.borrow_and_update().resets;
    let told = control.clone();
    let reset = async |control: &mut watch::Receiver<Control>| {
        let told = |control: &Control| control.mode == Mode::Cut || control.resets != resets;
        // Without a sender the relay is gone, and this task with it.
        let _ = control.wait_for(told).await;
    };
    let mut server = tokio::select! {
        // A connection that must not be is never made.
        biased;
        () = reset(&mut control) => return abort(&client),
        server = TcpStream::connect(target) => match server {
            Ok(server) => server,
            Err(_) => return abort(&client),
        },
    };
    let outcome = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let forward = async {
            tokio::try_join!(
                forward(from_client, to_server, told.clone(), false),
                forward(from_server, to_client, told.clone(), true),
            )
        };
        tokio::select! {
            biased;
            () = reset(&mut control) => Err(io::ErrorKind::ConnectionReset.into()),
            outcome = forward => outcome.map(|_| ()),
        }
    };
    if outcome.is_err() {
        abort(&client);
        abort(&server);
    }
}

/// Has the operating system send RST instead of FIN when the stream is dropped.
fn abort(stream: &TcpStream) {
    // It fails only for a connection that is gone already.
    let _ = stream.set_zero_linger();
}

/// One direction, until its sender has no more.
async fn forward(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    mut control: watch::Receiver<Control>,
    answers: bool,
) -> io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let length = from.read(&mut buffer).await?;
        let latency = control.borrow().latency;
        if !latency.is_zero() {
            tokio::time::sleep(latency).await;
        }
        let mode = match control
            .wait_for(|control| control.mode != Mode::Silent)
            .await
        {
            Ok(control) => control.mode,
            Err(_) => return Ok(()),
        };
        if length == 0 {
            return to.shutdown().await;
        }
        if answers && mode == Mode::ResetAnswers {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        to.write_all(buffer.get(..length).unwrap_or_default())
            .await?;
    }
}
