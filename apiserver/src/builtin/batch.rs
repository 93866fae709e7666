//! Jobs and cron jobs: stored, not acted on.

use super::columns::{Column, Doc};
use super::metadata::{IMMUTABLE, NOT_NEGATIVE};
use super::rows::{
    AGE, CONTAINERS, IMAGES, NAME, age, containers_and_images, duration, name, or_none, seconds, selector, since,
};
use super::table::WITH_STATUS;
use super::value::{child, field, fields, fill, flag, int, items_mut, list, text};
use super::{BuiltinKind, Context, idle, job_rules, label_selector, pod, wire};
use crate::schema::internal;
use k8s_openapi::api::batch::v1::{CronJobSpec, CronJobStatus, JobSpec};
use muster_api::field::FieldError;
use schemars::JsonSchema;
use serde_json::{Map, Value, json};

const BATCH: BuiltinKind =
    BuiltinKind { group: "batch", categories: &["all"], generation: true, idle: idle::WORKLOAD, ..WITH_STATUS };

pub(super) const KINDS: &[BuiltinKind] = &[
    BuiltinKind {
        kind: "CronJob",
        warnings: |cron, old| pod::warnings::workload(cron, old, "spec.jobTemplate.spec.template", true),
        plural: "cronjobs",
        singular: "cronjob",
        short_names: &["cj"],
        default: |cron| {
            wire::normalise(cron);
            child(cron, "status");
            let spec = child(cron, "spec");
            fill(spec, "concurrencyPolicy", "Allow");
            fill(spec, "suspend", false);
            fill(spec, "successfulJobsHistoryLimit", 3);
            fill(spec, "failedJobsHistoryLimit", 1);
            let job = child(spec, "jobTemplate");
            child(job, "metadata");
            pod::defaults::template(child(child(job, "spec"), "template"));
        },
        prepare_create: |cron, _| {
            fields(cron).insert("status".into(), json!({}));
        },
        validate: |cron, _| validate_cron_job(cron),
        columns: &[
            NAME,
            Column::new("Schedule", Doc::Field(CronJobSpec::json_schema, "schedule")),
            Column::new("Timezone", Doc::Field(CronJobSpec::json_schema, "timeZone")),
            Column::new("Suspend", Doc::Field(CronJobSpec::json_schema, "suspend")).typed("boolean"),
            Column::new("Active", Doc::Field(CronJobStatus::json_schema, "active")).typed("integer"),
            Column::new("Last Schedule", Doc::Field(CronJobStatus::json_schema, "lastScheduleTime")),
            AGE,
            CONTAINERS,
            IMAGES,
            Column::wide("Selector", Doc::Field(JobSpec::json_schema, "selector")),
        ],
        row: cron_row,
        ..BATCH
    },
    BuiltinKind {
        kind: "Job",
        warnings: |job, old| pod::warnings::workload(job, old, "spec.template", true),
        plural: "jobs",
        singular: "job",
        orphan_by_default: true,
        default: default_job,
        prepare_create: create_job,
        validate: |job, _| validate_job(job),
        validate_update: validate_job_update,
        columns: &[
            NAME,
            Column::new("Status", Doc::Text("Status of the job.")),
            Column::new("Completions", Doc::Field(k8s_openapi::api::batch::v1::JobStatus::json_schema, "succeeded")),
            Column::new("Duration", Doc::Text("Time required to complete the job.")),
            AGE,
            CONTAINERS,
            IMAGES,
            Column::wide("Selector", Doc::Field(JobSpec::json_schema, "selector")),
        ],
        row: job_row,
        fields: |job| {
            let mut values = Map::new();
            let succeeded = int(job, "/status/succeeded").unwrap_or(0);
            values.insert("status.successful".into(), succeeded.to_string().into());
            values
        },
        field_labels: &["status.successful"],
        ..BATCH
    },
];

const CONTROLLER_UID: &str = "batch.kubernetes.io/controller-uid";

