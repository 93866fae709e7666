//! A worker's side of the rendezvous: joins, sends heartbeats, reconnects, and shows the current membership.
//!
//! The task behind a [`Session`] does the talking, so that a process busy with numbers still answers. A server
//! that is away does not disturb the membership held: the session reconnects in the background and brings it
//! along.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Endpoint;
use tracing::{debug, info, warn};

use crate::quorum::{MemberId, World, WorldSize};
use crate::wire::{self, proto};

#[derive(Debug, Clone)]
pub struct Config {
    /// HOST:PORT of the server.
    pub server: String,
    pub job_token: String,
    /// Stable over restarts: the pod's name.
    pub host: String,
    /// Different for each process.
    pub incarnation: String,
    /// HOST:PORT where peers reach this process.
    pub address: String,
    pub rank_hint: Option<u32>,
    pub size: WorldSize,
    /// How long one attempt to connect may take.
    pub connect_timeout: Duration,
}

/// This process' place in an epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    pub epoch: u64,
    pub rank: u32,
    pub world: World,
}

impl Membership {
    pub fn size(&self) -> u32 {
        self.world.peers.len() as u32
    }
}

/// Why a session ends.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    #[error("the rendezvous refuses this process: {0}")]
    Refused(String),
    #[error("the rendezvous address {0:?} is not HOST:PORT")]
    Address(String),
    #[error("the job token has characters that no token has")]
    Token,
    #[error("the job has already finished")]
    Finished,
    #[error("no membership within {seconds} s: {reason}")]
    Timeout { seconds: u64, reason: String },
    #[error("the session has ended")]
    Closed,
}

/// What is known now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum View {
    /// No epoch; the reason is for people.
    Waiting(String),
    Member(Membership),
    /// That epoch is over and the next one is not open yet.
    Invalidated {
        epoch: u64,
        reason: String,
    },
    Over(JoinError),
}

enum Say {
    Broken { epoch: u64, cause: String },
    Leave { finished: bool },
}

/// A membership in a job. Dropping it without [`Session::leave`] looks like a crash to the others.
pub struct Session {
    view: watch::Receiver<View>,
    say: mpsc::Sender<Say>,
    step: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Joins a job. Returns at once; [`Session::membership`] waits for the world to be complete.
pub fn join(config: Config) -> Result<Session, JoinError> {
    let endpoint = Endpoint::from_shared(format!("http://{}", config.server))
        .map_err(|_| JoinError::Address(config.server.clone()))?
        .connect_timeout(config.connect_timeout)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(Duration::from_secs(5))
        .keep_alive_timeout(Duration::from_secs(5))
        .keep_alive_while_idle(true);
    let bearer = format!("Bearer {}", config.job_token).parse().map_err(|_| JoinError::Token)?;
    let (show, view) = watch::channel(View::Waiting(format!("connecting to {}", config.server)));
    let (say, heard) = mpsc::channel(8);
    let step = Arc::new(AtomicU64::new(0));
    let attendance =
        Attendance { config, endpoint, bearer, show, heard, step: step.clone(), held: None, last_epoch: 0 };
    Ok(Session { view, say, step, task: tokio::spawn(attendance.run()) })
}

impl Session {
    /// Waits for a membership of an epoch later than `after`.
    pub async fn membership(&self, after: u64, timeout: Duration) -> Result<Membership, JoinError> {
        let mut view = self.view.clone();
        let wait = async {
            let seen = view.wait_for(|view| match view {
                View::Member(membership) => membership.epoch > after,
                View::Over(_) => true,
                View::Waiting(_) | View::Invalidated { .. } => false,
            });
            match &*seen.await.map_err(|_| JoinError::Closed)? {
                View::Member(membership) => Ok(membership.clone()),
                View::Over(error) => Err(error.clone()),
                View::Waiting(_) | View::Invalidated { .. } => Err(JoinError::Closed),
            }
        };
        match tokio::time::timeout(timeout, wait).await {
            Ok(result) => result,
            Err(_) => {
                let reason = match &*self.view.borrow() {
                    View::Waiting(reason) | View::Invalidated { reason, .. } => reason.clone(),
                    View::Member(held) => format!("epoch {} has not been followed by another", held.epoch),
                    View::Over(error) => error.to_string(),
                };
                Err(JoinError::Timeout { seconds: timeout.as_secs(), reason })
            }
        }
    }

