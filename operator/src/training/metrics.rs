//! Counters, as Prometheus reads them.

use super::plan::Count;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Arc, Mutex, PoisonError};

/// What the operator has done so far. Clones share the counts.
#[derive(Clone, Debug, Default)]
pub struct Metrics(Arc<Mutex<Counts>>);

#[derive(Debug, Default)]
struct Counts {
    /// By metric, then by namespace and framework.
    jobs: BTreeMap<&'static str, BTreeMap<(String, &'static str), u64>>,
    totals: BTreeMap<&'static str, u64>,
}

pub(super) const CREATED_PODS: &str = "created_pods_total";
pub(super) const DELETED_PODS: &str = "deleted_pods_total";
const FAILED_PODS: &str = "failed_pods_total";
pub(super) const CREATED_SERVICES: &str = "succeeded_service_creation_total";
pub(super) const FAILED_SERVICES: &str = "failed_service_creation_total";
pub(super) const CREATED_POD_GROUPS: &str = "created_pod_groups_total";
pub(super) const DELETED_POD_GROUPS: &str = "deleted_pod_groups_total";
pub(super) const DELETED_JOBS: &str = "training_operator_jobs_deleted_total";
const CREATED_JOBS: &str = "training_operator_jobs_created_total";
const SUCCESSFUL_JOBS: &str = "training_operator_jobs_successful_total";
const FAILED_JOBS: &str = "training_operator_jobs_failed_total";
const RESTARTED_JOBS: &str = "training_operator_jobs_restarted_total";

const JOBS: [(&str, &str); 5] = [
    (CREATED_JOBS, "Counts number of jobs created"),
    (DELETED_JOBS, "Counts number of jobs deleted"),
    (SUCCESSFUL_JOBS, "Counts number of jobs successful"),
    (FAILED_JOBS, "Counts number of jobs failed"),
    (RESTARTED_JOBS, "Counts number of jobs restarted"),
];

const TOTALS: [(&str, &str); 7] = [
    (CREATED_PODS, "The total number of created pods"),
    (DELETED_PODS, "The total number of deleted pods"),
    (FAILED_PODS, "The total number of failed pods"),
    (CREATED_SERVICES, "The total number of succeeded service creation"),
    (FAILED_SERVICES, "The total number of failed service creation"),
    (CREATED_POD_GROUPS, "The total number of created pod groups"),
    (DELETED_POD_GROUPS, "The total number of deleted pod groups"),
];

impl Metrics {
    fn with<R>(&self, f: impl FnOnce(&mut Counts) -> R) -> R {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn job(&self, metric: &'static str, namespace: &str, framework: &'static str) {
        self.with(|counts| {
            let series = counts.jobs.entry(metric).or_default();
            *series.entry((namespace.to_owned(), framework)).or_default() += 1;
        });
    }

    pub(super) fn total(&self, metric: &'static str) {
        self.with(|counts| *counts.totals.entry(metric).or_default() += 1);
    }

    pub(super) fn count(&self, count: Count, namespace: &str, framework: &'static str) {
        match count {
            Count::Created => self.job(CREATED_JOBS, namespace, framework),
            Count::Successful => self.job(SUCCESSFUL_JOBS, namespace, framework),
            Count::Failed => self.job(FAILED_JOBS, namespace, framework),
            Count::Restarted => self.job(RESTARTED_JOBS, namespace, framework),
            Count::FailedPod => self.total(FAILED_PODS),
        }
    }

    /// The counts in the text format of Prometheus.
    pub fn render(&self) -> String {
        self.with(|counts| {
            let mut out = String::new();
            for (metric, help) in JOBS {
                let _ = writeln!(out, "# HELP {metric} {help}\n# TYPE {metric} counter");
                for ((namespace, framework), count) in counts.jobs.get(metric).into_iter().flatten() {
                    let labels = format!("framework=\"{framework}\",job_namespace=\"{namespace}\"");
                    let _ = writeln!(out, "{metric}{{{labels}}} {count}");
                }
            }
            for (metric, help) in TOTALS {
                let count = counts.totals.get(metric).copied().unwrap_or_default();
                let _ = writeln!(out, "# HELP {metric} {help}\n# TYPE {metric} counter\n{metric} {count}");
            }
            out
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_rendered_by_namespace_and_framework() {
        let metrics = Metrics::default();
        metrics.count(Count::Created, "a", "pytorch");
        metrics.count(Count::Created, "a", "pytorch");
        metrics.count(Count::Failed, "b", "tensorflow");
        metrics.total(CREATED_PODS);
        let text = metrics.render();
        for line in [
            "training_operator_jobs_created_total{framework=\"pytorch\",job_namespace=\"a\"} 2",
            "training_operator_jobs_failed_total{framework=\"tensorflow\",job_namespace=\"b\"} 1",
            "# TYPE training_operator_jobs_restarted_total counter",
            "created_pods_total 1",
            "failed_pods_total 0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is missing in\n{text}");
        }
    }
}