fn default_job(job: &mut Value) {
    wire::normalise(job);
    child(job, "status");
    let spec = child(job, "spec");
    if spec.get("completions").is_none() && spec.get("parallelism").is_none() {
        fill(spec, "completions", 1);
    }
    fill(spec, "parallelism", 1);
    if spec.get("backoffLimitPerIndex").is_none() {
        fill(spec, "backoffLimit", 6);
    } else {
        fill(spec, "backoffLimit", i32::MAX);
    }
    fill(spec, "completionMode", "NonIndexed");
    fill(spec, "suspend", false);
    fill(spec, "manualSelector", false);
    let replacement = if spec.get("podFailurePolicy").is_some() { "Failed" } else { "TerminatingOrFailed" };
    fill(spec, "podReplacementPolicy", replacement);
    if let Some(policy) = spec.get_mut("podFailurePolicy") {
        for rule in items_mut(policy, "rules") {
            for condition in items_mut(rule, "onPodConditions") {
                fill(condition, "status", "True");
            }
        }
    }
    pod::defaults::template(child(spec, "template"));
    take_template_labels(job);
}

/// A job without labels has those of its pods.
fn take_template_labels(job: &mut Value) {
    if let Some(labels) = job.pointer("/spec/template/metadata/labels").cloned() {
        fill(child(job, "metadata"), "labels", labels);
    }
}

/// The selector and the labels that tie a job to its own pods.
fn create_job(job: &mut Value, _: &Context<'_>) {
    fields(job).insert("status".into(), json!({}));
    let (uid, name) = (text(job, "/metadata/uid").to_owned(), text(job, "/metadata/name").to_owned());
    let spec = child(job, "spec");
    if flag(spec, "/manualSelector") {
        return;
    }
    let labels = child(child(child(spec, "template"), "metadata"), "labels");
    for (key, value) in
        [("controller-uid", &uid), (CONTROLLER_UID, &uid), ("job-name", &name), ("batch.kubernetes.io/job-name", &name)]
    {
        fill(labels, key, value.clone());
    }
    fill(child(child(spec, "selector"), "matchLabels"), CONTROLLER_UID, uid);
    take_template_labels(job);
}

fn validate_job(job: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if !flag(job, "/spec/manualSelector") {
        let labels = job.pointer("/spec/selector/matchLabels").and_then(Value::as_object);
        let generated = labels.is_some_and(|l| l.len() == 1 && l.contains_key(CONTROLLER_UID));
        if !generated {
            let value = job.pointer("/spec/selector").unwrap_or(&Value::Null);
            errors.push(FieldError::invalid("spec.selector", value, "`selector` not auto-generated"));
        }
    }
    errors.extend(job_spec(job));
    let selector = job.pointer("/spec/selector");
    let labels = job.pointer("/spec/template/metadata/labels");
    if !label_selector::matches(selector, labels) {
        let value = labels.unwrap_or(&Value::Null);
        let why = "`selector` does not match template `labels`";
        errors.push(FieldError::invalid("spec.template.metadata.labels", value, why));
    }
    errors
}

fn not_negative(object: &Value, path: &str, keys: &[&str], errors: &mut Vec<FieldError>) {
    for key in keys {
        if let Some(value) = object.get(*key).filter(|v| v.as_i64().is_some_and(|n| n < 0)) {
            errors.push(FieldError::invalid(format!("{path}.{key}"), value, NOT_NEGATIVE));
        }
    }
}

fn job_spec(job: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let empty = json!({});
    let spec = job.get("spec").unwrap_or(&empty);
    if spec.get("selector").is_none() {
        errors.push(FieldError::required("spec.selector", ""));
    }
    spec_errors(spec, "spec", &mut errors);
    errors
}

fn spec_errors(spec: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let counts = [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ];
    not_negative(spec, path, &counts, errors);
    match field(spec, "completionMode") {
        "" | "NonIndexed" => {}
        "Indexed" => {
            if spec.get("completions").is_none() {
                errors.push(FieldError::required(format!("{path}.completions"), "when completion mode is Indexed"));
            }
            if let Some(parallelism) = spec.get("parallelism").filter(|p| p.as_i64() > Some(100_000)) {
                let why = "must be less than or equal to 100000 when completion mode is Indexed";
                errors.push(FieldError::invalid(format!("{path}.parallelism"), parallelism, why));
            }
        }
        mode => {
            let path = format!("{path}.completionMode");
            errors.push(FieldError::not_supported(path, &Value::from(mode), &["NonIndexed", "Indexed"]));
        }
    }
    job_rules::spec(spec, path, errors);
    let empty = json!({});
    let template = spec.get("template").unwrap_or(&empty);
    errors.extend(pod::validate::template(template, &format!("{path}.template")));
    if text(template, "/spec/restartPolicy") == "Always" {
        let field = format!("{path}.template.spec.restartPolicy");
        errors.push(FieldError::required(field, "valid values: \"OnFailure\", \"Never\""));
    } else if !["OnFailure", "Never"].contains(&text(template, "/spec/restartPolicy")) {
        let field = format!("{path}.template.spec.restartPolicy");
        let policy = Value::from(text(template, "/spec/restartPolicy"));
        errors.push(FieldError::not_supported(field, &policy, &["OnFailure", "Never"]));
    }
}

