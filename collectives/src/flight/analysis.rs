//! Who waits for whom, and who is to blame: from what the ranks of this machine were found doing.
//!
//! A rank in an operation of all ranks waits for each one that has not begun it; a rank in a message waits for the
//! other one. A rank that is stopped, has ended or has lost its communicator waits for nobody. Where such chains end
//! is who holds the others up: a rank that waits for nobody, or several that wait for each other.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::call::{Call, Kind, odd_one};
use crate::flight::graph;
use crate::flight::ranks::RankSet;
use crate::flight::read::{Failure, Operation, Process, Recording, State};

/// The ranks of one communicator, as far as they were found.
#[derive(Clone, PartialEq, Debug)]
pub struct Group {
    /// What the job is called; may be empty.
    pub label: String,
    /// Tells groups of equal labels apart.
    pub identity: u64,
    /// The epoch of the communicator.
    pub epoch: u64,
    /// The number of ranks, the missing ones counted.
    pub world: u32,
    /// The ranks that were found, ascending.
    pub ranks: Vec<RankReport>,
    /// The ranks that were not.
    pub missing: RankSet,
    /// How many of the missing ones should be on the hosts of those that were found.
    pub missing_here: u64,
    /// Who holds the others up.
    pub culprits: Vec<Culprit>,
}

/// One rank that was found.
#[derive(Clone, PartialEq, Debug)]
pub struct RankReport {
    /// What it was read from.
    pub recording: Recording,
    /// What it does.
    pub activity: Activity,
    /// For how long.
    pub since: Duration,
    /// For whom it waits.
    pub waits_for: RankSet,
}

/// What a rank does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Activity {
    /// It waits until all ranks are there.
    Connecting,
    /// Between two operations.
    Outside,
    /// In an operation that all its ranks have begun.
    Running,
    /// In an operation that other ranks have not begun.
    Waiting,
    /// Its communicator has ended with an error.
    Failed,
    /// Its process is stopped by a signal.
    Stopped,
    /// Its process is held by a debugger.
    Traced,
    /// Its process has ended.
    Ended,
}

impl fmt::Display for Activity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Activity::Connecting => "connecting",
            Activity::Outside => "outside",
            Activity::Running => "running",
            Activity::Waiting => "waiting",
            Activity::Failed => "failed",
            Activity::Stopped => "stopped",
            Activity::Traced => "traced",
            Activity::Ended => "ended",
        })
    }
}

/// Ranks that hold others up. Its `Display` says why, and what to do.
#[derive(Clone, PartialEq, Debug)]
pub struct Culprit {
    /// Who.
    pub ranks: RankSet,
    /// The process, where it is one.
    pub pid: Option<u32>,
    /// Why.
    pub cause: Cause,
    /// The ranks that wait for them.
    pub waiting: RankSet,
}

/// Why ranks hold others up.
#[derive(Clone, PartialEq, Debug)]
pub enum Cause {
    /// A signal has stopped its process; in the middle of `inside`, if of anything.
    Stopped { inside: Option<Operation>, since: Duration },
    /// A debugger holds its process.
    Traced,
    /// Its process has ended.
    Ended,
    /// It has not begun what the others are in. `last` is the operation that it ended last.
    Absent { wanted: Operation, last: Option<Operation>, since: Duration, blocked: bool },
    /// They are in an operation that all have begun, and do not get on.
    Inside { operation: Operation, since: Duration },
    /// They wait for each other.
    Deadlock { operations: Vec<(u32, Operation)> },
    /// It called another operation than the others.
    Mismatch { theirs: Operation, expected: Operation },
    /// The communicator ended with an error that names it.
    Failed { text: String, told_by: RankSet },
    /// There is no record of them; `here` of them should be on this machine.
    Missing { here: u64 },
}

impl Cause {
    /// The cause in a word.
    pub fn name(&self) -> &'static str {
        match self {
            Cause::Stopped { .. } => "stopped",
            Cause::Traced => "traced",
            Cause::Ended => "ended",
            Cause::Absent { .. } => "absent",
            Cause::Inside { .. } => "inside",
            Cause::Deadlock { .. } => "deadlock",
            Cause::Mismatch { .. } => "mismatch",
            Cause::Failed { .. } => "failed",
            Cause::Missing { .. } => "missing",
        }
    }
}

