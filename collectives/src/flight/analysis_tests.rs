use proptest::prelude::*;

use super::*;
use crate::element::DType;
use crate::reduce::ReduceOp;

const NOW: Duration = Duration::from_secs(1000);
const PATIENCE: Duration = Duration::from_secs(1);

/// A rank that connected 100 s ago and did nothing since.
fn rank(rank: u32, world: u32) -> Recording {
    Recording {
        pid: 100 + rank,
        process: Process::Alive,
        rank,
        world,
        epoch: 1,
        identity: 9,
        label: "mnist".to_owned(),
        host: "a".to_owned(),
        neighbours: world,
        taken: NOW,
        created: NOW - Duration::from_secs(101),
        connected: Some(NOW - Duration::from_secs(100)),
        begun: 0,
        collective: None,
        operations: Vec::new(),
        failure: None,
    }
}

fn call(sequence: u64, kind: Kind) -> Call {
    Call { sequence, kind, dtype: DType::F32, count: 8 }
}

impl Recording {
    /// Adds an operation that came into its state some seconds ago.
    fn with(mut self, call: Call, peer: Option<u32>, state: State, ago: u64) -> Recording {
        self.begun += 1;
        let at = NOW - Duration::from_secs(ago);
        let ended = (state != State::Running).then_some(at);
        self.operations.push(Operation { call, number: self.begun, peer, state, issued: at, started: at, ended });
        if !matches!(call.kind, Kind::Message { .. }) {
            self.collective = Some(call.sequence);
        }
        self
    }

    fn done(self, sequence: u64, ago: u64) -> Recording {
        self.with(call(sequence, Kind::Barrier), None, State::Done, ago)
    }

    fn running(self, sequence: u64, ago: u64) -> Recording {
        self.with(call(sequence, Kind::Barrier), None, State::Running, ago)
    }

    fn message(self, sequence: u64, from: u32, peer: u32, ago: u64) -> Recording {
        self.with(call(sequence, Kind::Message { from }), Some(peer), State::Running, ago)
    }

    fn is(self, process: Process) -> Recording {
        Recording { process, ..self }
    }

    fn failed(self, rank: Option<u32>, text: &str) -> Recording {
        Recording { failure: Some(Failure { rank, text: text.to_owned(), at: NOW }), ..self }
    }
}

fn one(recordings: &[Recording]) -> Group {
    let mut groups = analyse(recordings, PATIENCE);
    assert_eq!(groups.len(), 1);
    groups.remove(0)
}

/// What each rank does and waits for, and what is said about the culprits.
fn table(recordings: &[Recording]) -> (Vec<String>, Vec<String>) {
    let group = one(recordings);
    let ranks =
        group.ranks.iter().map(|rank| format!("{} {} [{}]", rank.recording.rank, rank.activity, rank.waits_for));
    (ranks.collect(), group.culprits.iter().map(Culprit::to_string).collect())
}

#[test]
fn nobody_is_to_blame_while_all_goes_on() {
    let (ranks, culprits) = table(&[rank(0, 2).done(4, 0), rank(1, 2).done(4, 0)]);
    assert_eq!(ranks, ["0 outside []", "1 outside []"]);
    assert!(culprits.is_empty());
    // Who has only just begun to wait has nobody to blame yet.
    let (ranks, culprits) = table(&[rank(0, 2).done(4, 3).running(5, 0), rank(1, 2).done(4, 0)]);
    assert_eq!(ranks, ["0 waiting [1]", "1 outside []"]);
    assert!(culprits.is_empty());
}

#[test]
fn who_has_not_called_is_named() {
    let (ranks, culprits) = table(&[rank(0, 3).running(5, 12), rank(1, 3).done(4, 13), rank(2, 3).running(5, 11)]);
    assert_eq!(ranks, ["0 waiting [1]", "1 outside []", "2 waiting [1]"]);
    assert_eq!(
        culprits,
        ["rank 1 (pid 101) has not called barrier() (operation 5); it left barrier() (operation 4) 13.0s ago; \
          ranks 0, 2 wait for it. Look at what it does instead: \
          py-spy dump --pid 101, or gdb -p 101 -batch -ex 'thread apply all bt'"]
    );
}

