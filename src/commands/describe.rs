//! `muster describe`: one object in full, for people: what it is, how it stands, its pods, its events.

use crate::cli::DescribeArgs;
use crate::client::{Connection, JSON, Kind, Kinds, TABLE, with_query};
use crate::exit::ExitStatus;
use crate::jobs;
use crate::output::{Columns, Table, age};
use anyhow::Result;
use muster_api::clock::Clock;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fmt::Write;

pub(crate) async fn run(args: &DescribeArgs) -> Result<ExitStatus> {
    let connection = Connection::open(&args.target).await?;
    let kinds = Kinds::discover(&connection).await?;
    let mut first = true;
    for selected in kinds.select(&args.what)? {
        let kind = &selected.kind;
        let objects = match &selected.name {
            Some(name) => vec![connection.get(&kind.object(&connection.namespace, name), JSON).await?],
            None => {
                let list = connection.get(&kind.collection(Some(&connection.namespace)), JSON).await?;
                list["items"].as_array().cloned().unwrap_or_default()
            }
        };
        for object in objects {
            if !std::mem::take(&mut first) {
                println!("\n");
            }
            print!("{}", describe(&connection, kind, &object).await?);
        }
    }
    Ok(ExitStatus::Success)
}

async fn describe(connection: &Connection, kind: &Kind, object: &Value) -> Result<String> {
    let now = Clock::system().now();
    let mut out = String::new();
    let name = jobs::name(object);
    let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default();
    let mut field = |key: &str, value: &str| {
        // What has no key goes on with the one before.
        let key = if key.is_empty() { String::new() } else { format!("{key}:") };
        let _ = writeln!(out, "{key:<14}{value}");
    };
    field("Name", name);
    if !namespace.is_empty() {
        field("Namespace", namespace);
    }
    field("Kind", &format!("{}, {}", kind.kind, kind.api_version()));
    field("UID", object["metadata"]["uid"].as_str().unwrap_or_default());
    field("Created", &ago(&object["metadata"]["creationTimestamp"], now));
    for key in ["labels", "annotations"] {
        for (i, (name, value)) in object["metadata"][key].as_object().into_iter().flatten().enumerate() {
            let heading = if key == "labels" { "Labels" } else { "Annotations" };
            field(if i == 0 { heading } else { "" }, &format!("{name}={}", scalar(value)));
        }
    }
    let mut subjects = BTreeSet::from([object["metadata"]["uid"].as_str().unwrap_or_default().to_owned()]);
    if kind.is_training_job() {
        section(&mut out, "Replicas", &replicas(object));
        section(&mut out, "Conditions", &conditions(object, now));
        let pods = with_query(
            &format!("/api/v1/namespaces/{namespace}/pods"),
            &[("labelSelector", Some(&jobs::selector(name)))],
        );
        let table = connection.get(&pods, TABLE).await?;
        section(&mut out, "Pods", &Table::of_server(&table, Columns { wide: false, namespace: false, kind: None }));
        let pods = jobs::pods(connection, namespace, name).await?;
        subjects.extend(pods.iter().map(|pod| pod["metadata"]["uid"].as_str().unwrap_or_default().to_owned()));
        section(&mut out, "Waiting", &waiting(&pods));
    } else {
        if kind.plural == "pods" {
            section(&mut out, "Containers", &containers(object));
            section(&mut out, "Waiting", &waiting(std::slice::from_ref(object)));
        }
        section(&mut out, "Conditions", &conditions(object, now));
        let mut object = object.clone();
        if let Some(status) = object["status"].as_object_mut() {
            // They are above.
            ["conditions", "containerStatuses", "initContainerStatuses"]
                .iter()
                .for_each(|key| drop(status.remove(*key)));
        }
        for part in ["spec", "data", "status"] {
            if let Some(value) = object.get(part).filter(|v| !v.is_null()) {
                let value = if kind.plural == "secrets" { &Value::from("(secret)") } else { value };
                let _ = write!(out, "\n{}:\n{}", capital(part), indent(&serde_saphyr::to_string(value)?));
            }
        }
    }
    section(&mut out, "Events", &events(connection, namespace, &subjects, now).await?);
    Ok(out)
}

fn section(out: &mut String, title: &str, table: &Table) {
    if !table.rows.is_empty() {
        let _ = write!(out, "\n{title}:\n{}", table.render(true, &table.widths(&[]), "  "));
    }
}

/// The roles of a job: what was asked for, and how it stands.
fn replicas(job: &Value) -> Table {
    let mut table =
        Table::new(["ROLE", "REPLICAS", "ACTIVE", "SUCCEEDED", "FAILED", "RESTART POLICY", "IMAGE", "REQUESTS"]);
    let specs = job["spec"].as_object().into_iter().flatten().filter(|(key, _)| key.ends_with("ReplicaSpecs"));
    for (role, spec) in specs.flat_map(|(_, specs)| specs.as_object().into_iter().flatten()) {
        let status = &job["status"]["replicaStatuses"][role];
        let count = |key: &str| status[key].as_i64().unwrap_or(0).to_string();
        let containers = &spec["template"]["spec"]["containers"];
        let container = &containers[0];
        let requests = ["requests", "limits"].iter().find_map(|key| container["resources"][key].as_object());
        let requests: Vec<String> =
            requests.into_iter().flatten().map(|(name, amount)| format!("{name}={}", scalar(amount))).collect();
        table.push([
            role.clone(),
            spec["replicas"].as_i64().unwrap_or(1).to_string(),
            count("active"),
            count("succeeded"),
            count("failed"),
            spec["restartPolicy"].as_str().unwrap_or("<default>").to_owned(),
            scalar(&container["image"]),
            requests.join(","),
        ]);
    }
    table
}

