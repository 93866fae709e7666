//! The binding to NCCL, up to where a GPU would begin: without a library, with the real one of PyTorch's wheel, and
//! with stand-ins for NCCL and the driver that are compiled against their headers.
//!
//! What a GPU does is not tested: `examples/nccl_check.rs` is for a machine that has one.
#![allow(unsafe_code, clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)]

mod common;

use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use muster_collectives::nccl::{
    AbortHandle, Communicator, Config, Context, Driver, DriverError, DriverReport, Elements, Error, Group, Library,
    LoadError, Report, Search, UniqueId,
};
use muster_collectives::{DType, ReduceOp};

/// The folders of the Python environment with NCCL's and CUDA's wheels.
fn wheels() -> PathBuf {
    let environment = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.venv/lib");
    let mut packages = environment.read_dir().ok().into_iter().flatten().flatten();
    packages
        .find_map(|entry| {
            let folder = entry.path().join("site-packages/nvidia");
            folder.join("nccl/lib/libnccl.so.2").exists().then_some(folder)
        })
        .unwrap_or_else(|| panic!("no NCCL wheel under {}: run make python", environment.display()))
}

fn real() -> Library {
    Library::load(&Search::exactly(wheels().join("nccl/lib/libnccl.so.2"))).unwrap()
}

fn has_gpu() -> bool {
    Driver::load(&Search::default()).is_ok_and(|driver| driver.devices().is_ok_and(|devices| !devices.is_empty()))
}

#[test]
fn without_a_library_the_error_says_what_was_tried_and_what_to_do() {
    let folder = PathBuf::from("/nonexistent/nccl/lib");
    // Not from the environment's loader path: a machine with NCCL would find it.
    let error = Library::load(&Search::exactly(folder.join("libnccl.so.2"))).unwrap_err();
    let LoadError::NotFound { tried, .. } = &error else { panic!("{error:?}") };
    assert_eq!(tried.len(), 1, "another than the one asked for is not taken");
    let text = error.to_string();
    assert!(text.contains("/nonexistent/nccl/lib/libnccl.so.2"), "{text}");
    assert!(text.contains("No such file") && text.contains("Install NCCL"), "{text}");
}

