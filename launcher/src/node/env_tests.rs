use super::*;
use serde_json::json;

fn data(pairs: &[(&str, &str)]) -> Option<BTreeMap<String, Vec<u8>>> {
    Some(pairs.iter().map(|(k, v)| ((*k).to_owned(), v.as_bytes().to_vec())).collect())
}

fn fetched() -> Fetched {
    Fetched {
        config_maps: BTreeMap::from([
            ("settings".to_owned(), data(&[("COLOUR", "red"), ("SIZE", "3")])),
            ("gone".to_owned(), None),
        ]),
        secrets: BTreeMap::from([("keys".to_owned(), data(&[("token", "s3cret")]))]),
        ..Fetched::default()
    }
}

fn check(container: serde_json::Value) -> Result<Vec<(String, String)>, EnvError> {
    let container: core::Container = serde_json::from_value(container).expect("a container");
    let pod: core::Pod = serde_json::from_value(json!({
        "metadata": {"name": "p", "namespace": "ns", "uid": "u", "labels": {"app.io/tier": "gold"}},
        "spec": {"nodeName": "n", "serviceAccountName": "sa", "containers": [
            {"name": "other", "resources": {"limits": {"memory": "1Gi"}}}]}
    }))
    .expect("a pod");
    let address = Address { host_ip: "10.0.0.1".to_owned(), pod_ip: "127.0.0.1".to_owned() };
    let allocatable = BTreeMap::from([("cpu".to_owned(), 4000)]);
    let scope = Scope { pod: &pod, address: &address, fetched: &fetched(), allocatable: &allocatable };
    resolve(&container, vec![("PATH".to_owned(), "/bin".to_owned()), ("A".to_owned(), "base".to_owned())], &scope)
}

fn env(list: serde_json::Value) -> Vec<(String, String)> {
    check(json!({"name": "c", "env": list})).expect("it resolves")
}

fn value(list: serde_json::Value, name: &str) -> Option<String> {
    env(list).into_iter().find(|(known, _)| known == name).map(|(_, value)| value)
}

#[test]
fn references_in_text_are_expanded_as_kubernetes_does() {
    let lookup = |name: &str| match name {
        "A" => Some("a".to_owned()),
        "EMPTY" => Some(String::new()),
        _ => None,
    };
    for (text, want) in [
        ("$(A)", "a"),
        ("-$(A)-$(A)-", "-a-a-"),
        ("$$(A)", "$(A)"),
        ("$$$(A)", "$a"),
        ("$$$$(A)", "$$(A)"),
        ("$(UNKNOWN)", "$(UNKNOWN)"),
        ("$(EMPTY)", ""),
        ("$A", "$A"),
        ("$", "$"),
        ("$(A", "$(A"),
        ("$()", "$()"),
        ("a$b$(A)c$", "a$bac$"),
        ("$($(A))", "$($(A))"),
        ("", ""),
    ] {
        assert_eq!(expand(text, lookup), want, "{text}");
    }
}

#[test]
fn later_variables_see_and_replace_earlier_ones() {
    let list = json!([
        {"name": "A", "value": "1"},
        {"name": "B", "value": "$(A)2 $(LATER) $(PATH)"},
        {"name": "LATER", "value": "x"},
        {"name": "A", "value": "3"}
    ]);
    let found = env(list);
    let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["PATH", "B", "LATER", "A"]);
    assert_eq!(found[1].1, "12 $(LATER) $(PATH)");
    assert_eq!(found[3].1, "3");
}

#[test]
fn fields_and_resources_of_the_pod() {
    for (source, want) in [
        (json!({"fieldRef": {"fieldPath": "metadata.name"}}), "p"),
        (json!({"fieldRef": {"fieldPath": "metadata.namespace"}}), "ns"),
        (json!({"fieldRef": {"fieldPath": "metadata.uid"}}), "u"),
        (json!({"fieldRef": {"fieldPath": "metadata.labels['app.io/tier']"}}), "gold"),
        (json!({"fieldRef": {"fieldPath": "metadata.annotations['none']"}}), ""),
        (json!({"fieldRef": {"fieldPath": "spec.nodeName"}}), "n"),
        (json!({"fieldRef": {"fieldPath": "spec.serviceAccountName"}}), "sa"),
        (json!({"fieldRef": {"fieldPath": "status.podIP"}}), "127.0.0.1"),
        (json!({"fieldRef": {"fieldPath": "status.hostIP"}}), "10.0.0.1"),
        (json!({"resourceFieldRef": {"resource": "limits.cpu"}}), "4"),
        (json!({"resourceFieldRef": {"resource": "requests.cpu", "divisor": "1m"}}), "0"),
        (
            json!({"resourceFieldRef": {"containerName": "other", "resource": "limits.memory", "divisor": "1Mi"}}),
            "1024",
        ),
    ] {
        assert_eq!(value(json!([{"name": "X", "valueFrom": source}]), "X").as_deref(), Some(want), "{source}");
    }
}

#[test]
fn config_maps_and_secrets_fill_variables() {
    let key = |kind: &str, name: &str, key: &str, optional: bool| json!({"name": "X", "valueFrom": {kind: {"name": name, "key": key, "optional": optional}}});
    assert_eq!(value(json!([key("configMapKeyRef", "settings", "COLOUR", false)]), "X").as_deref(), Some("red"));
    assert_eq!(value(json!([key("secretKeyRef", "keys", "token", false)]), "X").as_deref(), Some("s3cret"));
    assert_eq!(value(json!([key("configMapKeyRef", "gone", "k", true)]), "X"), None);
    assert_eq!(value(json!([key("secretKeyRef", "keys", "none", true)]), "X"), None);
    for (variable, want) in [
        (key("configMapKeyRef", "gone", "k", false), "configmap \"gone\" not found"),
        (key("secretKeyRef", "keys", "none", false), "couldn't find key none in Secret ns/keys"),
    ] {
        let error = check(json!({"name": "c", "env": [variable]})).expect_err("it is missing");
        assert_eq!(error.to_string(), want);
    }
    let from = json!({"name": "c", "envFrom": [{"prefix": "P_", "configMapRef": {"name": "settings"}}],
                      "env": [{"name": "X", "value": "$(P_COLOUR)"}]});
    let found = check(from).expect("it resolves");
    assert!(found.contains(&("P_SIZE".to_owned(), "3".to_owned())));
    assert!(found.contains(&("X".to_owned(), "red".to_owned())));
}
