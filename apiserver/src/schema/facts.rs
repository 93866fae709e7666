//! The built-in types as data: for every struct of the Kubernetes API (release 1.34) the JSON names and Go types
//! of its fields, which of them the encoder leaves out when empty, the kinds of lists and maps, and patch keys.
//! `facts.txt` holds the table; `apiserver/tools/facts` prints it from the Go types and the published OpenAPI document.

use std::collections::HashMap;
use std::sync::OnceLock;

/// Index of a struct in the table.
pub(crate) type StructId = usize;

/// A Go type, as far as its JSON form is concerned.
#[derive(Debug, PartialEq)]
pub(crate) enum Type {
    String,
    Bool,
    /// Signed, of this many bits.
    Int(u32),
    Bytes,
    Struct(StructId),
    List(Box<Type>),
    Map(Box<Type>),
    Pointer(Box<Type>),
    /// A defined type over another one: its Go name (`v1.PullPolicy`).
    Named(&'static str, Box<Type>),
    Special(Special),
}

/// Types with an encoding of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Special {
    Time,
    MicroTime,
    Quantity,
    IntOrString,
    /// Any JSON value.
    Raw,
    /// The fields of managed fields: any object.
    Fields,
    /// `JSONSchemaProps` or a boolean, a list of them, or a list of strings.
    SchemaOrBool,
    SchemaOrArray,
    SchemaOrStrings,
}

/// How a list is merged and owned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListKind {
    Atomic,
    Set,
    /// By these key fields.
    Map(Vec<String>),
}

#[derive(Debug)]
pub(crate) struct Field {
    pub(crate) name: &'static str,
    pub(crate) ty: Type,
    /// `omitempty`.
    pub(crate) omit_empty: bool,
    /// `omitzero`.
    pub(crate) omit_zero: bool,
    pub(crate) list: ListKind,
    pub(crate) atomic_map: bool,
    pub(crate) patch_key: Option<&'static str>,
    pub(crate) patch_merge: bool,
    pub(crate) retain_keys: bool,
    pub(crate) default: Option<&'static str>,
    /// The values that the field may have, where they are a closed set.
    pub(crate) values: Vec<&'static str>,
}

#[derive(Debug)]
pub(crate) struct Struct {
    /// `core/v1.Pod`.
    pub(crate) id: &'static str,
    /// The granular map is one unit of ownership.
    pub(crate) atomic: bool,
    /// In the order of the Go struct.
    pub(crate) fields: Vec<Field>,
}

impl Struct {
    pub(crate) fn field(&self, name: &str) -> Option<&Field> {
        self.fields.iter().find(|f| f.name == name)
    }

    /// `Pod`.
    pub(crate) fn short_name(&self) -> &'static str {
        self.id.rsplit('.').next().unwrap_or(self.id)
    }

    /// `v1.Pod`.
    pub(crate) fn go_name(&self) -> &'static str {
        last_segment(self.id)
    }
}

pub(crate) struct Facts {
    structs: Vec<Struct>,
    /// `Type::Struct(i)` at every i, so that a struct can be referred to as a type.
    types: Vec<Type>,
    by_id: HashMap<&'static str, StructId>,
    kinds: HashMap<(&'static str, &'static str, &'static str), StructId>,
}

impl Facts {
    pub(crate) fn get(&self, id: StructId) -> &Struct {
        &self.structs[id]
    }

    pub(crate) fn struct_type(&self, id: StructId) -> &Type {
        &self.types[id]
    }

    pub(crate) fn kind(&self, group: &str, version: &str, kind: &str) -> Option<StructId> {
        self.kinds.get(&(group, version, kind)).copied()
    }

    /// The struct of a schema inside a definition.
    pub(crate) fn schema_props(&self) -> StructId {
        self.by_id["apiextensions/v1.JSONSchemaProps"]
    }

    /// The struct of every object's metadata.
    pub(crate) fn object_meta(&self) -> StructId {
        self.by_id["meta/v1.ObjectMeta"]
    }

    pub(crate) fn by_id(&self, id: &str) -> Option<&Struct> {
        self.by_id.get(id).map(|i| &self.structs[*i])
    }
}

/// The table, parsed once.
pub(crate) fn facts() -> &'static Facts {
    static FACTS: OnceLock<Facts> = OnceLock::new();
    FACTS.get_or_init(|| parse(include_str!("facts.txt")))
}