#[test]
fn all_names_are_tried_by_the_loader_and_in_each_folder() {
    let folders = [PathBuf::from("/nonexistent/a"), PathBuf::from("/nonexistent/b")];
    match Library::load(&Search::also_in(folders)) {
        // This machine has NCCL installed.
        Ok(library) => assert!(library.version().code() >= 21_800),
        Err(LoadError::NotFound { tried, .. }) => {
            let tried: Vec<_> = tried.iter().map(|(path, _)| path.display().to_string()).collect();
            assert_eq!(
                tried,
                [
                    "libnccl.so.2",
                    "libnccl.so",
                    "/nonexistent/a/libnccl.so.2",
                    "/nonexistent/a/libnccl.so",
                    "/nonexistent/b/libnccl.so.2",
                    "/nonexistent/b/libnccl.so",
                ]
            );
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn another_library_is_not_taken_for_nccl() {
    let error = Library::load(&Search::exactly("libc.so.6")).unwrap_err();
    assert!(matches!(error, LoadError::Symbol { symbol: "ncclGetVersion", .. }), "{error:?}");
    assert!(error.to_string().contains("libc.so.6 has no ncclGetVersion"), "{error}");
}

#[test]
fn the_real_library_loads_and_answers_its_version() {
    let library = real();
    let (major, minor, _) = library.version().parts();
    assert_eq!(major, 2);
    assert!(minor >= 18, "{}", library.version());
    assert!(library.path().ends_with("nccl/lib/libnccl.so.2"), "{}", library.path().display());
    // Found in a folder as well, unless the loader has one of its own.
    let found = Library::load(&Search::also_in([wheels().join("nccl/lib")])).unwrap();
    assert!(found.version().code() >= 21_800);
}

#[test]
fn the_real_library_makes_ids_that_the_ranks_hand_to_each_other() {
    let (first, second) = (real().unique_id().unwrap(), real().unique_id().unwrap());
    assert_ne!(first.as_bytes(), second.as_bytes());
    assert_eq!(UniqueId::from_bytes(first.as_bytes()), Ok(first));
    assert!(!format!("{first:?}").chars().any(|letter| letter.is_ascii_digit()), "ids are not printed");
    let ids = common::run(&["a", "a", "b"], |communicator| real().shared_unique_id(communicator).unwrap());
    assert!(ids.iter().all(|id| *id == ids[0]));
}

#[test]
fn without_a_gpu_the_driver_is_what_is_missing() {
    if has_gpu() {
        eprintln!("SKIP without_a_gpu_the_driver_is_what_is_missing: this machine has a GPU");
        return;
    }
    match Driver::load(&Search::default()) {
        Err(DriverError::Load(error)) => {
            let text = error.to_string();
            assert!(text.contains("libcuda.so.1") && text.contains("Install NVIDIA's driver"), "{text}");
        }
        Err(error) => assert!(matches!(error, DriverError::Call { function: "cuInit", .. }), "{error}"),
        Ok(driver) => assert_eq!(driver.devices().unwrap().len(), 0),
    }
}

/// Where CUDA refuses, the real NCCL returns with its group still open: without care the next call would be queued
/// in it for ever.
#[test]
fn forming_a_communicator_without_a_gpu_is_refused_by_the_real_library_and_harms_nothing() {
    if has_gpu() {
        eprintln!("SKIP forming_a_communicator_without_a_gpu...: this machine has a GPU");
        return;
    }
    let (library, stand_in) = (real(), StandIn::new());
    let start = Instant::now();
    for _ in 0..2 {
        let config = Config::new(0, 1, library.unique_id().unwrap());
        let abort = config.abort.clone();
        let error = Communicator::connect(&library, &stand_in.context(), config).unwrap_err();
        assert!(matches!(error, Error::Call { function: "ncclCommInitRankConfig", code: 1, .. }), "{error:?}");
        assert!(error.to_string().to_lowercase().contains("cuda"), "{error}");
        assert_eq!(abort.failure(), Some(error));
    }
    // Calls that must not be queued.
    Group::start(&library).unwrap().end().unwrap();
    assert!(start.elapsed() < Duration::from_secs(30));
}

#[test]
fn the_report_names_what_is_missing() {
    let nowhere = Search::exactly("/nonexistent/lib.so");
    let report = Report::gather(&Search::exactly(real().path()), &nowhere);
    let text = report.to_string();
    assert!(text.starts_with(&format!("NCCL    {}", real().version())), "{text}");
    assert!(text.contains("driver  absent: ") && text.contains("/nonexistent/lib.so"), "{text}");
    let json = report.to_json();
    assert!(json.contains(&format!("\"code\":{}", real().version().code())), "{json}");
    let report = Report::gather(&nowhere, &nowhere);
    assert!(report.to_string().starts_with("NCCL    absent: ") && report.to_json().contains("{\"error\":"));
}

/// Stand-ins of one test's own: copies of the compiled files, since a file that is loaded twice is one library.
struct StandIn {
    library: Library,
    driver: Driver,
    nccl: libloading::Library,
    cuda: libloading::Library,
}

impl StandIn {
    fn new() -> StandIn {
        static COMPILED: std::sync::OnceLock<[PathBuf; 2]> = std::sync::OnceLock::new();
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let (folder, process) = (PathBuf::from(env!("CARGO_TARGET_TMPDIR")), std::process::id());
        let compiled = COMPILED.get_or_init(|| ["nccl", "cuda"].map(|name| compile(name, &folder)));
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let [nccl, cuda] = ["nccl", "cuda"].map(|name| folder.join(format!("{name}-{process}-{number}.so")));
        std::fs::copy(&compiled[0], &nccl).unwrap();
        std::fs::copy(&compiled[1], &cuda).unwrap();
        let stand_in = StandIn {
            library: Library::load(&Search::exactly(&nccl)).unwrap(),
            driver: Driver::load(&Search::exactly(&cuda)).unwrap(),
            // SAFETY: these files are this test's own and need nothing to be loaded.
            nccl: unsafe { libloading::Library::new(&nccl) }.unwrap(),
            // SAFETY: as above.
            cuda: unsafe { libloading::Library::new(&cuda) }.unwrap(),
        };
        // They stay loaded.
        std::fs::remove_file(nccl).unwrap();
        std::fs::remove_file(cuda).unwrap();
        stand_in
    }

    fn set(&self, name: &str, value: c_int) {
        let library =
            if ["stand_in_stream_busy", "stand_in_refuses"].contains(&name) { &self.cuda } else { &self.nccl };
        // SAFETY: an int of the stand-in that it reads as a volatile one.
        unsafe { library.get::<*mut c_int>(name).unwrap().write_volatile(value) };
    }

    /// What the stand-in was called with.
    fn record(&self) -> String {
        // SAFETY: the function gives a string that stays and only grows.
        unsafe {
            let record = self.nccl.get::<extern "C" fn() -> *const c_char>("stand_in_record").unwrap();
            CStr::from_ptr(record()).to_str().unwrap().to_owned()
        }
    }

    fn context(&self) -> Context {
        Context::of(&self.driver.device(0).unwrap()).unwrap()
    }

    fn config(&self, rank: usize, world: usize) -> Config {
        let mut config = Config::new(rank, world, self.library.unique_id().unwrap());
        config.close_timeout = Duration::from_secs(60);
        config
    }

    fn connect(&self, rank: usize, world: usize) -> Communicator {
        Communicator::connect(&self.library, &self.context(), self.config(rank, world)).unwrap()
    }
}

fn compile(name: &str, folder: &Path) -> PathBuf {
    let (made, target) = (folder.join(format!("{name}-{}.so", std::process::id())), folder.join(format!("{name}.so")));
    let (tests, wheels) = (Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/nccl"), wheels());
    let output = Command::new("gcc")
        .args(["-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC", "-pthread", "-I"])
        .arg(tests.join("include"))
        .arg("-I")
        .arg(wheels.join("nccl/include"))
        .arg("-idirafter")
        .arg(wheels.join("cu13/include"))
        .arg("-o")
        .arg(&made)
        .arg(tests.join(format!("{name}.c")))
        .output()
        .expect("gcc is needed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // Another run of the tests may do the same just now.
    std::fs::rename(made, &target).unwrap();
    target
}

const STREAM: *mut c_void = std::ptr::without_provenance_mut(5);

/// SAFETY of all calls below: the stand-in reads and writes memory only in worlds of one rank, where the test gives
/// it memory of the host; it never looks at streams.
fn all_reduce(communicator: &Communicator) -> Result<(), Error> {
    let nothing = std::ptr::null_mut();
    unsafe { communicator.all_reduce(nothing, nothing, Elements::new(DType::F32, 1), ReduceOp::Sum, STREAM) }
}

#[test]
fn every_operation_reaches_nccl_as_the_header_means_it() {
    let stand_in = StandIn::new();
    let communicator = stand_in.connect(1, 3);
    let (a, b) = (std::ptr::null(), std::ptr::null_mut());
    for dtype in DType::ALL {
        // SAFETY: see `all_reduce`.
        let result = unsafe { communicator.all_reduce(a, b, Elements::new(dtype, 7), ReduceOp::Sum, STREAM) };
        assert_eq!(result.is_ok(), dtype != DType::I16, "NCCL has all but i16: {result:?}");
        assert!(result.is_ok() || !result.unwrap_err().is_fatal());
    }
    let of = Elements::new(DType::BF16, 9);
    for op in ReduceOp::ALL {
        // SAFETY: see `all_reduce`.
        unsafe { communicator.reduce_scatter(a, b, of, op, STREAM) }.unwrap();
    }
    // SAFETY: see `all_reduce`.
    unsafe {
        communicator.reduce(a, b, of, ReduceOp::Max, 2, STREAM).unwrap();
        communicator.broadcast(a, b, of, 1, STREAM).unwrap();
        communicator.all_gather(a, b, of, STREAM).unwrap();
        communicator.send(a, of, 0, STREAM).unwrap();
        communicator.recv(b, of, 2, STREAM).unwrap();
        drop(communicator.register(b, 64).unwrap());
        for error in
            [communicator.broadcast(a, b, of, 3, STREAM).unwrap_err(), communicator.send(a, of, 3, STREAM).unwrap_err()]
        {
            assert_eq!(error.to_string(), "invalid argument: rank 3 is not below world 3");
        }
    }
    communicator.check().unwrap();
    communicator.close().unwrap();
    let types = ["f64", "f32", "f16", "bf16", "i8", "i32", "i64", "u8"];
    let reductions = ["sum", "mean", "min", "max", "product"];
    let expected: Vec<String> = std::iter::once("init rank 1 of 3".to_owned())
        .chain(types.map(|dtype| format!("all_reduce 7 {dtype} sum stream 5")))
        .chain(reductions.map(|op| format!("reduce_scatter 9 bf16 {op} stream 5")))
        .chain(
            [
                "reduce 9 bf16 max root 2 stream 5",
                "broadcast 9 bf16 root 1 stream 5",
                "all_gather 9 bf16 stream 5",
                "send 9 bf16 to 0 stream 5",
                "recv 9 bf16 from 2 stream 5",
                "register 64",
                "deregister 77",
                "finalize rank 1",
                "destroy rank 1",
            ]
            .map(str::to_owned),
        )
        .collect();
    assert_eq!(stand_in.record().lines().collect::<Vec<_>>(), expected);
}

#[test]
fn calls_in_progress_are_waited_for_before_the_next() {
    let stand_in = StandIn::new();
    stand_in.set("stand_in_polls", 30);
    let communicator = stand_in.connect(0, 2);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..5).for_each(|_| all_reduce(&communicator).unwrap()));
        }
    });
    drop(communicator);
    let record = stand_in.record();
    assert_eq!(record.matches("all_reduce").count(), 20);
    assert!(record.ends_with("finalize rank 0\ndestroy rank 0\n"), "{record}");
    assert!(!record.contains("IN PROGRESS") && !record.contains("FREE"), "{record}");
}

