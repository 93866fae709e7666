//! `muster wait`: until a condition holds or an object is gone.

use crate::cli::WaitArgs;
use crate::client::{Connection, Kind, Kinds};
use crate::exit::ExitStatus;
use anyhow::{Result, bail};
use serde_json::Value;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout_at};

/// What is waited for.
#[derive(Debug, PartialEq)]
enum Goal {
    Deleted,
    Condition { kind: String, status: String },
}

/// What an object says about a goal.
#[derive(Debug, PartialEq)]
enum Verdict {
    Reached,
    NotYet,
    /// It will not be reached any more.
    Lost(String),
}

pub(crate) async fn run(args: &WaitArgs) -> Result<ExitStatus> {
    let goal = parse(&args.condition)?;
    let connection = Connection::open(&args.target).await?;
    let kinds = Kinds::discover(&connection).await?;
    let deadline = Instant::now() + args.timeout;
    for (kind, name) in kinds.select_named(&args.what)? {
        let what = format!("{}/{name}", kind.qualified());
        match timeout_at(deadline, reach(&connection, &kind, &name, &goal)).await {
            Ok(Verdict::Lost(why)) => bail!("{what} will not get there: {why}"),
            Ok(_) if goal == Goal::Deleted => println!("{what} deleted"),
            Ok(_) => println!("{what} condition met"),
            Err(_) => {
                eprintln!("error: timed out waiting for {} of {what}", args.condition);
                return Ok(ExitStatus::TimedOut);
            }
        }
    }
    Ok(ExitStatus::Success)
}

/// Asks again and again: a server may come and go while one waits.
async fn reach(connection: &Connection, kind: &Kind, name: &str, goal: &Goal) -> Verdict {
    let path = kind.object(&connection.namespace, name);
    let mut pause = Duration::from_millis(20);
    loop {
        if let Ok(object) = connection.find(&path).await {
            let verdict = judge(object.as_ref(), kind, goal);
            if verdict != Verdict::NotYet {
                return verdict;
            }
        }
        sleep(pause).await;
        pause = (pause * 3 / 2).min(Duration::from_millis(500));
    }
}

fn judge(object: Option<&Value>, kind: &Kind, goal: &Goal) -> Verdict {
    let Goal::Condition { kind: wanted, status } = goal else {
        return if object.is_none() { Verdict::Reached } else { Verdict::NotYet };
    };
    let Some(object) = object else { return Verdict::Lost("it does not exist".to_owned()) };
    let conditions = object.pointer("/status/conditions").and_then(Value::as_array);
    let find = |name: &str| {
        conditions.into_iter().flatten().find(|c| c["type"].as_str().is_some_and(|t| t.eq_ignore_ascii_case(name)))
    };
    if find(wanted).is_some_and(|c| c["status"].as_str().is_some_and(|s| s.eq_ignore_ascii_case(status))) {
        return Verdict::Reached;
    }
    // The end of a job is final: what has not come by then will not come.
    for end in ["Failed", "Succeeded"] {
        if kind.is_training_job()
            && !end.eq_ignore_ascii_case(wanted)
            && let Some(condition) = find(end).filter(|c| c["status"] == "True")
        {
            return Verdict::Lost(condition["message"].as_str().unwrap_or(end).to_owned());
        }
    }
    Verdict::NotYet
}

fn parse(text: &str) -> Result<Goal> {
    if text.eq_ignore_ascii_case("delete") {
        return Ok(Goal::Deleted);
    }
    let condition = text.strip_prefix("condition=").unwrap_or(text);
    let (kind, status) = condition.split_once('=').unwrap_or((condition, "True"));
    if kind.is_empty() || status.is_empty() {
        bail!("--for {text:?}: expected CONDITION, CONDITION=STATUS or delete");
    }
    Ok(Goal::Condition { kind: kind.to_owned(), status: status.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn job(condition: &str) -> Value {
        json!({"status": {"conditions": [{"type": condition, "status": "True", "message": "why"}]}})
    }

    #[test]
    fn a_job_that_ended_otherwise_is_not_waited_for() {
        let kind = Kind {
            group: "kubeflow.org".into(),
            version: "v1".into(),
            kind: "PyTorchJob".into(),
            plural: "pytorchjobs".into(),
            singular: "pytorchjob".into(),
            short_names: vec![],
            namespaced: true,
            verbs: vec![],
        };
        let judge = |object: Option<Value>, goal: &str| judge(object.as_ref(), &kind, &parse(goal).unwrap());
        assert_eq!(judge(Some(job("Running")), "Succeeded"), Verdict::NotYet);
        assert_eq!(judge(Some(job("Succeeded")), "condition=succeeded"), Verdict::Reached);
        assert_eq!(judge(Some(job("Failed")), "Succeeded"), Verdict::Lost("why".into()));
        assert_eq!(judge(Some(job("Failed")), "Failed"), Verdict::Reached);
        assert_eq!(judge(Some(job("Running")), "Running=False"), Verdict::NotYet);
        assert_eq!(judge(None, "delete"), Verdict::Reached);
        assert!(matches!(judge(None, "Succeeded"), Verdict::Lost(_)));
    }
}
