//! What NCCL does on this machine's GPUs: the report, an all_reduce over all of them verified against the CPU and
//! timed, and how long forming, aborting and closing take.
//!
//! ```sh
//! cargo run --release -p muster-collectives --example nccl_check -- --folder .venv/lib/python3.11/site-packages/nvidia/nccl/lib
//! ```
//! `--nccl FILE` and `--driver FILE` give exact libraries, `--devices N` uses the first N GPUs only, `--json` prints
//! one object a line. Without a GPU the report says what is missing, and the exit status is 1.
#![allow(unsafe_code, clippy::unwrap_used, clippy::disallowed_methods)]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use muster_collectives::nccl::{
    Communicator, Config, Context, DeviceBuffer, Driver, Elements, Error, Library, Report, Search, Stream, UniqueId,
};
use muster_collectives::{DType, ReduceOp};

const LIMIT: Duration = Duration::from_secs(60);
const SIZES: [usize; 5] = [4 << 10, 64 << 10, 1 << 20, 16 << 20, 100_000_000];
const WARM_UP: usize = 5;
const ROUNDS: usize = 50;

#[derive(Default)]
struct Options {
    nccl: Search,
    driver: Search,
    devices: Option<usize>,
    json: bool,
}

fn options() -> Result<Options, String> {
    let mut options = Options::default();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
        match argument.as_str() {
            "--nccl" => options.nccl.exactly = Some(PathBuf::from(value()?)),
            "--folder" => options.nccl.folders.push(PathBuf::from(value()?)),
            "--driver" => options.driver.exactly = Some(PathBuf::from(value()?)),
            "--devices" => options.devices = Some(value()?.parse().map_err(|error| format!("--devices: {error}"))?),
            "--json" => options.json = true,
            other => return Err(format!("unknown option {other}")),
        }
    }
    Ok(options)
}

fn main() -> ExitCode {
    let options = match options() {
        Ok(options) => options,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    };
    let report = Report::gather(&options.nccl, &options.driver);
    match options.json {
        true => println!("{}", report.to_json()),
        false => print!("{report}"),
    }
    match check(&options) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(wrong) => {
            eprintln!("{wrong} elements are wrong");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Gives the number of wrong elements.
fn check(options: &Options) -> Result<usize, Error> {
    let library = Library::load(&options.nccl)?;
    let driver = Driver::load(&options.driver)?;
    let mut devices = driver.devices()?;
    devices.truncate(options.devices.unwrap_or(usize::MAX));
    if devices.is_empty() {
        return Err(driver.device(0).err().map_or(Error::Closed, Error::from));
    }
    let contexts = devices.iter().map(Context::of).collect::<Result<Vec<_>, _>>()?;
    let say = |name: &str, took: Duration| match options.json {
        true => println!("{{\"lib\":\"nccl\",\"step\":\"{name}\",\"ms\":{:.3}}}", took.as_secs_f64() * 1e3),
        false => println!("{name:<32} {:>10.3} ms", took.as_secs_f64() * 1e3),
    };

    let start = Instant::now();
    let id = library.unique_id()?;
    say("unique id", start.elapsed());
    // A rank that never comes: connecting ends when it is aborted, and so does what it has begun.
    let config = Config::new(0, 2, library.unique_id()?);
    let abort = config.abort.clone();
    let aborting = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(500));
        abort.abort("checked");
        Instant::now()
    });
    let connected = Communicator::connect(&library, &contexts[0], config);
    let ended = Instant::now();
    let mut wrong = 0;
    match connected {
        Err(Error::Aborted(_)) => {
            say("abort of connecting", ended.saturating_duration_since(aborting.join().unwrap()));
        }
        Err(error) => return Err(error),
        Ok(_) => {
            eprintln!("a world of two was formed by one rank");
            wrong += 1;
        }
    }

    let world = contexts.len();
    let (library, contexts) = (&library, &contexts);
    let ranks: Vec<Result<Measured, Error>> = std::thread::scope(|scope| {
        let ranks = (0..world).map(|rank| scope.spawn(move || run(library, &contexts[rank], rank, world, id)));
        ranks.collect::<Vec<_>>().into_iter().map(|rank| rank.join().unwrap()).collect()
    });
    let ranks = ranks.into_iter().collect::<Result<Vec<_>, _>>()?;
    let first = &ranks[0];
    say("connect", first.connect);
    say("first all_reduce", first.first);
    wrong += ranks.iter().map(|rank| rank.wrong).sum::<usize>();
    for (size, times) in &first.times {
        let [p10, p50, p99] = [10, 50, 99].map(|percent| times[(times.len() - 1) * percent / 100].as_secs_f64());
        let algorithm = *size as f64 / p50 / 1e9;
        let bus = algorithm * 2.0 * (world as f64 - 1.0) / world as f64;
        let [p10, p50, p99] = [p10, p50, p99].map(|seconds| seconds * 1e6);
        match options.json {
            true => println!(
                "{{\"lib\":\"nccl\",\"op\":\"all_reduce\",\"transport\":\"nccl\",\"buffer\":\"private\",\"dtype\":\"f32\",\
                 \"size\":{size},\"ranks\":{world},\"p10_us\":{p10:.2},\"p50_us\":{p50:.2},\"p99_us\":{p99:.2},\
                 \"algbw_GBps\":{algorithm:.3},\"busbw_GBps\":{bus:.3},\"wrong\":{wrong}}}"
            ),
            false => println!(
                "all_reduce f32 {size:>11} B x {world}  {p10:>9.2} {p50:>9.2} {p99:>9.2} us  \
                 {algorithm:>8.3} GB/s  bus {bus:>8.3} GB/s  wrong {wrong}"
            ),
        }
    }
    say("split", first.split);
    say("close", first.close);
    if let Some(took) = first.deadline {
        say("abort of work that waits for a rank", took);
    }
    Ok(wrong)
}

