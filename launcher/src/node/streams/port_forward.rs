//! `port-forward`: connections to ports of a pod, which has the network of this machine. Many of them share the
//! client's one connection, as streams of SPDY (kubectl) or as pairs of channels (WebSocket clients).

use super::spdy::{self, Frame, Headers, Reader};
use super::websocket::{Socket, farewell, transmit};
use bytes::{BufMut, Bytes, BytesMut};
use futures::stream::SplitStream;
use futures::{Stream, StreamExt};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;
use tokio_util::io::StreamReader;
use tokio_util::sync::CancellationToken;

/// What is read of a pod's answer at once.
const CHUNK: usize = 32 * 1024;
/// Frames that wait for the client; with more the pods wait.
const QUEUE: usize = 8;
/// Chunks of one connection that wait for its pod; with more all connections of the client wait, as SPDY has no flow
/// control here.
const BACKLOG: usize = 16;
/// Two a connection.
const MAX_STREAMS: usize = 1024;

/// Where a connection's bytes go, in the client's protocol.
#[derive(Clone, Copy, Debug)]
enum Framing {
    Streams {
        data: u32,
        error: u32,
    },
    /// The channel of the data; the next one is for the error.
    Channels(u8),
}

impl Framing {
    fn data(self, bytes: &[u8]) -> Bytes {
        match self {
            Framing::Streams { data, .. } => spdy::data(data, bytes, false),
            Framing::Channels(channel) => on(channel, bytes),
        }
    }

    fn error(self, message: &str) -> Bytes {
        match self {
            Framing::Streams { error, .. } => spdy::data(error, message.as_bytes(), false),
            Framing::Channels(channel) => on(channel.saturating_add(1), message.as_bytes()),
        }
    }

    /// What tells the client that no more comes. It looks for an error when the data has ended.
    fn end(self) -> Vec<Bytes> {
        match self {
            Framing::Streams { data, error } => vec![spdy::data(error, b"", true), spdy::data(data, b"", true)],
            Framing::Channels(_) => Vec::new(),
        }
    }
}

fn on(channel: u8, bytes: &[u8]) -> Bytes {
    let mut message = BytesMut::with_capacity(bytes.len() + 1);
    message.put_u8(channel);
    message.put_slice(bytes);
    message.freeze()
}

/// One connection to a port: what the client sends comes by `input`, which ends where the client sends no more.
struct Forward {
    pod: String,
    port: u16,
    input: mpsc::Receiver<Bytes>,
    given_up: CancellationToken,
    framing: Framing,
    send: mpsc::Sender<Bytes>,
}

impl Forward {
    async fn run(mut self) {
        let given_up = self.given_up.clone();
        let carried = tokio::select! {
            carried = self.carry() => carried,
            () = given_up.cancelled() => Ok(()),
        };
        let error = carried.err().map(|error| {
            let message = format!("error forwarding port {} to pod {}: {error}", self.port, self.pod);
            self.framing.error(&message)
        });
        for frame in error.into_iter().chain(self.framing.end()) {
            // A client that is gone needs no end.
            let _ = self.send.send(frame).await;
        }
    }

    /// Until the pod sends no more; what becomes of a connection later is for its two ends to see.
    async fn carry(&mut self) -> Result<(), String> {
        let addresses = [SocketAddr::from((Ipv4Addr::LOCALHOST, self.port)), (Ipv6Addr::LOCALHOST, self.port).into()];
        let connected = TcpStream::connect(&addresses[..]).await;
        let mut pod = connected.map_err(|error| format!("failed to connect to localhost:{}: {error}", self.port))?;
        let (mut from_pod, mut to_pod) = pod.split();
        let up = async {
            while let Some(bytes) = self.input.recv().await {
                if to_pod.write_all(&bytes).await.is_err() {
                    // Nobody takes it; an answer may still come.
                    while self.input.recv().await.is_some() {}
                }
            }
            let _ = to_pod.shutdown().await;
            std::future::pending::<()>().await;
        };
        let down = async {
            let mut buffer = BytesMut::with_capacity(CHUNK);
            while from_pod.read_buf(&mut buffer).await.is_ok_and(|count| count > 0) {
                if self.send.send(self.framing.data(&buffer)).await.is_err() {
                    return;
                }
                buffer.clear();
            }
        };
        tokio::select! {
            () = up => {}
            () = down => {}
        }
        Ok(())
    }
}

