//! GPUs as NVML tells them, by a stand-in for the library that is compiled here: which are found, and what a library
//! that refuses, lies or is half there leads to.
#![allow(unsafe_code, clippy::unwrap_used, clippy::disallowed_methods)]

use muster_launcher::devices::{Gpu, NvmlError, discover_in};
use std::ffi::c_int;
use std::path::{Path, PathBuf};
use std::process::Command;

const INVALID_ARGUMENT: c_int = 2;
const NOT_SUPPORTED: c_int = 3;
const NO_PERMISSION: c_int = 4;
const DRIVER_NOT_LOADED: c_int = 9;
const GPU_IS_LOST: c_int = 15;
const UNKNOWN: c_int = 999;

const NOT_UTF8: c_int = 1;
const WITHOUT_END: c_int = 2;
const EMPTY: c_int = 3;
const OF_ALL_ALIKE: c_int = 4;

/// A library of one test's own; while it is held open, what was set in it stays.
struct StandIn {
    folder: tempfile::TempDir,
    library: libloading::Library,
}

impl StandIn {
    fn new() -> StandIn {
        StandIn::without(&[])
    }

    /// Functions that are renamed are as good as absent.
    fn without(functions: &[&str]) -> StandIn {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("libnvidia-ml.so.1");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/nvml/nvml.c");
        let renamed: Vec<String> = functions.iter().map(|name| format!("-D{name}=another_{name}")).collect();
        compile(&[&["-Wall".into(), "-Wextra".into(), "-Werror".into()], renamed.as_slice()].concat(), &source, &path);
        // SAFETY: this library is the test's own and needs nothing to be loaded.
        let library = unsafe { libloading::Library::new(&path) }.unwrap();
        StandIn { folder, library }
    }

    fn discover(&self) -> Result<Vec<Gpu>, NvmlError> {
        let found = discover_in(&self.folder.path().join("libnvidia-ml.so.1"));
        assert_eq!(self.get("stand_in_open"), 0, "each init has had its shutdown");
        found
    }

    fn refusal(&self) -> String {
        self.discover().unwrap_err().to_string()
    }

    fn place(&self, name: &str, index: usize) -> *mut c_int {
        // SAFETY: the stand-in's ints, of which there is one for each of its eight devices where a test uses an index.
        unsafe { self.library.get::<*mut c_int>(name).unwrap().add(index) }
    }

    fn set(&self, name: &str, value: c_int) {
        self.set_of(name, 0, value);
    }

    fn set_of(&self, name: &str, device: usize, value: c_int) {
        // SAFETY: see `place`.
        unsafe { self.place(name, device).write_volatile(value) }
    }

    fn get(&self, name: &str) -> c_int {
        // SAFETY: see `place`.
        unsafe { self.place(name, 0).read_volatile() }
    }
}

