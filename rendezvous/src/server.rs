//! The rendezvous server: one stream per member, one quorum per job.
//!
//! Nothing is kept on disk. After a restart members reconnect by themselves, say which epoch they are in, and
//! the server takes it from them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::{Stream, StreamExt};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use tracing::{debug, info, warn};

use crate::quorum::{self, Candidate, Config, Hold, Job, MemberId, Refusal, Verdict};
use crate::token::{JobIdentity, TokenKey};
use crate::wire::{self, proto};

/// Those that wait are told why at most so often: while a large world gathers, the reason changes with each member.
const TELL_EVERY: Duration = Duration::from_secs(1);
/// A member that does not read so many messages is cut off.
const OUTBOX: usize = 32;
const MAX_JOBS: usize = 10_000;
/// How long a job without members is remembered, with its ranks, or as finished.
const RETENTION: Duration = Duration::from_secs(900);
/// A stream must open with its Hello within this time.
const HELLO_DEADLINE: Duration = Duration::from_secs(10);

/// Connections that may wait to be accepted. The members of a large world come all at once; one that finds no room tries
/// again after a second only.
const BACKLOG: u32 = 4096;

/// Binds a listener that many may connect to at once.
pub fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("failed to serve the rendezvous: {0}")]
    Transport(#[from] tonic::transport::Error),
}

/// Serves members until `shutdown`. The listener is bound by the caller, who knows its address.
pub async fn serve(
    listener: TcpListener,
    key: TokenKey,
    config: Config,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    let hub = Arc::new(Hub {
        key,
        config,
        started: Instant::now(),
        jobs: Mutex::default(),
        alarm: Notify::new(),
        shutdown: shutdown.clone(),
    });
    let clock = tokio::spawn(watch_clock(hub.clone()));
    let service = proto::rendezvous_server::RendezvousServer::new(Service(hub))
        .max_decoding_message_size(wire::MAX_MESSAGE_BYTES)
        .max_encoding_message_size(wire::MAX_MESSAGE_BYTES);
    let served = tonic::transport::Server::builder()
        .tcp_nodelay(true)
        .http2_keepalive_interval(Some(config.deadline))
        .http2_keepalive_timeout(Some(config.deadline))
        .add_service(service)
        .serve_with_incoming_shutdown(TcpListenerStream::new(listener), shutdown.cancelled())
        .await;
    clock.abort();
    Ok(served?)
}

/// Re-decides when time alone may have changed something: a heartbeat that did not come, a world that settled.
async fn watch_clock(hub: Arc<Hub>) {
    loop {
        let now = hub.now();
        let next = {
            let mut jobs = hub.jobs();
            for (identity, attendance) in jobs.iter_mut() {
                if attendance.wake.is_some_and(|wake| wake <= now) {
                    attendance.step(now, identity, &hub.config);
                }
            }
            jobs.retain(|_, attendance| !attendance.is_over(now));
            jobs.values().filter_map(|attendance| attendance.wake).min()
        };
        tokio::select! {
            biased;
            () = hub.alarm.notified() => {}
            () = sleep_until(next.map(|next| hub.started + next)) => {}
        }
    }
}