/// Serves kubectl: SPDY in the messages of a WebSocket.
pub(super) async fn tunnel(socket: Socket, pod: String, over: impl Future<Output = ()>) {
    let (mut sink, mut source) = socket.split();
    let (send, queue) = mpsc::channel(QUEUE);
    let from = StreamReader::new(binary(&mut source).boxed());
    tokio::select! {
        ended = streams(from, pod, send) => {
            if let Err(error) = ended {
                tracing::debug!(%error, "a port-forward broke off");
            }
        }
        _ = transmit(&mut sink, queue) => {}
        () = over => {}
    }
    farewell(&mut sink, &mut source).await;
}

/// Serves kubectl before 1.31, and any that finds no way for WebSockets: SPDY in place of HTTP.
pub(super) async fn bare(upgraded: TokioIo<Upgraded>, pod: String, over: impl Future<Output = ()>) {
    let (from, mut to) = tokio::io::split(upgraded);
    let (send, mut queue) = mpsc::channel::<Bytes>(QUEUE);
    let transmit = async {
        while let Some(frame) = queue.recv().await {
            if to.write_all(&frame).await.is_err() || to.flush().await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        ended = streams(from, pod, send) => {
            if let Err(error) = ended {
                tracing::debug!(%error, "a port-forward broke off");
            }
        }
        () = transmit => {}
        () = over => {}
    }
    let _ = to.shutdown().await;
}

fn binary(source: &mut SplitStream<Socket>) -> impl Stream<Item = io::Result<Bytes>> {
    source.take_while(|message| std::future::ready(!matches!(message, Ok(Message::Close(_))))).filter_map(|message| {
        std::future::ready(match message {
            Ok(Message::Binary(bytes)) => Some(Ok(bytes)),
            Ok(_) => None,
            Err(error) => Some(Err(io::Error::other(error))),
        })
    })
}

/// A stream that the client has opened.
struct Open {
    /// None on a stream for errors, and where the client sends no more.
    input: Option<mpsc::Sender<Bytes>>,
    given_up: CancellationToken,
}

/// The two streams of one connection, as far as the client has opened them.
#[derive(Default)]
struct Pair {
    error: Option<u32>,
    data: Option<(u32, u16)>,
}

/// Serves one SPDY connection, until the client ends it.
async fn streams<R: AsyncRead + Unpin>(from: R, pod: String, send: mpsc::Sender<Bytes>) -> io::Result<()> {
    let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
    let mut reader = Reader::new(from);
    let mut open: BTreeMap<u32, Open> = BTreeMap::new();
    let mut pairs: BTreeMap<String, Pair> = BTreeMap::new();
    let mut forwards: JoinSet<[u32; 2]> = JoinSet::new();
    let mut replied = false;
    let mut newest = 0;
    while let Some(frame) = reader.next().await? {
        while let Some(Ok(done)) = forwards.try_join_next() {
            done.iter().for_each(|stream| drop(open.remove(stream)));
        }
        match frame {
            Frame::Open { stream, headers } => {
                // The client's are odd, each greater than the one before.
                if stream % 2 == 0 || stream <= newest {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, format!("stream {stream} is out of turn")));
                }
                newest = stream;
                let Some(asked) = Asked::of(&headers).filter(|_| open.len() < MAX_STREAMS) else {
                    send.send(spdy::reset(stream)).await.map_err(gone)?;
                    continue;
                };
                send.send(spdy::reply(stream, !replied)).await.map_err(gone)?;
                replied = true;
                open.insert(stream, Open { input: None, given_up: CancellationToken::new() });
                let pair = pairs.entry(asked.request.clone()).or_default();
                match asked.port {
                    Some(port) => pair.data = Some((stream, port)),
                    None => pair.error = Some(stream),
                }
                let Pair { error: Some(error), data: Some((data, port)) } = *pair else { continue };
                pairs.remove(&asked.request);
                let (give, input) = mpsc::channel(BACKLOG);
                let given_up = CancellationToken::new();
                open.insert(data, Open { input: Some(give), given_up: given_up.clone() });
                let framing = Framing::Streams { data, error };
                let forward = Forward { pod: pod.clone(), port, input, given_up, framing, send: send.clone() };
                forwards.spawn(async move {
                    forward.run().await;
                    [data, error]
                });
            }
            Frame::Data { stream, bytes } => {
                let stream = open.get_mut(&stream);
                if let Some(input) = stream.and_then(|stream| stream.input.as_mut()) {
                    // Without a receiver the connection has ended.
                    let _ = input.send(bytes).await;
                }
            }
            Frame::End { stream } => {
                if let Some(stream) = open.get_mut(&stream) {
                    stream.input = None;
                }
            }
            Frame::Reset { stream } => {
                if let Some(stream) = open.get(&stream) {
                    stream.given_up.cancel();
                }
            }
            Frame::Ping { id } if id % 2 == 1 => send.send(spdy::ping(id)).await.map_err(gone)?,
            Frame::Ping { .. } => {}
            Frame::GoAway => return Ok(()),
        }
    }
    Ok(())
}

