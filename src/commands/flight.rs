//! `muster flight`: what the ranks on this machine do, who waits for whom, and who is to blame.

use crate::cli::{FlightArgs, FlightFormat};
use crate::exit::ExitStatus;
use crate::output::Table;
use anyhow::{Context, Result};
use muster_collectives::flight::{self, Group, Operation, RankReport, RankSet, Span};
use serde_json::{Value, json};
use std::io::Write;
use std::time::Duration;

/// How long a wait may last before somebody is to blame for it.
const PATIENCE: Duration = Duration::from_secs(1);

pub(crate) fn run(args: &FlightArgs) -> Result<ExitStatus> {
    let found = flight::find().context("failed to look for ranks in /proc")?;
    for skipped in &found.skipped {
        eprintln!("process {} is left out: {}", skipped.pid, skipped.cause);
    }
    // Chosen after the analysis: who waits for whom takes all ranks of a group.
    let mut groups = flight::analyse(&found.recordings, PATIENCE);
    groups.retain(|group| is_chosen(group, args));
    let operations = usize::from(args.ops);
    match args.output {
        FlightFormat::Json => {
            let groups: Vec<Value> = groups.iter().map(|group| object(group, operations)).collect();
            print(&format!("{}\n", serde_json::to_string_pretty(&json!({"groups": groups}))?));
        }
        FlightFormat::Table if groups.is_empty() => eprintln!("{}", nothing(args)),
        FlightFormat::Table => {
            let texts: Vec<String> = groups.iter().map(|group| text(group, operations)).collect();
            print(&texts.join("\n"));
        }
    }
    Ok(ExitStatus::Success)
}