fn validate_job_update(new: &Value, old: &Value, context: &Context<'_>) -> Vec<FieldError> {
    if context.subresource == "status" {
        return job_rules::status(new, old);
    }
    let mut errors = job_spec(new);
    let empty = json!({});
    let (after, before) = (new.get("spec").unwrap_or(&empty), old.get("spec").unwrap_or(&empty));
    completions(after, before, &mut errors);
    let template_is_open = flag(before, "/suspend") && old.pointer("/status/startTime").is_none();
    let mut new_template = after.get("template").cloned().unwrap_or_default();
    if template_is_open {
        // A job that has not begun may still be told where to run.
        let old_template = before.get("template").cloned().unwrap_or_default();
        for (part, keys) in [
            ("spec", &["nodeSelector", "affinity", "tolerations", "schedulingGates"][..]),
            ("metadata", &["labels", "annotations"]),
        ] {
            for key in keys {
                let target = fields(child(&mut new_template, part));
                match old_template.get(part).and_then(|p| p.get(*key)) {
                    Some(value) => target.insert((*key).to_owned(), value.clone()),
                    None => target.remove(*key),
                };
            }
        }
    }
    for key in [
        "selector",
        "template",
        "completionMode",
        "podFailurePolicy",
        "backoffLimitPerIndex",
        "managedBy",
        "successPolicy",
    ] {
        let value = if key == "template" { Some(&new_template) } else { after.get(key) };
        if value != before.get(key) {
            let shown = value.unwrap_or(&Value::Null);
            let path = format!("spec.{key}");
            errors.push(match key {
                "template" => internal::invalid(&path, "core.PodTemplateSpec", shown, IMMUTABLE),
                "podFailurePolicy" => internal::invalid(&path, "*batch.PodFailurePolicy", shown, IMMUTABLE),
                "successPolicy" => internal::invalid(&path, "*batch.SuccessPolicy", shown, IMMUTABLE),
                _ => FieldError::invalid(path, shown, IMMUTABLE),
            });
        }
    }
    errors
}

fn completions(after: &Value, before: &Value, errors: &mut Vec<FieldError>) {
    let number = |spec: &Value, key: &str| spec.get(key).and_then(Value::as_i64);
    let (new, old) = (number(after, "completions"), number(before, "completions"));
    if new == old {
        return;
    }
    let value = after.get("completions").unwrap_or(&Value::Null);
    if field(before, "completionMode") != "Indexed" {
        errors.push(FieldError::invalid("spec.completions", value, IMMUTABLE));
    } else if new != number(after, "parallelism") || old != number(before, "parallelism") {
        let why = "can only be modified in tandem with spec.parallelism";
        errors.push(FieldError::invalid("spec.completions", value, why));
    }
}

fn validate_cron_job(cron: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let empty = json!({});
    let spec = cron.get("spec").unwrap_or(&empty);
    let schedule = field(spec, "schedule");
    if schedule.is_empty() {
        errors.push(FieldError::required("spec.schedule", ""));
    } else if schedule.contains("TZ") {
        let why = "cannot use TZ or CRON_TZ in schedule, use timeZone field instead";
        errors.push(FieldError::invalid("spec.schedule", &Value::from(schedule), why));
    } else if let Some(why) = schedule_error(schedule) {
        errors.push(FieldError::invalid("spec.schedule", &Value::from(schedule), why));
    }
    if spec.get("timeZone").is_some_and(|zone| zone == "") {
        let why = "timeZone must be nil or non-empty string";
        errors.push(FieldError::invalid("spec.timeZone", &Value::from(""), why));
    }
    not_negative(
        spec,
        "spec",
        &["startingDeadlineSeconds", "successfulJobsHistoryLimit", "failedJobsHistoryLimit"],
        &mut errors,
    );
    let policy = field(spec, "concurrencyPolicy");
    let policies = ["Allow", "Forbid", "Replace"];
    if !policies.contains(&policy) {
        errors.push(FieldError::not_supported("spec.concurrencyPolicy", &Value::from(policy), &policies));
    }
    let job = spec.pointer("/jobTemplate/spec").unwrap_or(&empty);
    if job.get("manualSelector").is_some() {
        let path = "spec.jobTemplate.spec.manualSelector";
        if flag(job, "/manualSelector") {
            errors.push(FieldError::not_supported(path, &Value::Bool(true), &["nil", "false"]));
        }
    }
    spec_errors(job, "spec.jobTemplate.spec", &mut errors);
    let name = text(cron, "/metadata/name");
    if name.len() > 52 {
        // Eleven characters are left for the names of its jobs.
        errors.push(FieldError::invalid("metadata.name", &Value::from(name), "must be no more than 52 characters"));
    }
    errors
}