fn last_segment(id: &'static str) -> &'static str {
    id.rsplit('/').next().unwrap_or(id)
}

fn parse(text: &'static str) -> Facts {
    let mut by_id = HashMap::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("type ") {
            let id = rest.split(' ').next().unwrap_or(rest);
            by_id.insert(id, by_id.len());
        }
    }
    let mut structs: Vec<Struct> = Vec::with_capacity(by_id.len());
    let mut kinds = HashMap::new();
    for line in text.lines() {
        let words: Vec<&'static str> = line.split(' ').collect();
        match words.as_slice() {
            ["kind", group, version, kind, id] => {
                let group = if *group == "-" { "" } else { group };
                kinds.insert((group, *version, *kind), by_id[id]);
            }
            ["type", id, rest @ ..] => {
                structs.push(Struct { id, atomic: rest.contains(&"atomic"), fields: Vec::new() });
            }
            ["", name, spelled, rest @ ..] => {
                let field = field(name, spelled, rest, &by_id);
                if let Some(owner) = structs.last_mut() {
                    owner.fields.push(field);
                }
            }
            _ => {}
        }
    }
    let types = (0..structs.len()).map(Type::Struct).collect();
    Facts { structs, types, by_id, kinds }
}

fn field(
    name: &'static str,
    spelled: &'static str,
    rest: &[&'static str],
    by_id: &HashMap<&'static str, StructId>,
) -> Field {
    let omit_zero = spelled.ends_with('~');
    let spelled = spelled.trim_end_matches('~');
    let omit_empty = !spelled.ends_with('!');
    let spelled = spelled.trim_end_matches('!');
    let option = |key: &str| rest.iter().find_map(|word| word.strip_prefix(key));
    let list = match (option("list="), option("keys=")) {
        (Some("set"), _) => ListKind::Set,
        (Some("map"), Some(keys)) => ListKind::Map(keys.split(',').map(str::to_owned).collect()),
        _ => ListKind::Atomic,
    };
    let strategy = option("patch=").unwrap_or_default();
    Field {
        name,
        ty: spell(spelled, by_id),
        omit_empty,
        omit_zero,
        list,
        atomic_map: option("map=") == Some("atomic"),
        patch_key: option("patchkey="),
        patch_merge: strategy.split(',').any(|s| s == "merge"),
        retain_keys: strategy.split(',').any(|s| s == "retainKeys"),
        default: option("default="),
        values: option("enum=").map(|values| values.split('|').collect()).unwrap_or_default(),
    }
}

fn spell(text: &'static str, by_id: &HashMap<&'static str, StructId>) -> Type {
    if let Some(rest) = text.strip_prefix('{') {
        let (name, inner) = rest.split_once('}').expect("the table closes its braces");
        return Type::Named(last_segment(name), Box::new(spell(inner, by_id)));
    }
    if let Some(rest) = text.strip_prefix('*') {
        return Type::Pointer(Box::new(spell(rest, by_id)));
    }
    if let Some(rest) = text.strip_prefix("[]") {
        return Type::List(Box::new(spell(rest, by_id)));
    }
    if let Some(rest) = text.strip_prefix("map<") {
        let (_, element) = rest.split_once('>').expect("the table closes its angle brackets");
        return Type::Map(Box::new(spell(element, by_id)));
    }
    match text {
        "string" => Type::String,
        "bool" => Type::Bool,
        "int32" => Type::Int(32),
        "int64" => Type::Int(64),
        "bytes" => Type::Bytes,
        // JSON's own number type; only of old schema keywords (minimum, maximum, multipleOf).
        "float64" => Type::Special(Special::Raw),
        "@time" => Type::Special(Special::Time),
        "@microtime" => Type::Special(Special::MicroTime),
        "@quantity" => Type::Special(Special::Quantity),
        "@intorstring" => Type::Special(Special::IntOrString),
        "@raw" | "@json" => Type::Special(Special::Raw),
        "@fields" => Type::Special(Special::Fields),
        "@schemaorbool" => Type::Special(Special::SchemaOrBool),
        "@schemaorarray" => Type::Special(Special::SchemaOrArray),
        "@schemaorstrings" => Type::Special(Special::SchemaOrStrings),
        other => Type::Struct(*by_id.get(other).expect("the table defines every struct it names")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_whole() {
        let facts = facts();
        let pod = facts.get(facts.kind("", "v1", "Pod").expect("pods are built in"));
        assert_eq!(pod.go_name(), "v1.Pod");
        assert_eq!(pod.short_name(), "Pod");
        let container = facts.by_id("core/v1.Container").expect("containers are built in");
        let ports = container.field("ports").expect("containers have ports");
        assert_eq!(ports.list, ListKind::Map(vec!["containerPort".to_owned(), "protocol".to_owned()]));
        assert_eq!(ports.patch_key, Some("containerPort"));
        assert!(facts.by_id("core/v1.LocalObjectReference").is_some_and(|s| s.atomic));
    }
}
