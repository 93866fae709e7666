//! A terminal status is final: a job that has succeeded or failed stays so, and so does a pod.

use super::Invariant;
use crate::cluster::{Change, Cluster, JOBS, Job, PODS, Pod, uid};

pub(super) struct TerminalFinal;

impl Invariant for TerminalFinal {
    fn name(&self) -> &'static str {
        "terminal-final"
    }

    fn observe(&mut self, changes: &[Change], _cluster: &Cluster) -> Result<(), String> {
        for change in changes {
            let (Some(before), Some(after)) = (&change.before, &change.after) else { continue };
            if uid(before) != uid(after) {
                continue;
            }
            let (was, is) = if change.key.resource == PODS {
                let (before, after) = (Pod(before), Pod(after));
                (before.is_finished().then(|| before.phase()), Some(after.phase()))
            } else if JOBS.contains(&change.key.resource.as_str()) {
                (Job(before).ending(), Job(after).ending())
            } else {
                continue;
            };
            let both = was == Some("Succeeded")
                && JOBS.contains(&change.key.resource.as_str())
                && Job(after).has_condition("Failed");
            if both && !Job(before).has_condition("Failed") {
                return Err(format!("{} had succeeded and has failed", change.key));
            }
            if let Some(was) = was
                && is != Some(was)
            {
                return Err(format!("{} was {was} and is {}", change.key, is.unwrap_or("unfinished")));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::cluster::Key;

    fn job(uid: &str, kind: &str, status: &str) -> Value {
        json!({"metadata": {"uid": uid}, "status": {"conditions": [{"type": kind, "status": status}]}})
    }

    #[test]
    fn a_new_job_of_the_name_is_another_job() {
        let mut cluster = Cluster::default();
        let key = || Key::parse("kubeflow.org/tfjobs/a/x").expect("a key");
        cluster.apply(key(), Some(job("1", "Failed", "True")));
        let same = cluster.apply(key(), Some(job("1", "Failed", "False")));
        assert!(TerminalFinal.observe(&[same], &cluster).is_err());
        cluster.apply(key(), Some(job("1", "Failed", "True")));
        let other = cluster.apply(key(), Some(job("2", "Running", "True")));
        assert_eq!(TerminalFinal.observe(&[other], &cluster), Ok(()));
    }
}