/// What a stream is for.
struct Asked {
    request: String,
    /// None for the stream of errors.
    port: Option<u16>,
}

impl Asked {
    fn of(headers: &Headers) -> Option<Asked> {
        let request = headers.get("requestid").cloned().unwrap_or_default();
        let port = headers.get("port")?.parse().ok().filter(|port| *port > 0)?;
        match headers.get("streamtype")?.as_str() {
            "data" => Some(Asked { request, port: Some(port) }),
            "error" => Some(Asked { request, port: None }),
            _ => None,
        }
    }
}

/// Serves a client that names its ports beforehand: a connection to each, on two channels each.
pub(super) async fn channels(socket: Socket, pod: String, ports: Vec<u16>, over: impl Future<Output = ()>) {
    let (mut sink, mut source) = socket.split();
    let (send, queue) = mpsc::channel(QUEUE);
    let carry = async {
        let mut inputs: BTreeMap<u8, mpsc::Sender<Bytes>> = BTreeMap::new();
        let mut forwards = JoinSet::new();
        for (channel, port) in (0..=u8::MAX).step_by(2).zip(ports) {
            for channel in [channel, channel + 1] {
                let _ = send.send(on(channel, &port.to_le_bytes())).await;
            }
            let (give, input) = mpsc::channel(BACKLOG);
            inputs.insert(channel, give);
            let (given_up, framing) = (CancellationToken::new(), Framing::Channels(channel));
            forwards.spawn(Forward { pod: pod.clone(), port, input, given_up, framing, send: send.clone() }.run());
        }
        drop(send);
        let receive = async {
            while let Some(Ok(message)) = source.next().await {
                match message {
                    Message::Binary(bytes) => {
                        let Some(channel) = bytes.first() else { continue };
                        if let Some(input) = inputs.get(channel) {
                            let _ = input.send(bytes.slice(1..)).await;
                        }
                    }
                    Message::Close(_) => return,
                    _ => {}
                }
            }
        };
        tokio::select! {
            () = receive => {}
            () = async { while forwards.join_next().await.is_some() {} } => {}
        }
    };
    // What is on its way to the client still goes when all connections have ended.
    let carry = async {
        carry.await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        _ = transmit(&mut sink, queue) => {}
        () = carry => {}
        () = over => {}
    }
    farewell(&mut sink, &mut source).await;
}
