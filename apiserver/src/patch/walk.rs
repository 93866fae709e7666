//! Walks over objects along their schema: which fields an object has, how two objects differ, how one is merged into
//! another, what is left when fields go. These are the operations of structured merge and diff.

use super::fields::{Element, Set};
use crate::schema::ListKind;
use crate::schema::view::{Shape, View};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// How a second object differs from a first one. No path is in two of the sets.
#[derive(Debug, Default)]
pub(crate) struct Comparison {
    pub(crate) removed: Set,
    pub(crate) modified: Set,
    pub(crate) added: Set,
}

impl Comparison {
    /// Leaves out fields, with all that is below them.
    pub(crate) fn without(self, fields: &Set) -> Comparison {
        Comparison {
            removed: self.removed.recursive_difference(fields),
            modified: self.modified.recursive_difference(fields),
            added: self.added.recursive_difference(fields),
        }
    }
}

/// The path element of a list item.
pub(crate) fn element(kind: &ListKind, item_view: View<'_>, item: &Value) -> Result<Element, String> {
    let keys = match kind {
        ListKind::Map(keys) => keys,
        ListKind::Set | ListKind::Atomic => {
            return match item {
                Value::Object(_) => Err("associative list without keys has an element that's a map type".to_owned()),
                Value::Array(_) => Err("not supported: associative list with lists as elements".to_owned()),
                Value::Null => Err("associative list without keys has an element that's an explicit null".to_owned()),
                scalar => Ok(Element::value(scalar)),
            };
        }
    };
    let Value::Object(fields) = item else {
        let what = if item.is_null() { "a null element" } else { "non-map elements" };
        return Err(format!("associative list with keys may not have {what}"));
    };
    let mut found = Map::new();
    for key in keys {
        let value = fields.get(key).cloned().or_else(|| item_view.field(key).default_value());
        if let Some(value) = value {
            found.insert(key.clone(), value);
        }
    }
    if found.is_empty() {
        let names: Vec<String> = keys.iter().map(|key| format!("{key:?}")).collect();
        return Err(format!(
            "associative list with keys has an element that omits all key fields [{}] (and doesn't have default \
             values for any key fields)",
            names.join(" ")
        ));
    }
    Ok(Element::key(&found))
}

/// What an applied configuration has against its schema: unknown fields, wrong kinds of values, items without keys or
/// repeated ones.
pub(crate) fn check(view: View<'_>, value: &Value) -> Vec<String> {
    let mut errors = Vec::new();
    check_at(view, value, &mut Vec::new(), &mut errors);
    errors
}

fn check_at(view: View<'_>, value: &Value, path: &mut Vec<Element>, errors: &mut Vec<String>) {
    let at = |path: &[Element]| super::fields::print_path(path);
    let found = match value {
        Value::Null => return,
        Value::Object(_) => "map",
        Value::Array(_) => "list",
        _ => "scalar",
    };
    if let Some(expected) = view.expects().filter(|expected| *expected != found) {
        errors.push(format!("{}: expected {expected}, got &{{{}}}", at(path), super::go_print(value)));
        return;
    }
    match value {
        Value::Object(map) => {
            for (key, child) in map {
                path.push(Element::field(key));
                if view.knows(key) {
                    check_at(view.field(key), child, path, errors);
                } else {
                    errors.push(format!("{}: field not declared in schema", at(path)));
                }
                path.pop();
            }
        }
        Value::Array(items) => {
            let kind = match view.shape(value) {
                Shape::List(kind) => Some(kind),
                _ => None,
            };
            let mut seen = std::collections::BTreeSet::new();
            for (i, item) in items.iter().enumerate() {
                let step = match &kind {
                    None => None,
                    Some(kind) => match element(kind, view.item(), item) {
                        Ok(step) => Some(step),
                        Err(error) => {
                            errors.push(format!("{}: element {i}: {error}", at(path)));
                            continue;
                        }
                    },
                };
                if let Some(step) = step {
                    if !seen.insert(step.clone()) {
                        errors.push(format!("{}: duplicate entries for key {step}", at(path)));
                        continue;
                    }
                    path.push(step);
                    check_at(view.item(), item, path, errors);
                    path.pop();
                } else {
                    check_at(view.item(), item, path, errors);
                }
            }
        }
        _ => {}
    }
}

/// The fields of an object: leaves, list items, entries of maps, and empty places.
pub(crate) fn field_set(view: View<'_>, value: &Value) -> Set {
    let mut set = Set::default();
    collect(view, value, &mut set);
    set
}

