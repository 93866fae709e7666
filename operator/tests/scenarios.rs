//! Replays the recordings of upstream's operator (`tests/golden/training-operator`) against the decider, over a
//! cluster that is a few maps. The same recordings are replayed against the running program elsewhere.

#![allow(clippy::disallowed_methods, reason = "a test may read its environment")]

mod world;

use jiff::Timestamp;
use muster_operator::training::Policy;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use world::{AUTOSCALER, EventKey, JOB, POD, POD_GROUP, SERVICE, World};

const NAMESPACES: [&str; 2] = ["first", "second"];

/// Scenarios that record a defect which ours does not have, with the first step that must differ, and jobs that have a
/// status here and none in the recording. What ours does there is said by the tests in `mended.rs`.
static MENDED: LazyLock<Value> = LazyLock::new(|| {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/mended-scenarios.json");
    serde_json::from_slice(&std::fs::read(path).expect("the list of mended scenarios")).expect("JSON")
});

fn mended_from(scenario: &str) -> Option<usize> {
    MENDED["scenarios"][scenario]["from"].as_u64().and_then(|step| usize::try_from(step).ok())
}

fn is_acknowledged(job: &str) -> bool {
    MENDED["acknowledged"].as_array().is_some_and(|jobs| jobs.iter().any(|known| known == job))
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/training-operator")
}

fn scenarios() -> Vec<Value> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(directory())
        .expect("the recordings")
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .collect();
    files.sort();
    files.iter().map(|path| serde_json::from_slice(&std::fs::read(path).expect("a recording")).expect("JSON")).collect()
}

#[test]
fn recorded_scenarios_hold() {
    let (mut held, mut mended, mut failures) = (0, 0, Vec::new());
    for scenario in scenarios() {
        let name = scenario["name"].as_str().expect("a name");
        let from = mended_from(name);
        let differences = Replay::new(&scenario).run(from);
        match (differences.is_empty(), from) {
            (true, None) => held += 1,
            (true, Some(_)) => mended += 1,
            (false, _) => failures.push(format!("{name}\n    {}", differences.join("\n    "))),
        }
    }
    println!("scenarios: {held} held, {mended} mended, {} failed", failures.len());
    assert!(failures.is_empty(), "{} scenarios differ:\n{}", failures.len(), failures.join("\n"));
}

struct Replay<'a> {
    scenario: &'a Value,
    worlds: [World; 2],
    /// When each step began.
    began: Vec<Timestamp>,
    /// The expected snapshots of the step before, by namespace.
    before: [Value; 2],
    /// The counts of the events so far, by namespace.
    counts: [BTreeMap<EventKey, i64>; 2],
    /// The first job applied.
    target: Option<String>,
}

impl<'a> Replay<'a> {
    fn new(scenario: &'a Value) -> Self {
        let world = || World::new(Policy::default());
        Replay {
            scenario,
            worlds: [world(), world()],
            began: Vec::new(),
            before: [json!({}), json!({})],
            counts: [BTreeMap::new(), BTreeMap::new()],
            target: None,
        }
    }

    /// Runs the steps (up to a mended one) and returns what differs.
    fn run(mut self, until: Option<usize>) -> Vec<String> {
        let steps = self.scenario["steps"].as_array().expect("steps");
        let mut differences = Vec::new();
        for (index, step) in steps.iter().enumerate() {
            if until.is_some_and(|until| index + 1 >= until) {
                break;
            }
            for world in &mut self.worlds {
                world.advance(2);
                world.events.clear();
            }
            self.began.push(self.worlds[0].now);
            if let Some(difference) = self.act(step) {
                differences.push(format!("step {}: {difference}", index + 1));
            }
            for world in &mut self.worlds {
                world.settle();
            }
            for (which, key) in ["snapshot", "snapshot2"].into_iter().enumerate() {
                if let Some(snapshot) = step.get(key) {
                    for difference in self.compare(which, step, snapshot) {
                        differences.push(format!("step {}: {key}: {difference}", index + 1));
                    }
                }
            }
        }
        differences
    }