/// What is wrong with a schedule: five fields, or a descriptor that begins with `@`.
fn schedule_error(schedule: &str) -> Option<String> {
    if let Some(descriptor) = schedule.strip_prefix('@') {
        let known = ["yearly", "annually", "monthly", "weekly", "daily", "midnight", "hourly"];
        let valid = known.contains(&descriptor) || descriptor.starts_with("every ");
        return (!valid).then(|| format!("unrecognized descriptor: {schedule}"));
    }
    let parts: Vec<&str> = schedule.split_whitespace().collect();
    if parts.len() != 5 {
        return Some(format!("expected exactly 5 fields, found {}: [{}]", parts.len(), parts.join(" ")));
    }
    // Minute, hour, day of the month, month, day of the week.
    let bounds = [(0, 59), (0, 23), (1, 31), (1, 12), (0, 6)];
    for (part, (least, most)) in parts.iter().zip(bounds) {
        for item in part.split(',') {
            let (range, step) = item.split_once('/').unwrap_or((item, ""));
            if !step.is_empty() && step.parse::<u32>() == Ok(0) {
                return Some(format!("step of range should be a positive number: {item}"));
            }
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let (Ok(first), Ok(last)) = (first.parse::<u32>(), last.parse::<u32>()) else { continue };
            if first < least {
                return Some(format!("beginning of range ({first}) below minimum ({least}): {item}"));
            }
            if last > most {
                return Some(format!("end of range ({last}) above maximum ({most}): {item}"));
            }
            if first > last {
                return Some(format!("beginning of range ({first}) beyond end of range ({last}): {item}"));
            }
        }
    }
    let bad = parts.iter().find(|part| {
        !part
            .split(',')
            .all(|item| !item.is_empty() && item.bytes().all(|b| b.is_ascii_alphanumeric() || b"*/-?".contains(&b)))
    });
    bad.map(|part| format!("failed to parse int from {part}"))
}

fn has_condition(job: &Value, kind: &str) -> bool {
    list(job, "/status/conditions").iter().any(|c| field(c, "type") == kind && field(c, "status") == "True")
}

fn job_row(job: &Value, now: i64) -> Vec<Value> {
    let number = |pointer: &str| int(job, pointer);
    let succeeded = number("/status/succeeded").unwrap_or(0);
    let completions = match (number("/spec/completions"), number("/spec/parallelism").unwrap_or(0)) {
        (Some(wanted), _) => format!("{succeeded}/{wanted}"),
        (None, parallelism) if parallelism > 1 => format!("{succeeded}/1 of {parallelism}"),
        (None, _) => format!("{succeeded}/1"),
    };
    let took = match (seconds(text(job, "/status/startTime")), seconds(text(job, "/status/completionTime"))) {
        (None, _) => String::new(),
        (Some(start), None) => duration(now - start),
        (Some(start), Some(end)) => duration(end - start),
    };
    let status = match () {
        () if has_condition(job, "Complete") => "Complete",
        () if has_condition(job, "Failed") => "Failed",
        () if job.pointer("/metadata/deletionTimestamp").is_some() => "Terminating",
        () if has_condition(job, "Suspended") => "Suspended",
        () if has_condition(job, "FailureTarget") => "FailureTarget",
        () if has_condition(job, "SuccessCriteriaMet") => "SuccessCriteriaMet",
        () => "Running",
    };
    let [containers, images] = containers_and_images(job.pointer("/spec/template/spec"));
    vec![
        name(job),
        status.into(),
        completions.into(),
        took.into(),
        age(job, now),
        containers,
        images,
        selector(job.pointer("/spec/selector")).into(),
    ]
}