struct Measured {
    connect: Duration,
    first: Duration,
    wrong: usize,
    times: Vec<(usize, Vec<Duration>)>,
    split: Duration,
    close: Duration,
    /// From the deadline of work that a rank does not take part in to the end of its abort.
    deadline: Option<Duration>,
}

fn run(library: &Library, context: &Context, rank: usize, world: usize, id: UniqueId) -> Result<Measured, Error> {
    let start = Instant::now();
    let communicator = Communicator::connect(library, context, Config::new(rank, world, id))?;
    let connect = start.elapsed();
    let stream = context.stream()?;

    let start = Instant::now();
    let mut wrong = 0;
    let mut first = None;
    for count in [1, 1000, 1 << 20] {
        for op in ReduceOp::ALL {
            wrong += verify(&communicator, &stream, count, op)?;
            first.get_or_insert_with(|| start.elapsed());
        }
    }

    let mut times = Vec::new();
    for size in SIZES {
        let buffer = context.copy_of(&vec![0f32; size / 4])?;
        let mut taken = Vec::new();
        for _ in 0..WARM_UP + ROUNDS {
            let start = Instant::now();
            all_reduce(&communicator, &buffer, size / 4, ReduceOp::Sum, &stream)?;
            taken.push(start.elapsed());
        }
        let mut taken = taken.split_off(WARM_UP);
        taken.sort();
        times.push((size, taken));
    }

    let start = Instant::now();
    let part = communicator.split(Some(0), -(rank as i32))?;
    let split = start.elapsed();
    // The order of the ranks is turned round.
    let expected = world - 1 - rank;
    wrong += usize::from(part.as_ref().map(|part| (part.rank(), part.world())) != Some((expected, world)));

    let mut deadline = None;
    if let Some(part) = part {
        let limit = Duration::from_secs(1);
        if world > 1 && rank == 0 {
            let buffer = context.copy_of(&[0f32])?;
            let start = Instant::now();
            let pointer = buffer.pointer();
            // SAFETY: the buffer holds the element, and outlives the communicator's work: the abort is waited for.
            unsafe { part.all_reduce(pointer, pointer, Elements::new(DType::F32, 1), ReduceOp::Sum, stream.raw()) }?;
            let error = part.wait(&stream, limit).err();
            assert!(matches!(error, Some(Error::Timeout { .. })), "{error:?}");
            drop(part);
            deadline = Some(start.elapsed().saturating_sub(limit));
        } else if world > 1 {
            // The others stay away, until rank 0 has given up.
            std::thread::sleep(limit * 2);
            part.abort("rank 0 has given up");
        } else {
            part.close()?;
        }
    }
    let start = Instant::now();
    communicator.close()?;
    let close = start.elapsed();
    Ok(Measured { connect, first: first.unwrap_or_default(), wrong, times, split, close, deadline })
}

/// Reduces small integers, whose results are exact in any order, and compares with the CPU.
fn verify(communicator: &Communicator, stream: &Stream, count: usize, op: ReduceOp) -> Result<usize, Error> {
    let world = communicator.world();
    let value = |rank: usize, index: usize| (((index * 7 + rank * 13) % 5) as f32) + 1.0;
    let own: Vec<f32> = (0..count).map(|index| value(communicator.rank(), index)).collect();
    let buffer = communicator.context().copy_of(&own)?;
    all_reduce(communicator, &buffer, count, op, stream)?;
    let mut result = vec![0f32; count];
    buffer.copy_to(&mut result)?;
    let wrong = result.iter().enumerate().filter(|(index, result)| {
        let values = (0..world).map(|rank| value(rank, *index));
        let expected = match op {
            ReduceOp::Sum => values.sum::<f32>(),
            ReduceOp::Mean => values.sum::<f32>() / world as f32,
            ReduceOp::Min => values.fold(f32::INFINITY, f32::min),
            ReduceOp::Max => values.fold(0.0, f32::max),
            ReduceOp::Product => values.product::<f32>(),
        };
        // A mean may be formed by a product with the rounded inverse.
        (**result - expected).abs() > expected.abs() * 1e-6
    });
    Ok(wrong.count())
}

/// In place, until it is done.
fn all_reduce(
    communicator: &Communicator,
    buffer: &DeviceBuffer,
    count: usize,
    op: ReduceOp,
    stream: &Stream,
) -> Result<(), Error> {
    let (pointer, of) = (buffer.pointer(), Elements::new(DType::F32, count));
    assert!(count * 4 <= buffer.len());
    // SAFETY: the buffer holds the elements, and nothing else touches them before the stream is done, here below.
    unsafe { communicator.all_reduce(pointer, pointer, of, op, stream.raw()) }?;
    communicator.wait(stream, LIMIT)
}