#[test]
fn connecting_ends_at_its_deadline() {
    let stand_in = StandIn::new();
    stand_in.set("stand_in_polls", -1);
    let mut config = stand_in.config(0, 2);
    config.connect_timeout = Duration::from_millis(50);
    let error = Communicator::connect(&stand_in.library, &stand_in.context(), config).unwrap_err();
    let waited = Duration::from_millis(50);
    assert_eq!(error, Error::Timeout { what: "ncclCommInitRankConfig", waited });
    assert_eq!(stand_in.record(), "init rank 0 of 2\nabort rank 0\n", "the drop has waited for the abort");
}

#[test]
fn an_abort_from_another_thread_ends_connecting_calling_and_waiting() {
    let aborted = Error::Aborted("enough".into());
    let stand_in = StandIn::new();
    stand_in.set("stand_in_polls", -1);
    // Connecting.
    let config = stand_in.config(0, 2);
    abort_soon(&config.abort);
    let connected = Communicator::connect(&stand_in.library, &stand_in.context(), config);
    assert_eq!(connected.err(), Some(aborted.clone()));
    // Before it has even begun.
    let config = stand_in.config(0, 2);
    config.abort.abort("enough");
    let connected = Communicator::connect(&stand_in.library, &stand_in.context(), config);
    assert_eq!(connected.err(), Some(aborted.clone()));
    // A call that stays in progress.
    stand_in.set("stand_in_polls", 0);
    let communicator = stand_in.connect(0, 2);
    stand_in.set("stand_in_polls", -1);
    abort_soon(&communicator.abort_handle());
    assert_eq!(all_reduce(&communicator), Err(aborted.clone()));
    assert_eq!(all_reduce(&communicator), Err(aborted.clone()), "later calls fail likewise");
    assert_eq!(communicator.check(), Err(aborted.clone()));
    drop(communicator);
    // Work that never ends on its stream.
    stand_in.set("stand_in_polls", 0);
    stand_in.set("stand_in_stream_busy", 1);
    let communicator = stand_in.connect(0, 2);
    let stream = communicator.context().stream().unwrap();
    abort_soon(&communicator.abort_handle());
    assert_eq!(communicator.wait(&stream, Duration::from_secs(60)), Err(aborted));
    drop(communicator);
    let record = stand_in.record();
    assert_eq!(record.matches("abort rank 0\n").count(), 3, "{record}");
    assert!(!record.contains("FREE") && !record.contains("destroy"), "{record}");
}

