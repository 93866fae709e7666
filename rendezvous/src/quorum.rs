//! Who takes part in a job, and since which epoch: the decisions, without any I/O or clock.
//!
//! A [`Job`] holds what its members have said. Events ([`Job::join`], [`Job::heartbeat`], ...) record facts;
//! [`decide`] draws the conclusion, given the time; [`Job::apply`] takes it over. Time is the span since the
//! server started.
//!
//! An epoch is opened when the world is complete, and ends when one of its members is lost, reports that
//! its collectives are broken, or when an elastic job can grow. Survivors keep their ranks. A server that
//! starts with no memory adopts the epoch that its members bring along, so its restart ends no epoch.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

/// More ranks than this are refused.
pub const MAX_WORLD: u32 = 4096;
/// A job keeps at most this many members, with those that wait beside a full world.
pub const MAX_MEMBERS: usize = 2 * MAX_WORLD as usize;

/// One process of a job.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct MemberId {
    /// The pod's name: the same after a restart.
    pub host: String,
    /// Told apart from earlier processes of the same host.
    pub incarnation: String,
}

impl fmt::Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.host)
    }
}

/// How many ranks a job may have: one number, or a range for an elastic job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorldSize {
    pub min: u32,
    pub max: u32,
}

impl WorldSize {
    pub fn fixed(size: u32) -> WorldSize {
        WorldSize { min: size, max: size }
    }
}

/// A member as its peers see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    pub id: MemberId,
    /// HOST:PORT of its collectives.
    pub address: String,
}

/// The world of one epoch; a peer's rank is its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct World {
    pub epoch: u64,
    pub peers: Vec<Peer>,
}

impl World {
    pub fn rank_of(&self, id: &MemberId) -> Option<u32> {
        self.peers.iter().position(|peer| peer.id == *id).map(|rank| rank as u32)
    }
}

/// What a process says when it comes, or comes back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    pub id: MemberId,
    pub address: String,
    pub rank_hint: Option<u32>,
    pub size: WorldSize,
    /// The world that it was part of when it lost its connection.
    pub held: Option<World>,
    /// The latest epoch that it was ever part of, 0 if none. The next one is later, whatever is remembered here.
    pub last_epoch: u64,
}

/// The spans by which loss and completeness are judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// A member silent for so long is lost. It is also how long a server that adopts an epoch waits for
    /// the rest of that epoch's members.
    pub deadline: Duration,
    /// A member whose stream ended is lost after so long, at once where its epoch is broken too.
    pub grace: Duration,
    /// An elastic world below its largest size waits so long for further members.
    pub settle: Duration,
    /// Between two epochs passes at least so long, so that a fault that lasts does not spin.
    pub spacing: Duration,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            deadline: Duration::from_secs(10),
            grace: Duration::from_secs(1),
            settle: Duration::from_secs(3),
            spacing: Duration::from_millis(100),
        }
    }
}

/// Why a candidate is turned away.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error(
        "a world of {min} to {max} ranks is not possible: at least 1, at most {MAX_WORLD}, the smaller number first"
    )]
    WorldSize { min: u32, max: u32 },
    #[error("rank {hint} does not fit a world of {max} ranks, which are counted from 0")]
    RankHint { hint: u32, max: u32 },
    #[error("the membership held at epoch {epoch} does not name {host}")]
    ForeignMembership { epoch: u64, host: String },
    #[error("the job has {MAX_MEMBERS} members, no more are taken")]
    Crowded,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    Silent,
    Disconnected,
    Left,
    Restarted,
    NeverReturned,
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Loss::Silent => "sent no heartbeat",
            Loss::Disconnected => "lost its connection",
            Loss::Left => "left",
            Loss::Restarted => "was restarted",
            Loss::NeverReturned => "did not come back",
        })
    }
}

/// Why an epoch ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    Lost {
        rank: u32,
        host: String,
        how: Loss,
    },
    Broken {
        rank: u32,
        cause: String,
    },
    Growing {
        from: u32,
        to: u32,
    },
    /// Members came with a later epoch after this one had been opened without them.
    Superseded {
        by: u64,
    },
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ending::Lost { rank, host, how } => write!(f, "rank {rank} ({host}) {how}"),
            Ending::Broken { rank, cause } => write!(f, "rank {rank} reports: {cause}"),
            Ending::Superseded { by } => write!(f, "members of the later epoch {by} came back"),
            Ending::Growing { from, to } => write!(f, "the world grows from {from} to {to} ranks"),
        }
    }
}

