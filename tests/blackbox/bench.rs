//! `muster bench`, as a person types it: not how fast it is, but that it measures all that it says, checks it, and
//! leaves nothing behind.

use crate::harness::{Ended, ended, eventually, finish, muster};
use crate::process;
use serde_json::Value;
use std::path::Path;
use std::process::Stdio;

/// In a folder of its own, in which it may leave nothing. Without the rivals: another folder is their cache.
fn bench(arguments: &[&str]) -> (tempfile::TempDir, Ended) {
    let home = tempfile::Builder::new().prefix("muster-test-").tempdir().unwrap();
    std::fs::create_dir(home.path().join("tmp")).unwrap();
    let mut command = muster(home.path());
    command.arg("bench").args(arguments).current_dir(home.path());
    command.env("HOME", home.path()).env("TMPDIR", home.path().join("tmp"));
    let ended = finish(command, "");
    assert_eq!(process::all_of(home.path()), [], "a process is left");
    assert_eq!(entries(&home.path().join("tmp")), 0, "a file is left");
    (home, ended)
}

fn entries(folder: &Path) -> usize {
    std::fs::read_dir(folder).unwrap().count()
}

fn lines(ended: &Ended) -> Vec<Value> {
    ended.stdout.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line:?}"))).collect()
}

fn keys(line: &Value) -> Vec<&str> {
    line.as_object().unwrap().keys().map(String::as_str).collect()
}

/// The lines of cases: both kinds of buffers for each size, nothing wrong, times in order.
fn checked(lines: &[Value], op: &str, ranks: u64, sizes: &[u64]) {
    let cases: Vec<&Value> = lines.iter().filter(|line| line["lib"].is_string()).collect();
    let measured: Vec<(u64, &str)> =
        cases.iter().map(|line| (line["size"].as_u64().unwrap(), line["buffer"].as_str().unwrap())).collect();
    let expected: Vec<(u64, &str)> = sizes.iter().flat_map(|size| [(*size, "shared"), (*size, "private")]).collect();
    assert_eq!(measured, expected);
    for line in cases {
        assert_eq!((line["lib"].as_str(), line["op"].as_str()), (Some("muster"), Some(op)), "{line}");
        assert_eq!((line["wrong"].as_u64(), line["ranks"].as_u64()), (Some(0), Some(ranks)), "{line}");
        let [p10, p50, p99] = ["p10_us", "p50_us", "p99_us"].map(|name| line[name].as_f64().unwrap());
        assert!(0.0 < p10 && p10 <= p50 && p50 <= p99, "{line}");
    }
}

#[test]
fn an_all_reduce_is_measured_with_both_kinds_of_buffers_and_beside_the_memory() {
    let (_, ended) =
        bench(&["allreduce", "--ranks", "2", "--sizes", "4KiB,64KiB", "--json", "--iterations", "12", "--rounds", "3"]);
    let lines = lines(&ended.succeeded());
    checked(&lines, "all_reduce", 2, &[4096, 65_536]);
    let fields = "algbw_GBps buffer busbw_GBps dtype lib op p10_us p50_us p99_us ranks size transport wrong";
    assert_eq!(keys(&lines[0]).join(" "), fields, "{}", lines[0]);
    assert_eq!((lines[0]["dtype"].as_str(), lines[0]["transport"].as_str()), (Some("f32"), Some("shm")));
    let limits: Vec<(&str, u64)> =
        lines.iter().filter_map(|line| Some((line["limit"].as_str()?, line["size"].as_u64()?))).collect();
    assert_eq!(limits, [("memcpy", 4096), ("add", 4096), ("memcpy", 65_536), ("add", 65_536)]);
    assert!(lines.iter().all(|line| line["limit"].is_null() || line["GBps"].as_f64() > Some(0.0)));
}