fn abort_soon(abort: &AbortHandle) {
    let abort = abort.clone();
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(20));
        abort.abort("enough");
    });
}

#[test]
fn work_that_does_not_end_is_aborted_at_its_deadline() {
    let stand_in = StandIn::new();
    let communicator = stand_in.connect(0, 1);
    let stream = communicator.context().stream().unwrap();
    communicator.wait(&stream, Duration::from_secs(60)).unwrap();
    stand_in.set("stand_in_stream_busy", 1);
    let limit = Duration::from_millis(30);
    let expected = Error::Timeout { what: "the work on a stream", waited: limit };
    assert_eq!(communicator.wait(&stream, limit), Err(expected.clone()));
    assert_eq!(communicator.close(), Err(expected));
    assert!(stand_in.record().ends_with("abort rank 0\n"));
}

#[test]
fn the_loss_of_another_rank_is_noticed_while_waiting() {
    let stand_in = StandIn::new();
    stand_in.set("stand_in_stream_busy", 1);
    let communicator = stand_in.connect(0, 2);
    let stream = communicator.context().stream().unwrap();
    all_reduce(&communicator).unwrap();
    // ncclRemoteError.
    stand_in.set("stand_in_async_error", 6);
    let error = communicator.wait(&stream, Duration::from_secs(60)).unwrap_err();
    let text = "an operation failed: ncclRemoteError (6): some error; last error: the cable is unplugged";
    assert_eq!(error.to_string(), text);
    assert_eq!(communicator.abort_handle().failure(), Some(error));
    drop(communicator);
    assert!(stand_in.record().ends_with("abort rank 0\n"), "a communicator that has failed is not destroyed politely");
}