/// Why no epoch is opened now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hold {
    Running { epoch: u64 },
    Full { world: u32 },
    Short { have: u32, need: u32 },
    Settling { have: u32, max: u32 },
    Recovering { epoch: u64, missing: u32 },
    Spacing,
    Empty,
    Finished,
}

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Hold::Running { epoch } => write!(f, "epoch {epoch} is running"),
            Hold::Full { world } => write!(f, "all {world} ranks are taken"),
            Hold::Short { have, need } => write!(f, "{have} of {need} members are here"),
            Hold::Settling { have, max } => write!(f, "{have} members are here, waiting a little for up to {max}"),
            Hold::Recovering { epoch, missing } => {
                write!(f, "waiting for {missing} members of epoch {epoch} to reconnect")
            }
            Hold::Spacing => f.write_str("the last epoch was opened a moment ago"),
            Hold::Empty => f.write_str("the job has no members"),
            Hold::Finished => f.write_str("the job has finished"),
        }
    }
}

/// What follows from a job's state at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// Members to forget.
    pub lost: BTreeMap<MemberId, Loss>,
    /// The current epoch ends.
    pub end: Option<Ending>,
    /// A new epoch starts, or the reason why none does.
    pub verdict: Verdict,
    /// When time alone may change the decision.
    pub wake: Option<Duration>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Open(World),
    Hold(Hold),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Member {
    address: String,
    rank_hint: Option<u32>,
    joined: Duration,
    seen: Duration,
    /// Since when it has no stream.
    gone: Option<Duration>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Current {
    world: World,
    broken: Option<Ending>,
    /// When the epoch was brought here by a member, where it was not opened here.
    adopted: Option<Duration>,
}

/// All that is known of one job.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Job {
    epoch: u64,
    opened: Option<Duration>,
    size: Option<WorldSize>,
    members: BTreeMap<MemberId, Member>,
    current: Option<Current>,
    /// The last world that ended: its survivors keep their ranks.
    previous: Option<World>,
    finished: bool,
}

impl Job {
    /// A process comes, or comes back. Earlier processes of the same host are over.
    pub fn join(&mut self, now: Duration, candidate: Candidate) -> Result<(), Refusal> {
        let WorldSize { min, max } = candidate.size;
        if min == 0 || min > max || max > MAX_WORLD {
            return Err(Refusal::WorldSize { min, max });
        }
        if let Some(hint) = candidate.rank_hint
            && hint >= max
        {
            return Err(Refusal::RankHint { hint, max });
        }
        if let Some(held) = &candidate.held
            && held.rank_of(&candidate.id).is_none()
        {
            return Err(Refusal::ForeignMembership { epoch: held.epoch, host: candidate.id.host });
        }
        let returning = self.members.contains_key(&candidate.id);
        if !returning && self.members.len() >= MAX_MEMBERS {
            return Err(Refusal::Crowded);
        }

        self.members.retain(|id, _| id.host != candidate.id.host || *id == candidate.id);
        if let Some(current) = &mut self.current {
            let restarted = |peer: &Peer| peer.id.host == candidate.id.host && peer.id != candidate.id;
            if let Some(rank) = current.world.peers.iter().position(restarted) {
                let ending = Ending::Lost { rank: rank as u32, host: candidate.id.host.clone(), how: Loss::Restarted };
                current.broken.get_or_insert(ending);
            }
        }
        let joined = self.members.get(&candidate.id).map_or(now, |member| member.joined);
        let Candidate { id, address, rank_hint, size, held, last_epoch } = candidate;
        self.size = Some(size);
        self.members.insert(id, Member { address, rank_hint, joined, seen: now, gone: None });
        if let Some(held) = held {
            self.adopt(now, held);
        }
        self.epoch = self.epoch.max(last_epoch);
        Ok(())
    }

    /// Takes over the epoch that a member holds, where it is later than the one known here.
    fn adopt(&mut self, now: Duration, held: World) {
        if held.epoch <= self.epoch {
            return;
        }
        self.epoch = held.epoch;
        match &mut self.current {
            // Opened here without the members that hold the later one: both worlds are real, so neither stays.
            Some(current) if current.adopted.is_none() => {
                current.broken.get_or_insert(Ending::Superseded { by: held.epoch });
            }
            _ => {
                let broken = held.peers.iter().zip(0..).find_map(|(peer, rank)| {
                    let restarted = self.members.keys().any(|id| id.host == peer.id.host && *id != peer.id);
                    restarted.then(|| Ending::Lost { rank, host: peer.id.host.clone(), how: Loss::Restarted })
                });
                self.current = Some(Current { world: held, broken, adopted: Some(now) });
            }
        }
    }

    pub fn heartbeat(&mut self, now: Duration, id: &MemberId) {
        if let Some(member) = self.members.get_mut(id) {
            member.seen = now;
        }
    }