fn conditions(object: &Value, now: jiff::Timestamp) -> Table {
    let mut table = Table::new(["TYPE", "STATUS", "SINCE", "REASON", "MESSAGE"]);
    for condition in object.pointer("/status/conditions").and_then(Value::as_array).into_iter().flatten() {
        table.push([
            scalar(&condition["type"]),
            scalar(&condition["status"]),
            ago(&condition["lastTransitionTime"], now),
            scalar(&condition["reason"]),
            scalar(&condition["message"]),
        ]);
    }
    table
}

fn containers(pod: &Value) -> Table {
    let mut table = Table::new(["CONTAINER", "STATE", "RESTARTS", "LAST STATE", "IMAGE"]);
    for key in ["initContainerStatuses", "containerStatuses"] {
        for status in pod["status"][key].as_array().into_iter().flatten() {
            table.push([
                scalar(&status["name"]),
                container_state(&status["state"]),
                scalar(&status["restartCount"]),
                container_state(&status["lastState"]),
                scalar(&status["image"]),
            ]);
        }
    }
    table
}

/// Why pods have no place yet, or containers do not start: each reason once.
fn waiting(pods: &[Value]) -> Table {
    let mut table = Table::new(["REASON", "PODS", "MESSAGE"]);
    let mut reasons: Vec<(String, String, Vec<&str>)> = Vec::new();
    for pod in pods {
        let list = |pointer: &str| pod.pointer(pointer).and_then(Value::as_array).into_iter().flatten();
        let unplaced = list("/status/conditions").filter(|c| c["type"] == "PodScheduled" && c["status"] == "False");
        let held = list("/status/initContainerStatuses")
            .chain(list("/status/containerStatuses"))
            .filter_map(|status| status.pointer("/state/waiting"));
        for why in unplaced.chain(held).filter(|why| why["message"].is_string()) {
            let (reason, message) = (scalar(&why["reason"]), scalar(&why["message"]));
            match reasons.iter_mut().find(|known| known.0 == reason && known.1 == message) {
                Some(known) => known.2.push(jobs::name(pod)),
                None => reasons.push((reason, message, vec![jobs::name(pod)])),
            }
        }
    }
    for (reason, message, pods) in reasons {
        let more = pods.len() - 1;
        let pods = if more == 0 { pods[0].to_owned() } else { format!("{} and {more} more", pods[0]) };
        table.push([reason, pods, message]);
    }
    table
}

/// `Running`, `Terminated (Error, exit code 3)`, `Waiting (ErrImagePull)`
fn container_state(state: &Value) -> String {
    let Some((kind, detail)) = state.as_object().and_then(|s| s.iter().next()) else { return String::new() };
    let code = detail["exitCode"].as_i64().map(|code| format!("exit code {code}"));
    let parts: Vec<String> = detail["reason"].as_str().map(str::to_owned).into_iter().chain(code).collect();
    match parts.is_empty() {
        true => capital(kind),
        false => format!("{} ({})", capital(kind), parts.join(", ")),
    }
}

/// The events of some objects, oldest first.
async fn events(
    connection: &Connection,
    namespace: &str,
    uids: &BTreeSet<String>,
    now: jiff::Timestamp,
) -> Result<Table> {
    let namespace = if namespace.is_empty() { "default" } else { namespace };
    let list = connection.get(&format!("/api/v1/namespaces/{namespace}/events"), JSON).await?;
    let mut events: Vec<(String, [String; 5])> = Vec::new();
    for event in list["items"].as_array().into_iter().flatten() {
        let involved = &event["involvedObject"];
        if !uids.contains(involved["uid"].as_str().unwrap_or_default()) {
            continue;
        }
        let time = ["lastTimestamp", "eventTime", "firstTimestamp"].iter().find_map(|key| event[key].as_str());
        let count = event["count"].as_i64().or(event["series"]["count"].as_i64()).unwrap_or(1);
        let mut when = ago(&Value::from(time), now);
        if count > 1 {
            let _ = write!(when, " (x{count})");
        }
        let object = format!("{}/{}", scalar(&involved["kind"]).to_lowercase(), scalar(&involved["name"]));
        let row = [when, scalar(&event["type"]), scalar(&event["reason"]), object, scalar(&event["message"])];
        events.push((time.unwrap_or_default().to_owned(), row));
    }
    events.sort();
    let mut table = Table::new(["LAST SEEN", "TYPE", "REASON", "OBJECT", "MESSAGE"]);
    for (_, row) in events {
        table.push(row);
    }
    Ok(table)
}

fn ago(time: &Value, now: jiff::Timestamp) -> String {
    match time.as_str().and_then(|text| text.parse::<jiff::Timestamp>().ok()) {
        Some(then) => format!("{} ago", age(now.as_second() - then.as_second())),
        None => "<unknown>".to_owned(),
    }
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) => text.trim_end().replace('\n', " "),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

fn capital(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().map(|c| c.to_uppercase().chain(chars).collect()).unwrap_or_default()
}

fn indent(text: &str) -> String {
    text.lines().fold(String::new(), |mut out, line| {
        let _ = writeln!(out, "  {line}");
        out
    })
}