    /// Waits until an epoch is no longer the current one; says why.
    pub async fn ended(&self, epoch: u64) -> String {
        let mut view = self.view.clone();
        let seen = view.wait_for(|view| match view {
            View::Member(membership) => membership.epoch > epoch,
            View::Invalidated { epoch: ended, .. } => *ended >= epoch,
            View::Over(_) => true,
            View::Waiting(_) => false,
        });
        match seen.await.as_deref() {
            Ok(View::Member(membership)) => format!("epoch {} has been opened", membership.epoch),
            Ok(View::Invalidated { reason, .. } | View::Waiting(reason)) => reason.clone(),
            Ok(View::Over(error)) => error.to_string(),
            Err(_) => JoinError::Closed.to_string(),
        }
    }

    pub fn view(&self) -> View {
        self.view.borrow().clone()
    }

    /// Tells the server how far the work has come, with the next heartbeat.
    pub fn progress(&self, step: u64) {
        self.step.store(step, Ordering::Relaxed);
    }

    /// Reports that the collectives of an epoch have failed; a later epoch follows.
    pub async fn broken(&self, epoch: u64, cause: String) {
        let _ = self.say.send(Say::Broken { epoch, cause }).await;
    }

    /// Goes for good. `finished` says that the job's work is done. Waits a moment for the server to hear it.
    pub async fn leave(&self, finished: bool) {
        let _ = self.say.send(Say::Leave { finished }).await;
        let mut view = self.view.clone();
        let gone = view.wait_for(|view| matches!(view, View::Over(_)));
        let _ = tokio::time::timeout(Duration::from_secs(2), gone).await;
    }
}

struct Attendance {
    config: Config,
    endpoint: Endpoint,
    bearer: MetadataValue<Ascii>,
    show: watch::Sender<View>,
    heard: mpsc::Receiver<Say>,
    step: Arc<AtomicU64>,
    held: Option<Membership>,
    last_epoch: u64,
}

enum End {
    /// The connection ended; whether it had been of use.
    Lost {
        welcomed: bool,
        why: String,
    },
    Over(JoinError),
    Left,
}

impl Attendance {
    async fn run(mut self) {
        let first_delay = Duration::from_millis(50);
        let mut delay = first_delay;
        loop {
            match self.attend().await {
                End::Left => {
                    self.show.send_replace(View::Over(JoinError::Closed));
                    return;
                }
                End::Over(error) => {
                    self.show.send_replace(View::Over(error));
                    return;
                }
                End::Lost { welcomed, why } => {
                    if welcomed {
                        delay = first_delay;
                    }
                    debug!(why, "rendezvous lost, reconnecting");
                    self.show.send_if_modified(|view| match view {
                        View::Waiting(reason) => {
                            *reason = format!("the rendezvous at {} cannot be reached: {why}", self.config.server);
                            true
                        }
                        _ => false,
                    });
                }
            }
            tokio::time::sleep(delay).await;
            delay = (delay * 2).min(Duration::from_secs(1));
        }
    }

    fn hello(&self) -> proto::FromMember {
        let Config { host, incarnation, address, rank_hint, size, .. } = self.config.clone();
        message(proto::from_member::Message::Hello(proto::Hello {
            host,
            incarnation,
            address,
            rank_hint,
            min_world: size.min,
            max_world: size.max,
            held: self.held.as_ref().map(|held| wire::membership(&held.world, held.rank)),
            last_epoch: self.last_epoch,
        }))
    }