    /// The stream of a member has ended.
    pub fn disconnected(&mut self, now: Duration, id: &MemberId) {
        if let Some(member) = self.members.get_mut(id) {
            member.gone.get_or_insert(now);
        }
    }

    /// A member says that the collectives of an epoch do not work. An earlier epoch is old news.
    pub fn broken(&mut self, id: &MemberId, epoch: u64, cause: String) {
        if let Some(current) = &mut self.current
            && current.world.epoch == epoch
            && let Some(rank) = current.world.rank_of(id)
        {
            current.broken.get_or_insert(Ending::Broken { rank, cause });
        }
    }

    /// A member goes for good. One that has finished ends the job: its peers passed the last barrier too.
    pub fn leave(&mut self, id: &MemberId, finished: bool) {
        self.members.remove(id);
        self.finished |= finished;
        if let Some(current) = &mut self.current
            && let Some(rank) = current.world.rank_of(id)
        {
            current.broken.get_or_insert(Ending::Lost { rank, host: id.host.clone(), how: Loss::Left });
        }
    }

    pub fn world(&self) -> Option<&World> {
        self.current.as_ref().map(|current| &current.world)
    }

    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Members that have no rank in the current epoch.
    pub fn waiting(&self) -> impl Iterator<Item = &MemberId> {
        let world = self.world();
        self.members.keys().filter(move |id| world.is_none_or(|world| world.rank_of(id).is_none()))
    }

    /// Takes a decision over. Deciding again at the same time then changes nothing.
    pub fn apply(&mut self, now: Duration, decision: &Decision) {
        self.members.retain(|id, _| !decision.lost.contains_key(id));
        if decision.end.is_some()
            && let Some(current) = self.current.take()
        {
            self.previous = Some(current.world);
        }
        if let Verdict::Open(world) = &decision.verdict {
            self.epoch = world.epoch;
            self.opened = Some(now);
            self.current = Some(Current { world: world.clone(), broken: None, adopted: None });
        }
    }
}

/// What follows from the state of a job at a time.
pub fn decide(now: Duration, job: &Job, config: &Config) -> Decision {
    let mut alarms = BTreeSet::new();
    if job.finished {
        return Decision { lost: BTreeMap::new(), end: None, verdict: Verdict::Hold(Hold::Finished), wake: None };
    }

    let broken = job.current.as_ref().is_some_and(|current| current.broken.is_some());
    let mut lost = BTreeMap::new();
    for (id, member) in &job.members {
        let silent = member.seen + config.deadline;
        let dropped = member.gone.map(|gone| if broken { gone } else { gone + config.grace });
        if dropped.is_some_and(|at| at <= now) {
            lost.insert(id.clone(), Loss::Disconnected);
        } else if silent <= now {
            lost.insert(id.clone(), Loss::Silent);
        } else {
            alarms.insert(silent.min(dropped.unwrap_or(silent)));
        }
    }
    let live: BTreeMap<&MemberId, &Member> = job.members.iter().filter(|(id, _)| !lost.contains_key(*id)).collect();

    let mut end = None;
    let mut missing = 0;
    if let Some(current) = &job.current {
        end = current.broken.clone();
        for (rank, peer) in current.world.peers.iter().enumerate() {
            if live.contains_key(&peer.id) {
                continue;
            }
            let until = current.adopted.map(|adopted| adopted + config.deadline);
            let how = match (lost.get(&peer.id), until) {
                (Some(how), _) => *how,
                (None, Some(until)) if now < until => {
                    alarms.insert(until);
                    missing += 1;
                    continue;
                }
                (None, _) => Loss::NeverReturned,
            };
            end.get_or_insert(Ending::Lost { rank: rank as u32, host: peer.id.host.clone(), how });
        }
        if end.is_none() {
            let hold = match job.size {
                Some(size) if missing == 0 => match growth(now, job, &current.world, &live, size, config) {
                    Growth::Now { to } => {
                        end = Some(Ending::Growing { from: current.world.peers.len() as u32, to });
                        None
                    }
                    Growth::Later { at, hold } => {
                        alarms.insert(at);
                        Some(hold)
                    }
                    Growth::No(hold) => Some(hold),
                },
                _ => Some(Hold::Recovering { epoch: current.world.epoch, missing }),
            };
            if let Some(hold) = hold {
                return Decision { lost, end, verdict: Verdict::Hold(hold), wake: alarms.first().copied() };
            }
        }
    }

    let verdict = match opening(now, job, &live, end.is_some(), config) {
        Opening::Now(world) => {
            // The members of the new world are judged afresh by the next decision.
            alarms.insert(now);
            Verdict::Open(world)
        }
        Opening::Later { at, hold } => {
            alarms.insert(at);
            Verdict::Hold(hold)
        }
        Opening::No(hold) => Verdict::Hold(hold),
    };
    Decision { lost, end, verdict, wake: alarms.first().copied() }
}

