//! `muster flight`, as a person types it where ranks hang.

use crate::harness::{Ended, eventually, finish, muster};
use crate::process;
use serde_json::Value;
use std::path::Path;
use std::process::Stdio;

fn flight(home: &Path, arguments: &[&str]) -> Ended {
    let mut command = muster(home);
    command.arg("flight").args(arguments);
    finish(command, "").succeeded()
}

#[test]
fn a_stopped_rank_is_named_with_what_to_do() {
    let home = tempfile::Builder::new().prefix("muster-test-").tempdir().unwrap();
    let mut command = muster(home.path());
    command.args(["bench", "allreduce", "--ranks", "3", "--sizes", "64KiB", "--seconds", "3600"]);
    command.env("TMPDIR", home.path());
    let mut bench = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let look = |rank: &str| -> Option<Value> {
        let answer = flight(home.path(), &["--job", "muster bench", "--pid", rank, "--ops", "3", "-o", "json"]);
        serde_json::from_str::<Value>(&answer.stdout).unwrap()["groups"].as_array().unwrap().first().cloned()
    };
    let (pid, before) = eventually("a rank in the middle of operations", || {
        let ranks = process::all_of(home.path()).into_iter();
        let (pid, _) = ranks.filter(|(_, command)| command.contains("bench-rank")).min()?;
        let group = look(&pid.to_string())?;
        let busy = |rank: &Value| rank["begun"].as_u64() > Some(20);
        let ranks = group["ranks"].as_array().unwrap();
        (ranks.len() == 3 && ranks.iter().all(busy)).then_some((pid, group))
    });
    assert_eq!((&before["world"], &before["missing"]), (&3.into(), &Value::Array(Vec::new())), "{before}");
    assert_eq!(before["ranks"][0]["operations"].as_array().map(Vec::len), Some(3), "{before}");
    process::signal(pid, nix::sys::signal::Signal::SIGSTOP as i32);
    let table = eventually("the others to wait for the stopped rank", || {
        let shown = flight(home.path(), &["--pid", &pid.to_string()]).stdout;
        (shown.matches(" waiting ").count() == 2 && shown.contains("wait for it")).then_some(shown)
    });
    let [title, headers, ranks @ .., sentence] = &table.lines().collect::<Vec<_>>()[..] else { panic!("{table}") };
    assert_eq!((*title, ranks.len()), ("muster bench: epoch 1, 3 ranks", 3));
    assert_eq!(
        headers.split_whitespace().collect::<Vec<_>>(),
        ["RANK", "PID", "STATE", "LAST-OP", "SEQ", "SINCE", "WAITS-FOR"]
    );
    assert!(sentence.contains(&format!("(pid {pid}) is stopped")), "{table}");
    assert!(sentence.ends_with(&format!("kill -CONT {pid}")), "{table}");
    let _ = bench.kill();
    let _ = bench.wait();
    process::end_all_of(home.path());
    let gone = flight(home.path(), &["--pid", &pid.to_string()]);
    assert_eq!((gone.stdout.as_str(), gone.stderr.contains("has no communicator")), ("", true), "{gone:?}");
}
