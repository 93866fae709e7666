use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Instant;

use proptest::prelude::*;

use super::*;
use crate::config::Secret;
use crate::element::DType;
use crate::error::{Error, LossCause};
use crate::flight::record::{Recorder, Seat};
use crate::reduce::ReduceOp;
use crate::ticks;

fn recorder(label: &str, epoch: u64) -> Recorder {
    let secret = Secret::new("a secret of sixteen bytes or more");
    let seat = Seat { rank: 1, world: 3, epoch, label, host: "node-1", neighbours: 2, secret: &secret };
    Recorder::new(&seat).unwrap()
}

fn call(sequence: u64, kind: Kind) -> Call {
    Call { sequence, kind, dtype: DType::F32, count: 1000 }
}

fn recorded(recorder: &Recorder) -> Recording {
    read(&recorder.file(), &[std::process::id()]).unwrap().unwrap()
}

/// Labels that no other test of this process uses.
fn label() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("test {} {}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

fn find_labelled(label: &str) -> Vec<Recording> {
    let mut found = find().unwrap().recordings;
    found.retain(|recording| recording.label == label);
    found
}

#[test]
fn a_record_is_found_while_it_exists() {
    let label = label();
    let before = Duration::from_nanos(ticks::monotonic());
    let recorder = recorder(&label, 7);
    recorder.connected();
    let slot = recorder.begin(&call(5, Kind::AllReduce(ReduceOp::Sum)), None, None);
    let [recording] = &find_labelled(&label)[..] else { panic!("one record") };
    assert_eq!((recording.pid, recording.process), (std::process::id(), Process::Alive));
    assert_eq!((recording.rank, recording.world, recording.epoch, recording.neighbours), (1, 3, 7, 2));
    assert_eq!((recording.host.as_str(), recording.begun, recording.collective), ("node-1", 1, Some(5)));
    let operation = recording.operations[0];
    assert_eq!((operation.call().as_str(), operation.name().as_str()), ("all_reduce(sum, f32, 1000)", "all_reduce"));
    assert_eq!((operation.sequence(), operation.bytes(), operation.ended), (5, 4000, None));
    assert!(before <= recording.created && recording.created <= operation.started);
    assert!(operation.started <= recording.taken);
    recorder.end(slot, true);
    assert_eq!(recorded(&recorder).operations[0].state, State::Done);
    drop(recorder);
    assert!(find_labelled(&label).is_empty());
}

#[test]
fn the_last_operations_are_kept() {
    let recorder = recorder("", 1);
    for sequence in 0..1000 {
        let slot = recorder.begin(&call(sequence, Kind::Barrier), None, None);
        recorder.end(slot, sequence != 998);
    }
    let slot = recorder.begin(&call(3, Kind::Message { from: 1 }), Some(0), Some(2));
    let recording = recorded(&recorder);
    assert_eq!((recording.begun, recording.collective, recording.operations.len()), (1001, Some(999), 256));
    let numbers: Vec<u64> = recording.operations.iter().map(|operation| operation.number).collect();
    assert_eq!(numbers, (746..=1001).collect::<Vec<_>>());
    let [.., failed, done, message] = recording.operations[..] else { panic!("three operations") };
    assert_eq!((failed.state, done.state, message.state), (State::Failed, State::Done, State::Running));
    assert!(failed.ended.unwrap() <= done.started);
    assert_eq!((message.peer, message.is_message()), (Some(2), true));
    assert!(message.issued <= message.started);
    // A token of an operation that was overtaken by a whole ring changes nothing.
    for sequence in 0..256 {
        let slot = recorder.begin(&call(sequence, Kind::Barrier), None, None);
        recorder.end(slot, true);
    }
    recorder.end(slot, false);
    assert!(recorded(&recorder).operations.iter().all(|operation| operation.state == State::Done));
}

#[test]
fn the_first_error_is_kept() {
    let recorder = recorder("", 1);
    assert_eq!(recorded(&recorder).failure, None);
    recorder.fail(&Error::PeerLost { rank: 2, cause: LossCause::ProcessEnded });
    recorder.fail(&Error::Aborted { rank: 0, reason: "later".to_owned() });
    let failure = recorded(&recorder).failure.unwrap();
    assert_eq!((failure.rank, failure.text.as_str()), (Some(2), "rank 2 is lost: its process ended"));
    let long = self::recorder("", 1);
    long.fail(&Error::Config("ü".repeat(500)));
    let text = recorded(&long).failure.unwrap().text;
    assert!(text.starts_with("invalid configuration: üü") && text.ends_with('ü'), "{text}");
}

#[test]
fn groups_are_told_apart() {
    let identity = |recorder: &Recorder| recorded(recorder).identity;
    let (a, b, c) = (recorder("x", 1), recorder("y", 1), recorder("x", 2));
    assert_eq!(identity(&a), identity(&b), "it does not depend on the label");
    assert_ne!(identity(&a), identity(&c), "it depends on the epoch");
    let secret = Secret::new("another secret, of sixteen bytes or more");
    let seat = Seat { rank: 0, world: 3, epoch: 1, label: "x", host: "", neighbours: 1, secret: &secret };
    assert_ne!(identity(&a), identity(&Recorder::new(&seat).unwrap()), "it depends on the secret");
}

#[test]
fn a_record_that_outlives_its_process_is_not_one() {
    let recorder = recorder("", 1);
    // A forked child of a rank holds the memory, and has another number than the rank.
    assert!(read(&recorder.file(), &[1]).unwrap().is_none());
    assert_eq!(read(&recorder.file(), &[1, std::process::id()]).unwrap().unwrap().rank, 1);
}

#[test]
fn other_files_of_that_name_are_told_and_not_read() {
    use crate::transport::memory;
    let read_file = |length: usize, magic: u64| {
        let file = File::from(memory::create_named(record::NAME, length).unwrap());
        file.write_all_at(&magic.to_ne_bytes(), 0).unwrap();
        read(&file, &[std::process::id()]).map(|recording| recording.is_some()).map_err(|flaw| flaw.to_string())
    };
    assert_eq!(read_file(4096, record::MAGIC), Err("it is a flight record of another version of muster".to_owned()));
    assert_eq!(read_file(4096, 7), Err("it is not a flight record".to_owned()));
    assert_eq!(read_file(record::BYTES, 7), Err("it is not a flight record".to_owned()));
    assert_eq!(read_file(record::BYTES, 0), Ok(false), "its rank has not set it up yet");
    assert!(read_file(record::BYTES, record::MAGIC).is_err());
    let empty = File::from(memory::create_named(record::NAME, 0).unwrap());
    assert_eq!(read(&empty, &[1]).unwrap_err().to_string(), "it is not a flight record");
}

/// Every field of an operation says the same number here, so one made of two is seen.
#[test]
fn no_operation_is_read_half_written() {
    let recorder = recorder("", 1);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut sequence = 0;
            while !stop.load(Ordering::Relaxed) {
                let call = Call { sequence, kind: Kind::Barrier, dtype: DType::U8, count: sequence };
                let slot = recorder.begin(&call, None, Some(sequence as u32));
                recorder.end(slot, true);
                sequence += 1;
            }
        });
        let start = Instant::now();
        let mut seen = 0;
        while start.elapsed() < Duration::from_millis(300) {
            let recording = recorded(&recorder);
            assert!(recording.operations.is_sorted_by_key(|operation| operation.number));
            for operation in &recording.operations {
                assert_eq!(operation.number, operation.sequence() + 1);
                assert_eq!(operation.count(), operation.sequence());
                assert_eq!(operation.peer, Some(operation.sequence() as u32));
                assert!(operation.issued <= operation.started && operation.since() >= operation.started);
            }
            seen += recording.operations.len();
        }
        stop.store(true, Ordering::Relaxed);
        assert!(seen > 0);
    });
}