#[test]
fn the_end_of_a_chain_is_named_and_not_its_middle() {
    // Rank 2 is an operation behind, because rank 1 is two behind.
    let group = one(&[rank(0, 3).running(6, 9), rank(1, 3).done(4, 20), rank(2, 3).running(5, 10)]);
    assert_eq!(group.ranks[0].waits_for.to_string(), "1, 2");
    let [culprit] = &group.culprits[..] else { panic!("{:?}", group.culprits) };
    assert_eq!((culprit.ranks.to_string().as_str(), culprit.waiting.to_string().as_str()), ("1", "0, 2"));
}

#[test]
fn a_stopped_rank_is_named_wherever_it_is() {
    let inside = rank(1, 2).running(5, 9).is(Process::Stopped);
    let (ranks, culprits) = table(&[rank(0, 2).running(5, 9), inside]);
    assert_eq!(ranks, ["0 waiting [1]", "1 stopped []"]);
    assert_eq!(
        culprits,
        ["rank 1 (pid 101) is stopped by a signal inside barrier() (operation 5), begun 9.0s ago; \
          rank 0 waits for it. Let it go on: kill -CONT 101"]
    );
    let before = rank(1, 2).done(4, 9).is(Process::Stopped);
    let (ranks, culprits) = table(&[rank(0, 2).running(5, 9), before]);
    assert_eq!(ranks, ["0 waiting [1]", "1 stopped []"]);
    assert_eq!(
        culprits,
        ["rank 1 (pid 101) is stopped by a signal; rank 0 waits for it. Let it go on: kill -CONT 101"]
    );
    // It is done with what the other is in.
    let behind = rank(1, 2).done(5, 9).is(Process::Stopped);
    let (ranks, culprits) = table(&[rank(0, 2).running(5, 9), behind]);
    assert_eq!(ranks, ["0 running []", "1 stopped []"]);
    assert!(culprits[0].starts_with("rank 1 (pid 101) is stopped by a signal. Let"), "{culprits:?}");
}

#[test]
fn missing_ranks_are_told_from_those_of_other_hosts() {
    let (ranks, culprits) = table(&[rank(0, 4).running(5, 9), rank(2, 4).running(5, 9)]);
    assert_eq!(ranks, ["0 waiting [1, 3]", "2 waiting [1, 3]"]);
    assert_eq!(culprits.len(), 1);
    assert!(
        culprits[0].starts_with(
            "ranks 1, 3 are missing: no process of this machine has their record; ranks 0, 2 wait for them"
        ),
        "{culprits:?}"
    );
    let host = |recording: Recording| Recording { neighbours: 2, ..recording };
    let group = one(&[host(rank(0, 4).running(5, 9)), host(rank(1, 4).running(5, 9))]);
    assert_eq!((group.missing.to_string().as_str(), group.missing_here), ("2, 3", 0));
    assert!(group.culprits[0].to_string().contains("are not on this machine"), "{:?}", group.culprits);
    // With somebody here to blame, both are named: nothing is known of the others.
    let group = one(&[host(rank(0, 4).running(5, 9)), host(rank(1, 4).done(4, 9))]);
    let named: Vec<String> = group.culprits.iter().map(|culprit| culprit.ranks.to_string()).collect();
    assert_eq!(named, ["1", "2, 3"]);
}

#[test]
fn connecting_ranks_wait_for_those_that_have_not_come() {
    let connecting = |number| Recording { connected: None, ..rank(number, 3) };
    let (ranks, culprits) = table(&[connecting(0), connecting(1)]);
    assert_eq!(ranks, ["0 connecting [2]", "1 connecting [2]"]);
    assert!(culprits[0].starts_with("rank 2 is missing"), "{culprits:?}");
}

