//! Services: cluster addresses, node ports, types.

use super::columns::{Column, Doc};
use super::metadata::{IMMUTABLE, validate_labels};
use super::rows::{AGE, NAME, age, label_map, name, or_none};
use super::table::{WITH_STATUS, keep_status};
use super::value::{child, field, fields, fill, int, items, items_mut, list, text};
use super::{BuiltinKind, Context, NameRule, idle, names, traffic, wire};
use k8s_openapi::api::core::v1::ServiceSpec;
use muster_api::field::{FieldError, Reason};
use schemars::JsonSchema;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

pub(super) const KINDS: &[BuiltinKind] = &[BuiltinKind {
    kind: "Service",
    idle: idle::SERVICE,
    warnings: |service, _| traffic::warnings(service),
    plural: "services",
    singular: "service",
    short_names: &["svc"],
    categories: &["all"],
    name_rule: NameRule::Label1035,
    returns_deleted: true,
    default,
    prepare_create: |service, context| {
        fields(service).insert("status".into(), json!({"loadBalancer": {}}));
        allocate(service, context);
    },
    prepare_update,
    validate: |service, _| validate(service),
    validate_update,
    columns: &[
        NAME,
        Column::new("Type", Doc::Field(ServiceSpec::json_schema, "type")),
        Column::new("Cluster-IP", Doc::Field(ServiceSpec::json_schema, "clusterIP")),
        Column::new("External-IP", Doc::Field(ServiceSpec::json_schema, "externalIPs")),
        Column::new("Port(s)", Doc::Field(ServiceSpec::json_schema, "ports")),
        AGE,
        Column::wide("Selector", Doc::Field(ServiceSpec::json_schema, "selector")),
    ],
    row,
    fields: |service| {
        let mut values = Map::new();
        values.insert("spec.clusterIP".into(), text(service, "/spec/clusterIP").into());
        values.insert("spec.type".into(), text(service, "/spec/type").into());
        values
    },
    field_labels: &["spec.clusterIP", "spec.type"],
    ..WITH_STATUS
}];

const TYPES: [&str; 4] = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];
/// Addresses are taken from 10.96.0.0/16, node ports from 30000 to 32767.
const ADDRESSES: u64 = 65534;
const NODE_PORTS: std::ops::Range<i64> = 30000..32768;

fn default(service: &mut Value) {
    wire::normalise(service);
    fill(child(service, "status"), "loadBalancer", json!({}));
    let spec = child(service, "spec");
    fill(spec, "sessionAffinity", "None");
    if field(spec, "sessionAffinity") == "ClientIP" {
        fill(child(child(spec, "sessionAffinityConfig"), "clientIP"), "timeoutSeconds", 10800);
    } else {
        fields(spec).remove("sessionAffinityConfig");
    }
    fill(spec, "type", "ClusterIP");
    for port in items_mut(spec, "ports") {
        fill(port, "protocol", "TCP");
        let unset = port.get("targetPort").is_none_or(|t| t.as_i64() == Some(0));
        if let Some(number) = port.get("port").cloned().filter(|_| unset) {
            fields(port).insert("targetPort".into(), number);
        }
    }
    let kind = field(spec, "type").to_owned();
    if matches!(kind.as_str(), "NodePort" | "LoadBalancer") {
        fill(spec, "externalTrafficPolicy", "Cluster");
    }
    if kind != "ExternalName" {
        fill(spec, "internalTrafficPolicy", "Cluster");
    }
    if kind == "LoadBalancer" {
        fill(spec, "allocateLoadBalancerNodePorts", true);
    }
}