/// Adds what is below the value; says whether the value's own path belongs to the set.
fn collect(view: View<'_>, value: &Value, set: &mut Set) -> bool {
    match view.shape(value) {
        Shape::Leaf => true,
        Shape::Map => {
            let Value::Object(map) = value else { return false };
            for (key, child) in map {
                let step = Element::field(key);
                let mut below = Set::default();
                let own = collect(view.field(key), child, &mut below);
                let empty = child.is_null() || child.as_object().is_some_and(Map::is_empty);
                if own || empty || !view.names(key) {
                    set.members.insert(step.clone());
                }
                if !below.is_empty() {
                    set.children.insert(step, below);
                }
            }
            false
        }
        Shape::List(kind) => {
            let Value::Array(items) = value else { return false };
            let mut by_element: BTreeMap<Element, Vec<&Value>> = BTreeMap::new();
            for item in items {
                if let Ok(step) = element(&kind, view.item(), item) {
                    by_element.entry(step).or_default().push(item);
                }
            }
            for (step, same) in by_element {
                set.members.insert(step.clone());
                if let [item] = same.as_slice() {
                    let mut below = Set::default();
                    collect(view.item(), item, &mut below);
                    if !below.is_empty() {
                        set.children.insert(step, below);
                    }
                }
            }
            false
        }
    }
}

/// How `new` differs from `old`.
pub(crate) fn compare(view: View<'_>, old: &Value, new: &Value) -> Comparison {
    let mut walker = Compare { out: Comparison::default(), path: Vec::new() };
    walker.compare(view, Some(old), Some(new));
    walker.out
}

struct Compare {
    out: Comparison,
    path: Vec<Element>,
}

impl Compare {
    fn compare(&mut self, view: View<'_>, old: Option<&Value>, new: Option<&Value>) {
        let leaf = match (old.map(|v| view.shape(v)), new.map(|v| view.shape(v))) {
            (None, None) => return,
            (Some(shape), None) | (None, Some(shape)) => self.descend(view, &shape, old, new),
            (Some(a), Some(b)) => {
                if a != b {
                    self.descend(view, &a, old, new);
                }
                self.descend(view, &b, old, new)
            }
        };
        if !leaf {
            match (old, new) {
                (None, _) => self.out.added.insert(&self.path),
                (_, None) => self.out.removed.insert(&self.path),
                _ => {}
            }
        }
    }

    /// Says whether the place was taken as one leaf.
    fn descend(&mut self, view: View<'_>, shape: &Shape, old: Option<&Value>, new: Option<&Value>) -> bool {
        match shape {
            Shape::Leaf => self.leaf(old, new),
            Shape::Map => {
                let (a, b) = (old.and_then(Value::as_object), new.and_then(Value::as_object));
                if a.is_none_or(Map::is_empty) && b.is_none_or(Map::is_empty) {
                    return self.leaf(old, new);
                }
                let keys: std::collections::BTreeSet<&String> =
                    a.into_iter().flat_map(Map::keys).chain(b.into_iter().flat_map(Map::keys)).collect();
                for key in keys {
                    let (old, new) = (a.and_then(|m| m.get(key)), b.and_then(|m| m.get(key)));
                    // Equal parts differ nowhere; most writes change little.
                    if old != new {
                        self.path.push(Element::field(key));
                        self.compare(view.field(key), old, new);
                        self.path.pop();
                    }
                }
                false
            }
            Shape::List(kind) => {
                let (a, b) = (old.and_then(Value::as_array), new.and_then(Value::as_array));
                if a.is_none_or(Vec::is_empty) && b.is_none_or(Vec::is_empty) {
                    return self.leaf(old, new);
                }
                let mut items: BTreeMap<Element, (Vec<&Value>, Vec<&Value>)> = BTreeMap::new();
                for item in a.into_iter().flatten() {
                    if let Ok(step) = element(kind, view.item(), item) {
                        items.entry(step).or_default().0.push(item);
                    }
                }
                for item in b.into_iter().flatten() {
                    if let Ok(step) = element(kind, view.item(), item) {
                        items.entry(step).or_default().1.push(item);
                    }
                }
                for (step, (a, b)) in items {
                    self.path.push(step);
                    self.items(view.item(), &a, &b);
                    self.path.pop();
                }
                false
            }
        }
    }

    /// Items of the same key; more than one on a side is one unit.
    fn items(&mut self, view: View<'_>, old: &[&Value], new: &[&Value]) {
        match (old, new) {
            ([a], [b]) if a == b => {}
            ([] | [_], [] | [_]) => self.compare(view, old.first().copied(), new.first().copied()),
            ([_, _, ..], [_, _, ..]) => {
                if old != new {
                    self.out.modified.insert(&self.path);
                }
            }
            ([_, _, ..], _) => {
                if let Some(item) = new.first() {
                    self.compare(view, None, Some(item));
                }
                self.out.removed.insert(&self.path);
            }
            _ => {
                if let Some(item) = old.first() {
                    self.compare(view, Some(item), None);
                }
                self.out.added.insert(&self.path);
            }
        }
    }

    fn leaf(&mut self, old: Option<&Value>, new: Option<&Value>) -> bool {
        match (old, new) {
            (None, _) => self.out.added.insert(&self.path),
            (_, None) => self.out.removed.insert(&self.path),
            (Some(a), Some(b)) if a != b => self.out.modified.insert(&self.path),
            _ => {}
        }
        true
    }
}