#[test]
fn different_calls_are_named() {
    let gather = call(5, Kind::AllGather);
    let odd = rank(1, 3).done(4, 9).with(gather, None, State::Running, 8);
    let (_, culprits) = table(&[rank(0, 3).running(5, 8), odd, rank(2, 3).running(5, 8)]);
    assert!(
        culprits[0]
            .starts_with("rank 1 (pid 101) called all_gather(f32, 8) (operation 5) where the others called barrier()"),
        "{culprits:?}"
    );
    // Uneven counts are each rank's own.
    let uneven = |count| Call { count, ..call(5, Kind::AllToAll { uneven: true }) };
    let group =
        one(&[rank(0, 2).with(uneven(3), None, State::Done, 0), rank(1, 2).with(uneven(4), None, State::Done, 0)]);
    assert!(group.culprits.is_empty());
}

#[test]
fn the_error_of_a_communicator_is_told_once() {
    let text = "rank 2 is lost: its process ended";
    let (ranks, culprits) = table(&[
        rank(0, 3).with(call(5, Kind::Barrier), None, State::Failed, 1).failed(Some(2), text),
        rank(1, 3).done(4, 9).failed(Some(2), text),
    ]);
    assert_eq!(ranks, ["0 failed []", "1 failed []"]);
    assert_eq!(culprits.len(), 1);
    let expected = "rank 2 is blamed by ranks 0, 1 for the end of the communicator: rank 2 is lost: its process ended.";
    assert!(culprits[0].starts_with(expected), "{culprits:?}");
    let (_, culprits) = table(&[rank(0, 1).failed(None, "invalid configuration: x")]);
    assert!(culprits[0].starts_with("rank 0 ended the communicator: invalid"), "{culprits:?}");
}

#[test]
fn all_inside_for_long_is_said_of_all() {
    let (_, culprits) = table(&[rank(0, 2).running(5, 9), rank(1, 2).running(5, 10)]);
    assert_eq!(
        culprits,
        ["ranks 0, 1 have been inside barrier() (operation 5) for 10.0s, which every rank here has begun. \
          Look at the load of the hosts and at the network between them"]
    );
}

#[test]
fn messages_concern_their_two_ranks() {
    // Rank 0 receives from rank 1, which is outside; rank 2 has nothing to do with it.
    let (ranks, culprits) =
        table(&[rank(0, 3).done(4, 9).message(0, 1, 1, 8), rank(1, 3).done(4, 9), rank(2, 3).done(4, 9)]);
    assert_eq!(ranks, ["0 waiting [1]", "1 outside []", "2 outside []"]);
    assert!(
        culprits[0].starts_with("rank 1 (pid 101) has not called message(from 1, f32, 8) (message 0)"),
        "{culprits:?}"
    );
    // Both are in it.
    let (ranks, _) = table(&[rank(0, 2).message(0, 1, 1, 8), rank(1, 2).message(0, 1, 0, 8)]);
    assert_eq!(ranks, ["0 running []", "1 running []"]);
    // Numbers of pairs say nothing about operations of all ranks, nor about another pair.
    let (ranks, culprits) = table(&[
        rank(0, 3).done(4, 9).running(5, 8),
        rank(1, 3).done(4, 9).message(70, 1, 2, 7),
        rank(2, 3).done(4, 9).running(5, 8),
    ]);
    assert_eq!(ranks, ["0 waiting [1]", "1 waiting [2]", "2 waiting [1]"]);
    assert!(
        culprits[0].starts_with(
            "ranks 1, 2 wait for each other: 1 in message(from 1, f32, 8) (message 70), 2 in barrier() (operation 5)."
        ),
        "{culprits:?}"
    );
    // A sender whose receiver is not known waits for nobody that can be named.
    let unknown = rank(0, 2).with(call(0, Kind::Message { from: 0 }), None, State::Running, 8);
    assert_eq!(table(&[unknown, rank(1, 2)]).0, ["0 running []", "1 outside []"]);
}

