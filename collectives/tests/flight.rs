//! Ranks as processes, looked at from outside: who is named when one of them is stopped, absent or killed.
//!
//! The ranks are this test's own binary, started again with the test `rank_process` selected.
#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)]

mod common;

use std::time::{Duration, Instant};

use common::process::{Process, Seat, random_secret, world};
use muster_collectives::flight::{self, Activity, Cause, Group, State};
use muster_collectives::{Communicator, ReduceOp};
use nix::sys::signal::Signal;

/// One rank: learns its label and who the others are, and does what each further line says.
#[test]
fn rank_process() {
    let Some(seat) = Seat::taken() else { return };
    let mut lines = std::io::stdin().lines().map(Result::unwrap);
    let (label, world) = (lines.next().unwrap(), lines.next().unwrap());
    let mut config = seat.config(&world);
    config.label = label;
    let communicator = Communicator::connect(config).unwrap();
    println!("READY");
    for line in lines {
        let result = match line.as_str() {
            "barrier" => communicator.barrier(),
            "forever" => loop {
                let mut data = vec![1f32; 100_000];
                if let Err(error) = communicator.all_reduce(&mut data, ReduceOp::Sum) {
                    break Err(error);
                }
            },
            other => panic!("{other}"),
        };
        println!("RESULT {result:?}");
    }
    // The pipe's end ends the process in order.
}

struct World {
    label: String,
    ranks: Vec<Process>,
}

fn start(name: &str, hosts: &[&str]) -> World {
    let label = format!("{name} {} {}", hosts.concat(), std::process::id());
    let secret = random_secret();
    let mut ranks: Vec<Process> = hosts.iter().map(|_| Process::start("rank_process", &secret)).collect();
    let line = world(&ranks.iter().collect::<Vec<_>>(), hosts, 3, Duration::from_secs(120));
    ranks.iter_mut().for_each(|rank| rank.tell(&format!("{label}\n{line}")));
    ranks.iter().for_each(|rank| drop(rank.expect("READY")));
    World { label, ranks }
}

impl World {
    fn look(&self) -> Option<Group> {
        let mut recordings = flight::find().unwrap().recordings;
        recordings.retain(|recording| recording.label == self.label);
        let mut groups = flight::analyse(&recordings, LONG);
        assert!(groups.len() < 2, "{groups:#?}");
        groups.pop()
    }

    /// Looks until what is seen is as expected.
    fn look_until(&self, expected: impl Fn(&Group) -> bool) -> Group {
        let start = Instant::now();
        loop {
            let group = self.look();
            match group {
                Some(group) if expected(&group) => return group,
                other => assert!(start.elapsed() < Duration::from_secs(60), "{other:#?}"),
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

const SHAPES: [&[&str]; 4] = [&["a", "a"], &["a", "a", "a"], &["a", "b", "c"], &["a", "a", "b", "b"]];

/// Ranks are looked at one after the other: what one of them has done for that long was so when all were looked at.
const LONG: Duration = Duration::from_millis(300);

/// Whether nothing changes any more: `rank` does that and all others wait, for it or for one that waits for it.
fn all_wait(group: &Group, rank: u32, activity: Activity) -> bool {
    group.ranks.iter().all(|other| match other.recording.rank == rank {
        true => other.activity == activity,
        false => other.activity == Activity::Waiting && other.since >= LONG,
    })
}

#[test]
fn a_stopped_rank_is_named_and_the_others_wait_for_it() {
    for (number, hosts) in SHAPES.iter().cycle().take(8).enumerate() {
        let mut world = start("stopped", hosts);
        world.ranks.iter_mut().for_each(|rank| rank.tell("forever"));
        // In the middle of operations, at another point each time.
        world.look_until(|group| group.ranks.iter().all(|rank| rank.recording.begun > 20));
        std::thread::sleep(Duration::from_micros(number as u64 * 7919 % 20_000));
        let victim = number % hosts.len();
        let pid = world.ranks[victim].id();
        world.ranks[victim].signal(Signal::SIGSTOP);
        let victim = victim as u32;
        let group = world.look_until(|group| all_wait(group, victim, Activity::Stopped));
        assert_eq!((group.world as usize, group.epoch, group.missing.len()), (hosts.len(), 3, 0));
        let [culprit] = &group.culprits[..] else { panic!("{hosts:?}: {:#?}", group.culprits) };
        assert_eq!((culprit.ranks.to_string(), culprit.pid), (victim.to_string(), Some(pid)));
        assert!(matches!(culprit.cause, Cause::Stopped { .. }), "{culprit:?}");
        assert_eq!(culprit.waiting.len() as usize, hosts.len() - 1);
        assert!(culprit.to_string().ends_with(&format!("kill -CONT {pid}")), "{culprit}");
        // Let go on, nobody is stopped any more and all get on.
        let begun = |group: &Group| group.ranks.iter().map(|rank| rank.recording.begun).min().unwrap();
        let before = begun(&group);
        world.ranks[victim as usize].signal(Signal::SIGCONT);
        world.look_until(|group| {
            let stopped = group.culprits.iter().any(|culprit| matches!(culprit.cause, Cause::Stopped { .. }));
            !stopped && begun(group) > before + 20
        });
    }
}

#[test]
fn a_rank_that_does_not_call_is_named() {
    for hosts in SHAPES {
        let mut world = start("absent", hosts);
        let absent = hosts.len() as u32 - 1;
        world.ranks.iter_mut().for_each(|rank| rank.tell("barrier"));
        world.ranks.iter().for_each(|rank| assert_eq!(rank.expect("RESULT"), "Ok(())"));
        world.ranks.iter_mut().take(absent as usize).for_each(|rank| rank.tell("barrier"));
        let group = world.look_until(|group| all_wait(group, absent, Activity::Outside));
        let last = &group.ranks[absent as usize];
        assert_eq!(last.recording.operations[0].state, State::Done);
        let [culprit] = &group.culprits[..] else { panic!("{hosts:?}: {:#?}", group.culprits) };
        assert_eq!(culprit.ranks.to_string(), absent.to_string());
        let Cause::Absent { wanted, last, .. } = &culprit.cause else { panic!("{culprit:?}") };
        assert_eq!((wanted.name().as_str(), wanted.sequence()), ("barrier", 1));
        assert_eq!(last.map(|last| last.sequence()), Some(0));
        world.ranks[absent as usize].tell("barrier");
        world.ranks.iter().for_each(|rank| assert_eq!(rank.expect("RESULT"), "Ok(())"));
    }
}

#[test]
fn the_error_of_a_communicator_stays_readable_and_nothing_outlives_the_processes() {
    let mut world = start("killed", &["a", "a", "b"]);
    world.ranks.iter_mut().for_each(|rank| rank.tell("forever"));
    world.look_until(|group| group.ranks.iter().all(|rank| rank.recording.begun > 20));
    drop(world.ranks.pop());
    world.ranks.iter().for_each(|rank| drop(rank.expect("RESULT")));
    let group = world.look().unwrap();
    assert_eq!((group.missing.to_string(), group.missing_here), ("2".to_owned(), 0));
    let [culprit] = &group.culprits[..] else { panic!("{:#?}", group.culprits) };
    assert_eq!(culprit.ranks.to_string(), "2");
    let Cause::Failed { text, told_by } = &culprit.cause else { panic!("{culprit:?}") };
    assert!(text.starts_with("rank 2 is lost"), "{text}");
    assert_eq!(told_by.to_string(), "0, 1");
    world.ranks.iter().for_each(|rank| rank.signal(Signal::SIGKILL));
    world.ranks.clear();
    assert_eq!(world.look(), None);
}