fn cron_row(cron: &Value, now: i64) -> Vec<Value> {
    let last = match text(cron, "/status/lastScheduleTime") {
        "" => "<none>".to_owned(),
        time => since(time, now),
    };
    let suspend = match cron.pointer("/spec/suspend").and_then(Value::as_bool) {
        Some(true) => "True",
        Some(false) => "False",
        None => "<unset>",
    };
    let [containers, images] = containers_and_images(cron.pointer("/spec/jobTemplate/spec/template/spec"));
    vec![
        name(cron),
        text(cron, "/spec/schedule").into(),
        or_none(text(cron, "/spec/timeZone")),
        suspend.into(),
        list(cron, "/status/active").len().into(),
        last.into(),
        age(cron, now),
        containers,
        images,
        selector(cron.pointer("/spec/jobTemplate/spec/selector")).into(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builtin::NoObjects;
    use crate::builtin::value::entries;

    const CONTEXT: Context<'static> =
        Context { now: "", namespace: Some("n"), subresource: "", objects: &NoObjects, random: &|| 7 };

    fn job(changes: Value) -> Value {
        let mut spec =
            json!({"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "a", "image": "i"}]}}});
        for (key, value) in changes.as_object().unwrap() {
            spec[key] = value.clone();
        }
        let mut job = json!({"metadata": {"name": "j", "uid": "u"}, "spec": spec});
        default_job(&mut job);
        create_job(&mut job, &CONTEXT);
        job
    }

    fn paths(errors: &[FieldError]) -> Vec<&str> {
        errors.iter().map(|e| e.field.as_str()).collect()
    }

    #[test]
    fn jobs_select_their_own_pods() {
        let made = job(json!({}));
        assert_eq!(made["spec"]["selector"], json!({"matchLabels": {CONTROLLER_UID: "u"}}));
        assert_eq!(made["metadata"]["labels"], made["spec"]["template"]["metadata"]["labels"]);
        assert_eq!(entries(&made["metadata"], "labels").count(), 4);
        assert_eq!((&made["spec"]["completions"], &made["spec"]["backoffLimit"]), (&json!(1), &json!(6)));
        assert_eq!(validate_job(&made), []);
        let chosen = job(json!({"selector": {"matchLabels": {"a": "b"}}}));
        assert_eq!(paths(&validate_job(&chosen)), ["spec.selector", "spec.template.metadata.labels"]);
    }

    #[test]
    fn refusals() {
        for (changes, expected) in [
            (json!({"parallelism": -1}), vec!["spec.parallelism"]),
            (
                json!({"template": {"spec": {"containers": [{"name": "a", "image": "i"}]}}}),
                vec!["spec.template.spec.restartPolicy"],
            ),
            (json!({"completionMode": "Indexed", "parallelism": 2}), vec!["spec.completions"]),
        ] {
            assert_eq!(paths(&validate_job(&job(changes.clone()))), expected, "{changes}");
        }
    }

    #[test]
    fn what_may_change() {
        let old = job(json!({"completionMode": "Indexed", "completions": 4, "parallelism": 4}));
        let changed = |pointer: &str, value: Value| {
            let mut new = old.clone();
            *new.pointer_mut(pointer).unwrap() = value;
            let errors = validate_job_update(&new, &old, &CONTEXT);
            errors.into_iter().map(|e| e.field).collect::<Vec<_>>()
        };
        assert_eq!(changed("/spec/suspend", json!(true)), Vec::<String>::new());
        assert_eq!(changed("/spec/parallelism", json!(2)), Vec::<String>::new());
        assert_eq!(changed("/spec/completions", json!(5)), ["spec.completions"]);
        assert_eq!(changed("/spec/template/spec/containers/0/image", json!("x")), ["spec.template"]);
    }

    #[test]
    fn schedules() {
        for (schedule, valid) in [
            ("* * * * *", true),
            ("*/5 0-3 1,2 JAN MON", true),
            ("@daily", true),
            ("@never", false),
            ("* *", false),
            ("a b$ * * *", false),
        ] {
            assert_eq!(schedule_error(schedule).is_none(), valid, "{schedule}");
        }
    }

    #[test]
    fn job_lines() {
        let mut done = job(json!({"completions": 2}));
        done["status"] = json!({"succeeded": 2, "startTime": "1970-01-01T00:00:00Z", "completionTime": "1970-01-01T00:02:05Z",
            "conditions": [{"type": "Complete", "status": "True"}]});
        assert_eq!(job_row(&done, 1000)[1..4], ["Complete", "2/2", "2m5s"]);
    }
}