enum Growth {
    Now { to: u32 },
    Later { at: Duration, hold: Hold },
    No(Hold),
}

/// Whether a running, whole epoch should make room for members that wait.
fn growth(
    now: Duration,
    job: &Job,
    world: &World,
    live: &BTreeMap<&MemberId, &Member>,
    size: WorldSize,
    config: &Config,
) -> Growth {
    let newest = live.iter().filter(|(id, _)| world.rank_of(id).is_none()).map(|(_, member)| member.joined).max();
    let (Some(newest), true) = (newest, (world.peers.len() as u32) < size.max) else {
        let full = newest.is_some();
        let (epoch, world) = (world.epoch, world.peers.len() as u32);
        return Growth::No(if full { Hold::Full { world } } else { Hold::Running { epoch } });
    };
    let to = (live.len() as u32).min(size.max);
    let at = (newest + config.settle).max(job.opened.unwrap_or_default() + config.spacing);
    if to == size.max || at <= now {
        Growth::Now { to }
    } else {
        Growth::Later { at, hold: Hold::Settling { have: live.len() as u32, max: size.max } }
    }
}

enum Opening {
    Now(World),
    Later { at: Duration, hold: Hold },
    No(Hold),
}

/// Whether the members at hand make a world.
fn opening(now: Duration, job: &Job, live: &BTreeMap<&MemberId, &Member>, ends_now: bool, config: &Config) -> Opening {
    let (Some(size), Some(newest)) = (job.size, live.values().map(|member| member.joined).max()) else {
        return Opening::No(Hold::Empty);
    };
    let have = live.len() as u32;
    if have < size.min {
        return Opening::No(Hold::Short { have, need: size.min });
    }
    if have < size.max {
        // A world that just lost a member goes on smaller at once; one that gathers waits for the rest.
        let settled = newest + config.settle;
        if !ends_now && job.previous.is_none() && now < settled {
            return Opening::Later { at: settled, hold: Hold::Settling { have, max: size.max } };
        }
    }
    if let Some(opened) = job.opened
        && now < opened + config.spacing
    {
        return Opening::Later { at: opened + config.spacing, hold: Hold::Spacing };
    }
    let before = job.current.as_ref().map(|current| &current.world).or(job.previous.as_ref());
    let ids = choose(live, before, size.max.min(have));
    let peers = ids.into_iter().map(|id| Peer { id: id.clone(), address: live[id].address.clone() }).collect();
    Opening::Now(World { epoch: job.epoch + 1, peers })
}

/// The members of a new world in the order of their ranks. Survivors come first and keep their ranks; then
/// hints are honoured, then a host gets the rank that it had; the rest fill the gaps.
fn choose<'a>(live: &BTreeMap<&'a MemberId, &Member>, before: Option<&World>, size: u32) -> Vec<&'a MemberId> {
    let kept = |id: &MemberId| before.and_then(|world| world.rank_of(id));
    let hosts: BTreeMap<&str, u32> = before
        .map(|world| world.peers.iter().zip(0..).map(|(peer, rank)| (peer.id.host.as_str(), rank)).collect())
        .unwrap_or_default();

    let mut candidates: Vec<(&'a MemberId, &Member)> = live.iter().map(|(id, member)| (*id, *member)).collect();
    candidates.sort_by_key(|(id, member)| {
        let wish = member.rank_hint.unwrap_or(u32::MAX);
        (kept(id).unwrap_or(u32::MAX), wish, member.joined, *id)
    });
    candidates.truncate(size as usize);

    let mut ranks: Vec<Option<&'a MemberId>> = vec![None; size as usize];
    type Wish<'w> = &'w dyn Fn(&MemberId, &Member) -> Option<u32>;
    let wishes: [Wish<'_>; 3] =
        [&|id, _| kept(id), &|_, member| member.rank_hint, &|id, _| hosts.get(id.host.as_str()).copied()];
    for wish in wishes {
        candidates.retain(|(id, member)| {
            let place = wish(id, member).and_then(|rank| ranks.get_mut(rank as usize));
            match place {
                Some(place) if place.is_none() => {
                    *place = Some(id);
                    false
                }
                _ => true,
            }
        });
    }
    let mut rest = candidates.into_iter().map(|(id, _)| id);
    ranks.into_iter().filter_map(|taken| taken.or_else(|| rest.next())).collect()
}