async fn sleep_until(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

struct Hub {
    key: TokenKey,
    config: Config,
    started: Instant,
    jobs: Mutex<BTreeMap<JobIdentity, Attendance>>,
    /// Rung when an earlier wake-up may be due.
    alarm: Notify,
    shutdown: CancellationToken,
}

impl Hub {
    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn jobs(&self) -> MutexGuard<'_, BTreeMap<JobIdentity, Attendance>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets an event happen to a job, then draws the conclusions.
    fn record(&self, identity: &JobIdentity, event: impl FnOnce(Duration, &mut Attendance)) {
        let now = self.now();
        let mut jobs = self.jobs();
        let Some(attendance) = jobs.get_mut(identity) else { return };
        let before = attendance.wake;
        event(now, attendance);
        attendance.step(now, identity, &self.config);
        // A later alarm than the one that is set needs no ringing: the clock finds nothing to do and sets it anew.
        if attendance.wake.is_some_and(|wake| before.is_none_or(|before| wake < before)) {
            self.alarm.notify_one();
        }
    }
}

type Outbox = mpsc::Sender<Result<proto::ToMember, Status>>;

/// A job and the streams of its members.
#[derive(Default)]
struct Attendance {
    job: Job,
    sessions: BTreeMap<MemberId, Session>,
    sessions_opened: u64,
    wake: Option<Duration>,
    /// The reason last told to those that wait, and when.
    told: Option<(Hold, Duration)>,
    /// Since when it has no member.
    emptied: Option<Duration>,
}

struct Session {
    /// Tells a stream from the one that it replaced.
    number: u64,
    outbox: Outbox,
}

impl Attendance {
    fn join(&mut self, now: Duration, candidate: Candidate, outbox: Outbox) -> Result<u64, Refusal> {
        let id = candidate.id.clone();
        let held = candidate.held.as_ref().map(|world| world.epoch);
        self.job.join(now, candidate)?;
        self.sessions.retain(|other, session| {
            let replaced = other.host == id.host && *other != id;
            if replaced {
                // Told so, or it would come back and take the place again.
                let _ = session.outbox.try_send(Err(Status::aborted("a newer process of this host has joined")));
            }
            !replaced
        });
        self.sessions_opened += 1;
        let number = self.sessions_opened;
        self.sessions.insert(id.clone(), Session { number, outbox });
        // What it missed while it was away; what follows from its coming is sent by the next step.
        match self.job.world() {
            Some(world) if held != Some(world.epoch) => {
                if let Some(rank) = world.rank_of(&id) {
                    let membership = wire::membership(world, rank);
                    self.send(&id, proto::to_member::Message::Membership(membership));
                }
            }
            None => {
                if let Some(epoch) = held {
                    let reason = "the epoch ended while the member was away".into();
                    self.send(&id, proto::to_member::Message::Invalidated(proto::Invalidated { epoch, reason }));
                }
            }
            Some(_) => {}
        }
        Ok(number)
    }

    /// Tells a newcomer why it waits, also where the others know the reason already.
    fn greet(&mut self, id: &MemberId) {
        if let Some((hold, _)) = self.told.clone()
            && self.job.waiting().any(|waiting| waiting == id)
        {
            self.tell(id, &hold);
        }
    }

    /// Decides and acts until nothing more follows.
    fn step(&mut self, now: Duration, identity: &JobIdentity, config: &Config) {
        loop {
            let decision = quorum::decide(now, &self.job, config);
            self.wake = decision.wake;
            for (id, how) in &decision.lost {
                info!(job = %identity, member = %id, "member {how}");
                self.sessions.remove(id);
            }
            if let (Some(ending), Some(world)) = (&decision.end, self.job.world()) {
                let (epoch, reason) = (world.epoch, ending.to_string());
                info!(job = %identity, epoch, reason, "epoch ends");
                let peers: Vec<MemberId> = world.peers.iter().map(|peer| peer.id.clone()).collect();
                for id in peers {
                    let invalidated = proto::Invalidated { epoch, reason: reason.clone() };
                    self.send(&id, proto::to_member::Message::Invalidated(invalidated));
                }
            }
            self.job.apply(now, &decision);
            match decision.verdict {
                Verdict::Open(world) => {
                    info!(job = %identity, epoch = world.epoch, world = world.peers.len(), "epoch opens");
                    for (peer, rank) in world.peers.iter().zip(0..) {
                        let membership = wire::membership(&world, rank);
                        self.send(&peer.id, proto::to_member::Message::Membership(membership));
                    }
                    self.told = None;
                }
                Verdict::Hold(hold) => {
                    self.tell_waiting(now, identity, hold);
                    break;
                }
            }
        }
        self.emptied = if self.job.is_empty() { self.emptied.or(Some(now)) } else { None };
    }

    /// Tells those that wait why, when the reason is new; where it changes all the time, now and then.
    fn tell_waiting(&mut self, now: Duration, identity: &JobIdentity, hold: Hold) {
        if let Some((told, at)) = &self.told {
            if *told == hold {
                return;
            }
            let next = *at + TELL_EVERY;
            if now < next && hold != Hold::Finished {
                self.wake = Some(self.wake.map_or(next, |wake| wake.min(next)));
                return;
            }
        }
        debug!(job = %identity, reason = %hold, "no new epoch");
        let waiting: Vec<MemberId> = self.job.waiting().cloned().collect();
        for id in waiting {
            self.tell(&id, &hold);
        }
        self.told = Some((hold, now));
    }

    fn tell(&mut self, id: &MemberId, hold: &Hold) {
        match hold {
            Hold::Finished => self.send(id, proto::to_member::Message::Finished(proto::Finished {})),
            hold => {
                // Only for people: one that does not get through is no loss.
                let waiting = proto::to_member::Message::Waiting(proto::Waiting { reason: hold.to_string() });
                if let Some(session) = self.sessions.get(id) {
                    let _ = session.outbox.try_send(Ok(proto::ToMember { message: Some(waiting) }));
                }
            }
        }
    }

    /// A member that does not read is dropped: its stream ends, and it may come back.
    fn send(&mut self, id: &MemberId, message: proto::to_member::Message) {
        let Some(session) = self.sessions.get(id) else { return };
        if session.outbox.try_send(Ok(proto::ToMember { message: Some(message) })).is_err() {
            self.sessions.remove(id);
        }
    }

    fn is_over(&self, now: Duration) -> bool {
        self.emptied.is_some_and(|since| since + RETENTION <= now)
    }
}

struct Service(Arc<Hub>);

type Answers = Pin<Box<dyn Stream<Item = Result<proto::ToMember, Status>> + Send>>;

#[tonic::async_trait]
impl proto::rendezvous_server::Rendezvous for Service {
    type AttendStream = Answers;

    async fn attend(&self, request: Request<Streaming<proto::FromMember>>) -> Result<Response<Answers>, Status> {
        let hub = self.0.clone();
        let identity = authenticate(&hub.key, &request)?;
        let from = request.remote_addr();
        let mut messages = request.into_inner();
        let first = tokio::time::timeout(HELLO_DEADLINE, messages.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no hello came"))??;
        let Some(proto::from_member::Message::Hello(hello)) = first.and_then(|first| first.message) else {
            return Err(Status::invalid_argument("the first message must be a hello"));
        };
        let candidate = wire::candidate(hello)?;
        let id = candidate.id.clone();

        let (outbox, inbox) = mpsc::channel(OUTBOX);
        let welcome = proto::Welcome {
            heartbeat_millis: (hub.config.deadline / 10).as_millis() as u32,
            deadline_millis: hub.config.deadline.as_millis() as u32,
        };
        let _ = outbox.try_send(Ok(proto::ToMember { message: Some(proto::to_member::Message::Welcome(welcome)) }));
        let number = {
            let mut jobs = hub.jobs();
            make_room(&mut jobs, &identity)?;
            let now = hub.now();
            let attendance = jobs.entry(identity.clone()).or_default();
            let joined = attendance.join(now, candidate, outbox);
            let number = joined.map_err(|refusal| {
                warn!(job = %identity, member = %id, "refused: {refusal}");
                Status::failed_precondition(refusal.to_string())
            })?;
            debug!(job = %identity, member = %id, ?from, "member joined");
            attendance.step(now, &identity, &hub.config);
            attendance.greet(&id);
            number
        };
        hub.alarm.notify_one();
        tokio::spawn(listen(hub.clone(), identity, id, number, from, messages));
        let shutdown = hub.shutdown.clone();
        // The streams must end for a drain to end; members then reconnect to the next server.
        let answers = ReceiverStream::new(inbox).take_until(shutdown.cancelled_owned());
        Ok(Response::new(Box::pin(answers)))
    }
}

/// Jobs without members are remembered for a while, but make room when the table is full.
fn make_room(jobs: &mut BTreeMap<JobIdentity, Attendance>, identity: &JobIdentity) -> Result<(), Status> {
    if jobs.len() >= MAX_JOBS && !jobs.contains_key(identity) {
        jobs.retain(|_, attendance| !attendance.job.is_empty());
        if jobs.len() >= MAX_JOBS {
            return Err(Status::resource_exhausted(format!("{MAX_JOBS} jobs are served, no more are taken")));
        }
    }
    Ok(())
}

fn authenticate<T>(key: &TokenKey, request: &Request<T>) -> Result<JobIdentity, Status> {
    let header = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
    let token = header
        .and_then(|value| value.strip_prefix("Bearer "))
        .ok_or_else(|| Status::unauthenticated("no job token was sent"))?;
    key.verify(token).map_err(|error| {
        warn!(from = ?request.remote_addr(), "refused: {error}");
        Status::unauthenticated(error.to_string())
    })
}

/// Takes in what a member says, until its stream ends.
async fn listen(
    hub: Arc<Hub>,
    identity: JobIdentity,
    id: MemberId,
    number: u64,
    from: Option<SocketAddr>,
    mut messages: Streaming<proto::FromMember>,
) {
    use proto::from_member::Message;
    let is_current = |attendance: &Attendance| attendance.sessions.get(&id).is_some_and(|s| s.number == number);
    loop {
        let message = tokio::select! {
            biased;
            () = hub.shutdown.cancelled() => return,
            message = messages.message() => message,
        };
        let message = match message {
            Ok(Some(proto::FromMember { message: Some(message) })) => message,
            Ok(Some(_)) => continue,
            Ok(None) | Err(_) => break,
        };
        match message {
            Message::Heartbeat(_) => hub.record(&identity, |now, attendance| attendance.job.heartbeat(now, &id)),
            Message::Broken(broken) => hub.record(&identity, |now, attendance| {
                attendance.job.heartbeat(now, &id);
                attendance.job.broken(&id, broken.epoch, wire::cause(broken.cause));
            }),
            Message::Leave(leave) => {
                hub.record(&identity, |_, attendance| {
                    if is_current(attendance) {
                        attendance.sessions.remove(&id);
                        attendance.job.leave(&id, leave.finished);
                    }
                });
                return;
            }
            Message::Hello(_) => break,
        }
    }
    debug!(job = %identity, member = %id, ?from, "stream ended");
    hub.record(&identity, |now, attendance| {
        // A session that a newer stream has replaced says nothing about the member; nor does one that was
        // removed with its member. One cut off for not reading is gone.
        let replaced = attendance.sessions.get(&id).is_some_and(|session| session.number != number);
        if !replaced {
            attendance.sessions.remove(&id);
            attendance.job.disconnected(now, &id);
        }
    });
}