#[test]
fn messages_may_push_everything_else_out_of_the_record() {
    let mut chatty = rank(1, 2).message(900, 0, 0, 0);
    chatty.collective = Some(5);
    let (ranks, _) = table(&[rank(0, 2).running(5, 9), chatty]);
    assert_eq!(ranks[0], "0 running []");
}

#[test]
fn groups_and_reconnections_are_kept_apart() {
    let other = Recording { identity: 10, ..rank(1, 2) };
    let groups = analyse(&[rank(0, 2), other], PATIENCE);
    assert_eq!(groups.iter().map(|group| group.missing.to_string()).collect::<Vec<_>>(), ["1", "0"]);
    let again = Recording { pid: 500, created: NOW, ..rank(0, 2) };
    assert_eq!(one(&[rank(0, 2), again.clone(), rank(1, 2)]).ranks[0].recording.pid, 500);
    assert_eq!(one(&[again, rank(0, 2), rank(1, 2)]).ranks[0].recording.pid, 500);
    assert!(analyse(&[], PATIENCE).is_empty());
}

fn recordings() -> impl Strategy<Value = Vec<Recording>> {
    let operation = (0u64..4, 0u32..7, 0u32..5, 0u64..5);
    let one = (0u32..6, proptest::collection::vec(operation, 0..4), 0u8..8, any::<bool>());
    proptest::collection::vec(one, 0..6).prop_map(|ranks| {
        let recording = |(number, operations, process, connected): (u32, Vec<(u64, u32, u32, u64)>, u8, bool)| {
            let mut recording = rank(number, 6);
            let last = operations.len();
            for (index, (sequence, kind, peer, ago)) in operations.into_iter().enumerate() {
                let kind = match kind {
                    0 => Kind::Message { from: number },
                    1 => Kind::Message { from: peer },
                    2 => Kind::AllReduce(ReduceOp::Sum),
                    _ => Kind::Barrier,
                };
                let peer = (peer < 4).then_some(peer);
                let state = if index + 1 == last && ago > 1 { State::Running } else { State::Done };
                recording = recording.with(call(sequence, kind), peer, state, ago);
            }
            recording.connected = recording.connected.filter(|_| connected);
            match process {
                0 => recording.is(Process::Stopped),
                1 => recording.is(Process::Ended),
                2 => recording.failed(Some(number), "x"),
                _ => recording,
            }
        };
        ranks.into_iter().map(recording).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]
    /// From every rank that waits for long, who is waited for leads to a rank that is named.
    #[test]
    fn every_wait_ends_at_somebody_named(recordings in recordings()) {
        for group in analyse(&recordings, PATIENCE) {
            let culprits = &group.culprits;
            let named = culprits.iter().fold(RankSet::default(), |all, culprit| all.union(&culprit.ranks));
            prop_assert!(culprits.iter().all(|culprit| !culprit.ranks.is_empty() && !culprit.to_string().is_empty()));
            let waits_for = |number: u32| {
                group.ranks.iter().find(|rank| rank.recording.rank == number).map(|rank| rank.waits_for.clone())
            };
            for rank in &group.ranks {
                prop_assert!(!rank.waits_for.contains(rank.recording.rank), "nobody waits for itself");
                prop_assert!(rank.waits_for.iter().all(|other| other < group.world));
                if rank.waits_for.is_empty() || rank.since < PATIENCE {
                    continue;
                }
                let mut reached = rank.waits_for.clone();
                for _ in 0..group.world {
                    reached = reached.iter().filter_map(waits_for).fold(reached.clone(), |all, more| all.union(&more));
                }
                prop_assert!(reached.overlaps(&named), "{:?} leads to {} and not to {}", rank.activity, reached, named);
            }
        }
    }
}
