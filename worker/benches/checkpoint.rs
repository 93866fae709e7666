//! How long a step waits for a checkpoint, beside a plain copy of as many bytes. One line of JSON; times are medians.
//!
//! `cargo bench -p muster-worker --bench checkpoint -- [MIB] [FOLDER]`

use std::time::{Duration, Instant};

use muster_worker::checkpoint::{Part, Progress, Saver, State, unique};
use serde_json::json;
use tch::{Device, Kind, Tensor};

const ROUNDS: u64 = 7;
/// Of the parameters and of each of the two moments of Adam.
const TENSORS: i64 = 150;
const LIMIT: Duration = Duration::from_secs(600);

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let mebibytes: i64 = arguments.first().map_or(Ok(1024), |text| text.parse()).expect("a number of MiB");
    let own = tempfile::tempdir().expect("a folder");
    let folder = arguments.get(1).map_or(own.path(), |path| path.as_ref());

    let length = (mebibytes << 20) / 4 / 3 / TENSORS;
    let flats: Vec<Tensor> = (0..3).map(|_| Tensor::rand([length * TENSORS], (Kind::Float, Device::Cpu))).collect();
    let state = || {
        let mut state = State::new();
        for (prefix, flat) in ["model", "optimizer.mean", "optimizer.variance"].iter().zip(&flats) {
            let views = (0..TENSORS).map(|at| (format!("p{at}"), flat.narrow(0, at * length, length)));
            state.views(prefix, flat, views);
        }
        state
    };
    let bytes = 3 * 4 * (length * TENSORS) as usize;
    let mut buffer = vec![1u8; bytes];
    let mut saver = Saver::new(folder, 1).expect("a saver");
    saver.reserve(&state(), Part::WHOLE);

    let (mut copies, mut waits, mut writes) = (Vec::new(), Vec::new(), Vec::new());
    for step in 1..=ROUNDS {
        let started = Instant::now();
        for (flat, to) in flats.iter().zip(buffer.chunks_mut(bytes / 3)) {
            flat.copy_data_u8(to, flat.numel());
        }
        copies.push(started.elapsed().as_secs_f64());

        let started = Instant::now();
        let progress = Progress { step, ..Progress::default() };
        saver.save(state(), progress, Part::WHOLE, unique()).expect("a copy");
        waits.push(started.elapsed().as_secs_f64());
        let saved = saver.finish(LIMIT).expect("an attempt").expect("a checkpoint").expect("of rank 0");
        writes.push(saved.seconds);
    }
    let ratios: Vec<f64> = waits.iter().zip(&copies).map(|(wait, copy)| wait / copy).collect();
    println!(
        "{}",
        json!({
            "bytes": bytes,
            "memcpy_ms": median(&mut copies) * 1e3,
            "wait_ms": median(&mut waits) * 1e3,
            "wait_over_memcpy": median(&mut ratios.clone()),
            "first_wait_over_memcpy": ratios[0],
            "until_on_disk_s": median(&mut writes),
        })
    );
}