#[test]
fn a_group_starts_its_calls_together() {
    let stand_in = StandIn::new();
    let (first, second) = (stand_in.connect(0, 2), stand_in.connect(1, 2));
    stand_in.set("stand_in_polls", 3);
    let group = Group::start(&stand_in.library).unwrap();
    assert!(matches!(Group::start(&stand_in.library), Err(Error::Argument(_))), "they do not nest");
    let config = stand_in.config(0, 1);
    assert!(matches!(Communicator::connect(&stand_in.library, &stand_in.context(), config), Err(Error::Argument(_))));
    for communicator in [&first, &second, &first] {
        all_reduce(communicator).unwrap();
    }
    group.end().unwrap();
    all_reduce(&first).unwrap();
    drop((first, second));
    let calls = "group start\nall_reduce 1 f32 sum stream 5\nall_reduce 1 f32 sum stream 5\n\
                 all_reduce 1 f32 sum stream 5\ngroup end\nall_reduce 1 f32 sum stream 5\n";
    let record = stand_in.record();
    assert!(record.contains(calls) && !record.contains("FREE") && !record.contains("PROGRESS"), "{record}");
}

#[test]
fn a_group_given_up_half_way_fails_its_communicators() {
    let stand_in = StandIn::new();
    let (inside, outside) = (stand_in.connect(0, 2), stand_in.connect(1, 2));
    let group = Group::start(&stand_in.library).unwrap();
    all_reduce(&inside).unwrap();
    drop(group);
    assert!(matches!(all_reduce(&inside), Err(Error::Aborted(_))));
    all_reduce(&outside).unwrap();
}

/// NCCL holds the communicators of an open group, and would use one that an abort has freed.
#[test]
fn an_abort_waits_for_the_open_group_before_it_frees() {
    let stand_in = StandIn::new();
    let communicator = stand_in.connect(0, 2);
    let group = Group::start(&stand_in.library).unwrap();
    all_reduce(&communicator).unwrap();
    communicator.abort("now");
    std::thread::sleep(Duration::from_millis(700));
    assert!(!stand_in.record().contains("abort rank"), "longer than for a call that is stuck");
    assert_eq!(group.end(), Err(Error::Aborted("now".into())));
    drop(communicator);
    assert!(stand_in.record().ends_with("group end\nabort rank 0\n"), "{}", stand_in.record());
}

#[test]
fn splitting_gives_each_rank_its_new_communicator_or_none() {
    let stand_in = StandIn::new();
    let whole = stand_in.connect(1, 2);
    stand_in.set("stand_in_polls", 5);
    assert!(whole.split(None, 0).unwrap().is_none());
    let part = whole.split(Some(4), -2).unwrap().unwrap();
    assert_eq!((part.rank(), part.world()), (0, 1));
    let mut value = [3f32];
    let pointer = value.as_mut_ptr().cast::<c_void>();
    let of = Elements::new(DType::F32, 1);
    // SAFETY: memory for one element, which the stand-in copies onto itself.
    unsafe { part.all_reduce(pointer, pointer, of, ReduceOp::Sum, STREAM) }.unwrap();
    whole.abort("the whole");
    part.check().unwrap();
    // A split that does not end.
    let whole = stand_in.connect(0, 2);
    stand_in.set("stand_in_polls", -1);
    abort_soon(&whole.abort_handle());
    assert!(matches!(whole.split(Some(1), 0), Err(Error::Aborted(_))));
    let record = stand_in.record();
    assert!(record.contains("split color -1 key 0\n") && record.contains("split color 4 key -2\n"), "{record}");
    assert!(!record.contains("PROGRESS") && !record.contains("FREE"), "{record}");
    stand_in.set("stand_in_polls", 0);
}