/// What is known of the ranks whose records were found. `patience` is how long an operation may take before somebody
/// is to blame for that.
pub fn analyse(recordings: &[Recording], patience: Duration) -> Vec<Group> {
    let mut groups: BTreeMap<(u64, u64, u32), BTreeMap<u32, &Recording>> = BTreeMap::new();
    for recording in recordings.iter().filter(|recording| recording.rank < recording.world) {
        let group = groups.entry((recording.identity, recording.epoch, recording.world)).or_default();
        // Where a rank connects again at the same epoch, its earlier communicator is on its way out.
        let newest = group.entry(recording.rank).or_insert(recording);
        if recording.created > newest.created {
            *newest = recording;
        }
    }
    let mut groups: Vec<Group> = groups.into_values().map(|ranks| group(ranks.into_values(), patience)).collect();
    groups.sort_by(|a, b| (&a.label, a.epoch, a.identity).cmp(&(&b.label, b.epoch, b.identity)));
    groups
}

/// `recordings` are those of one group, one a rank, ascending.
fn group<'a>(recordings: impl Iterator<Item = &'a Recording>, patience: Duration) -> Group {
    let recordings: Vec<&Recording> = recordings.collect();
    let (label, identity, epoch, world) = match recordings.first() {
        Some(first) => (first.label.clone(), first.identity, first.epoch, first.world),
        None => (String::new(), 0, 0, 0),
    };
    let found: RankSet = recordings.iter().map(|recording| recording.rank).collect();
    let missing = found.complement(world);
    let missing_here = missing_here(&recordings).min(missing.len());
    let ranks: Vec<RankReport> = recordings.iter().map(|recording| report(recording, &recordings, &missing)).collect();
    let culprits = culprits(&ranks, &missing, missing_here, patience);
    Group { label, identity, epoch, world, ranks, missing, missing_here, culprits }
}

/// Ranks that the hosts of the found ones should have and do not.
fn missing_here(recordings: &[&Recording]) -> u64 {
    let mut hosts: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for recording in recordings {
        let (found, there) = hosts.entry(&recording.host).or_default();
        *found += 1;
        *there = u64::from(recording.neighbours).max(*there);
    }
    hosts.values().map(|(found, there)| there.saturating_sub(*found)).sum()
}

fn report(recording: &Recording, all: &[&Recording], missing: &RankSet) -> RankReport {
    let activity = activity(recording);
    let waits_for = match activity {
        Activity::Connecting => missing.clone(),
        Activity::Running => waits_for(recording, all, missing),
        _ => RankSet::default(),
    };
    let activity = match activity {
        Activity::Running if !waits_for.is_empty() => Activity::Waiting,
        other => other,
    };
    let since = match (&recording.failure, recording.operations.last()) {
        (Some(failure), _) => failure.at,
        (None, Some(operation)) => operation.since(),
        (None, None) => recording.connected.unwrap_or(recording.created),
    };
    let since = recording.taken.saturating_sub(since);
    RankReport { recording: recording.clone(), activity, since, waits_for }
}

/// Without a look at the others: one that waits runs.
fn activity(recording: &Recording) -> Activity {
    match (recording.process, &recording.failure, running(recording)) {
        (Process::Ended, ..) => Activity::Ended,
        (_, Some(_), _) => Activity::Failed,
        (Process::Stopped, ..) => Activity::Stopped,
        (Process::Traced, ..) => Activity::Traced,
        (.., Some(_)) => Activity::Running,
        _ if recording.connected.is_none() => Activity::Connecting,
        _ => Activity::Outside,
    }
}

/// The operation that the rank is in.
fn running(recording: &Recording) -> Option<&Operation> {
    recording.operations.last().filter(|operation| operation.state == State::Running)
}

fn waits_for(recording: &Recording, all: &[&Recording], missing: &RankSet) -> RankSet {
    let Some(operation) = running(recording) else { return RankSet::default() };
    if !operation.is_message() {
        let absent = all.iter().filter(|other| other.rank != recording.rank && holds_up(other, operation));
        return absent.map(|other| other.rank).collect::<RankSet>().union(missing);
    }
    let Some(peer) = peer(recording.rank, operation).filter(|peer| *peer != recording.rank) else {
        return RankSet::default();
    };
    let waits = match all.binary_search_by_key(&peer, |other| other.rank) {
        Ok(index) => holds_up_message(all[index], recording.rank, operation),
        Err(_) => missing.contains(peer),
    };
    RankSet::from_iter(waits.then_some(peer))
}

/// The other rank of a message that `rank` is in. The sender is in every rank's call, the receiver in the record.
fn peer(rank: u32, operation: &Operation) -> Option<u32> {
    match operation.call.kind {
        Kind::Message { from } if from != rank => Some(from),
        _ => operation.peer,
    }
}

