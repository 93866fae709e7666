//! Sets of field paths, as managed fields hold them (`FieldsV1`).

use serde::de::IgnoredAny;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};

/// One step of a path in the form that `FieldsV1` writes: `f:name`, `k:{"name":"a"}`, `v:"x"`, `i:0`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Element(String);

impl Element {
    pub(crate) fn field(name: &str) -> Element {
        Element(format!("f:{name}"))
    }

    /// An item of a list by its key fields.
    pub(crate) fn key(keys: &Map<String, Value>) -> Element {
        let inner: Vec<String> = keys.iter().map(|(k, v)| format!("{}:{v}", Value::from(k.as_str()))).collect();
        Element(format!("k:{{{}}}", inner.join(",")))
    }

    /// An item of a set.
    pub(crate) fn value(value: &Value) -> Element {
        Element(format!("v:{value}"))
    }

    pub(crate) fn field_name(&self) -> Option<&str> {
        self.0.strip_prefix("f:")
    }

    fn parse(text: &str) -> Option<Element> {
        let known = match text.split_once(':') {
            Some(("f", _)) => true,
            Some(("k", keys)) => keys.trim_start().starts_with('{') && serde_json::from_str::<IgnoredAny>(keys).is_ok(),
            Some(("v", value)) => serde_json::from_str::<IgnoredAny>(value).is_ok(),
            Some(("i", index)) => index.parse::<u64>().is_ok(),
            _ => false,
        };
        known.then(|| Element(text.to_owned()))
    }
}

/// As upstream prints it in a conflict: `.spec`, `[name="a"]`, `[="x"]`, `[0]`.
impl std::fmt::Display for Element {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0.split_once(':') {
            Some(("f", name)) => write!(f, ".{name}"),
            Some(("k", keys)) => {
                let keys: Map<String, Value> = serde_json::from_str(keys).unwrap_or_default();
                let inner: Vec<String> = keys.iter().map(|(k, v)| format!("{k}={v}")).collect();
                write!(f, "[{}]", inner.join(","))
            }
            Some(("v", value)) => write!(f, "[={value}]"),
            Some((_, index)) => write!(f, "[{index}]"),
            None => Ok(()),
        }
    }
}

/// A set of paths. A path may be a member while paths below it are members too.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Set {
    pub(super) members: BTreeSet<Element>,
    pub(super) children: BTreeMap<Element, Set>,
}

impl Set {
    pub(crate) fn is_empty(&self) -> bool {
        self.members.is_empty() && self.children.values().all(Set::is_empty)
    }

    pub(crate) fn insert(&mut self, path: &[Element]) {
        match path {
            [] => {}
            [last] => {
                self.members.insert(last.clone());
            }
            [first, rest @ ..] => match self.children.get_mut(first) {
                Some(child) => child.insert(rest),
                None => {
                    let mut child = Set::default();
                    child.insert(rest);
                    self.children.insert(first.clone(), child);
                }
            },
        }
    }

    /// The set of a path of plain field names.
    pub(crate) fn of_fields(names: &[&str]) -> Set {
        let mut set = Set::default();
        set.insert(&names.iter().map(|name| Element::field(name)).collect::<Vec<_>>());
        set
    }

    pub(crate) fn has(&self, path: &[Element]) -> bool {
        match path {
            [] => false,
            [last] => self.members.contains(last),
            [first, rest @ ..] => self.children.get(first).is_some_and(|child| child.has(rest)),
        }
    }

    pub(crate) fn has_member(&self, element: &Element) -> bool {
        self.members.contains(element)
    }

    /// The paths below one element.
    pub(crate) fn below(&self, element: &Element) -> Option<&Set> {
        self.children.get(element).filter(|child| !child.is_empty())
    }

    pub(crate) fn union(mut self, other: Set) -> Set {
        self.add(other);
        self
    }

    pub(crate) fn add(&mut self, mut other: Set) {
        self.members.append(&mut other.members);
        for (element, theirs) in other.children {
            match self.children.get_mut(&element) {
                Some(child) => child.add(theirs),
                None => {
                    self.children.insert(element, theirs);
                }
            }
        }
    }

    pub(crate) fn intersection(&self, other: &Set) -> Set {
        let members = self.members.intersection(&other.members).cloned().collect();
        let children = self.children.iter().filter_map(|(element, child)| {
            let both = child.intersection(other.children.get(element)?);
            (!both.is_empty()).then(|| (element.clone(), both))
        });
        Set { members, children: children.collect() }
    }