/// Gives the service the addresses and ports that its type asks for and that it has not got yet.
fn allocate(service: &mut Value, context: &Context<'_>) {
    let uid = text(service, "/metadata/uid").to_owned();
    let spec = child(service, "spec");
    let kind = field(spec, "type").to_owned();
    if kind == "ExternalName" {
        return;
    }
    let selects = spec.get("selector").is_some();
    if field(spec, "clusterIP").is_empty() {
        let first = items(spec, "clusterIPs").first().and_then(Value::as_str).map(str::to_owned);
        let address = first.unwrap_or_else(|| free_address(&uid, context));
        fields(spec).insert("clusterIP".into(), address.into());
    }
    let address = field(spec, "clusterIP").to_owned();
    fill(spec, "clusterIPs", json!([address]));
    if address == "None" && !selects {
        fill(spec, "ipFamilies", json!(["IPv4", "IPv6"]));
        fill(spec, "ipFamilyPolicy", "RequireDualStack");
    } else {
        fill(spec, "ipFamilies", json!(["IPv4"]));
        fill(spec, "ipFamilyPolicy", "SingleStack");
    }
    let wants_ports = match kind.as_str() {
        "NodePort" => true,
        "LoadBalancer" => spec.get("allocateLoadBalancerNodePorts").and_then(Value::as_bool) != Some(false),
        _ => false,
    };
    if wants_ports && items(spec, "ports").iter().any(|p| int(p, "/nodePort").unwrap_or(0) == 0) {
        let mut taken = taken_ports(&uid, context);
        taken.extend(items(spec, "ports").iter().filter_map(|p| int(p, "/nodePort")));
        for port in items_mut(spec, "ports") {
            if int(port, "/nodePort").unwrap_or(0) != 0 {
                continue;
            }
            let size = NODE_PORTS.end - NODE_PORTS.start;
            let start = ((context.random)() % size as u64) as i64;
            let free = (0..size).map(|i| NODE_PORTS.start + (start + i) % size).find(|p| !taken.contains(p));
            if let Some(free) = free {
                taken.insert(free);
                fields(port).insert("nodePort".into(), free.into());
            }
        }
    }
}

fn others<'a>(uid: &'a str, context: &Context<'_>) -> impl Iterator<Item = std::sync::Arc<Value>> + 'a {
    context.objects.list("", "services", "").into_iter().filter(move |s| text(s, "/metadata/uid") != uid)
}

fn taken_ports(uid: &str, context: &Context<'_>) -> BTreeSet<i64> {
    others(uid, context)
        .flat_map(|s| list(&s, "/spec/ports").iter().filter_map(|p| int(p, "/nodePort")).collect::<Vec<_>>())
        .collect()
}

fn free_address(uid: &str, context: &Context<'_>) -> String {
    let taken: BTreeSet<String> = others(uid, context).map(|s| text(&s, "/spec/clusterIP").to_owned()).collect();
    let start = (context.random)() % ADDRESSES;
    let address = |n: u64| format!("10.96.{}.{}", n / 256, n % 256);
    let mut candidates = (0..ADDRESSES).map(|i| address(1 + (start + i) % ADDRESSES));
    // With every address taken the service stays without one, and validation says so.
    candidates.find(|a| !taken.contains(a)).unwrap_or_default()
}

fn prepare_update(service: &mut Value, old: &Value, context: &Context<'_>) {
    keep_status(service, old, context.subresource);
    if !context.subresource.is_empty() {
        return;
    }
    let empty = Value::Object(Map::new());
    let old_spec = old.get("spec").unwrap_or(&empty);
    let spec = child(service, "spec");
    let (now, before) = (field(spec, "type").to_owned(), field(old_spec, "type").to_owned());
    let has_address = |kind: &str| kind != "ExternalName";
    if has_address(&now) && has_address(&before) {
        // An update that leaves out what the server has allocated keeps it.
        for key in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            if let Some(value) = old_spec.get(key) {
                fill(spec, key, value.clone());
            }
        }
        let changed = field(spec, "clusterIP") != field(old_spec, "clusterIP");
        if changed && spec.get("clusterIPs") == old_spec.get("clusterIPs") {
            let address = field(spec, "clusterIP").to_owned();
            fields(spec).insert("clusterIPs".into(), json!([address]));
        }
    } else if !has_address(&now) {
        for key in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"] {
            if spec.get(key) == old_spec.get(key) {
                fields(spec).remove(key);
            }
        }
    }
    let has_ports = |kind: &str| matches!(kind, "NodePort" | "LoadBalancer");
    if has_ports(&now) && has_ports(&before) {
        let before = items(old_spec, "ports");
        for port in items_mut(spec, "ports") {
            let same = |p: &&Value| p.get("port") == port.get("port") && p.get("protocol") == port.get("protocol");
            if let Some(number) = before.iter().find(same).and_then(|p| p.get("nodePort")).cloned() {
                fill(port, "nodePort", number);
            }
        }
    } else if has_ports(&before) {
        let before: BTreeSet<i64> = items(old_spec, "ports").iter().filter_map(|p| int(p, "/nodePort")).collect();
        for port in items_mut(spec, "ports") {
            if int(port, "/nodePort").is_some_and(|p| before.contains(&p)) {
                fields(port).remove("nodePort");
            }
        }
        for key in ["externalTrafficPolicy", "allocateLoadBalancerNodePorts"] {
            if spec.get(key) == old_spec.get(key) {
                fields(spec).remove(key);
            }
        }
    }
    allocate(service, context);
}

