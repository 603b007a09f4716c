//! The canned server says what it was told to, byte for byte where that is the point.

use std::io::ErrorKind;
use std::time::Duration;

use meshca_testenv::http::{CannedResponse, CannedServer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const GET: &str = "GET /one?x=1 HTTP/1.1\r\nHost: ca\r\nX-Vault-Token: t\r\n\r\n";

async fn connect(server: &CannedServer) -> TcpStream {
    TcpStream::connect(server.address()).await.unwrap()
}

/// Sends a request and reads until the server closes.
async fn last_exchange(server: &CannedServer, request: &str) -> String {
    let mut client = connect(server).await;
    client.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).await.unwrap();
    String::from_utf8(answer).unwrap()
}

/// Reads exactly this text.
async fn expect(client: &mut TcpStream, text: &str) {
    let mut answer = vec![0; text.len()];
    client.read_exact(&mut answer).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&answer), text);
}

#[tokio::test]
async fn answers_come_in_order_on_one_connection_and_requests_are_recorded() {
    let server = CannedServer::start().await.unwrap();
    server.answer(CannedResponse::json(200, "{}").with_header("x-id", "7"));
    server.answer(CannedResponse::new(204));
    let mut client = connect(&server).await;
    client.write_all(GET.as_bytes()).await.unwrap();
    expect(
        &mut client,
        "HTTP/1.1 200 canned\r\ncontent-type: application/json\r\nx-id: 7\r\ncontent-length: 2\r\n\r\n{}",
    )
    .await;
    // In two parts, so that the server has to wait for the second.
    client
        .write_all(b"POST /two HTTP/1.1\r\ncontent-length: 8\r\n\r\nfour")
        .await
        .unwrap();
    client.flush().await.unwrap();
    client.write_all(b"more").await.unwrap();
    expect(&mut client, "HTTP/1.1 204 canned\r\n\r\n").await;
    client
        .write_all(
            b"PUT /three HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n4\r\nfour\r\n5\r\n more\r\n0\r\n\r\n",
        )
        .await
        .unwrap();
    expect(
        &mut client,
        "HTTP/1.1 500 canned\r\ncontent-length: 42\r\n\r\nno canned response is left for PUT /three\n",
    )
    .await;

    let requests = server.received(3).await;
    let seen: Vec<_> = requests
        .iter()
        .map(|request| (request.method(), request.path(), request.text()))
        .collect();
    assert_eq!(
        seen,
        [
            ("GET", "/one?x=1", String::new()),
            ("POST", "/two", "fourmore".to_owned()),
            ("PUT", "/three", "four more".to_owned()),
        ]
    );
    let token = requests
        .first()
        .and_then(|first| first.header("x-vault-token"));
    assert_eq!(token, Some("t"));
    assert_eq!(server.connections(), 1);
    assert_eq!(server.remaining(), 0);
}

#[tokio::test]
async fn broken_answers_are_broken_as_told() {
    let server = CannedServer::start().await.unwrap();
    for (response, expected) in [
        (CannedResponse::close(), ""),
        (CannedResponse::raw("\u{1}garbage"), "\u{1}garbage"),
        (
            CannedResponse::new(200)
                .with_body("0123456789")
                .truncated_at(4),
            "HTTP/1.1 200 canned\r\ncontent-length: 10\r\n\r\n0123",
        ),
        (
            CannedResponse::new(200)
                .with_header("Content-Length", "99")
                .with_body("short")
                .truncated_at(99),
            "HTTP/1.1 200 canned\r\nContent-Length: 99\r\n\r\nshort",
        ),
    ] {
        server.answer(response);
        assert_eq!(last_exchange(&server, GET).await, expected);
    }
    // What is no HTTP gets no answer, and is not recorded as a request.
    assert_eq!(last_exchange(&server, "no http\r\n\r\n").await, "");
    assert_eq!(server.requests().len(), 4);
    assert_eq!(server.connections(), 5);
}

#[tokio::test]
async fn a_path_may_have_its_own_answer() {
    let server = CannedServer::start().await.unwrap();
    server.answer(CannedResponse::json(200, "\"token\"").for_path("/v1/auth/"));
    server.answer(CannedResponse::json(200, "\"certificate\"").for_path("/v1/pki/"));
    for (path, body) in [
        ("/v1/pki/sign/role", "\"certificate\""),
        ("/v1/auth/approle/login", "\"token\""),
    ] {
        let request = format!("GET {path} HTTP/1.1\r\nconnection: close\r\n\r\n");
        assert!(last_exchange(&server, &request).await.ends_with(body));
    }
}

#[tokio::test]
async fn late_answers_are_late_and_hanging_ones_never_come() {
    let server = CannedServer::start().await.unwrap();
    let delay = Duration::from_millis(30);
    server.answer(CannedResponse::new(200).after(delay));
    server.answer(CannedResponse::hang());
    let mut client = connect(&server).await;
    let begin = tokio::time::Instant::now();
    client.write_all(GET.as_bytes()).await.unwrap();
    expect(&mut client, "HTTP/1.1 200 canned\r\n").await;
    assert!(begin.elapsed() >= delay);

    let mut client = connect(&server).await;
    client.write_all(GET.as_bytes()).await.unwrap();
    server.received(2).await;
    let silence = tokio::time::timeout(Duration::from_millis(50), client.read_u8()).await;
    assert!(silence.is_err(), "{silence:?}");
    drop(server);
    let end = client.read_u8().await.unwrap_err();
    assert!(
        matches!(
            end.kind(),
            ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset
        ),
        "{end}"
    );
}