fn print(text: &str) {
    // A reader that went away (`| head`) is no reason to fail.
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// A job's label is its namespace and its name; the name alone will do.
fn is_chosen(group: &Group, args: &FlightArgs) -> bool {
    let name = group.label.rsplit('/').next();
    args.job.as_ref().is_none_or(|job| *job == group.label || name == Some(job))
        && args.pid.is_none_or(|pid| group.ranks.iter().any(|rank| rank.recording.pid == pid))
}

fn nothing(args: &FlightArgs) -> String {
    match (&args.job, args.pid) {
        (None, None) => "no communicator of this user is running on this machine".to_owned(),
        (Some(job), None) => format!("no communicator of job {job} of this user is running on this machine"),
        (None, Some(pid)) => format!("process {pid} has no communicator, or is another user's"),
        (Some(job), Some(pid)) => format!("process {pid} has no communicator of job {job}, or is another user's"),
    }
}

fn text(group: &Group, operations: usize) -> String {
    let name = if group.label.is_empty() { "(no label)" } else { &group.label };
    let plural = |count: u64| if count == 1 { "" } else { "s" };
    let mut out = format!("{name}: epoch {}, {} rank{}", group.epoch, group.world, plural(group.world.into()));
    match group.missing.len() {
        0 => out.push('\n'),
        missing => out.push_str(&format!(", {missing} of them not found here\n")),
    }
    let mut table = Table::new(["RANK", "PID", "STATE", "LAST-OP", "SEQ", "SINCE", "WAITS-FOR"]);
    for rank in &group.ranks {
        let last = rank.recording.operations.last();
        table.push([
            rank.recording.rank.to_string(),
            rank.recording.pid.to_string(),
            rank.activity.to_string(),
            last.map_or_else(none, Operation::call),
            last.map_or_else(none, |operation| operation.sequence().to_string()),
            Span(rank.since).to_string(),
            if rank.waits_for.is_empty() { none() } else { rank.waits_for.to_string() },
        ]);
    }
    if !group.missing.is_empty() {
        table.push([group.missing.to_string(), none(), "missing".to_owned(), none(), none(), none(), none()]);
    }
    out.push_str(&table.to_string());
    for culprit in &group.culprits {
        out.push_str(&format!("{culprit}\n"));
    }
    if group.culprits.is_empty() {
        out.push_str(&format!("nobody has been waited for longer than {}\n", Span(PATIENCE)));
    }
    if operations > 0 {
        out.push_str(&format!("\n{}", history(group, operations)));
    }
    out
}

fn none() -> String {
    "-".to_owned()
}

/// The last operations, a copy of the record: the times are when each began, counted back from now.
fn history(group: &Group, operations: usize) -> String {
    let mut table = Table::new(["RANK", "SEQ", "OPERATION", "BYTES", "STATE", "AGO", "QUEUED", "TOOK"]);
    for rank in &group.ranks {
        for operation in last(rank, operations) {
            table.push([
                rank.recording.rank.to_string(),
                operation.sequence().to_string(),
                operation.call(),
                operation.bytes().to_string(),
                operation.state.to_string(),
                Span(rank.recording.taken.saturating_sub(operation.started)).to_string(),
                Span(operation.started.saturating_sub(operation.issued)).to_string(),
                operation.ended.map_or_else(none, |end| Span(end.saturating_sub(operation.started)).to_string()),
            ]);
        }
    }
    table.to_string()
}

fn last(rank: &RankReport, operations: usize) -> &[Operation] {
    let all = &rank.recording.operations;
    &all[all.len().saturating_sub(operations)..]
}

fn object(group: &Group, operations: usize) -> Value {
    let ranks: Vec<Value> = group.ranks.iter().map(|rank| rank_object(rank, operations)).collect();
    let culprits = group.culprits.iter().map(|culprit| {
        json!({
            "ranks": set(&culprit.ranks),
            "pid": culprit.pid,
            "cause": culprit.cause.name(),
            "waiting": set(&culprit.waiting),
            "message": culprit.to_string(),
        })
    });
    json!({
        "job": group.label,
        "identity": format!("{:016x}", group.identity),
        "epoch": group.epoch,
        "world": group.world,
        "ranks": ranks,
        "missing": set(&group.missing),
        "missingHere": group.missing_here,
        "culprits": culprits.collect::<Vec<_>>(),
    })
}

fn rank_object(rank: &RankReport, operations: usize) -> Value {
    let recording = &rank.recording;
    let operation = |operation: &Operation| {
        json!({
            "number": operation.number,
            "sequence": operation.sequence(),
            "name": operation.name(),
            "call": operation.call(),
            "dtype": operation.dtype().to_string(),
            "count": operation.count(),
            "bytes": operation.bytes(),
            "peer": operation.peer,
            "state": operation.state.to_string(),
            "startedSecondsAgo": recording.taken.saturating_sub(operation.started).as_secs_f64(),
            "queuedSeconds": operation.started.saturating_sub(operation.issued).as_secs_f64(),
            "tookSeconds": operation.ended.map(|end| end.saturating_sub(operation.started).as_secs_f64()),
        })
    };
    let mut object = json!({
        "rank": recording.rank,
        "pid": recording.pid,
        "host": recording.host,
        "state": rank.activity.to_string(),
        "sinceSeconds": rank.since.as_secs_f64(),
        "waitsFor": set(&rank.waits_for),
        "begun": recording.begun,
        "last": recording.operations.last().map(operation),
        "error": recording.failure.as_ref().map(|failure| &failure.text),
    });
    if operations > 0 {
        object["operations"] = last(rank, operations).iter().map(operation).collect();
    }
    object
}

fn set(ranks: &RankSet) -> Value {
    ranks.ranges().map(|range| json!([range.start(), range.end()])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_collectives::flight::{Failure, Process, Recording};

    fn recording(rank: u32) -> Recording {
        let now = Duration::from_secs(100);
        Recording {
            pid: 40 + rank,
            process: Process::Alive,
            rank,
            world: 4,
            epoch: 3,
            identity: 255,
            label: "mnist".to_owned(),
            host: "a".to_owned(),
            neighbours: 4,
            taken: now,
            created: now - Duration::from_secs(13),
            connected: None,
            begun: 0,
            collective: None,
            operations: Vec::new(),
            failure: None,
        }
    }

    fn groups() -> Vec<Group> {
        let failure = Failure { rank: Some(2), text: "rank 2 is lost".to_owned(), at: Duration::from_secs(98) };
        let failed = Recording { failure: Some(failure), ..recording(1) };
        flight::analyse(&[recording(0), failed], PATIENCE)
    }

    #[test]
    fn a_group_is_shown_as_a_table_and_sentences() {
        let shown = text(&groups()[0], 3);
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(
            lines[..5],
            [
                "mnist: epoch 3, 4 ranks, 2 of them not found here",
                "RANK   PID   STATE        LAST-OP   SEQ   SINCE   WAITS-FOR",
                "0      40    connecting   -         -     13.0s   2, 3",
                "1      41    failed       -         -     2.0s    -",
                "2, 3   -     missing      -         -     -       -",
            ]
        );
        let blamed = "rank 2 is blamed by rank 1 for the end of the communicator: rank 2 is lost.";
        assert!(lines[5].starts_with(blamed), "{shown}");
        assert!(lines[6].starts_with("ranks 2, 3 are missing"), "{shown}");
    }

    #[test]
    fn a_group_is_shown_as_an_object() {
        let object = object(&groups()[0], 0);
        assert_eq!((&object["job"], &object["identity"]), (&json!("mnist"), &json!("00000000000000ff")));
        assert_eq!((&object["missing"], &object["ranks"][0]["waitsFor"]), (&json!([[2, 3]]), &json!([[2, 3]])));
        assert_eq!(
            (&object["ranks"][1]["error"], &object["ranks"][1]["state"]),
            (&json!("rank 2 is lost"), &json!("failed"))
        );
        assert_eq!(object["culprits"][0]["cause"], "failed");
    }

    #[test]
    fn groups_are_chosen_whole() {
        let args = |job: Option<&str>, pid| FlightArgs {
            job: job.map(str::to_owned),
            pid,
            ops: 0,
            output: FlightFormat::Table,
        };
        let chosen = |args: FlightArgs| is_chosen(&groups()[0], &args);
        assert!(chosen(args(None, None)) && chosen(args(Some("mnist"), Some(41))));
        assert!(!chosen(args(Some("other"), None)) && !chosen(args(None, Some(42))));
        assert_eq!(nothing(&args(None, None)), "no communicator of this user is running on this machine");
    }
}
