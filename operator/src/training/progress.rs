//! How the counts of pods become the job's conditions.

use super::decide::Pass;
use super::framework::{CrowdDone, FailureRule, Subject};
use super::plan::{Reason, Severity, Word};
use muster_api::clock::rfc3339;
use muster_api::training::{Condition, ConditionType, ReplicaSpec, ReplicaStatus, RestartPolicy, conditions};

/// Brings the conditions up to date with `replicaStatuses`.
pub(super) fn decide(pass: &mut Pass<'_>) {
    pass.status.start_time.get_or_insert_with(|| rfc3339(pass.now));
    let job = &pass.observed.job;
    let chief = pass.framework.chief(job);
    let crowd = pass.framework.crowd_role(job);
    let restarting = conditions::get(&pass.status, ConditionType::Restarting).cloned();
    for (role, spec) in job.roles() {
        let counts = pass.status.replica_statuses.get(role).cloned().unwrap_or_default();
        let all_done = spec.count() == counts.succeeded;
        if chief.is_some() {
            if pass.framework.chiefs.contains(&role) {
                let subject = pass.framework.chief_subject;
                if counts.active > 0 {
                    running(pass, subject);
                }
                if all_done {
                    return succeeded(pass, subject);
                }
            }
        } else if crowd == Some(role) {
            let subject = pass.framework.crowd_subject;
            if all_done || crowd_done(pass, role, &counts) {
                return succeeded(pass, subject);
            }
            if counts.active > 0 {
                running(pass, subject);
            }
        }
        if counts.failed > 0 {
            failure(pass, role, spec, &counts, restarting.as_ref());
        }
    }
}

/// Whether fewer than all of the crowd are enough.
fn crowd_done(pass: &Pass<'_>, role: &str, counts: &ReplicaStatus) -> bool {
    let spec = &pass.observed.job.spec;
    match pass.framework.crowd.done {
        CrowdDone::All => false,
        CrowdDone::AllOrAnyIfElastic => spec.elastic_policy.is_some() && counts.succeeded > 0,
        CrowdDone::FirstOrAll => {
            let container = pass.framework.kind.container;
            let first = pass.observed.pod(role, 0);
            spec.success_policy.as_deref() != Some("AllWorkers")
                && first.is_some_and(|pod| {
                    pod.phase == super::observe::Phase::Succeeded && pod.exit_code(container) == Some(0)
                })
        }
    }
}

fn running(pass: &mut Pass<'_>, subject: Subject) {
    let job = &pass.observed.job;
    let kind = job.kind.kind;
    let message = match subject {
        Subject::Name => format!("{kind} {} is running.", job.name),
        Subject::NamespacedName => format!("{kind} {}/{} is running.", job.namespace, job.name),
    };
    pass.condition(ConditionType::Running, true, Word::Running, &message);
}

fn succeeded(pass: &mut Pass<'_>, subject: Subject) {
    if conditions::is_true(&pass.status, ConditionType::Failed) {
        return;
    }
    let job = &pass.observed.job;
    let kind = job.kind.kind;
    let message = match subject {
        Subject::Name => format!("{kind} {} is successfully completed.", job.name),
        Subject::NamespacedName => format!("{kind} {}/{} successfully completed.", job.namespace, job.name),
    };
    pass.complete();
    pass.condition(ConditionType::Succeeded, true, Word::Succeeded, &message);
    pass.plan.event(Severity::Normal, Reason::of(job.kind, Word::Succeeded), message);
}

fn failure(
    pass: &mut Pass<'_>,
    role: &str,
    spec: &ReplicaSpec,
    counts: &ReplicaStatus,
    restarting: Option<&Condition>,
) {
    let job = &pass.observed.job;
    match pass.framework.failure {
        FailureRule::WhileMissing => {
            if spec.count() > counts.succeeded.saturating_add(counts.active) {
                match spec.restart_policy {
                    Some(RestartPolicy::Never) => failed(pass, role, counts.failed),
                    _ => restarts(pass, role, counts.failed),
                }
            }
        }
        FailureRule::UnlessRestarting { tolerated } => {
            if !job.kind.roles.iter().any(|known| known.name == role) {
                return;
            }
            if let Some(condition) = restarting {
                // Another role that runs has taken the condition away: it is put back.
                let now = rfc3339(pass.now);
                let (reason, message) = (&condition.reason, &condition.message);
                conditions::set(&mut pass.status, ConditionType::Restarting, true, reason, message, &now);
            } else if !(job.spec.enable_dynamic_worker && role == tolerated) {
                failed(pass, role, counts.failed);
            }
        }
        FailureRule::UnlessExitCode => match spec.restart_policy {
            Some(RestartPolicy::ExitCode) => restarts(pass, role, counts.failed),
            _ => failed(pass, role, counts.failed),
        },
    }
}

/// The job as failure messages name it.
fn subject(pass: &Pass<'_>) -> String {
    let (job, phrase) = (&pass.observed.job, pass.framework.failure_phrase);
    if phrase.namespaced {
        format!("{} {}/{}", phrase.kind, job.namespace, job.name)
    } else {
        format!("{} {}", phrase.kind, job.name)
    }
}

fn failed(pass: &mut Pass<'_>, role: &str, count: i32) {
    let verb = pass.framework.failure_phrase.failed;
    let message = format!("{} {verb} because {count} {role} replica(s) failed.", subject(pass));
    pass.complete();
    pass.condition(ConditionType::Failed, true, Word::Failed, &message);
    pass.plan.event(Severity::Normal, Reason::of(pass.framework.kind, Word::Failed), message);
}

fn restarts(pass: &mut Pass<'_>, role: &str, count: i32) {
    if conditions::is_true(&pass.status, ConditionType::Failed) {
        return;
    }
    let message = format!("{} is restarting because {count} {role} replica(s) failed.", subject(pass));
    pass.condition(ConditionType::Restarting, true, Word::Restarting, &message);
    pass.plan.event(Severity::Warning, Reason::of(pass.framework.kind, Word::Restarting), message);
}
