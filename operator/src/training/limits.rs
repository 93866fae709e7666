//! The limits of a run: retries, time, and how long a finished job is kept.

use super::decide::Pass;
use super::observe::{ObservedPod, Phase};
use jiff::Timestamp;
use muster_api::training::{ConditionType, ReplicaSpec, RestartPolicy, conditions};
use std::time::Duration;

/// Exit codes from here on are retried under `ExitCode`.
const FIRST_RETRYABLE_EXIT_CODE: i32 = 128;
/// The exit code of a pod that failed without one (its node was lost, it was evicted): retryable.
const UNKNOWN_EXIT_CODE: i32 = 0xbeef;

/// What becomes of a failed pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is deleted, and made anew.
    Replaced,
    /// Its exit code says that another try is of no use.
    FailsJob,
    /// It stays; the failure rule of the framework decides.
    Stays,
}

/// The fate of a pod by its role's restart policy; `None` for a pod that has not failed.
pub(super) fn fate(pod: &ObservedPod, spec: &ReplicaSpec, container: &str) -> Option<Fate> {
    if pod.phase != Phase::Failed {
        return None;
    }
    Some(match &spec.restart_policy {
        Some(RestartPolicy::OnFailure | RestartPolicy::Always) => Fate::Replaced,
        Some(RestartPolicy::ExitCode) => {
            if pod.exit_code(container).unwrap_or(UNKNOWN_EXIT_CODE) >= FIRST_RETRYABLE_EXIT_CODE {
                Fate::Replaced
            } else {
                Fate::FailsJob
            }
        }
        _ => Fate::Stays,
    })
}

/// The retries that a failed pod stands for: itself, and those that it made in place.
pub(super) fn retries(pod: &ObservedPod) -> i32 {
    pod.restart_count().saturating_add(1)
}

/// Why the job has failed by its own limits, if it has.
pub(super) fn exceeded(pass: &Pass<'_>) -> Option<String> {
    let job = &pass.observed.job;
    if let Some(limit) = job.spec.run_policy.backoff_limit
        && past_backoff(pass, limit)
    {
        return Some(format!("Job {} has failed because it has reached the specified backoff limit", job.name));
    }
    if deadline(pass).is_some_and(|deadline| pass.now >= deadline) {
        return Some(format!("Job {} has failed because it was active longer than specified deadline", job.name));
    }
    None
}

fn past_backoff(pass: &Pass<'_>, limit: i32) -> bool {
    let observed = pass.observed;
    let job = &observed.job;
    let failed = observed.pods.values().filter(|pod| pod.phase == Phase::Failed).count();
    let recorded = pass.status.replica_statuses.values().map(|replicas| replicas.failed).sum::<i32>();
    let new_failure = i32::try_from(failed).unwrap_or(i32::MAX) > recorded;
    let active = observed.pods.values().filter(|pod| pod.is_active()).count();
    let complete = i32::try_from(active).is_ok_and(|active| active == job.total_replicas());
    if new_failure && !complete && limit < 1 {
        return true;
    }
    let mut restarts: i32 = 0;
    for (role, spec) in job.roles() {
        use RestartPolicy::{Always, ExitCode, OnFailure};
        if !matches!(spec.restart_policy, Some(OnFailure | Always | ExitCode)) {
            continue;
        }
        let recorded = pass.status.replica_statuses.get(role);
        restarts = restarts.saturating_add(recorded.map_or(0, |replicas| replicas.restarts));
        for pod in observed.pods_of(role) {
            let counted = recorded.is_some_and(|replicas| replicas.replacing.contains(&pod.uid));
            restarts = restarts.saturating_add(match fate(pod, spec, job.kind.container) {
                Some(Fate::Replaced) if !counted => retries(pod),
                _ if pod.phase == Phase::Running => pod.restart_count(),
                _ => 0,
            });
        }
    }
    if limit == 0 { restarts > 0 } else { restarts >= limit }
}

fn seconds_after(time: Option<&String>, seconds: i64) -> Option<Timestamp> {
    let start: Timestamp = time?.parse().ok()?;
    let seconds = seconds.clamp(-(1 << 40), 1 << 40);
    start.checked_add(jiff::SignedDuration::from_secs(seconds)).ok()
}

fn deadline(pass: &Pass<'_>) -> Option<Timestamp> {
    let seconds = pass.observed.job.spec.run_policy.active_deadline_seconds?;
    seconds_after(pass.status.start_time.as_ref(), seconds)
}

fn until(now: Timestamp, then: Timestamp) -> Duration {
    Duration::try_from(now.duration_until(then)).unwrap_or_default()
}

/// Asks for another look when the deadline passes.
pub(super) fn watch_deadline(pass: &mut Pass<'_>) {
    if let Some(deadline) = deadline(pass) {
        let after = until(pass.now, deadline);
        pass.plan.requeue(after);
    }
}

/// Deletes a finished job when its time is over.
pub(super) fn expire(pass: &mut Pass<'_>) {
    let policy = &pass.observed.job.spec.run_policy;
    let Some(ttl) = policy.ttl_seconds_after_finished.filter(|_| !policy.is_suspended()) else { return };
    // A job that failed under an operator that wrote no completion time ended when it became Failed.
    let failed = || conditions::get(&pass.status, ConditionType::Failed)?.last_transition_time.as_ref();
    let end = pass.status.completion_time.as_ref().or_else(failed);
    let Some(expiry) = seconds_after(end, i64::from(ttl)) else { return };
    if pass.now >= expiry {
        pass.plan.delete_job = true;
    } else {
        let after = until(pass.now, expiry);
        pass.plan.requeue(after);
    }
}
