//! What takes a stream to a container: `exec`, `attach` and `port-forward`, as the kubelet serves them. The API server
//! hands the request over with its connection, which becomes a WebSocket (or SPDY) here.

mod port_forward;
mod remote_command;
mod spdy;
mod websocket;

use super::http::{LogState, LogStates};
use super::logs::{LogOptions, LogReader, LogWatch, query_pairs};
use super::runtime::{Command, ContainerId, Executing, PodRuntime};
use super::supervisor;
use bytes::Bytes;
use futures::StreamExt;
use http::{Method, Request, Response, StatusCode, header};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use remote_command::Wanted;
use std::sync::Arc;
use tokio::sync::watch;

/// Why a request is not served.
pub(super) type Refusal = (StatusCode, String);

/// A pod's container as a stream finds it.
pub(super) struct Target {
    pub(super) runtime: Arc<dyn PodRuntime>,
    pub(super) id: ContainerId,
    pub(super) states: watch::Receiver<LogStates>,
}

/// The connection that a request came by.
struct Connection(OnUpgrade);

impl Connection {
    fn of(request: &mut Request<Bytes>) -> Result<Connection, Refusal> {
        let upgrade = request.extensions_mut().remove::<OnUpgrade>().map(Connection);
        upgrade.ok_or_else(|| {
            (
                StatusCode::BAD_REQUEST,
                "a stream needs a connection of its own: ask in HTTP/1.1, over the network".to_owned(),
            )
        })
    }
}

const REMOTE_COMMANDS: [&str; 2] = ["v5.channel.k8s.io", "v4.channel.k8s.io"];

/// `GET /exec/...?command=...&stdin=...` and `GET /attach/...`
pub(super) fn remote_command(
    request: &mut Request<Bytes>,
    attach: bool,
    target: Target,
) -> Result<Response<()>, Refusal> {
    let mut command = Command::default();
    let mut wanted = Wanted { stdout: true, stderr: true };
    for (name, value) in query_pairs(request.uri().query().unwrap_or_default()) {
        // As the API server reads flags: Python writes `True`.
        let flag = value != "0" && !value.eq_ignore_ascii_case("false");
        match name {
            "command" => command.argv.push(value),
            "stdin" => command.stdin = flag,
            "tty" => command.tty = flag,
            "stdout" => wanted.stdout = flag,
            "stderr" => wanted.stderr = flag,
            _ => {}
        }
    }
    let bad = |message: &str| (StatusCode::BAD_REQUEST, message.to_owned());
    if !(command.stdin || wanted.stdout || wanted.stderr) {
        return Err(bad("you must specify at least 1 of stdin, stdout, stderr"));
    }
    if attach && command.stdin {
        return Err(bad("this node keeps no standard input for a container to be attached to: attach without it, \
             or run a command with `kubectl exec -i`"));
    }
    if !attach && command.argv.is_empty() {
        return Err(bad("you must specify at least one command for the container"));
    }
    let (protocol, response, Connection(upgrade)) = agree(request, &REMOTE_COMMANDS)?;
    let version = if protocol == REMOTE_COMMANDS[0] { 5 } else { 4 };
    tokio::spawn(async move {
        let socket = match websocket::open(upgrade).await {
            Ok(socket) => socket,
            Err(error) => return tracing::debug!(%error, "a connection was not upgraded"),
        };
        let over = ended(target.states.clone(), target.id.clone());
        let start = async {
            if attach {
                return follow(&target).map_err(|error| format!("failed to read the log: {error}"));
            }
            let started = target.runtime.exec(&target.id, command).await;
            started.map_err(|error| format!("error executing command in container: {error}"))
        };
        remote_command::serve(socket, version, wanted, start, over).await;
    });
    Ok(response)
}

/// SPDY in the messages of a WebSocket (kubectl), and channels (other clients).
const PORT_FORWARDS: [&str; 2] = ["SPDY/3.1+portforward.k8s.io", "v4.channel.k8s.io"];
/// The two channels of a port have a number of one byte.
const MAX_PORTS: usize = 128;