fn validate(service: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let empty = Value::Object(Map::new());
    let spec = service.get("spec").unwrap_or(&empty);
    let kind = field(spec, "type");
    let headless = field(spec, "clusterIP") == "None";
    if items(spec, "ports").is_empty() && !headless && kind != "ExternalName" {
        errors.push(FieldError::required("spec.ports", ""));
    }
    match kind {
        "LoadBalancer" | "NodePort" if headless => {
            let why = format!("may not be set to 'None' for {kind} services");
            errors.push(FieldError::invalid("spec.clusterIPs[0]", &Value::from("None"), why));
        }
        "ExternalName" => {
            if spec.get("clusterIP").is_some() {
                let why = "may not be set for ExternalName services";
                errors.push(FieldError::forbidden("spec.clusterIPs", why));
            }
            let host = field(spec, "externalName").trim_end_matches('.');
            if host.is_empty() {
                errors.push(FieldError::required("spec.externalName", ""));
            } else {
                push(&mut errors, "spec.externalName".into(), host, names::subdomain(host));
            }
        }
        _ => {}
    }
    ports(spec, &mut errors);
    errors.extend(validate_labels(spec.get("selector"), "spec.selector"));
    let affinity = field(spec, "sessionAffinity");
    if !["ClientIP", "None"].contains(&affinity) {
        let value = Value::from(affinity);
        errors.push(FieldError::not_supported("spec.sessionAffinity", &value, &["ClientIP", "None"]));
    }
    let seconds = spec.pointer("/sessionAffinityConfig/clientIP/timeoutSeconds");
    if let Some(seconds) = seconds.filter(|s| !s.as_i64().is_some_and(|n| (1..=86400).contains(&n))) {
        let path = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
        errors.push(FieldError::invalid(path, seconds, "must be greater than 0 and less than 86400"));
    }
    addresses(spec, &mut errors);
    if !TYPES.contains(&kind) {
        errors.push(FieldError::not_supported("spec.type", &Value::from(kind), &TYPES));
    }
    traffic::validate(spec, &mut errors);
    for (key, supported) in
        [("externalTrafficPolicy", ["Cluster", "Local"]), ("internalTrafficPolicy", ["Cluster", "Local"])]
    {
        let value = field(spec, key);
        if !value.is_empty() && !supported.contains(&value) {
            errors.push(FieldError::not_supported(format!("spec.{key}"), &Value::from(value), &supported));
        }
    }
    errors
}

fn push(errors: &mut Vec<FieldError>, path: String, value: &str, messages: Vec<String>) {
    errors.extend(messages.into_iter().map(|m| FieldError::invalid(path.clone(), &Value::from(value), m)));
}

fn addresses(spec: &Value, errors: &mut Vec<FieldError>) {
    for (i, address) in items(spec, "clusterIPs").iter().enumerate() {
        let address = address.as_str().unwrap_or_default();
        if address != "None" {
            super::pod::validate::ip(address, &format!("spec.clusterIPs[{i}]"), errors);
        }
    }
    for (i, address) in items(spec, "externalIPs").iter().enumerate() {
        super::pod::validate::ip(address.as_str().unwrap_or_default(), &format!("spec.externalIPs[{i}]"), errors);
    }
}

