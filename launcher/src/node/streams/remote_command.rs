//! `exec` and `attach`: a command's streams as numbered channels, and how it ended as a Status.

use super::websocket::{Socket, farewell, transmit};
use crate::node::runtime::{Executing, Resize};
use crate::node::supervisor::DRAIN_MS;
use bytes::{BufMut, Bytes, BytesMut};
use futures::StreamExt;
use futures::stream::SplitStream;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::CancellationToken;

/// The channels of `v4.channel.k8s.io` and `v5.channel.k8s.io`.
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const STATUS: u8 = 3;
const RESIZE: u8 = 4;
/// In `v5.channel.k8s.io` the client closes the channel that follows.
const CLOSE: u8 = 255;

/// What is read of a command's output at once.
const CHUNK: usize = 32 * 1024;
/// Chunks that wait for the client; with more the command waits.
const QUEUE: usize = 4;

/// What the client wants to have of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) stdout: bool,
    pub(super) stderr: bool,
}

/// Serves one client until the command has ended, or the client has left, or `over` (the container's end).
pub(super) async fn serve(
    socket: Socket,
    version: u8,
    wanted: Wanted,
    start: impl Future<Output = Result<Executing, String>>,
    over: impl Future<Output = ()>,
) {
    let (mut sink, mut source) = socket.split();
    let (send, queue) = mpsc::channel(QUEUE);
    let session = async {
        let (input, output) = match start.await {
            Ok(Executing { stdin, stdout, stderr, resize, exit }) => {
                (Some(Input { stdin, resize }), Ok((stdout, stderr, exit)))
            }
            Err(message) => (None, Err(message)),
        };
        let produce = async {
            let ended = match output {
                Ok((stdout, stderr, exit)) => produce(stdout, stderr, exit, over, wanted, &send).await,
                Err(message) => Err(message),
            };
            let status = status(ended).to_string();
            let _ = send.send([&[STATUS], status.as_bytes()].concat().into()).await;
            drop(send);
        };
        let talk = async {
            let mut sending = std::pin::pin!(transmit(&mut sink, queue));
            tokio::select! {
                // The client cannot be reached any more.
                sent = &mut sending => sent,
                () = produce => sending.await,
            }
        };
        tokio::select! {
            sent = talk => sent.is_ok(),
            // Dropping the rest ends the command.
            () = receive(&mut source, version, input.unwrap_or_default()) => false,
        }
    };
    if session.await {
        farewell(&mut sink, &mut source).await;
    }
}

/// Where the client's input goes.
#[derive(Default)]
struct Input {
    stdin: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    resize: Option<Resize>,
}

/// Takes what the client sends, until it leaves.
async fn receive(source: &mut SplitStream<Socket>, version: u8, mut input: Input) {
    while let Some(Ok(message)) = source.next().await {
        let data = match message {
            Message::Binary(data) => data,
            Message::Text(text) => text.into(),
            Message::Close(_) => return,
            _ => continue,
        };
        match data.split_first() {
            Some((&STDIN, bytes)) => {
                if let Some(stdin) = &mut input.stdin
                    && stdin.write_all(bytes).await.is_err()
                {
                    // Nobody reads it any more; what the client sends further is dropped.
                    input.stdin = None;
                }
            }
            Some((&RESIZE, bytes)) => {
                if let (Some(resize), Some((columns, rows))) = (&input.resize, size(bytes)) {
                    resize(columns, rows);
                }
            }
            Some((&CLOSE, &[STDIN])) if version >= 5 => input.stdin = None,
            _ => {}
        }
    }
}

fn size(text: &[u8]) -> Option<(u16, u16)> {
    let size: Value = serde_json::from_slice(text).ok()?;
    let side = |name: &str| size[name].as_u64().and_then(|side| u16::try_from(side).ok());
    Some((side("Width")?, side("Height")?))
}