#[test]
fn an_operation_costs_next_to_nothing() {
    let recorder = recorder("", 1);
    let call = call(0, Kind::AllReduce(ReduceOp::Sum));
    let best = (0..20).map(|_| {
        let start = Instant::now();
        for _ in 0..10_000 {
            let slot = recorder.begin(std::hint::black_box(&call), None, None);
            recorder.end(slot, true);
        }
        start.elapsed() / 10_000
    });
    let best = best.min().unwrap();
    println!("begin and end: {best:?}");
    // Debug builds and virtual machines with slow counters included.
    assert!(best < Duration::from_micros(5), "{best:?}");
}

#[test]
fn text_is_harmless_to_a_terminal() {
    let mut words = [u64::MAX; 4];
    words[0] = u64::from_ne_bytes(*b"a\x1b[2Jb\n\0");
    assert_eq!(text(&words, 6), "a\u{fffd}[2Jb");
    assert_eq!(text(&words, u64::MAX).chars().count(), 8 + 24);
}

#[test]
fn states_of_processes_are_read() {
    assert_eq!(process(std::process::id()), Process::Alive);
    assert_eq!(process(0), Process::Unknown);
    assert_eq!(Process::from_letter('T'), Process::Stopped);
    assert_eq!(Process::from_letter('Z'), Process::Ended);
}

proptest! {
    #[test]
    fn any_memory_is_read_without_a_panic(
        head in proptest::collection::vec(prop_oneof![any::<u64>(), 0u64..4], 128),
        record in proptest::collection::vec(prop_oneof![any::<u64>(), 0u64..4], 8),
        changed in any::<u64>(),
    ) {
        let mut words = vec![0; WORDS];
        words[..128].copy_from_slice(&head);
        words[head::BEGUN] = changed;
        for (target, value) in words[HEAD_WORDS..].iter_mut().zip(record.iter().cycle()) {
            *target = *value;
        }
        words[head::MAGIC] = record::MAGIC;
        words[head::LAYOUT] = record::LAYOUT;
        words[head::SIZES] = record::SIZES;
        words[head::RANK] %= 5;
        words[head::WORLD] %= 7;
        for index in [head::PID, head::NEIGHBOURS] {
            words[index] >>= 32;
        }
        let mut other = words.clone();
        other[HEAD_WORDS] = changed;
        let now = Moment { ticks: changed, nanoseconds: head[3] };
        let _ = decode(&head, &words, &words, now);
        match decode(&words, &words, &other, now) {
            Ok(Some(recording)) => {
                prop_assert!(recording.rank < recording.world && recording.operations.len() <= 256);
                let _ = crate::flight::analyse(&[recording], Duration::ZERO);
            }
            Ok(None) => prop_assert!(false, "it has its magic"),
            Err(_) => prop_assert!(words[head::RANK] >= words[head::WORLD]),
        }
    }
}
