//! What the quorum decides: tables for the rules, properties for what must always hold.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use muster_rendezvous::quorum::{
    Candidate, Config, Decision, Ending, Hold, Job, Loss, MemberId, Refusal, Verdict, World, WorldSize, decide,
};
use proptest::prelude::*;

const CONFIG: Config = Config {
    deadline: Duration::from_secs(10),
    grace: Duration::from_secs(1),
    settle: Duration::from_secs(3),
    spacing: Duration::from_millis(100),
};

fn at(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn id(host: &str, incarnation: &str) -> MemberId {
    MemberId { host: host.into(), incarnation: incarnation.into() }
}

fn candidate(host: &str, incarnation: &str, hint: Option<u32>, size: WorldSize) -> Candidate {
    let address = format!("127.0.0.1:{}", 1000 + host.len());
    Candidate { id: id(host, incarnation), address, rank_hint: hint, size, held: None, last_epoch: 0 }
}

/// Decides and applies until nothing more follows; what was decided on the way.
fn settle(now: Duration, job: &mut Job) -> Vec<Decision> {
    let mut decisions = Vec::new();
    loop {
        let decision = decide(now, job, &CONFIG);
        job.apply(now, &decision);
        let opened = matches!(decision.verdict, Verdict::Open(_));
        decisions.push(decision);
        assert!(decisions.len() < 10, "the decisions do not settle: {decisions:?}");
        if !opened {
            return decisions;
        }
    }
}

fn hosts(job: &Job) -> Vec<&str> {
    job.world().map(|world| world.peers.iter().map(|peer| peer.id.host.as_str()).collect()).unwrap_or_default()
}

fn epoch(job: &Job) -> u64 {
    job.world().map_or(0, |world| world.epoch)
}

fn hold(job: &mut Job, now: Duration) -> Hold {
    match settle(now, job).pop().map(|decision| decision.verdict) {
        Some(Verdict::Hold(hold)) => hold,
        other => panic!("expected a hold, not {other:?}"),
    }
}

fn running_pair() -> Job {
    let mut job = Job::default();
    let size = WorldSize::fixed(2);
    job.join(at(0), candidate("worker-0", "a", Some(1), size)).unwrap();
    job.join(at(0), candidate("master-0", "a", Some(0), size)).unwrap();
    settle(at(0), &mut job);
    assert_eq!((epoch(&job), hosts(&job)), (1, vec!["master-0", "worker-0"]));
    job
}

#[test]
fn a_world_opens_when_it_is_complete_and_hints_give_the_ranks() {
    let mut job = Job::default();
    let size = WorldSize::fixed(3);
    job.join(at(0), candidate("c", "1", Some(2), size)).unwrap();
    job.join(at(0), candidate("a", "1", None, size)).unwrap();
    assert_eq!(hold(&mut job, at(1)), Hold::Short { have: 2, need: 3 });
    job.join(at(2), candidate("b", "1", Some(0), size)).unwrap();
    settle(at(2), &mut job);
    assert_eq!(hosts(&job), ["b", "a", "c"]);
}

#[test]
fn a_member_that_is_gone_ends_the_epoch_after_the_grace() {
    let mut job = running_pair();
    job.disconnected(at(500), &id("worker-0", "a"));
    assert_eq!(hold(&mut job, at(1499)), Hold::Running { epoch: 1 });
    let decision = decide(at(1500), &job, &CONFIG);
    let ending = Ending::Lost { rank: 1, host: "worker-0".into(), how: Loss::Disconnected };
    assert_eq!(decision.end, Some(ending));
    assert_eq!(decision.verdict, Verdict::Hold(Hold::Short { have: 1, need: 2 }));
}

#[test]
fn a_broken_report_makes_a_disconnection_final_at_once() {
    let mut job = running_pair();
    job.disconnected(at(500), &id("worker-0", "a"));
    job.broken(&id("master-0", "a"), 1, "connection reset".into());
    let decision = decide(at(501), &job, &CONFIG);
    assert_eq!(decision.lost.get(&id("worker-0", "a")), Some(&Loss::Disconnected));
    assert_eq!(decision.verdict, Verdict::Hold(Hold::Short { have: 1, need: 2 }));
}

#[test]
fn a_broken_epoch_of_living_members_is_followed_by_the_next() {
    let mut job = running_pair();
    job.broken(&id("master-0", "a"), 1, "connection reset".into());
    settle(at(500), &mut job);
    assert_eq!((epoch(&job), hosts(&job)), (2, vec!["master-0", "worker-0"]));
    // News of the epoch before changes nothing.
    job.broken(&id("worker-0", "a"), 1, "connection reset".into());
    assert_eq!(hold(&mut job, at(501)), Hold::Running { epoch: 2 });
}

#[test]
fn epochs_do_not_spin() {
    let mut job = running_pair();
    job.broken(&id("master-0", "a"), 1, "refused".into());
    settle(at(50), &mut job);
    assert_eq!(job.world(), None);
    let decision = decide(at(50), &job, &CONFIG);
    assert_eq!((decision.verdict, decision.wake), (Verdict::Hold(Hold::Spacing), Some(at(100))));
    settle(at(100), &mut job);
    assert_eq!(epoch(&job), 2);
}

#[test]
fn a_silent_member_is_lost_at_the_deadline() {
    let mut job = running_pair();
    job.heartbeat(at(9000), &id("master-0", "a"));
    assert_eq!(decide(at(9000), &job, &CONFIG).wake, Some(at(10_000)));
    let decision = decide(at(10_000), &job, &CONFIG);
    assert_eq!(decision.lost.get(&id("worker-0", "a")), Some(&Loss::Silent));
    assert!(!decision.lost.contains_key(&id("master-0", "a")));
}

#[test]
fn a_restarted_member_takes_its_old_place_at_once() {
    for hint in [Some(1), None] {
        let mut job = running_pair();
        job.join(at(700), candidate("worker-0", "b", hint, WorldSize::fixed(2))).unwrap();
        settle(at(700), &mut job);
        assert_eq!((epoch(&job), hosts(&job)), (2, vec!["master-0", "worker-0"]));
        assert_eq!(job.world().unwrap().peers[1].id.incarnation, "b");
    }
}

#[test]
fn an_elastic_world_shrinks_at_once_and_grows_when_settled() {
    let size = WorldSize { min: 1, max: 3 };
    let mut job = Job::default();
    for host in ["a", "b"] {
        job.join(at(0), candidate(host, "1", None, size)).unwrap();
    }
    assert_eq!(hold(&mut job, at(2999)), Hold::Settling { have: 2, max: 3 });
    settle(at(3000), &mut job);
    assert_eq!(hosts(&job), ["a", "b"]);

    job.leave(&id("a", "1"), false);
    settle(at(4000), &mut job);
    assert_eq!((epoch(&job), hosts(&job)), (2, vec!["b"]));

    job.join(at(5000), candidate("d", "1", None, size)).unwrap();
    assert_eq!(hold(&mut job, at(7999)), Hold::Settling { have: 2, max: 3 });
    settle(at(8000), &mut job);
    assert_eq!((epoch(&job), hosts(&job)), (3, vec!["b", "d"]));

    // Complete: nothing to wait for.
    job.join(at(9000), candidate("a", "2", None, size)).unwrap();
    settle(at(9000), &mut job);
    assert_eq!((epoch(&job), hosts(&job)), (4, vec!["b", "d", "a"]));

    job.join(at(9001), candidate("e", "1", None, size)).unwrap();
    assert_eq!(hold(&mut job, at(9001)), Hold::Full { world: 3 });
}

fn back(host: &str, incarnation: &str, world: &World) -> Candidate {
    let size = WorldSize::fixed(world.peers.len() as u32);
    let mut candidate = candidate(host, incarnation, None, size);
    candidate.last_epoch = world.epoch;
    candidate.held = Some(world.clone());
    candidate
}

#[test]
fn a_server_without_memory_takes_the_epoch_from_its_members() {
    let world = running_pair().world().unwrap().clone();
    let mut job = Job::default();
    job.join(at(10), back("worker-0", "a", &world)).unwrap();
    assert_eq!(hold(&mut job, at(10)), Hold::Recovering { epoch: 1, missing: 1 });
    job.join(at(900), back("master-0", "a", &world)).unwrap();
    assert_eq!(hold(&mut job, at(900)), Hold::Running { epoch: 1 });
    assert_eq!(job.world(), Some(&world));
}

#[test]
fn a_member_that_never_returns_ends_the_adopted_epoch() {
    let world = running_pair().world().unwrap().clone();
    let mut job = Job::default();
    job.join(at(0), back("master-0", "a", &world)).unwrap();
    settle(at(0), &mut job);
    job.heartbeat(at(9999), &id("master-0", "a"));
    let decision = decide(at(10_000), &job, &CONFIG);
    let ending = Ending::Lost { rank: 1, host: "worker-0".into(), how: Loss::NeverReturned };
    assert_eq!(decision.end, Some(ending));
}

#[test]
fn a_member_restarted_while_the_server_was_away_is_taken_in_at_once() {
    let world = running_pair().world().unwrap().clone();
    for newcomer_first in [true, false] {
        let mut job = Job::default();
        let newcomer = candidate("worker-0", "b", Some(1), WorldSize::fixed(2));
        if newcomer_first {
            job.join(at(0), newcomer.clone()).unwrap();
            settle(at(0), &mut job);
        }
        job.join(at(200), back("master-0", "a", &world)).unwrap();
        settle(at(200), &mut job);
        if !newcomer_first {
            job.join(at(200), newcomer).unwrap();
        }
        settle(at(200), &mut job);
        assert_eq!((epoch(&job), hosts(&job)), (2, vec!["master-0", "worker-0"]));
    }
}

#[test]
fn epochs_go_on_counting_where_no_member_holds_one_any_more() {
    let mut job = Job::default();
    for (host, last_epoch) in [("a", 7), ("b", 0)] {
        let mut member = candidate(host, "1", None, WorldSize::fixed(2));
        member.last_epoch = last_epoch;
        job.join(at(0), member).unwrap();
    }
    settle(at(0), &mut job);
    assert_eq!(epoch(&job), 8);
}

#[test]
fn a_finished_job_takes_nobody() {
    let mut job = running_pair();
    job.leave(&id("master-0", "a"), true);
    assert_eq!(hold(&mut job, at(10)), Hold::Finished);
    job.join(at(20), candidate("worker-0", "b", Some(1), WorldSize::fixed(2))).unwrap();
    assert_eq!(hold(&mut job, at(20)), Hold::Finished);
}

#[test]
fn impossible_candidates_are_refused() {
    let mut job = Job::default();
    let mut join = |hint, min, max| job.join(at(0), candidate("a", "1", hint, WorldSize { min, max }));
    assert_eq!(join(None, 0, 2), Err(Refusal::WorldSize { min: 0, max: 2 }));
    assert_eq!(join(None, 3, 2), Err(Refusal::WorldSize { min: 3, max: 2 }));
    assert_eq!(join(None, 1, 5000), Err(Refusal::WorldSize { min: 1, max: 5000 }));
    assert_eq!(join(Some(2), 2, 2), Err(Refusal::RankHint { hint: 2, max: 2 }));
    let world = running_pair().world().unwrap().clone();
    let stranger = back("stranger", "x", &world);
    assert_eq!(job.join(at(0), stranger), Err(Refusal::ForeignMembership { epoch: 1, host: "stranger".into() }));
}

#[derive(Debug, Clone)]
enum Event {
    Join {
        host: u8,
        incarnation: u8,
        hint: Option<u32>,
    },
    Heartbeat {
        host: u8,
    },
    Disconnect {
        host: u8,
    },
    Broken {
        host: u8,
    },
    Leave {
        host: u8,
    },
    Pass {
        millis: u64,
    },
    /// The server dies; its members come back with what they hold.
    Restart,
}

fn event() -> impl Strategy<Value = Event> {
    let host = 0..5u8;
    prop_oneof![
        4 => (host.clone(), 0..3u8, prop::option::of(0..3u32))
            .prop_map(|(host, incarnation, hint)| Event::Join { host, incarnation, hint }),
        2 => host.clone().prop_map(|host| Event::Heartbeat { host }),
        1 => host.clone().prop_map(|host| Event::Disconnect { host }),
        1 => host.clone().prop_map(|host| Event::Broken { host }),
        1 => host.prop_map(|host| Event::Leave { host }),
        3 => (1..4000u64).prop_map(|millis| Event::Pass { millis }),
        1 => Just(Event::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1024, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens(
        (min, max) in prop_oneof![Just((3, 3)), Just((1, 3)), Just((2, 4))],
        events in prop::collection::vec(event(), 1..60),
    ) {
        let size = WorldSize { min, max };
        let mut job = Job::default();
        let mut now = Duration::ZERO;
        let mut present: BTreeSet<MemberId> = BTreeSet::new();
        let mut last: Option<World> = None;
        let mut member_of: BTreeMap<MemberId, u64> = BTreeMap::new();

        for event in events {
            let of = |host: u8| {
                let name = format!("host-{host}");
                present.iter().find(|id| id.host == name).cloned()
            };
            match event {
                Event::Join { host, incarnation, hint } => {
                    let mut coming = candidate(&format!("host-{host}"), &incarnation.to_string(), hint, size);
                    if let Some(old) = of(host) && old != coming.id {
                        present.remove(&old);
                    }
                    present.insert(coming.id.clone());
                    coming.rank_hint = hint.filter(|hint| *hint < max);
                    coming.last_epoch = member_of.get(&coming.id).copied().unwrap_or(0);
                    job.join(now, coming).unwrap();
                }
                Event::Heartbeat { host } => if let Some(id) = of(host) { job.heartbeat(now, &id) },
                Event::Disconnect { host } => if let Some(id) = of(host) { job.disconnected(now, &id) },
                Event::Broken { host } => if let (Some(id), Some(world)) = (of(host), &last) {
                    job.broken(&id, world.epoch, "broken".into());
                },
                Event::Leave { host } => if let Some(id) = of(host) {
                    present.remove(&id);
                    job.leave(&id, false);
                },
                Event::Pass { millis } => now += Duration::from_millis(millis),
                Event::Restart => {
                    let before = job.world().cloned();
                    job = Job::default();
                    let held = before.clone().filter(|world| world.peers.iter().all(|peer| present.contains(&peer.id)));
                    for id in &present {
                        let mut coming = candidate(&id.host, &id.incarnation, None, size);
                        coming.last_epoch = member_of.get(id).copied().unwrap_or(0);
                        coming.held = held.clone().filter(|world| world.rank_of(id).is_some());
                        job.join(now, coming).unwrap();
                        settle(now, &mut job);
                    }
                    if let Some(held) = held && (held.peers.len() == max as usize || present.len() == held.peers.len()) {
                        // A restart never ends a running epoch.
                        prop_assert_eq!(job.world(), Some(&held));
                    }
                }
            }

            for decision in settle(now, &mut job) {
                for id in decision.lost.keys() {
                    present.remove(id);
                }
                if let Some(wake) = decision.wake {
                    prop_assert!(wake >= now, "woken in the past");
                }
                let Verdict::Open(world) = decision.verdict else { continue };
                prop_assert!(world.peers.len() >= min as usize && world.peers.len() <= max as usize);
                let distinct: BTreeSet<_> = world.peers.iter().map(|peer| &peer.id.host).collect();
                prop_assert_eq!(distinct.len(), world.peers.len(), "a host holds two ranks");
                for peer in &world.peers {
                    prop_assert!(present.contains(&peer.id), "a rank for one that is not there");
                    let before = member_of.insert(peer.id.clone(), world.epoch);
                    prop_assert!(before.is_none_or(|before| world.epoch > before), "a member's epochs must rise");
                }
                last = Some(world);
            }
            // Deciding again changes nothing.
            let again = decide(now, &job, &CONFIG);
            prop_assert!(again.lost.is_empty() && again.end.is_none());
            prop_assert!(matches!(again.verdict, Verdict::Hold(_)));
        }
    }

    #[test]
    fn survivors_keep_their_ranks(size in 2..6u32, gone in 0..6u32) {
        let gone = gone % size;
        let world_size = WorldSize { min: 1, max: size };
        let mut job = Job::default();
        for host in 0..size {
            job.join(Duration::ZERO, candidate(&format!("host-{host}"), "1", Some(size - 1 - host), world_size)).unwrap();
        }
        settle(Duration::ZERO, &mut job);
        let before = job.world().unwrap().clone();
        let lost = before.peers[gone as usize].id.clone();
        job.leave(&lost, false);
        settle(at(1000), &mut job);
        let after = job.world().unwrap().clone();
        for peer in &after.peers {
            let old = before.rank_of(&peer.id).unwrap();
            if old < size - 1 {
                prop_assert_eq!(after.rank_of(&peer.id), Some(old));
            } else {
                prop_assert_eq!(after.rank_of(&peer.id), Some(if gone == size - 1 { old } else { gone }));
            }
        }
    }
}