/// Merges `new` into `old`: leaves of `new` win, maps and keyed lists are united, items keep the order of `new`
/// where both have them.
pub(crate) fn merge(view: View<'_>, old: Option<&Value>, new: Option<&Value>) -> Option<Value> {
    let newer = || new.or(old).cloned();
    let shape = view.shape(new.or(old)?);
    match shape {
        Shape::Leaf => newer(),
        Shape::Map => {
            let (a, b) = (old.and_then(Value::as_object), new.and_then(Value::as_object));
            if a.is_none_or(Map::is_empty) && b.is_none_or(Map::is_empty) {
                return newer();
            }
            let mut out = Map::new();
            let keys = a.into_iter().flat_map(Map::keys).chain(b.into_iter().flat_map(Map::keys));
            for key in keys {
                if out.contains_key(key) {
                    continue;
                }
                let merged = merge(view.field(key), a.and_then(|m| m.get(key)), b.and_then(|m| m.get(key)));
                if let Some(value) = merged {
                    out.insert(key.clone(), value);
                }
            }
            (!out.is_empty()).then_some(Value::Object(out))
        }
        Shape::List(kind) => {
            let a = old.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
            let b = new.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
            if a.is_empty() && b.is_empty() {
                return newer();
            }
            let items = merge_lists(view, &kind, a, b);
            (!items.is_empty()).then_some(Value::Array(items))
        }
    }
}

fn merge_lists(view: View<'_>, kind: &ListKind, old: &[Value], new: &[Value]) -> Vec<Value> {
    let item = view.item();
    let index = |items: &[Value]| -> Vec<(Element, Value)> {
        let steps = items.iter().map(|value| (element(kind, item, value), value));
        steps.filter_map(|(step, value)| Some((step.ok()?, value.clone()))).collect()
    };
    let (old, new) = (index(old), index(new));
    // An item that is repeated in the old list is not merged with the new one.
    let mut in_old: BTreeMap<&Element, Option<&Value>> = BTreeMap::new();
    for (step, value) in &old {
        in_old.entry(step).and_modify(|twice| *twice = None).or_insert(Some(value));
    }
    let in_new: BTreeMap<&Element, &Value> = new.iter().map(|(step, value)| (step, value)).collect();
    let mut shared = new.iter().map(|(step, _)| step).filter(|step| in_old.contains_key(step));
    let mut next_shared = shared.next();
    let mut merged: std::collections::BTreeSet<&Element> = std::collections::BTreeSet::new();
    let mut out = Vec::new();
    let (mut i, mut j) = (0, 0);
    while i < old.len() || j < new.len() {
        if let (Some((step, _)), Some((other, value))) = (old.get(i), new.get(j)) {
            if step == other {
                merged.insert(step);
                let before = in_old.get(step).copied().flatten();
                out.extend(merge(item, before, Some(value)));
                (i, j) = (i + 1, j + 1);
                next_shared = shared.next();
                continue;
            }
            if in_new.contains_key(step) && next_shared.is_some_and(|next| next != step) {
                // A shared item, but not the one whose turn it is.
                i += 1;
                continue;
            }
        }
        if let Some((step, value)) = old.get(i) {
            if !in_new.contains_key(step) {
                out.extend(merge(item, Some(value), None));
                i += 1;
                continue;
            }
            if merged.contains(step) {
                i += 1;
            }
        }
        if let Some((step, value)) = new.get(j) {
            merged.insert(step);
            let before = in_old.get(step).copied().flatten();
            out.extend(merge(item, before, Some(value)));
            j += 1;
            if next_shared == Some(step) {
                next_shared = shared.next();
            }
        }
    }
    out
}

/// The value without the items of the set; a map or list that ends empty becomes null.
pub(crate) fn remove(view: View<'_>, value: &Value, gone: &Set) -> Value {
    match (view.shape(value), value) {
        (Shape::Map, Value::Object(map)) => {
            let mut left = Map::new();
            for (key, child) in map {
                let step = Element::field(key);
                if gone.has_member(&step) {
                    continue;
                }
                let child = match gone.below(&step) {
                    Some(below) => remove(view.field(key), child, below),
                    None => child.clone(),
                };
                left.insert(key.clone(), child);
            }
            if left.is_empty() { Value::Null } else { Value::Object(left) }
        }
        (Shape::List(kind), Value::Array(items)) => {
            let mut left = Vec::new();
            for item in items {
                let Ok(step) = element(&kind, view.item(), item) else {
                    left.push(item.clone());
                    continue;
                };
                if gone.has_member(&step) {
                    continue;
                }
                left.push(match gone.below(&step) {
                    Some(below) => remove(view.item(), item, below),
                    None => item.clone(),
                });
            }
            if left.is_empty() { Value::Null } else { Value::Array(left) }
        }
        _ => value.clone(),
    }
}

/// Adds the named fields on the way to members, which sets usually leave out.
pub(crate) fn with_named_fields(view: View<'_>, set: &Set) -> Set {
    let mut out = Set { members: set.members.clone(), children: BTreeMap::new() };
    for (step, child) in &set.children {
        let below = match step.field_name() {
            Some(name) => {
                if view.names(name) {
                    out.members.insert(step.clone());
                }
                view.field(name)
            }
            None => view.item(),
        };
        out.children.insert(step.clone(), with_named_fields(below, child));
    }
    out
}