    /// Paths of this set that are not in the other.
    pub(crate) fn difference(mut self, other: &Set) -> Set {
        self.subtract(other, false);
        self
    }

    /// As `difference`, and whatever lies below a member of the other goes too.
    pub(crate) fn recursive_difference(mut self, other: &Set) -> Set {
        self.subtract(other, true);
        self
    }

    fn subtract(&mut self, other: &Set, recursive: bool) {
        for gone in &other.members {
            self.members.remove(gone);
            if recursive {
                self.children.remove(gone);
            }
        }
        for (element, gone) in &other.children {
            if let Some(child) = self.children.get_mut(element) {
                child.subtract(gone, recursive);
                if child.is_empty() {
                    self.children.remove(element);
                }
            }
        }
    }

    /// Takes out fields on this level, though not what lies below them.
    pub(crate) fn remove_fields(&mut self, names: &[&str]) {
        // Most sets hold little of what is asked for.
        self.members.retain(|element| element.field_name().is_none_or(|name| !names.contains(&name)));
    }

    /// Changes what lies below a field.
    pub(crate) fn change_below(&mut self, field: &str, change: impl FnOnce(&mut Set)) {
        let element = Element::field(field);
        if let Some(child) = self.children.get_mut(&element) {
            change(child);
            if child.is_empty() {
                self.children.remove(&element);
            }
        }
    }

    /// Every path of the set, in order.
    pub(crate) fn paths(&self) -> Vec<Vec<Element>> {
        let mut out = Vec::new();
        self.collect(&mut Vec::new(), &mut out);
        out
    }

    fn collect(&self, prefix: &mut Vec<Element>, out: &mut Vec<Vec<Element>>) {
        for element in &self.members {
            prefix.push(element.clone());
            out.push(prefix.clone());
            prefix.pop();
        }
        for (element, child) in &self.children {
            prefix.push(element.clone());
            child.collect(prefix, out);
            prefix.pop();
        }
    }

    /// The `fieldsV1` of this set.
    pub(crate) fn into_fields(self) -> Value {
        let mut map = Map::new();
        for (element, child) in self.children {
            if !child.is_empty() {
                map.insert(element.0, child.into_fields());
            }
        }
        for element in self.members {
            match map.get_mut(&element.0) {
                Some(below) => below["."] = Value::Object(Map::new()),
                None => drop(map.insert(element.0, Value::Object(Map::new()))),
            }
        }
        Value::Object(map)
    }

    /// Reads `fieldsV1`; `None` where it is no such thing. Unknown kinds of elements are left out.
    pub(crate) fn from_fields(fields: &Value) -> Option<Set> {
        let mut set = Set::default();
        for (key, value) in fields.as_object()? {
            if key == "." {
                continue;
            }
            let Some(element) = Element::parse(key) else {
                if key.contains(':') && !key.starts_with(['f', 'k', 'v', 'i']) {
                    continue;
                }
                return None;
            };
            let inner = value.as_object()?;
            if inner.is_empty() || inner.contains_key(".") {
                set.members.insert(element.clone());
            }
            let child = Set::from_fields(value)?;
            if !child.is_empty() {
                set.children.insert(element, child);
            }
        }
        Some(set)
    }
}

/// A path as upstream prints it: `.spec.containers[name="a"].image`.
pub(crate) fn print_path(path: &[Element]) -> String {
    path.iter().map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn fields_round_trip() {
        let fields = json!({"f:spec": {"f:containers": {"k:{\"name\":\"a\"}": {".": {}, "f:image": {}}},
            "f:tags": {"v:\"x\"": {}}}});
        let set = Set::from_fields(&fields).expect("well formed");
        assert_eq!(set.clone().into_fields(), fields);
        let printed: Vec<String> = set.paths().iter().map(|path| print_path(path)).collect();
        assert_eq!(
            printed,
            [".spec.containers[name=\"a\"]", ".spec.containers[name=\"a\"].image", ".spec.tags[=\"x\"]"]
        );
    }

    #[test]
    fn differences_may_take_what_lies_below() {
        let set = Set::from_fields(&json!({"f:status": {".": {}, "f:a": {}}, "f:spec": {"f:b": {}}})).expect("valid");
        let status = Set::of_fields(&["status"]);
        assert_eq!(
            set.clone().difference(&status).into_fields(),
            json!({"f:status": {"f:a": {}}, "f:spec": {"f:b": {}}})
        );
        assert_eq!(set.recursive_difference(&status).into_fields(), json!({"f:spec": {"f:b": {}}}));
    }
}
