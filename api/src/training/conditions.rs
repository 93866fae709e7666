//! The algebra of job conditions. Every change of a condition goes through [`set`].

use super::types::{Condition, ConditionType, JobStatus};

/// Whether a condition of this type has the status `True`.
pub fn is_true(status: &JobStatus, kind: ConditionType) -> bool {
    status.conditions.iter().any(|c| c.kind == kind && c.status == "True")
}

pub fn get(status: &JobStatus, kind: ConditionType) -> Option<&Condition> {
    status.conditions.iter().find(|c| c.kind == kind)
}

/// Sets a condition at the time `now`.
///
/// - Nothing changes any more once `Failed` is true.
/// - A condition that already has this status and reason stays as it is, message and times included.
/// - A change that keeps the status keeps `lastTransitionTime`.
/// - The changed condition becomes the last one.
/// - `Running` and `Restarting` exclude each other: setting one removes the other.
/// - `Succeeded` and `Failed` turn `Running` to `False` and leave its times alone.
pub fn set(status: &mut JobStatus, kind: ConditionType, value: bool, reason: &str, message: &str, now: &str) {
    use ConditionType::{Failed, Restarting, Running, Succeeded};
    if is_true(status, Failed) {
        return;
    }
    let value = if value { "True" } else { "False" };
    let mut transition = now.to_owned();
    if let Some(current) = get(status, kind).filter(|c| c.status == value) {
        if current.reason == reason {
            return;
        }
        transition = current.last_transition_time.clone().unwrap_or(transition);
    }
    status
        .conditions
        .retain(|c| c.kind != kind && !matches!((kind, c.kind), (Restarting, Running) | (Running, Restarting)));
    if matches!(kind, Failed | Succeeded) {
        for running in status.conditions.iter_mut().filter(|c| c.kind == Running) {
            running.status = "False".to_owned();
        }
    }
    status.conditions.push(Condition {
        kind,
        status: value.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        last_update_time: Some(now.to_owned()),
        last_transition_time: Some(transition),
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use ConditionType::*;
    use proptest::prelude::*;

    fn shape(status: &JobStatus) -> Vec<(ConditionType, &str, &str, &str)> {
        status
            .conditions
            .iter()
            .map(|c| {
                (
                    c.kind,
                    c.status.as_str(),
                    c.last_update_time.as_deref().unwrap_or(""),
                    c.last_transition_time.as_deref().unwrap_or(""),
                )
            })
            .collect()
    }

    #[test]
    fn sequences() {
        type Step = (ConditionType, bool, &'static str, &'static str);
        type Expected = Vec<(ConditionType, &'static str, &'static str, &'static str)>;
        let table: Vec<(&str, Vec<Step>, Expected)> = vec![
            (
                "same status and reason changes nothing",
                vec![(Created, true, "A", "1"), (Created, true, "A", "2")],
                vec![(Created, "True", "1", "1")],
            ),
            (
                "another reason keeps the transition time and moves to the end",
                vec![(Created, true, "A", "1"), (Running, true, "R", "2"), (Created, true, "B", "3")],
                vec![(Running, "True", "2", "2"), (Created, "True", "3", "1")],
            ),
            (
                "restarting removes running, and back",
                vec![(Running, true, "R", "1"), (Restarting, true, "X", "2"), (Running, true, "R", "3")],
                vec![(Running, "True", "3", "3")],
            ),
            (
                "success ends running without touching its times",
                vec![(Running, true, "R", "1"), (Succeeded, true, "S", "2")],
                vec![(Running, "False", "1", "1"), (Succeeded, "True", "2", "2")],
            ),
            (
                "nothing changes after failure",
                vec![(Running, true, "R", "1"), (Failed, true, "F", "2"), (Restarting, true, "X", "3")],
                vec![(Running, "False", "1", "1"), (Failed, "True", "2", "2")],
            ),
            (
                "suspension and resumption",
                vec![
                    (Running, true, "R", "1"),
                    (Running, false, "S", "2"),
                    (Suspended, true, "S", "2"),
                    (Suspended, false, "Resumed", "3"),
                ],
                vec![(Running, "False", "2", "2"), (Suspended, "False", "3", "3")],
            ),
        ];
        for (name, steps, expected) in table {
            let mut status = JobStatus::default();
            for (kind, value, reason, now) in steps {
                set(&mut status, kind, value, reason, "", now);
            }
            assert_eq!(shape(&status), expected, "{name}");
        }
    }

    fn kinds() -> impl Strategy<Value = ConditionType> {
        prop_oneof![Just(Created), Just(Running), Just(Restarting), Just(Succeeded), Just(Suspended), Just(Failed)]
    }

    proptest! {
        #[test]
        fn laws(steps in proptest::collection::vec((kinds(), any::<bool>(), 0u8..3), 0..40)) {
            let mut status = JobStatus::default();
            for (time, (kind, value, reason)) in steps.into_iter().enumerate() {
                let before = status.clone();
                let now = format!("{time:04}");
                let reason = format!("R{reason}");
                set(&mut status, kind, value, &reason, "message", &now);
                let changed = status != before;

                let mut seen: Vec<_> = status.conditions.iter().map(|c| c.kind).collect();
                seen.sort();
                seen.dedup();
                prop_assert_eq!(seen.len(), status.conditions.len(), "one condition of each type");
                prop_assert!(
                    get(&status, Running).is_none() || get(&status, Restarting).is_none(),
                    "running and restarting exclude each other"
                );
                if is_true(&before, Failed) {
                    prop_assert!(!changed, "failed is final");
                }
                if changed && kind == Succeeded && is_true(&status, Succeeded) {
                    prop_assert!(!is_true(&status, Running));
                }
                if changed {
                    let last = status.conditions.last().expect("a change leaves a condition");
                    prop_assert_eq!(last.kind, kind);
                    prop_assert_eq!(last.last_update_time.as_deref(), Some(now.as_str()));
                    let same_status = get(&before, kind).filter(|c| c.status == last.status);
                    match same_status {
                        Some(old) => prop_assert_eq!(&last.last_transition_time, &old.last_transition_time),
                        None => prop_assert_eq!(last.last_transition_time.as_deref(), Some(now.as_str())),
                    }
                }
                let again = status.clone();
                set(&mut status, kind, value, &reason, "other", "9999");
                prop_assert_eq!(&status, &again, "setting twice is setting once");
            }
        }
    }
}