#[test]
fn a_refused_init_leaves_no_group_open() {
    let stand_in = StandIn::new();
    stand_in.set("stand_in_refuses_init", 1);
    let config = stand_in.config(0, 1);
    let error = Communicator::connect(&stand_in.library, &stand_in.context(), config).unwrap_err();
    assert!(matches!(error, Error::Call { code: 1, .. }), "{error:?}");
    assert_eq!(stand_in.record(), "group end\n");
}

#[test]
fn an_old_library_is_refused() {
    let stand_in = StandIn::new();
    stand_in.set("stand_in_version", 21_705);
    let error = Library::load(&Search::exactly(stand_in.library.path())).map(drop);
    // The file is gone, but the loader knows it by name.
    assert!(matches!(error, Err(LoadError::TooOld { .. })), "{error:?}");
    assert!(error.unwrap_err().to_string().ends_with("is NCCL 2.17.5, older than 2.18.0"));
}

#[test]
fn the_driver_tells_its_devices_and_how_they_are_connected() {
    let stand_in = StandIn::new();
    let report = DriverReport::of(&stand_in.driver).unwrap();
    assert_eq!((report.cuda, report.devices.len(), report.links.len()), (13_000, 2, 2));
    let device = &report.devices[1];
    assert_eq!((device.name.as_str(), device.pci_bus_id.as_str()), ("Stand-in 1", "0000:ff:0b.0"));
    assert_eq!(device.uuid, "GPU-0b1b2b3b-4b5b-6b7b-8b9b-abbbcbdbebfb");
    assert_eq!((device.compute_capability, device.multiprocessors, device.memory_bytes), ((9, 0), 132, 80 << 30));
    assert!(report.links[0].peer_access && !report.links[1].peer_access);
    assert_eq!((report.links[0].rank, report.links[1].rank), (0, 1));
    let missing = stand_in.driver.device(2).unwrap_err();
    assert_eq!(missing, DriverError::NoDevice { ordinal: 2, count: 2 });
    stand_in.set("stand_in_refuses", 1);
    let error = Driver::load(&Search::exactly(stand_in.driver.path())).map(drop).unwrap_err();
    assert_eq!(error.to_string(), "cuInit failed: CUDA_ERROR_NO_DEVICE (100): as described");
}

#[test]
fn memory_is_copied_there_and_back_within_its_bounds() {
    let stand_in = StandIn::new();
    let context = stand_in.context();
    let (stream, start, end) = (context.stream().unwrap(), context.event().unwrap(), context.event().unwrap());
    let communicator = stand_in.connect(0, 1);
    let source = context.copy_of(&[1f32, 2.0, 3.0]).unwrap();
    let target = stand_in.library.allocate(&context, source.len()).unwrap();
    start.record(&stream).unwrap();
    let of = Elements::new(DType::F32, 3);
    // SAFETY: both hold three elements, until after the wait.
    unsafe { communicator.all_reduce(source.pointer(), target.pointer(), of, ReduceOp::Sum, stream.raw()) }.unwrap();
    end.record(&stream).unwrap();
    communicator.wait(&stream, Duration::from_secs(60)).unwrap();
    assert!(end.is_done().unwrap() && end.since(&start).unwrap() < Duration::from_secs(60));
    // SAFETY: memory of the stand-in is the host's, and holds three floats.
    assert_eq!(unsafe { std::slice::from_raw_parts(target.pointer().cast::<f32>(), 3) }, [1.0, 2.0, 3.0]);
    let mut back = [0f32; 3];
    source.copy_to(&mut back).unwrap();
    assert_eq!(back, [1.0, 2.0, 3.0]);
    assert!(matches!(source.copy_to(&mut [0f32; 4]), Err(DriverError::Argument(_))));
}