#[test]
fn every_operation_has_right_results_over_either_transport() {
    let operations =
        ["reduce_scatter", "all_gather", "broadcast", "reduce", "gather", "scatter", "all_to_all", "send_recv"];
    for operation in operations {
        for (transport, dtype, op) in [("shm", "bf16", "sum"), ("tcp", "i32", "max")] {
            let (_, ended) = bench(&[
                operation,
                "--ranks",
                "3",
                "--sizes",
                "1200",
                "--transport",
                transport,
                "--dtype",
                dtype,
                "--op",
                op,
                "--json",
                "--iterations",
                "4",
                "--rounds",
                "2",
            ]);
            let lines = lines(&ended.succeeded());
            checked(&lines, operation, 3, &[1200]);
            assert_eq!(lines[0]["transport"], transport);
        }
    }
    let (_, ended) = bench(&["barrier", "--ranks", "3", "--json", "--iterations", "4"]);
    let lines = lines(&ended.succeeded());
    assert_eq!((lines.len(), lines[0]["size"].as_u64(), lines[0]["op"].as_str()), (1, Some(0), Some("barrier")));
}

#[test]
fn a_person_gets_a_table_a_drawing_and_the_raw_data() {
    let (home, ended) = bench(&[
        "allreduce",
        "--sizes",
        "1KiB..4KiB",
        "--iterations",
        "6",
        "--rounds",
        "2",
        "--buffer",
        "shared",
        "--strict",
        "--svg",
        "a.svg",
        "--raw",
        "a.jsonl",
    ]);
    let ended = ended.succeeded();
    for part in ["2 ranks", "LIBRARY", "#WRONG", "1KiB", "4KiB", "shm/shared", "memcpy"] {
        assert!(ended.stdout.contains(part), "{part:?} is not in {}", ended.stdout);
    }
    let svg = std::fs::read_to_string(home.path().join("a.svg")).unwrap();
    assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>") && svg.contains("muster, shared"), "{svg}");
    let raw = std::fs::read_to_string(home.path().join("a.jsonl")).unwrap();
    let raw: Vec<Value> = raw.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(raw[0]["command"].as_str().unwrap().contains("--strict"), "{}", raw[0]);
    let times = |size: u64| {
        let turns = raw.iter().filter(|line| line["size"] == size).filter_map(|line| line["ns"].as_array());
        turns.map(Vec::len).collect::<Vec<_>>()
    };
    assert_eq!((times(1024), times(4096)), (vec![3, 3], vec![3, 3]), "iterations of each round");
}

#[test]
fn what_cannot_be_measured_is_said_before_anything_starts() {
    for (arguments, reason) in [
        (&["allreduce", "--sizes", "4XB"][..], "4XB"),
        (&["allreduce", "--compare", "gloo"], "make rivals"),
        (&["allreduce", "--compare", "mpi", "--dtype", "bf16"], "bf16"),
        (&["allreduce", "--compare", "mpi", "--op", "mean"], "mean"),
        (&["all_gather", "--sizes", "4", "--ranks", "3"], "less than an element"),
        (&["allreduce", "--workers", "2"], "--job"),
    ] {
        bench(arguments).1.failed_with(&[reason]);
    }
}

#[test]
fn ctrl_c_ends_all_ranks() {
    let home = tempfile::Builder::new().prefix("muster-test-").tempdir().unwrap();
    let mut command = muster(home.path());
    command.args(["bench", "allreduce", "--ranks", "3", "--sizes", "4KiB", "--seconds", "3600", "--rounds", "1000"]);
    command.env("TMPDIR", home.path());
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let ranks = || process::all_of(home.path()).iter().filter(|(_, command)| command.contains("bench-rank")).count();
    eventually("the ranks to run", || (ranks() == 3).then_some(()));
    process::signal(child.id() as i32, 2);
    let ended = ended(child.wait_with_output().unwrap());
    assert_eq!(ended.code, 130, "{ended:?}");
    assert_eq!(process::all_of(home.path()), []);
    assert_eq!(entries(home.path()), 0, "a file is left");
}

#[test]
fn a_job_measures_with_its_pods_as_ranks() {
    let (_, ended) = bench(&[
        "allreduce",
        "--job",
        "--workers",
        "3",
        "--sizes",
        "4KiB",
        "--json",
        "--iterations",
        "6",
        "--rounds",
        "2",
    ]);
    let ended = ended.succeeded();
    checked(&lines(&ended), "all_reduce", 3, &[4096]);
    assert!(ended.stderr.contains("bench-all-reduce-") && ended.stderr.contains("Succeeded"), "{}", ended.stderr);
}