/// Hands on what the command writes; its exit code, or why there is none.
async fn produce(
    stdout: Box<dyn AsyncRead + Send + Unpin>,
    stderr: Option<Box<dyn AsyncRead + Send + Unpin>>,
    exit: impl Future<Output = Result<i32, String>>,
    over: impl Future<Output = ()>,
    wanted: Wanted,
    send: &mpsc::Sender<Bytes>,
) -> Result<i32, String> {
    let ended = CancellationToken::new();
    let stderr = async {
        match stderr {
            Some(stderr) => pump(stderr, wanted.stderr.then_some(STDERR), send, &ended).await,
            None => {}
        }
    };
    let code = async {
        let code = tokio::select! {
            biased;
            code = exit => code,
            () = over => Ok(KILLED),
        };
        ended.cancel();
        code
    };
    tokio::join!(pump(stdout, wanted.stdout.then_some(STDOUT), send, &ended), stderr, code).2
}

/// As shells have it: ended by SIGKILL.
const KILLED: i32 = 137;

/// Sends what comes, or drops it where the client does not want it.
async fn pump(
    mut from: Box<dyn AsyncRead + Send + Unpin>,
    channel: Option<u8>,
    send: &mpsc::Sender<Bytes>,
    ended: &CancellationToken,
) {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(CHUNK + 1);
        buffer.put_u8(channel.unwrap_or_default());
        let silent = async {
            ended.cancelled().await;
            tokio::time::sleep(Duration::from_millis(DRAIN_MS.into())).await;
        };
        let read = tokio::select! {
            biased;
            read = from.read_buf(&mut buffer) => read,
            () = silent => return,
        };
        // A terminal whose last user has gone gives an error, not an end.
        if !read.is_ok_and(|count| count > 0) {
            return;
        }
        let message = buffer.split().freeze();
        if channel.is_some() && send.send(message).await.is_err() {
            return;
        }
    }
}

/// How the command ended, as the kubelet says it.
fn status(ended: Result<i32, String>) -> Value {
    match ended {
        Ok(0) => json!({"metadata": {}, "status": "Success"}),
        Ok(code) => json!({
            "metadata": {},
            "status": "Failure",
            "message": format!("command terminated with non-zero exit code: exit code {code}"),
            "reason": "NonZeroExitCode",
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
        }),
        Err(message) => json!({
            "metadata": {},
            "status": "Failure",
            "message": format!("Internal error occurred: {message}"),
            "reason": "InternalError",
            "details": {"causes": [{"message": message}]},
            "code": 500,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_read_and_anything_else_is_none() {
        assert_eq!(size(b"{\"Width\":80,\"Height\":24}\n"), Some((80, 24)));
        for bad in [
            &b""[..],
            b"{",
            b"[]",
            b"80x24",
            b"{\"Width\":-1,\"Height\":24}",
            b"{\"Width\":65536,\"Height\":1}",
            b"\xff\xfe",
        ] {
            assert_eq!(size(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn an_end_is_told_as_clients_read_it() {
        assert_eq!(status(Ok(0))["status"], "Success");
        let failed = status(Ok(3));
        assert_eq!(failed["reason"], "NonZeroExitCode");
        assert_eq!(failed["details"]["causes"][0], json!({"reason": "ExitCode", "message": "3"}));
        assert_eq!(status(Err("no".to_owned()))["message"], "Internal error occurred: no");
    }

    #[tokio::test]
    async fn output_that_nobody_closes_ends_with_its_command() {
        let (mut left_open, output) = tokio::io::duplex(64);
        left_open.write_all(b"said").await.expect("written");
        let (send, mut queue) = mpsc::channel(QUEUE);
        let wanted = Wanted { stdout: true, stderr: true };
        let exit = std::future::ready(Ok(7));
        let ended = produce(Box::new(output), None, exit, std::future::pending(), wanted, &send).await;
        assert_eq!(ended, Ok(7));
        assert_eq!(queue.recv().await, Some(Bytes::from_static(b"\x01said")));
    }

    #[tokio::test]
    async fn a_command_ends_with_its_container() {
        let (send, _queue) = mpsc::channel(QUEUE);
        let wanted = Wanted { stdout: true, stderr: true };
        let (exit, over) = (std::future::pending(), std::future::ready(()));
        assert_eq!(produce(Box::new(tokio::io::empty()), None, exit, over, wanted, &send).await, Ok(KILLED));
    }
}
