//! One view of a place in an object, whether its schema is that of a built-in or of a custom kind: what patches and
//! managed fields need to know.

use super::facts::{Field, ListKind, Special, Type, facts};
use super::node::{JsonType, Node};
use serde_json::Value;

/// A place in an object.
#[derive(Clone, Copy, Debug)]
pub enum View<'a> {
    /// A built-in type, reached through a field (which carries the list kind and patch keys) or as an element.
    Go(GoView),
    Custom(&'a Node),
    /// A custom object as a whole, or an embedded one: its metadata is that of every object.
    CustomObject(&'a Node),
    /// No schema: maps have fields, lists are units.
    Deduced,
    /// No schema, and one unit whatever it is.
    Atomic,
}

#[derive(Clone, Copy, Debug)]
pub struct GoView {
    ty: &'static Type,
    field: Option<&'static Field>,
}

/// How a value at a place is owned and merged.
#[derive(Clone, Debug, PartialEq)]
pub enum Shape {
    /// A scalar, or a map or list that is one unit.
    Leaf,
    Map,
    List(ListKind),
}

/// What a strategic merge patch does with a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchList {
    Replace,
    /// Objects, matched by this key.
    Merge(&'static str),
    /// Scalars, united.
    MergePrimitive,
}

impl<'a> View<'a> {
    pub(crate) fn go(ty: &'static Type) -> View<'a> {
        View::Go(GoView { ty, field: None })
    }

    /// The schema of a field (or map entry) of this place.
    pub fn field(self, name: &str) -> View<'a> {
        match self {
            View::Go(view) => match strip(view.ty) {
                Type::Struct(id) => match facts().get(*id).field(name) {
                    Some(field) => View::Go(GoView { ty: &field.ty, field: Some(field) }),
                    None => View::Deduced,
                },
                Type::Map(item) => View::go(item),
                _ => View::Atomic,
            },
            View::Custom(node) => child(node, name),
            View::CustomObject(node) => match name {
                "metadata" => metadata(),
                "apiVersion" | "kind" => View::Atomic,
                _ => child(node, name),
            },
            View::Deduced => View::Deduced,
            View::Atomic => View::Atomic,
        }
    }

    /// The schema of the items of a list here.
    pub fn item(self) -> View<'a> {
        match self {
            View::Go(view) => match strip(view.ty) {
                Type::List(item) => View::go(item),
                _ => View::Atomic,
            },
            View::Custom(node) | View::CustomObject(node) => node.items.as_deref().map(wrap).unwrap_or(View::Deduced),
            View::Deduced => View::Deduced,
            View::Atomic => View::Atomic,
        }
    }

    /// How this value is owned here. Where the value does not fit the schema, the schema decides.
    pub fn shape(self, value: &Value) -> Shape {
        match self {
            View::Go(view) => match strip(view.ty) {
                Type::Struct(id) => {
                    let atomic = facts().get(*id).atomic || view.field.is_some_and(|f| f.atomic_map);
                    if atomic { Shape::Leaf } else { Shape::Map }
                }
                Type::Map(_) if view.field.is_some_and(|f| f.atomic_map) => Shape::Leaf,
                Type::Map(_) => Shape::Map,
                Type::List(_) => match view.field.map(|f| &f.list) {
                    None | Some(ListKind::Atomic) => Shape::Leaf,
                    Some(kind) => Shape::List(kind.clone()),
                },
                _ => Shape::Leaf,
            },
            View::Custom(node) | View::CustomObject(node) => {
                if node.int_or_string {
                    return Shape::Leaf;
                }
                match node.ty {
                    Some(JsonType::Object) if node.atomic_map => Shape::Leaf,
                    Some(JsonType::Object) => Shape::Map,
                    Some(JsonType::Array) => match &node.list.0 {
                        ListKind::Atomic => Shape::Leaf,
                        kind => Shape::List(kind.clone()),
                    },
                    Some(_) => Shape::Leaf,
                    None => deduce(value),
                }
            }
            View::Deduced => deduce(value),
            View::Atomic => Shape::Leaf,
        }
    }

    /// The default of a scalar here, which completes the keys of list items.
    pub fn default_value(self) -> Option<Value> {
        match self {
            View::Go(view) => view.field.and_then(|f| f.default).map(Value::from),
            View::Custom(node) | View::CustomObject(node) => node.default.clone(),
            View::Deduced | View::Atomic => None,
        }
    }

    /// What a strategic merge patch does with a list here.
    pub fn patch_list(self) -> PatchList {
        match self {
            View::Go(GoView { field: Some(field), .. }) if field.patch_merge => match field.patch_key {
                Some(key) => PatchList::Merge(key),
                None => PatchList::MergePrimitive,
            },
            _ => PatchList::Replace,
        }
    }

    /// Whether a strategic merge patch keeps only the fields that it names (`retainKeys`).
    pub fn retains_keys(self) -> bool {
        matches!(self, View::Go(GoView { field: Some(field), .. }) if field.retain_keys)
    }

    /// Whether the schema names this very field (it is no entry of a map).
    pub fn names(self, name: &str) -> bool {
        match self {
            View::Go(view) => match strip(view.ty) {
                Type::Struct(id) => facts().get(*id).field(name).is_some(),
                _ => false,
            },
            View::Custom(node) => node.properties.contains_key(name),
            View::CustomObject(node) => {
                matches!(name, "apiVersion" | "kind" | "metadata") || node.properties.contains_key(name)
            }
            View::Deduced | View::Atomic => false,
        }
    }

    /// Whether the schema knows a field here; free maps and places without schema know every name.
    pub fn knows(self, name: &str) -> bool {
        match self {
            View::Go(view) => match strip(view.ty) {
                Type::Struct(id) => facts().get(*id).field(name).is_some(),
                _ => true,
            },
            View::Custom(node) => node.preserve_unknown || node.knows(name),
            View::CustomObject(node) => {
                matches!(name, "apiVersion" | "kind" | "metadata") || node.preserve_unknown || node.knows(name)
            }
            View::Deduced | View::Atomic => true,
        }
    }

    /// Whether a scalar or a list or a map is what belongs here, as `("scalar" | "list" | "map")`; `None` if anything may.
    pub fn expects(self) -> Option<&'static str> {
        match self {
            View::Go(view) => match strip(view.ty) {
                Type::Struct(_) | Type::Map(_) => Some("map"),
                Type::List(_) => Some("list"),
                Type::Special(Special::Quantity | Special::IntOrString | Special::Time | Special::MicroTime) => {
                    Some("scalar")
                }
                Type::Special(_) => None,
                _ => Some("scalar"),
            },
            View::Custom(node) | View::CustomObject(node) => match node.ty {
                _ if node.int_or_string => Some("scalar"),
                Some(JsonType::Object) => Some("map"),
                Some(JsonType::Array) => Some("list"),
                Some(_) => Some("scalar"),
                None => None,
            },
            View::Deduced | View::Atomic => None,
        }
    }
}

fn deduce(value: &Value) -> Shape {
    if value.is_object() { Shape::Map } else { Shape::Leaf }
}

fn wrap(node: &Node) -> View<'_> {
    if node.embedded { View::CustomObject(node) } else { View::Custom(node) }
}

fn child<'a>(node: &'a Node, name: &str) -> View<'a> {
    node.child(name).map(wrap).unwrap_or(View::Deduced)
}

fn metadata() -> View<'static> {
    View::go(facts().struct_type(facts().object_meta()))
}

/// The type below names and pointers.
fn strip(ty: &'static Type) -> &'static Type {
    match ty {
        Type::Named(_, inner) | Type::Pointer(inner) => strip(inner),
        other => other,
    }
}