fn compile(flags: &[String], source: &Path, target: &Path) {
    let output = Command::new("gcc")
        .args(["-O1", "-shared", "-fPIC"])
        .args(flags)
        .arg("-o")
        .arg(target)
        .arg(source)
        .output()
        .expect("gcc is needed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn gpu(number: u64) -> Gpu {
    Gpu {
        uuid: format!("GPU-{number:08x}-0000-4000-8000-0123456789ab"),
        name: format!("Stand-in {number}"),
        memory_bytes: (80 + number) << 30,
    }
}

#[test]
fn each_gpu_is_found_with_its_uuid_name_and_memory_in_the_order_of_their_index() {
    let stand_in = StandIn::new();
    assert_eq!(stand_in.discover().unwrap(), [gpu(0), gpu(1)]);
    stand_in.set("stand_in_count", 8);
    assert_eq!(stand_in.discover().unwrap(), (0..8).map(gpu).collect::<Vec<_>>());
    stand_in.set("stand_in_count", 0);
    assert_eq!(stand_in.discover().unwrap(), []);
}

#[test]
fn a_refused_start_is_told_with_the_librarys_own_words() {
    let stand_in = StandIn::new();
    stand_in.set("stand_in_init", DRIVER_NOT_LOADED);
    assert_eq!(stand_in.refusal(), "nvmlInit_v2 failed with code 9: the driver is not loaded");
    stand_in.set("stand_in_init", UNKNOWN);
    assert_eq!(stand_in.refusal(), "nvmlInit_v2 failed with code 999", "it has no words for this one");
}

#[test]
fn a_library_without_words_for_errors_is_good_enough() {
    let stand_in = StandIn::without(&["nvmlErrorString"]);
    assert_eq!(stand_in.discover().unwrap(), [gpu(0), gpu(1)]);
    stand_in.set("stand_in_init", DRIVER_NOT_LOADED);
    assert_eq!(stand_in.refusal(), "nvmlInit_v2 failed with code 9");
}

#[test]
fn a_library_without_one_of_the_functions_is_told_by_its_name() {
    for missing in [
        "nvmlInit_v2",
        "nvmlShutdown",
        "nvmlDeviceGetCount_v2",
        "nvmlDeviceGetHandleByIndex_v2",
        "nvmlDeviceGetUUID",
        "nvmlDeviceGetName",
        "nvmlDeviceGetMemoryInfo",
    ] {
        let stand_in = StandIn::without(&[missing]);
        assert_eq!(stand_in.refusal(), format!("libnvidia-ml.so.1 has no function {missing}"));
    }
}

#[test]
fn a_count_that_is_too_high_is_refused_where_the_devices_end() {
    let stand_in = StandIn::new();
    for count in [9, c_int::MAX, -1] {
        stand_in.set("stand_in_count", count);
        assert_eq!(
            stand_in.refusal(),
            "nvmlDeviceGetHandleByIndex_v2 failed with code 2: an argument is wrong",
            "{count}"
        );
    }
}

/// One lost GPU, or one that belongs to another container, made the node have none at all: NVML counts those too.
#[test]
fn a_gpu_that_cannot_be_used_leaves_the_others() {
    let stand_in = StandIn::new();
    stand_in.set("stand_in_count", 4);
    stand_in.set_of("stand_in_handle", 0, NO_PERMISSION);
    stand_in.set_of("stand_in_handle", 2, GPU_IS_LOST);
    assert_eq!(stand_in.discover().unwrap(), [gpu(1), gpu(3)]);
    // A device may be lost between two questions.
    stand_in.set_of("stand_in_memory", 1, GPU_IS_LOST);
    assert_eq!(stand_in.discover().unwrap(), [gpu(3)]);
    stand_in.set_of("stand_in_text", 3, GPU_IS_LOST);
    assert_eq!(stand_in.discover().unwrap(), []);
    stand_in.set_of("stand_in_text", 3, INVALID_ARGUMENT);
    assert_eq!(stand_in.refusal(), "nvmlDeviceGetUUID failed with code 2: an argument is wrong");
}

/// GPUs that share the machine's memory say that they have none to tell of, and were not found for it.
#[test]
fn a_gpu_without_memory_of_its_own_is_found() {
    let stand_in = StandIn::new();
    stand_in.set_of("stand_in_memory", 1, NOT_SUPPORTED);
    assert_eq!(stand_in.discover().unwrap(), [gpu(0), Gpu { memory_bytes: 0, ..gpu(1) }]);
}

#[test]
fn names_are_for_reading_only_and_may_be_anything() {
    let stand_in = StandIn::new();
    let names = |form| {
        stand_in.set("stand_in_name", form);
        stand_in.discover().unwrap().into_iter().map(|gpu| gpu.name).collect::<Vec<_>>()
    };
    assert_eq!(names(NOT_UTF8), ["H\u{fffd}\u{fffd}!"; 2]);
    assert_eq!(names(WITHOUT_END), ["x".repeat(96), "x".repeat(96)]);
    assert_eq!(names(EMPTY), ["", ""]);
    assert_eq!(names(OF_ALL_ALIKE), ["Stand-in 0"; 2]);
}

/// Pods are given devices by uuid: a mangled one would be given and not be there, a doubled one be given twice.
#[test]
fn a_uuid_that_names_no_single_device_is_refused() {
    let stand_in = StandIn::new();
    for form in [NOT_UTF8, WITHOUT_END, EMPTY] {
        stand_in.set("stand_in_uuid", form);
        assert!(matches!(stand_in.discover(), Err(NvmlError::Uuid { index: 0, .. })), "{form}");
    }
    assert_eq!(stand_in.refusal(), "GPU 0 says that its uuid is \"\": that is none");
    stand_in.set("stand_in_uuid", OF_ALL_ALIKE);
    assert_eq!(
        stand_in.refusal(),
        "GPU 1 says that its uuid is \"GPU-00000000-0000-4000-8000-0123456789ab\": an earlier one has the same"
    );
}

#[test]
fn a_machine_without_the_library_is_told_from_one_where_it_is_broken() {
    for absent in ["libno-such-library.so.1", "/nonexistent/libnvidia-ml.so.1"] {
        assert!(matches!(discover_in(Path::new(absent)), Err(NvmlError::Absent)), "{absent}");
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| -> PathBuf { folder.path().join(name) };
    // Not a library at all: of another machine, or cut off.
    std::fs::write(path("libnvidia-ml.so.1"), vec![b'#'; 4096]).unwrap();
    let error = discover_in(&path("libnvidia-ml.so.1")).unwrap_err();
    assert!(error.to_string().starts_with("libnvidia-ml.so.1 cannot be loaded: "), "{error}");
    // One that needs another that is gone.
    std::fs::write(path("needed.c"), "int needed(void) { return 0; }").unwrap();
    compile(&["-Wl,-soname,libneeded.so.7".into()], &path("needed.c"), &path("libneeded.so"));
    std::fs::write(path("nvml.c"), "int needed(void); int nvmlInit_v2(void) { return needed(); }").unwrap();
    compile(
        &["-Wl,--no-as-needed".into(), path("libneeded.so").display().to_string()],
        &path("nvml.c"),
        &path("libnvidia-ml.so.1"),
    );
    let error = discover_in(&path("libnvidia-ml.so.1")).unwrap_err();
    assert!(matches!(error, NvmlError::Unloadable(_)), "{error:?}");
    assert!(error.to_string().contains("libneeded.so.7"), "{error}");
}

#[test]
fn a_library_that_is_not_nvml_is_refused() {
    assert!(matches!(discover_in(Path::new("libc.so.6")), Err(NvmlError::Incomplete("nvmlInit_v2"))));
}

#[test]
fn what_this_machine_has_can_be_given_to_pods() {
    for gpu in muster_launcher::devices::discover().unwrap_or_default() {
        assert!(gpu.uuid.starts_with("GPU-") && !gpu.name.is_empty(), "{gpu:?}");
    }
}