fn ports(spec: &Value, errors: &mut Vec<FieldError>) {
    let all = items(spec, "ports");
    let (mut seen_names, mut seen_ports, mut seen_node_ports) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for (i, port) in all.iter().enumerate() {
        let path = format!("spec.ports[{i}]");
        let name = field(port, "name");
        if name.is_empty() && all.len() > 1 {
            errors.push(FieldError::required(format!("{path}.name"), ""));
        } else if !name.is_empty() {
            push(errors, format!("{path}.name"), name, names::label(name));
            if !seen_names.insert(name) {
                errors.push(FieldError::duplicate(format!("{path}.name"), &Value::from(name)));
            }
        }
        number(port.get("port"), &format!("{path}.port"), errors);
        let protocol = field(port, "protocol");
        if protocol.is_empty() {
            errors.push(FieldError::required(format!("{path}.protocol"), ""));
        } else if !PROTOCOLS.contains(&protocol) {
            let value = Value::from(protocol);
            errors.push(FieldError::not_supported(format!("{path}.protocol"), &value, &PROTOCOLS));
        }
        match port.get("targetPort") {
            Some(Value::String(name)) => push(errors, format!("{path}.targetPort"), name, names::port_name(name)),
            target => number(target, &format!("{path}.targetPort"), errors),
        }
        let node_port = int(port, "/nodePort").unwrap_or(0);
        if node_port != 0 {
            if field(spec, "type") == "ClusterIP" {
                let why = "may not be used when `type` is 'ClusterIP'";
                errors.push(FieldError::forbidden(format!("{path}.nodePort"), why));
            } else if !NODE_PORTS.contains(&node_port) {
                let why = "provided port is not in the valid range. The range of valid ports is 30000-32767";
                errors.push(FieldError::invalid(format!("{path}.nodePort"), &node_port.into(), why));
            }
            if !seen_node_ports.insert((protocol, node_port)) {
                duplicate(port, &path, "NodePort", node_port, errors);
            }
        }
        let own = int(port, "/port").unwrap_or(0);
        if !seen_ports.insert((protocol, own)) {
            duplicate(port, &path, "Port", own, errors);
        }
    }
}

/// A port that says the same as one before it; the message shows what both have in common.
fn duplicate(port: &Value, path: &str, key: &str, number: i64, errors: &mut Vec<FieldError>) {
    let (own, node) = if key == "Port" { (number, 0) } else { (0, number) };
    let message = format!(
        "Duplicate value: {{\"Name\":\"\",\"Protocol\":{},\"AppProtocol\":null,\"Port\":{own},\"TargetPort\":0,\"NodePort\":{node}}}",
        Value::from(field(port, "protocol"))
    );
    errors.push(FieldError::new(Reason::Duplicate, path, message));
}

fn number(value: Option<&Value>, path: &str, errors: &mut Vec<FieldError>) {
    let number = value.and_then(Value::as_i64).unwrap_or(0);
    if let Some(why) = names::port(number) {
        errors.push(FieldError::invalid(path, &number.into(), why));
    }
}

fn validate_update(new: &Value, old: &Value, context: &Context<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if context.subresource == "status" {
        let balanced = text(new, "/spec/type") == "LoadBalancer";
        if !balanced && !list(new, "/status/loadBalancer/ingress").is_empty() {
            let why = "may only be used when `spec.type` is 'LoadBalancer'";
            errors.push(FieldError::forbidden("status.loadBalancer.ingress", why));
        }
        return errors;
    }
    let kinds = (text(new, "/spec/type"), text(old, "/spec/type"));
    if kinds.0 == "ExternalName" || kinds.1 == "ExternalName" {
        return errors;
    }
    let primary = |service: &Value| list(service, "/spec/clusterIPs").first().cloned();
    if primary(old).is_some() && primary(new) != primary(old) {
        let value = new.pointer("/spec/clusterIPs").unwrap_or(&Value::Null);
        errors.push(FieldError::invalid("spec.clusterIPs[0]", value, "may not change once set"));
    }
    let class = |service: &Value| service.pointer("/spec/loadBalancerClass").cloned();
    if class(old).is_some() && class(new) != class(old) && kinds.0 == "LoadBalancer" {
        let value = class(new).unwrap_or(Value::Null);
        errors.push(FieldError::invalid("spec.loadBalancerClass", &value, IMMUTABLE));
    }
    errors
}

fn row(service: &Value, now: i64) -> Vec<Value> {
    let kind = text(service, "/spec/type");
    let ports: Vec<String> = list(service, "/spec/ports")
        .iter()
        .map(|port| {
            let (own, protocol) = (int(port, "/port").unwrap_or(0), field(port, "protocol"));
            match int(port, "/nodePort") {
                Some(node) if node != 0 => format!("{own}:{node}/{protocol}"),
                _ => format!("{own}/{protocol}"),
            }
        })
        .collect();
    vec![
        name(service),
        kind.into(),
        or_none(text(service, "/spec/clusterIP")),
        external(service, kind).into(),
        or_none(&ports.join(",")),
        age(service, now),
        or_none(&label_map(service.pointer("/spec/selector"))),
    ]
}

