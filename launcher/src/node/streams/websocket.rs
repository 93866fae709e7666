//! The WebSocket side of a stream: the handshake, and the connection with its limits.

use super::{Connection, Refusal};
use base64::Engine;
use bytes::Bytes;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use http::{HeaderMap, Request, Response, StatusCode, header};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{self, Message};

pub(super) type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// A message is held in memory until it is whole. Clients send what they read at once, mostly 32 KiB.
const MAX_MESSAGE: usize = 16 << 20;
const MAX_UNSENT: usize = 1 << 20;
/// How often the client is told that this side is alive. A client that was killed is noticed by it, also where what it
/// has sent still waits for somebody to take it.
const PING: Duration = Duration::from_secs(5);
/// How long the client has to take what is on its way to it.
const FAREWELL: Duration = Duration::from_secs(10);
/// What RFC 6455 has appended to a key before it is hashed.
const ACCEPT_SUFFIX: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// The words of a header that is a list, perhaps in several lines.
fn words(headers: &HeaderMap, name: header::HeaderName) -> impl Iterator<Item = &str> {
    let lines = headers.get_all(name).into_iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(str::trim).filter(|word| !word.is_empty())
}

/// Whether the client asks for this protocol in place of HTTP.
pub(super) fn asks_for(headers: &HeaderMap, protocol: &str) -> bool {
    words(headers, header::CONNECTION).any(|word| word.eq_ignore_ascii_case("upgrade"))
        && words(headers, header::UPGRADE).any(|word| word.eq_ignore_ascii_case(protocol))
}

/// Agrees to one of the protocols that are known here, the first that the client names.
pub(super) fn agree(
    request: &mut Request<Bytes>,
    known: &[&'static str],
) -> Result<(&'static str, Response<()>, Connection), Refusal> {
    let bad = |message: String| (StatusCode::BAD_REQUEST, message);
    let headers = request.headers();
    if headers.get(header::SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(bad("a WebSocket needs Sec-WebSocket-Version: 13".to_owned()));
    }
    let key = headers.get(header::SEC_WEBSOCKET_KEY).filter(|key| !key.is_empty());
    let key = key.ok_or_else(|| bad("a WebSocket needs a Sec-WebSocket-Key".to_owned()))?;
    let accept = accept(key.as_bytes());
    let asked: Vec<&str> = words(headers, header::SEC_WEBSOCKET_PROTOCOL).collect();
    let agreed = asked.iter().find_map(|asked| known.iter().copied().find(|known| known == asked));
    let agreed = agreed.ok_or_else(|| {
        bad(format!("Sec-WebSocket-Protocol is {:?}; known here: {}", asked.join(", "), known.join(", ")))
    })?;
    let connection = Connection::of(request)?;
    let response = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_ACCEPT, accept)
        .header(header::SEC_WEBSOCKET_PROTOCOL, agreed)
        .body(())
        .map_err(|error| bad(error.to_string()))?;
    Ok((agreed, response, connection))
}

fn accept(key: &[u8]) -> String {
    let mut hashed = ring::digest::Context::new(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY);
    hashed.update(key);
    hashed.update(ACCEPT_SUFFIX.as_bytes());
    base64::engine::general_purpose::STANDARD.encode(hashed.finish())
}

pub(super) async fn open(upgrade: OnUpgrade) -> hyper::Result<Socket> {
    let upgraded = TokioIo::new(upgrade.await?);
    let config = WebSocketConfig::default()
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE))
        .max_write_buffer_size(MAX_UNSENT);
    Ok(WebSocketStream::from_raw_socket(upgraded, Role::Server, Some(config)).await)
}

/// Sends what waits, and now and then a ping, until nothing more comes; fails once the client cannot be reached.
pub(super) async fn transmit(
    sink: &mut SplitSink<Socket, Message>,
    mut queue: mpsc::Receiver<Bytes>,
) -> Result<(), tungstenite::Error> {
    let mut pings = tokio::time::interval(PING);
    pings.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let message = tokio::select! {
            biased;
            next = queue.recv() => match next {
                Some(bytes) => Message::Binary(bytes),
                None => return Ok(()),
            },
            _ = pings.tick() => Message::Ping(Bytes::new()),
        };
        sink.send(message).await?;
    }
}

/// Closes when all is sent. To leave while the client still sends would make the kernel drop what it has not read yet.
pub(super) async fn farewell(sink: &mut SplitSink<Socket, Message>, source: &mut SplitStream<Socket>) {
    let close = CloseFrame { code: CloseCode::Normal, reason: Default::default() };
    let goodbye = async {
        if sink.send(Message::Close(Some(close))).await.is_ok() {
            while let Some(Ok(_)) = source.next().await {}
        }
    };
    let _ = tokio::time::timeout(FAREWELL, goodbye).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(headers: &[(&str, &str)]) -> Request<Bytes> {
        let mut request = Request::get("/exec/n/p/c");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(Bytes::new()).expect("a request")
    }

    #[test]
    fn the_key_is_answered_as_the_rfc_says() {
        // The example of RFC 6455, section 1.3.
        assert_eq!(accept(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn a_handshake_that_cannot_be_kept_is_refused_with_the_reason() {
        let version = ("sec-websocket-version", "13");
        let key = ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
        for (headers, why) in [
            (vec![key], "Sec-WebSocket-Version"),
            (vec![version], "Sec-WebSocket-Key"),
            (vec![version, key], "known here: v5, v4"),
            (vec![version, key, ("sec-websocket-protocol", "v3, \u{e9}")], "known here: v5, v4"),
            // Without a connection of its own there is nothing to upgrade.
            (vec![version, key, ("sec-websocket-protocol", "v9, v4")], "HTTP/1.1"),
        ] {
            let Err((code, message)) = agree(&mut request(&headers), &["v5", "v4"]) else { panic!("{headers:?}") };
            assert_eq!(code, StatusCode::BAD_REQUEST);
            assert!(message.contains(why), "{message}");
        }
        let upgrade = request(&[("connection", "keep-alive, Upgrade"), ("upgrade", "WebSocket")]);
        assert!(asks_for(upgrade.headers(), "websocket"));
        assert!(!asks_for(upgrade.headers(), "SPDY/3.1"));
    }
}
