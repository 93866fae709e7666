//! Whether a definition's names are free, and the status that follows: NamesAccepted and Established.

use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

/// The status of a definition, given all other definitions. Names that another one has already keep it from being
/// served; once established it stays so.
pub fn status(definition: &Value, others: &[Value], now: &str) -> Value {
    let group = definition.pointer("/spec/group");
    let mut resources = BTreeSet::new();
    let mut kinds = BTreeSet::new();
    let same = |other: &&Value| {
        other.pointer("/spec/group") == group && other.pointer("/metadata/name") != definition.pointer("/metadata/name")
    };
    for other in others.iter().filter(same) {
        let names = &other["status"]["acceptedNames"];
        resources.extend(["plural", "singular"].iter().filter_map(|key| names[key].as_str()));
        resources.extend(names["shortNames"].as_array().into_iter().flatten().filter_map(Value::as_str));
        kinds.extend(["kind", "listKind"].iter().filter_map(|key| names[key].as_str()));
    }
    let requested = &definition["spec"]["names"];
    let mut accepted = definition["status"]["acceptedNames"].as_object().cloned().unwrap_or_default();
    let mut conflict: Option<(&str, String)> = None;
    let taken = |name: &str| format!("{name:?} is already in use");
    for (key, reason, used) in [
        ("plural", "PluralConflict", &resources),
        ("singular", "SingularConflict", &resources),
        ("kind", "KindConflict", &kinds),
        ("listKind", "ListKindConflict", &kinds),
    ] {
        let name = requested[key].as_str().unwrap_or_default();
        let own = accepted.get(key).and_then(Value::as_str) == Some(name);
        if !own && used.contains(name) {
            conflict = Some((reason, taken(name)));
        } else {
            accepted.insert(key.to_owned(), name.into());
        }
    }
    let short_names = requested["shortNames"].as_array().cloned().unwrap_or_default();
    let before = accepted.get("shortNames").and_then(Value::as_array).cloned().unwrap_or_default();
    let clash = short_names
        .iter()
        .filter(|name| !before.contains(name))
        .find_map(|name| name.as_str().filter(|name| resources.contains(name)));
    match clash {
        Some(name) => conflict = Some(("ShortNamesConflict", taken(name))),
        None => set_list(&mut accepted, "shortNames", short_names),
    }
    set_list(&mut accepted, "categories", requested["categories"].as_array().cloned().unwrap_or_default());

    let names_accepted = match &conflict {
        None => {
            json!({"type": "NamesAccepted", "status": "True", "reason": "NoConflicts", "message": "no conflicts found"})
        }
        Some((reason, message)) => {
            json!({"type": "NamesAccepted", "status": "False", "reason": reason, "message": message})
        }
    };
    let was_established = condition(definition, "Established").filter(|c| c["status"] == "True");
    let established = match (was_established, conflict.is_none()) {
        (Some(before), _) => before.clone(),
        (None, true) => json!({"type": "Established", "status": "True", "reason": "InitialNamesAccepted",
            "message": "the initial names have been accepted"}),
        (None, false) => json!({"type": "Established", "status": "False", "reason": "NotAccepted",
            "message": "not all names are accepted"}),
    };
    let mut status = definition["status"].as_object().cloned().unwrap_or_default();
    let mut conditions: Vec<Value> = status
        .get("conditions")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter(|c| !matches!(c["type"].as_str(), Some("NamesAccepted" | "Established")))
        .cloned()
        .collect();
    for (i, mut new) in [names_accepted, established].into_iter().enumerate() {
        let before = new["type"].as_str().and_then(|ty| condition(definition, ty));
        new["lastTransitionTime"] = match before {
            Some(before) if before["status"] == new["status"] => before["lastTransitionTime"].clone(),
            _ => now.into(),
        };
        conditions.insert(i, new);
    }
    status.insert("conditions".to_owned(), Value::Array(conditions));
    status.insert("acceptedNames".to_owned(), Value::Object(accepted));
    status.insert("storedVersions".to_owned(), stored_versions(definition));
    Value::Object(status)
}

fn set_list(map: &mut Map<String, Value>, key: &str, list: Vec<Value>) {
    if list.is_empty() {
        map.remove(key);
    } else {
        map.insert(key.to_owned(), Value::Array(list));
    }
}

fn condition<'a>(definition: &'a Value, ty: &str) -> Option<&'a Value> {
    definition["status"]["conditions"].as_array()?.iter().find(|condition| condition["type"] == ty)
}

/// The versions that objects may be stored in, the present one with them.
pub(crate) fn stored_versions(definition: &Value) -> Value {
    let mut stored = definition["status"]["storedVersions"].as_array().cloned().unwrap_or_default();
    let versions = definition["spec"]["versions"].as_array().into_iter().flatten();
    for version in versions.filter(|version| version["storage"] == true) {
        if !stored.contains(&version["name"]) {
            stored.push(version["name"].clone());
        }
    }
    Value::Array(stored)
}

/// Whether objects of the definition are served.
pub fn is_established(definition: &Value) -> bool {
    condition(definition, "Established").is_some_and(|condition| condition["status"] == "True")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition(plural: &str, kind: &str) -> Value {
        json!({"metadata": {"name": format!("{plural}.x.y")}, "spec": {"group": "x.y",
            "names": {"plural": plural, "singular": kind.to_lowercase(), "kind": kind, "listKind": format!("{kind}List"), "shortNames": ["s"]},
            "versions": [{"name": "v1", "storage": true}]}})
    }

    #[test]
    fn free_names_establish_a_definition() {
        let mut first = definition("as", "A");
        first["status"] = status(&first, &[], "t1");
        assert!(is_established(&first));
        assert_eq!(first["status"]["acceptedNames"], first["spec"]["names"]);
        assert_eq!(first["status"]["storedVersions"], json!(["v1"]));
        assert_eq!(status(&first, &[], "t2"), first["status"]);

        let mut second = definition("bs", "A");
        second["status"] = status(&second, std::slice::from_ref(&first), "t2");
        assert!(!is_established(&second));
        assert_eq!(second["status"]["conditions"][0]["status"], "False");
    }
}