/// Whether a rank that is in `operation`, one of all ranks, waits for `other`.
fn holds_up(other: &Recording, operation: &Operation) -> bool {
    let sequence = operation.sequence();
    let same = |theirs: &&Operation| !theirs.is_message() && theirs.sequence() == sequence;
    match other.operations.iter().rev().find(same) {
        Some(theirs) => is_held(other) && theirs.state != State::Done,
        None => progress(other).is_none_or(|progress| progress < sequence),
    }
}

/// Whether `rank`, which is in the message `operation`, waits for `other`.
fn holds_up_message(other: &Recording, rank: u32, operation: &Operation) -> bool {
    let theirs = other.operations.iter().rev().find(|theirs| {
        let same_way = theirs.is_message() && theirs.call.kind == operation.call.kind;
        same_way
            && peer(other.rank, theirs).is_none_or(|peer| peer == rank)
            && theirs.sequence() >= operation.sequence()
    });
    match theirs {
        Some(theirs) => is_held(other) && theirs.state != State::Done,
        None => true,
    }
}

/// Whether the rank will not go on by itself.
fn is_held(recording: &Recording) -> bool {
    matches!(activity(recording), Activity::Ended | Activity::Failed | Activity::Stopped | Activity::Traced)
}

/// The sequence of the last operation of all ranks that the rank has begun.
fn progress(recording: &Recording) -> Option<u64> {
    let recorded = recording.operations.iter().filter(|operation| !operation.is_message()).map(Operation::sequence);
    recorded.chain(recording.collective).max()
}

fn culprits(ranks: &[RankReport], missing: &RankSet, missing_here: u64, patience: Duration) -> Vec<Culprit> {
    let mut culprits = mismatch(ranks).into_iter().chain(failures(ranks)).collect::<Vec<_>>();
    for (index, rank) in ranks.iter().enumerate() {
        culprits.extend(held(rank).map(|cause| single(ranks, index, cause)));
    }
    // The missing ones are one node, the last.
    let nodes = ranks.len() + 1;
    let edge = |from: usize, to: usize| match (ranks.get(from), ranks.get(to)) {
        (Some(from), Some(to)) => from.waits_for.contains(to.recording.rank),
        (Some(from), None) => from.waits_for.overlaps(missing),
        (None, _) => false,
    };
    let is_slow = |rank: &RankReport| match rank.activity {
        Activity::Waiting | Activity::Running | Activity::Connecting => rank.since >= patience,
        _ => false,
    };
    let slow: Vec<usize> = (0..ranks.len()).filter(|index| is_slow(&ranks[*index])).collect();
    let reached = graph::reachable(nodes, slow.iter().copied(), edge);
    let mut inside: BTreeMap<(bool, u64), Vec<usize>> = BTreeMap::new();
    for end in graph::ends(nodes, edge) {
        if !end.iter().any(|node| reached[*node]) {
            continue;
        }
        match end[..] {
            [node] if node == ranks.len() => culprits.push(Culprit {
                ranks: missing.clone(),
                pid: None,
                cause: Cause::Missing { here: missing_here },
                waiting: waiting(ranks, |rank| edge(rank, node)),
            }),
            [node] => match (ranks[node].activity, running(&ranks[node].recording)) {
                (Activity::Running, Some(operation)) => {
                    inside.entry((operation.is_message(), operation.sequence())).or_default().push(node);
                }
                (Activity::Outside | Activity::Connecting, _) => {
                    culprits.extend(absence(ranks, node).map(|cause| single(ranks, node, cause)));
                }
                // Named above.
                _ => {}
            },
            _ => culprits.push(deadlock(ranks, &end)),
        }
    }
    culprits.extend(inside.into_values().filter_map(|members| stuck(ranks, &members)));
    culprits
}

fn waiting(ranks: &[RankReport], waits: impl Fn(usize) -> bool) -> RankSet {
    (0..ranks.len()).filter(|index| waits(*index)).map(|index| ranks[index].recording.rank).collect()
}

fn single(ranks: &[RankReport], index: usize, cause: Cause) -> Culprit {
    let Recording { rank, pid, .. } = ranks[index].recording;
    let waiting = waiting(ranks, |other| ranks[other].waits_for.contains(rank));
    Culprit { ranks: RankSet::from_iter([rank]), pid: Some(pid), cause, waiting }
}

