//! The relay fails as the network does.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use meshca_testenv::relay::Relay;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::mpsc;

/// Sends back what it receives, and tells what that was.
async fn echo() -> (SocketAddr, mpsc::UnboundedReceiver<u8>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (tell, told) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let tell = tell.clone();
            tokio::spawn(async move {
                while let Ok(byte) = stream.read_u8().await {
                    let _ = tell.send(byte);
                    if stream.write_u8(byte).await.is_err() {
                        break;
                    }
                }
            });
        }
    });
    (address, told)
}

async fn connected(relay: &Relay) -> TcpStream {
    let mut client = TcpStream::connect(relay.address()).await.unwrap();
    exchange(&mut client, 0).await;
    client
}

/// One round trip, after which the connection stands at both ends.
async fn exchange(client: &mut TcpStream, byte: u8) {
    client.write_u8(byte).await.unwrap();
    assert_eq!(client.read_u8().await.unwrap(), byte);
}

async fn reset(client: &mut TcpStream) {
    assert_eq!(
        client.read_u8().await.unwrap_err().kind(),
        ErrorKind::ConnectionReset
    );
}

#[tokio::test]
async fn it_forwards_with_latency_in_both_directions_and_passes_on_the_end() {
    let (target, _told) = echo().await;
    let relay = Relay::start(target).await.unwrap();
    let mut client = connected(&relay).await;
    let latency = Duration::from_millis(20);
    relay.set_latency(latency);
    let begin = tokio::time::Instant::now();
    exchange(&mut client, 1).await;
    assert!(begin.elapsed() >= 2 * latency);
    client.shutdown().await.unwrap();
    assert_eq!(
        client.read_u8().await.unwrap_err().kind(),
        ErrorKind::UnexpectedEof,
        "an orderly end is no reset"
    );
    assert_eq!(relay.connections(), 1);
}

#[tokio::test]
async fn a_reset_hits_the_connections_that_are_open() {
    let (target, _told) = echo().await;
    let relay = Relay::start(target).await.unwrap();
    let (mut one, mut two) = (connected(&relay).await, connected(&relay).await);
    relay.reset();
    reset(&mut one).await;
    reset(&mut two).await;
    let mut three = connected(&relay).await;
    exchange(&mut three, 3).await;
    assert_eq!(relay.connections(), 3);
}

#[tokio::test]
async fn answers_can_be_lost_after_the_request_was_carried_out() {
    let (target, mut told) = echo().await;
    let relay = Relay::start(target).await.unwrap();
    let mut client = connected(&relay).await;
    assert_eq!(told.recv().await, Some(0));
    relay.reset_answers();
    client.write_u8(7).await.unwrap();
    reset(&mut client).await;
    assert_eq!(told.recv().await, Some(7), "the target got it");
    relay.restore();
    connected(&relay).await;
}

#[tokio::test]
async fn silence_is_neither_an_answer_nor_an_end() {
    let (target, mut told) = echo().await;
    let relay = Relay::start(target).await.unwrap();
    let mut client = connected(&relay).await;
    told.recv().await;
    relay.go_silent();
    client.write_u8(9).await.unwrap();
    let silence = tokio::time::timeout(Duration::from_millis(50), client.read_u8()).await;
    assert!(silence.is_err(), "{silence:?}");
    assert!(told.try_recv().is_err(), "the target got nothing");
    relay.restore();
    assert_eq!(client.read_u8().await.unwrap(), 9);
}

#[tokio::test]
async fn what_is_cut_stays_cut_until_it_is_restored() {
    let (target, _told) = echo().await;
    let relay = Relay::start(target).await.unwrap();
    let mut client = connected(&relay).await;
    relay.cut();
    reset(&mut client).await;
    for _ in 0..3 {
        // The system completes the connection before the relay can reset it, or not.
        if let Ok(mut client) = TcpStream::connect(relay.address()).await {
            assert!(client.read_u8().await.is_err());
        }
    }
    relay.restore();
    connected(&relay).await;
}

#[tokio::test]
async fn a_target_that_is_not_there_looks_like_one_that_is_gone() {
    // Bound, so that nobody else gets the port, and not listening.
    let nobody = TcpSocket::new_v4().unwrap();
    nobody.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let target = nobody.local_addr().unwrap();
    let relay = Relay::start(target).await.unwrap();
    if let Ok(mut client) = TcpStream::connect(relay.address()).await {
        assert!(client.read_u8().await.is_err());
    }
}