fn external(service: &Value, kind: &str) -> String {
    let texts = |pointer: &str, key: &str| -> Vec<String> {
        let item = |v: &Value| v.as_str().unwrap_or_else(|| field(v, key)).to_owned();
        list(service, pointer).iter().map(item).filter(|t| !t.is_empty()).collect()
    };
    let mut addresses = match kind {
        "ExternalName" => return text(service, "/spec/externalName").to_owned(),
        "LoadBalancer" => texts("/status/loadBalancer/ingress", "ip"),
        _ => Vec::new(),
    };
    addresses.extend(texts("/spec/externalIPs", ""));
    match (addresses.is_empty(), kind) {
        (false, _) => addresses.join(","),
        (true, "LoadBalancer") => "<pending>".to_owned(),
        (true, _) => "<none>".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builtin::NoObjects;

    const CONTEXT: Context<'static> =
        Context { now: "", namespace: Some("n"), subresource: "", objects: &NoObjects, random: &|| 7 };

    fn created(spec: Value) -> Value {
        let mut service = json!({"metadata": {"name": "s"}, "spec": spec});
        default(&mut service);
        allocate(&mut service, &CONTEXT);
        service
    }

    #[test]
    fn addresses_and_ports() {
        let plain = created(json!({"ports": [{"port": 80}]}));
        assert_eq!(plain["spec"]["clusterIP"], "10.96.0.8");
        assert_eq!(plain["spec"]["ports"][0], json!({"port": 80, "protocol": "TCP", "targetPort": 80}));
        let headless = created(json!({"clusterIP": "None"}));
        assert_eq!(headless["spec"]["ipFamilyPolicy"], "RequireDualStack");
        let external = created(json!({"type": "ExternalName", "externalName": "a.b"}));
        assert_eq!(external["spec"], json!({"type": "ExternalName", "externalName": "a.b", "sessionAffinity": "None"}));
        let ports = json!([{"port": 80, "name": "a"}, {"port": 81, "name": "b"}]);
        let node = created(json!({"type": "NodePort", "ports": ports}));
        assert_eq!(
            (&node["spec"]["ports"][0]["nodePort"], &node["spec"]["ports"][1]["nodePort"]),
            (&json!(30007), &json!(30008))
        );
        for service in [plain, headless, external, node] {
            assert_eq!(validate(&service), [], "{service}");
        }
    }

    #[test]
    fn updates_keep_what_was_allocated() {
        let old = created(json!({"type": "NodePort", "ports": [{"port": 80}]}));
        let mut new =
            json!({"metadata": {"name": "s"}, "spec": {"type": "NodePort", "ports": [{"port": 80}, {"port": 81}]}});
        default(&mut new);
        prepare_update(&mut new, &old, &CONTEXT);
        assert_eq!(new["spec"]["clusterIP"], old["spec"]["clusterIP"]);
        assert_eq!(new["spec"]["ports"][0]["nodePort"], old["spec"]["ports"][0]["nodePort"]);
        assert_ne!(new["spec"]["ports"][1]["nodePort"], new["spec"]["ports"][0]["nodePort"]);
        let mut moved = old.clone();
        moved["spec"]["clusterIP"] = "10.0.0.99".into();
        prepare_update(&mut moved, &old, &CONTEXT);
        let errors = validate_update(&moved, &old, &CONTEXT);
        assert_eq!(
            errors[0].to_string(),
            "spec.clusterIPs[0]: Invalid value: [\"10.0.0.99\"]: may not change once set"
        );
    }

    #[test]
    fn refusals() {
        for (spec, expected) in [
            (json!({}), vec!["spec.ports"]),
            (json!({"ports": [{"port": 80}, {"port": 81}]}), vec!["spec.ports[0].name", "spec.ports[1].name"]),
            (json!({"ports": [{"port": 99999}]}), vec!["spec.ports[0].port", "spec.ports[0].targetPort"]),
            (json!({"type": "Nope", "ports": [{"port": 80}]}), vec!["spec.type"]),
            (json!({"type": "ExternalName"}), vec!["spec.externalName"]),
            (json!({"ports": [{"port": 80, "name": "a"}, {"port": 80, "name": "b"}]}), vec!["spec.ports[1]"]),
            (json!({"ports": [{"port": 80, "nodePort": 30000}]}), vec!["spec.ports[0].nodePort"]),
        ] {
            let errors = validate(&created(spec.clone()));
            assert_eq!(errors.iter().map(|e| e.field.as_str()).collect::<Vec<_>>(), expected, "{spec}");
        }
    }
}