    fn act(&mut self, step: &Value) -> Option<String> {
        let action = &step["step"];
        let which = usize::from(action.get("namespace").is_some());
        let code = step["answer"]["code"].as_i64().unwrap_or(200);
        let target = action["target"].as_str().map(str::to_owned).or_else(|| self.target.clone());
        let world = &mut self.worlds[which];
        let outcome = if let Some(object) = action.get("apply") {
            if code == 422 {
                return None; // The schema's answer; the API server's own tests hold it.
            }
            if self.target.is_none() {
                let (kind, name) = (object["kind"].as_str()?, object["metadata"]["name"].as_str()?);
                self.target = Some(format!("{kind}/{name}"));
            }
            Some(world.create_job(NAMESPACES[which], object))
        } else if let Some(patch) = action.get("patch") {
            (code != 422).then(|| world.patch_job(&target.expect("a target"), patch))
        } else {
            None
        };
        if let Some(outcome) = outcome {
            return check_answer(&outcome, step);
        }
        if let Some(replicas) = action["scale"].as_i64() {
            world.scale(&self.target.clone()?, replicas);
        } else if let Some(pods) = action["pods"].as_object() {
            for (name, status) in pods.iter().filter(|_| code < 400) {
                world.report(name, status);
            }
        } else if let Some(names) = action["bind"].as_array() {
            names.iter().filter_map(Value::as_str).for_each(|name| world.bind(name));
        } else if let Some(names) = action["reap"].as_array() {
            names.iter().filter_map(Value::as_str).for_each(|name| world.delete(POD, name, true));
        } else if let Some(seconds) = action["wait"].as_i64() {
            self.worlds.iter_mut().for_each(|world| world.advance(seconds));
        } else if let Some(path) = action["delete"].as_str() {
            match path.strip_prefix("Pod/") {
                Some(pod) => world.delete_by_hand(POD, pod),
                None => world.delete_by_hand(JOB, path),
            }
        } else if action.get("getscale").is_none() && code != 422 {
            return Some(format!("unknown step {action}"));
        }
        None
    }

    fn compare(&mut self, which: usize, step: &Value, snapshot: &Value) -> Vec<String> {
        let expected = resolve(snapshot, &self.before[which]);
        let actual = self.snapshot(which);
        self.before[which] = expected.clone();
        let (mut expected, mut actual) = (expected, actual);
        for pointer in step["unstable"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            remove(&mut expected, pointer);
            remove(&mut actual, pointer);
        }
        let only = refused_step_object(self.scenario, step);
        let mut differences = Vec::new();
        for section in [JOB, POD, SERVICE, AUTOSCALER, POD_GROUP] {
            let none = Map::new();
            let expected = expected[section].as_object().unwrap_or(&none);
            let actual = actual[section].as_object().unwrap_or(&none);
            let names: BTreeSet<&String> = expected.keys().chain(actual.keys()).collect();
            for name in names {
                if only.as_ref().is_some_and(|only| only != name) {
                    continue;
                }
                match (expected.get(name), actual.get(name)) {
                    (Some(expected), Some(actual)) => {
                        let mut found = Vec::new();
                        let mut actual = actual.clone();
                        if only.is_some() && expected["status"].is_null() && is_acknowledged(name) {
                            assert_eq!(actual["status"]["conditions"][0]["type"], "Created", "{name} is acknowledged");
                            remove(&mut actual, "/status");
                        }
                        difference(&format!("{section}/{name}"), expected, &actual, &mut found);
                        differences.extend(found);
                    }
                    (Some(_), None) => differences.push(format!("{section}/{name} is missing")),
                    (None, Some(_)) => differences.push(format!("{section}/{name} should not be there")),
                    (None, None) => {}
                }
            }
        }
        let seen: BTreeSet<&EventKey> = self.worlds[which].events.iter().collect();
        for event in snapshot["events"].as_array().into_iter().flatten() {
            let text = |key: &str| event[key].as_str().unwrap_or_default();
            let message = text("message").replace("<ns>", NAMESPACES[0]).replace("<ns2>", NAMESPACES[1]);
            let key = (text("object").to_owned(), text("type").to_owned(), text("reason").to_owned(), message);
            // A count that some passes did not raise is an event that may be missing.
            let earlier = self.counts[which].insert(key.clone(), event["count"].as_i64().unwrap_or_default());
            let lowest = event["counts"].as_array().into_iter().flatten().filter_map(Value::as_i64).min();
            if lowest.is_some_and(|lowest| lowest <= earlier.unwrap_or_default()) {
                continue;
            }
            if only.is_none() && !seen.contains(&key) {
                differences.push(format!("event is missing: {key:?}"));
            }
        }
        differences
    }

    /// Our objects in the words of a recording.
    fn snapshot(&self, which: usize) -> Value {
        let mut out = Map::new();
        for (section, objects) in &self.worlds[which].objects {
            let objects: Map<String, Value> =
                objects.iter().map(|(name, object)| (name.clone(), self.normalise(which, object, None))).collect();
            out.insert((*section).to_owned(), Value::Object(objects));
        }
        Value::Object(out)
    }

    fn normalise(&self, which: usize, value: &Value, key: Option<&str>) -> Value {
        match value {
            Value::Object(object) => {
                let is_metadata = key == Some("metadata");
                let dropped = ["uid", "resourceVersion", "generation", "creationTimestamp", "namespace"];
                Value::Object(
                    object
                        .iter()
                        .filter(|(name, value)| !value.is_null() && !(is_metadata && dropped.contains(&name.as_str())))
                        .map(|(name, value)| {
                            let value =
                                if name == "uid" { json!("<uid>") } else { self.normalise(which, value, Some(name)) };
                            (name.clone(), value)
                        })
                        .collect(),
                )
            }
            Value::Array(items) => items.iter().map(|item| self.normalise(which, item, None)).collect(),
            Value::String(text) => match text.parse::<Timestamp>() {
                Ok(time) if text.ends_with('Z') => {
                    let step = self.began.iter().filter(|began| **began <= time).count();
                    json!(format!("<time:{step}>"))
                }
                _ => json!(text.replace(NAMESPACES[0], "<ns>").replace(NAMESPACES[1], "<ns2>")),
            },
            other => other.clone(),
        }
    }
}