    /// One connection, from its start to its end.
    async fn attend(&mut self) -> End {
        use proto::to_member::Message;
        let lost = |welcomed, why: String| End::Lost { welcomed, why };
        let channel = match self.endpoint.connect().await {
            Ok(channel) => channel,
            Err(error) => return lost(false, chain(&error)),
        };
        let mut client = proto::rendezvous_client::RendezvousClient::new(channel)
            .max_decoding_message_size(wire::MAX_MESSAGE_BYTES)
            .max_encoding_message_size(wire::MAX_MESSAGE_BYTES);
        let (outbox, inbox) = mpsc::channel(16);
        let _ = outbox.try_send(self.hello());
        let mut request = tonic::Request::new(ReceiverStream::new(inbox));
        request.metadata_mut().insert("authorization", self.bearer.clone());
        let mut answers = match client.attend(request).await {
            Ok(answers) => answers.into_inner(),
            Err(status) => return refused(false, status),
        };

        let mut heartbeat = tokio::time::interval(Duration::from_secs(1));
        heartbeat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut welcomed = false;
        loop {
            tokio::select! {
                biased;
                answer = answers.next() => match answer {
                    None => return lost(welcomed, "the stream ended".into()),
                    Some(Err(status)) => return refused(welcomed, status),
                    Some(Ok(answer)) => match answer.message {
                        Some(Message::Welcome(welcome)) => {
                            welcomed = true;
                            let every = Duration::from_millis(welcome.heartbeat_millis.clamp(10, 60_000).into());
                            heartbeat = tokio::time::interval(every);
                            heartbeat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
                        }
                        Some(Message::Waiting(waiting)) => {
                            self.show.send_if_modified(|view| {
                                let news = matches!(view, View::Waiting(reason) if *reason != waiting.reason);
                                if news {
                                    info!(reason = waiting.reason, "waiting for the job's world");
                                    *view = View::Waiting(waiting.reason);
                                }
                                news
                            });
                        }
                        Some(Message::Membership(membership)) => {
                            let rank = membership.rank;
                            match wire::world(membership) {
                                Ok(world) if (rank as usize) < world.peers.len() => self.take(rank, world),
                                Ok(_) => warn!(rank, "a membership without this rank is ignored"),
                                Err(status) => warn!("a malformed membership is ignored: {}", status.message()),
                            }
                        }
                        Some(Message::Invalidated(invalidated)) => self.let_go(invalidated),
                        Some(Message::Finished(proto::Finished {})) => return End::Over(JoinError::Finished),
                        None => {}
                    },
                },
                said = self.heard.recv() => {
                    let (said, leaves) = match said {
                        Some(Say::Broken { epoch, cause }) => {
                            let cause = wire::cause(cause);
                            (proto::from_member::Message::Broken(proto::Broken { epoch, cause }), false)
                        }
                        Some(Say::Leave { finished }) => {
                            (proto::from_member::Message::Leave(proto::Leave { finished }), true)
                        }
                        None => return End::Left,
                    };
                    let sent = outbox.send(message(said)).await;
                    if leaves {
                        // The server ends the stream when it has heard it.
                        drop(outbox);
                        while sent.is_ok() && matches!(answers.next().await, Some(Ok(_))) {}
                        return End::Left;
                    }
                    if sent.is_err() {
                        return lost(welcomed, "the stream ended".into());
                    }
                },
                _ = heartbeat.tick() => {
                    let epoch = self.held.as_ref().map_or(0, |held| held.epoch);
                    let step = self.step.load(Ordering::Relaxed);
                    let beat = proto::from_member::Message::Heartbeat(proto::Heartbeat { epoch, step });
                    // A full outbox means that the connection stalls: the answers tell soon enough.
                    let _ = outbox.try_send(message(beat));
                },
            }
        }
    }

    fn let_go(&mut self, proto::Invalidated { epoch, reason }: proto::Invalidated) {
        if self.held.as_ref().is_some_and(|held| held.epoch <= epoch) {
            self.held = None;
            self.show.send_replace(View::Invalidated { epoch, reason });
        }
    }

    fn take(&mut self, rank: u32, world: World) {
        let epoch = world.epoch;
        if self.last_epoch >= epoch {
            return;
        }
        let own = MemberId { host: self.config.host.clone(), incarnation: self.config.incarnation.clone() };
        if world.rank_of(&own) != Some(rank) {
            warn!(epoch, rank, "a membership that does not name this process is ignored");
            return;
        }
        info!(epoch, rank, world = world.peers.len(), "member");
        let membership = Membership { epoch, rank, world };
        self.held = Some(membership.clone());
        self.last_epoch = epoch;
        self.show.send_replace(View::Member(membership));
    }
}

fn message(message: proto::from_member::Message) -> proto::FromMember {
    proto::FromMember { message: Some(message) }
}

/// What another attempt cannot mend ends the session; the rest is a lost connection.
fn refused(welcomed: bool, status: tonic::Status) -> End {
    match status.code() {
        Code::Unauthenticated | Code::InvalidArgument | Code::FailedPrecondition | Code::Aborted => {
            End::Over(JoinError::Refused(status.message().to_owned()))
        }
        _ => End::Lost { welcomed, why: chain(&status) },
    }
}

/// An error with its causes: tonic's own text is only "transport error".
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