/// `/portForward/...`, with `?ports=...` for channels.
pub(super) fn port_forward(
    request: &mut Request<Bytes>,
    pod: String,
    states: watch::Receiver<LogStates>,
) -> Result<Response<()>, Refusal> {
    let bad = |message: String| (StatusCode::BAD_REQUEST, message);
    let running = |states: &LogStates| states.values().any(|state| matches!(state, LogState::Running { .. }));
    if !running(&states.borrow()) {
        return Err(bad(format!("pod {pod} is not running")));
    }
    let mut states = states;
    let over = async move {
        // An error means that the pod is gone.
        let _ = states.wait_for(|states| !running(states)).await;
    };
    let broken = |error| tracing::debug!(%error, "a connection was not upgraded");
    if websocket::asks_for(request.headers(), SPDY) {
        let (response, Connection(upgrade)) = agree_to_spdy(request)?;
        tokio::spawn(async move {
            match upgrade.await {
                Ok(upgraded) => port_forward::bare(TokioIo::new(upgraded), pod, over).await,
                Err(error) => broken(error),
            }
        });
        return Ok(response);
    }
    let ports = query_pairs(request.uri().query().unwrap_or_default()).filter(|(name, _)| *name == "ports");
    let ports: Vec<String> = ports.map(|(_, ports)| ports).collect();
    let ports = ports.iter().flat_map(|ports| ports.split(',')).map(|port| {
        let number = port.parse().ok().filter(|port: &u16| *port > 0);
        number.ok_or_else(|| bad(format!("{port:?} is not a port")))
    });
    let ports: Vec<u16> = ports.collect::<Result<_, _>>()?;
    let (protocol, response, Connection(upgrade)) = agree(request, &PORT_FORWARDS)?;
    let tunnel = protocol == PORT_FORWARDS[0];
    if !tunnel && (ports.is_empty() || ports.len() > MAX_PORTS) {
        return Err(bad(format!("name the ports to forward, at most {MAX_PORTS}: ?ports=80,443")));
    }
    tokio::spawn(async move {
        match websocket::open(upgrade).await {
            Ok(socket) if tunnel => port_forward::tunnel(socket, pod, over).await,
            Ok(socket) => port_forward::channels(socket, pod, ports, over).await,
            Err(error) => broken(error),
        }
    });
    Ok(response)
}

const SPDY: &str = "SPDY/3.1";

fn agree_to_spdy(request: &mut Request<Bytes>) -> Result<(Response<()>, Connection), Refusal> {
    const VERSION: &str = "x-stream-protocol-version";
    const KNOWN: &str = "portforward.k8s.io";
    let bad = |message: String| (StatusCode::BAD_REQUEST, message);
    if !request.headers().get_all(VERSION).into_iter().any(|version| version == KNOWN) {
        return Err(bad(format!("X-Stream-Protocol-Version must be {KNOWN}")));
    }
    let connection = Connection::of(request)?;
    let response = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, SPDY)
        .header(VERSION, KNOWN)
        .body(())
        .map_err(|error| bad(error.to_string()))?;
    Ok((response, connection))
}

fn agree(
    request: &mut Request<Bytes>,
    known: &[&'static str],
) -> Result<(&'static str, Response<()>, Connection), Refusal> {
    if request.method() == Method::GET && websocket::asks_for(request.headers(), "websocket") {
        return websocket::agree(request, known);
    }
    Err((
        StatusCode::BAD_REQUEST,
        "Upgrade request required: ask for a WebSocket, as kubectl does since 1.30".to_owned(),
    ))
}

fn runs(states: &LogStates, id: &ContainerId) -> bool {
    matches!(states.get(&id.container), Some(LogState::Running { attempt }) if *attempt == id.attempt)
}

/// When this start of the container has ended, or its pod is gone.
async fn ended(mut states: watch::Receiver<LogStates>, id: ContainerId) {
    // An error means that the pod is gone.
    let _ = states.wait_for(|states| !runs(states, &id)).await;
}

/// What the container writes from now on, as if it were a command of its own.
fn follow(target: &Target) -> std::io::Result<Executing> {
    let dir = target.runtime.log_dir(&target.id);
    let output = |only: supervisor::Stream| -> std::io::Result<Box<dyn tokio::io::AsyncRead + Send + Unpin>> {
        let options = LogOptions { follow: true, tail_lines: Some(0), only: Some(only), ..LogOptions::default() };
        let watch = LogWatch::new(&dir)?;
        let reader = LogReader::open(&dir, options)?;
        let (states, id) = (target.states.clone(), target.id.clone());
        let bytes = super::http::Follower { reader, watch: Some(watch), states, id }.into_stream();
        Ok(Box::new(tokio_util::io::StreamReader::new(bytes.boxed())))
    };
    let over = ended(target.states.clone(), target.id.clone());
    Ok(Executing {
        stdin: None,
        stdout: output(supervisor::Stream::Stdout)?,
        stderr: Some(output(supervisor::Stream::Stderr)?),
        resize: None,
        exit: Box::pin(async move {
            over.await;
            Ok(0)
        }),
    })
}