fn check_answer(outcome: &Result<Vec<String>, String>, step: &Value) -> Option<String> {
    let answer = &step["answer"];
    let code = answer["code"].as_i64().unwrap_or(200);
    match outcome {
        Ok(warnings) if code < 400 => {
            let expected: Vec<&str> =
                answer["warnings"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            (*warnings != expected).then(|| format!("warnings are {warnings:?} instead of {expected:?}"))
        }
        Err(denial) if code == 403 => (answer["status"]["message"] != denial.as_str())
            .then(|| format!("denied with {denial} instead of {}", answer["status"]["message"])),
        Ok(_) => Some(format!("accepted instead of {answer}")),
        Err(denial) => Some(format!("refused with {denial}")),
    }
}

/// In scenarios of refused objects only the object of the step counts: those let through before keep causing noise.
fn refused_step_object(scenario: &Value, step: &Value) -> Option<String> {
    let refused =
        scenario["name"].as_str().is_some_and(|name| name.ends_with("-refused") || name.ends_with("-invalid"));
    let object = &step["step"]["apply"];
    let target = step["step"]["target"].as_str().map(str::to_owned);
    refused.then(|| {
        target.unwrap_or_else(|| {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            format!("{}/{}", text(&object["kind"]), text(&object["metadata"]["name"]))
        })
    })
}

/// Replaces `"="` by what the step before had.
fn resolve(snapshot: &Value, before: &Value) -> Value {
    let sections = snapshot.as_object().into_iter().flatten().filter(|(key, _)| *key != "events");
    let resolved: BTreeMap<String, Value> = sections
        .map(|(section, value)| {
            let value = match value {
                Value::String(same) if same == "=" => before[section].clone(),
                Value::Object(objects) => objects
                    .iter()
                    .map(|(name, object)| {
                        let same = object == "=";
                        (name.clone(), if same { before[section][name].clone() } else { object.clone() })
                    })
                    .collect::<Map<_, _>>()
                    .into(),
                other => other.clone(),
            };
            (section.clone(), value)
        })
        .collect();
    json!(resolved)
}

fn remove(value: &mut Value, pointer: &str) {
    let Some((parent, key)) = pointer.rsplit_once('/') else { return };
    let key = key.replace("~1", "/").replace("~0", "~");
    if let Some(parent) = value.pointer_mut(parent).and_then(Value::as_object_mut) {
        parent.remove(&key);
    }
}

/// Fields that the API server fills in, not the operator: they may be missing here.
const FILLED_IN: &[&str] = &[
    "apiVersion",
    "kind",
    "clusterIP",
    "dnsPolicy",
    "enableServiceLinks",
    "failureThreshold",
    "imagePullPolicy",
    "internalTrafficPolicy",
    "ipFamilies",
    "ipFamilyPolicy",
    "nodeName",
    "periodSeconds",
    "protocol",
    "requests",
    "resources",
    "schedulerName",
    "securityContext",
    "sessionAffinity",
    "status",
    "successThreshold",
    "targetPort",
    "terminationGracePeriodSeconds",
    "terminationMessagePath",
    "terminationMessagePolicy",
    "timeoutSeconds",
    "type",
    "defaultMode",
];

/// What names the kind of an object; recordings leave it out.
const TOP: &[&str] = &["apiVersion", "kind"];

/// Whether a path is that of a field right below an object.
fn is_top(path: &str) -> bool {
    path.matches('/').count() == if path.starts_with(JOB) { 3 } else { 2 }
}

fn difference(path: &str, expected: &Value, actual: &Value, found: &mut Vec<String>) {
    match (expected, actual) {
        (Value::Object(expected), Value::Object(actual)) => {
            let is_job = path.starts_with(JOB);
            let keys: BTreeSet<&String> = expected.keys().chain(actual.keys()).collect();
            for key in keys {
                let path = format!("{path}/{key}");
                if !is_job && key == "status" || TOP.contains(&key.as_str()) && is_top(&path) {
                    continue;
                }
                match (expected.get(key), actual.get(key)) {
                    (Some(expected), Some(actual)) => difference(&path, expected, actual, found),
                    (Some(_), None) if !is_job && FILLED_IN.contains(&key.as_str()) => {}
                    (Some(value), None) => found.push(format!("{path} is missing: {value}")),
                    (None, Some(value)) if value == &json!({}) || value == &json!([]) => {}
                    (None, Some(value)) => found.push(format!("{path} should not be there: {value}")),
                    (None, None) => {}
                }
            }
        }
        (Value::Array(expected), Value::Array(actual)) if expected.len() == actual.len() => {
            for (index, (expected, actual)) in expected.iter().zip(actual).enumerate() {
                difference(&format!("{path}/{index}"), expected, actual, found);
            }
        }
        _ if expected == actual => {}
        _ => found.push(format!("{path} is {actual} instead of {expected}")),
    }
}