/// Why a rank that cannot go on by itself cannot, where nothing else says so.
fn held(rank: &RankReport) -> Option<Cause> {
    Some(match rank.activity {
        Activity::Stopped => Cause::Stopped { inside: running(&rank.recording).copied(), since: rank.since },
        Activity::Traced => Cause::Traced,
        Activity::Ended => Cause::Ended,
        _ => return None,
    })
}

/// The rank is not where others wait for it.
fn absence(ranks: &[RankReport], node: usize) -> Option<Cause> {
    let rank = &ranks[node];
    let waiter = ranks.iter().filter(|other| other.waits_for.contains(rank.recording.rank)).max_by_key(|r| r.since)?;
    Some(Cause::Absent {
        wanted: *running(&waiter.recording)?,
        last: rank.recording.operations.last().copied(),
        since: rank.since,
        blocked: rank.recording.process == Process::Blocked,
    })
}

fn deadlock(ranks: &[RankReport], members: &[usize]) -> Culprit {
    let operations = members.iter().filter_map(|member| {
        let recording = &ranks[*member].recording;
        Some((recording.rank, *running(recording)?))
    });
    let operations: Vec<_> = operations.collect();
    let inside: RankSet = operations.iter().map(|(rank, _)| *rank).collect();
    let waiting = waiting(ranks, |other| ranks[other].waits_for.overlaps(&inside));
    Culprit { ranks: inside, pid: None, cause: Cause::Deadlock { operations }, waiting }
}

fn stuck(ranks: &[RankReport], members: &[usize]) -> Option<Culprit> {
    let longest = members.iter().map(|member| &ranks[*member]).max_by_key(|rank| rank.since)?;
    let operation = *running(&longest.recording)?;
    let set: RankSet = members.iter().map(|member| ranks[*member].recording.rank).collect();
    let pid = if members.len() == 1 { Some(longest.recording.pid) } else { None };
    let waiting = waiting(ranks, |other| ranks[other].waits_for.overlaps(&set));
    Some(Culprit { ranks: set, pid, cause: Cause::Inside { operation, since: longest.since }, waiting })
}

/// One culprit an error: the rank that it names, or where it names none, who tells it.
fn failures(ranks: &[RankReport]) -> Vec<Culprit> {
    let mut failures: BTreeMap<(Option<u32>, &str), Vec<&RankReport>> = BTreeMap::new();
    for rank in ranks {
        if let Some(Failure { rank: named, text, .. }) = &rank.recording.failure {
            failures.entry((*named, text)).or_default().push(rank);
        }
    }
    let culprits = failures.into_iter().map(|((named, text), tellers)| {
        let told_by: RankSet = tellers.iter().map(|rank| rank.recording.rank).collect();
        let culprits = named.map_or(told_by.clone(), |rank| RankSet::from_iter([rank]));
        let pid = ranks.iter().find(|rank| Some(rank.recording.rank) == named).map(|rank| rank.recording.pid);
        let waiting = waiting(ranks, |other| ranks[other].waits_for.overlaps(&told_by));
        Culprit { ranks: culprits, pid, cause: Cause::Failed { text: text.to_owned(), told_by }, waiting }
    });
    culprits.collect()
}

/// The first operation of all ranks that one of them called otherwise than most.
fn mismatch(ranks: &[RankReport]) -> Option<Culprit> {
    let mut by_sequence: BTreeMap<u64, Vec<(usize, Operation)>> = BTreeMap::new();
    for (index, rank) in ranks.iter().enumerate() {
        for operation in rank.recording.operations.iter().filter(|operation| !operation.is_message()) {
            by_sequence.entry(operation.sequence()).or_default().push((index, *operation));
        }
    }
    by_sequence.into_values().find_map(|mut operations| {
        // A rank that recorded a sequence twice is not one that this can judge: its last word counts.
        operations.reverse();
        operations.dedup_by_key(|(index, _)| *index);
        operations.reverse();
        let calls: Vec<Option<Call>> =
            operations.iter().map(|(_, operation)| Some(comparable(operation.call))).collect();
        let (odd, expected) = odd_one(&calls)?;
        let (_, expected) = operations.iter().find(|(_, operation)| Some(comparable(operation.call)) == expected)?;
        let (index, theirs) = operations[odd];
        Some(single(ranks, index, Cause::Mismatch { theirs, expected: *expected }))
    })
}

/// What all ranks have to agree on.
fn comparable(call: Call) -> Call {
    match call.kind {
        // Each rank has counts of its own.
        Kind::AllToAll { uneven: true } => Call { count: 0, ..call },
        _ => call,
    }
}

#[cfg(test)]
#[path = "analysis_tests.rs"]
mod tests;
