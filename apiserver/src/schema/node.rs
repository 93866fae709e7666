//! A custom kind's structural schema, compiled from `openAPIV3Schema`: what may occur, what is filled in, what is checked.

use super::facts::ListKind;
use super::json::MAX_DEPTH;
use super::rules::Rule;
use muster_api::field::FieldError;
use regex::Regex;
use serde_json::Value;

/// A JSON type that a schema names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JsonType {
    Object,
    Array,
    String,
    Integer,
    Number,
    Boolean,
}

impl JsonType {
    pub fn parse(text: &str) -> Option<JsonType> {
        Some(match text {
            "object" => JsonType::Object,
            "array" => JsonType::Array,
            "string" => JsonType::String,
            "integer" => JsonType::Integer,
            "number" => JsonType::Number,
            "boolean" => JsonType::Boolean,
            _ => return None,
        })
    }

    pub fn as_str(self) -> &'static str {
        match self {
            JsonType::Object => "object",
            JsonType::Array => "array",
            JsonType::String => "string",
            JsonType::Integer => "integer",
            JsonType::Number => "number",
            JsonType::Boolean => "boolean",
        }
    }
}

/// What fields beside the named ones may hold.
#[derive(Debug, Default)]
pub enum Additional {
    #[default]
    Unsaid,
    Allowed,
    Forbidden,
    Schema(Box<Node>),
}

/// One place of a structural schema.
#[derive(Debug, Default)]
pub struct Node {
    pub ty: Option<JsonType>,
    pub int_or_string: bool,
    pub preserve_unknown: bool,
    pub embedded: bool,
    pub nullable: bool,
    pub properties: Properties,
    pub additional: Additional,
    pub items: Option<Box<Node>>,
    pub default: Option<Value>,
    pub list: ListKindOf,
    pub atomic_map: bool,
    pub checks: Option<Box<Checks>>,
    /// Rules of `x-kubernetes-validations`.
    pub rules: Vec<Rule>,
    /// Whether any place below has rules.
    pub rules_below: bool,
    pub max_items: Option<u64>,
    pub max_properties: Option<u64>,
    pub max_length: Option<u64>,
}

/// The named fields of an object, sorted. A schema has thousands of places, most with a few fields, so that a plain
/// vector takes a fraction of what a tree would.
#[derive(Debug, Default)]
pub struct Properties(Vec<(Box<str>, Node)>);

impl Properties {
    pub fn get(&self, name: &str) -> Option<&Node> {
        let at = self.0.binary_search_by(|(key, _)| key.as_ref().cmp(name)).ok()?;
        self.0.get(at).map(|(_, node)| node)
    }

    pub fn contains_key(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &Node)> {
        self.0.iter().map(|(name, node)| (name.as_ref(), node))
    }

    pub fn values(&self) -> impl Iterator<Item = &Node> {
        self.0.iter().map(|(_, node)| node)
    }
}

/// The list kind of an array, atomic unless the schema says otherwise.
#[derive(Debug)]
pub struct ListKindOf(pub ListKind);

impl Default for ListKindOf {
    fn default() -> Self {
        ListKindOf(ListKind::Atomic)
    }
}

/// Checks of values at one place.
#[derive(Debug, Default)]
pub struct Checks {
    pub minimum: Option<(f64, bool)>,
    pub maximum: Option<(f64, bool)>,
    pub multiple_of: Option<f64>,
    pub min_length: Option<u64>,
    pub pattern: Option<(String, Regex)>,
    pub format: Option<String>,
    pub values: Option<Vec<Value>>,
    pub min_items: Option<u64>,
    pub unique_items: bool,
    pub min_properties: Option<u64>,
    pub required: Vec<String>,
    pub all_of: Vec<Node>,
    pub any_of: Vec<Node>,
    pub one_of: Vec<Node>,
    pub not: Option<Box<Node>>,
}

impl Node {
    /// The schema of an object's field, or of its additional properties.
    pub fn child(&self, name: &str) -> Option<&Node> {
        self.properties.get(name).or_else(|| self.additional_schema())
    }

    pub fn additional_schema(&self) -> Option<&Node> {
        match &self.additional {
            Additional::Schema(node) => Some(node),
            _ => None,
        }
    }

    /// Whether a field of this name is known at all (its value may still be anything).
    pub fn knows(&self, name: &str) -> bool {
        self.properties.contains_key(name) || matches!(self.additional, Additional::Allowed | Additional::Schema(_))
    }
}

/// Compiles `openAPIV3Schema`. Wrong regular expressions and rules are errors; that the schema is structural is
/// the business of the definition's validation.
pub fn compile(schema: &Value) -> Result<Node, Vec<FieldError>> {
    let mut errors = Vec::new();
    let node = compile_at(schema, "", 0, &mut errors);
    if errors.is_empty() { Ok(node) } else { Err(errors) }
}

fn compile_at(schema: &Value, path: &str, depth: usize, errors: &mut Vec<FieldError>) -> Node {
    if depth > MAX_DEPTH {
        errors.push(FieldError::invalid(path, &Value::from(""), "the schema is nested too deeply"));
        return Node::default();
    }
    let sub = |value: &Value, name: &str, errors: &mut Vec<FieldError>| {
        let at = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
        compile_at(value, &at, depth + 1, errors)
    };
    let flag = |name: &str| schema.get(name).and_then(Value::as_bool).unwrap_or(false);
    let text = |name: &str| schema.get(name).and_then(Value::as_str);
    let number = |name: &str| schema.get(name).and_then(Value::as_u64);
    let float = |name: &str| schema.get(name).and_then(Value::as_f64);

    let mut node = Node {
        ty: text("type").and_then(JsonType::parse),
        int_or_string: flag("x-kubernetes-int-or-string"),
        preserve_unknown: flag("x-kubernetes-preserve-unknown-fields"),
        embedded: flag("x-kubernetes-embedded-resource"),
        nullable: flag("nullable"),
        default: schema.get("default").filter(|v| !v.is_null()).cloned(),
        atomic_map: text("x-kubernetes-map-type") == Some("atomic"),
        max_items: number("maxItems"),
        max_properties: number("maxProperties"),
        max_length: number("maxLength"),
        ..Node::default()
    };
    node.list = ListKindOf(match text("x-kubernetes-list-type") {
        Some("set") => ListKind::Set,
        Some("map") => ListKind::Map(strings(schema.get("x-kubernetes-list-map-keys"))),
        _ => ListKind::Atomic,
    });
    if let Some(properties) = schema.get("properties").and_then(Value::as_object) {
        // JSON objects are sorted already.
        let compiled = properties
            .iter()
            .map(|(name, value)| (name.as_str().into(), sub(value, &format!("properties[{name}]"), errors)));
        node.properties = Properties(compiled.collect());
    }
    node.additional = match schema.get("additionalProperties") {
        None | Some(Value::Null) => Additional::Unsaid,
        Some(Value::Bool(true)) => Additional::Allowed,
        Some(Value::Bool(false)) => Additional::Forbidden,
        Some(value) => Additional::Schema(Box::new(sub(value, "additionalProperties", errors))),
    };
    if let Some(items) = schema.get("items").filter(|v| v.is_object()) {
        node.items = Some(Box::new(sub(items, "items", errors)));
    }

    let many = |name: &str, errors: &mut Vec<FieldError>| -> Vec<Node> {
        let list = schema.get(name).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        list.iter().enumerate().map(|(i, value)| sub(value, &format!("{name}[{i}]"), errors)).collect()
    };
    let mut checks = Checks {
        minimum: float("minimum").map(|n| (n, flag("exclusiveMinimum"))),
        maximum: float("maximum").map(|n| (n, flag("exclusiveMaximum"))),
        multiple_of: float("multipleOf"),
        min_length: number("minLength"),
        pattern: None,
        format: text("format").map(str::to_owned),
        values: schema.get("enum").and_then(Value::as_array).cloned(),
        min_items: number("minItems"),
        unique_items: flag("uniqueItems"),
        min_properties: number("minProperties"),
        required: strings(schema.get("required")),
        all_of: many("allOf", errors),
        any_of: many("anyOf", errors),
        one_of: many("oneOf", errors),
        not: None,
    };
    if let Some(not) = schema.get("not").filter(|v| v.is_object()) {
        checks.not = Some(Box::new(sub(not, "not", errors)));
    }
    if let Some(pattern) = text("pattern") {
        match Regex::new(pattern) {
            Ok(regex) => checks.pattern = Some((pattern.to_owned(), regex)),
            Err(error) => {
                let at = if path.is_empty() { "pattern".to_owned() } else { format!("{path}.pattern") };
                let why = format!("must be a valid regular expression, but isn't: {error}");
                errors.push(FieldError::invalid(at, &Value::from(pattern), why));
            }
        }
    }
    if !checks.is_empty() {
        node.checks = Some(Box::new(checks));
    }
    node.rules = super::rules::compile(schema, &node, path, errors);
    let rules_below =
        node.properties.values().chain(node.additional_schema()).chain(node.items.as_deref()).any(Node::has_rules);
    node.rules_below = rules_below;
    node
}

impl Node {
    pub fn has_rules(&self) -> bool {
        self.rules_below || !self.rules.is_empty()
    }
}

impl Checks {
    fn is_empty(&self) -> bool {
        let Checks {
            minimum,
            maximum,
            multiple_of,
            min_length,
            pattern,
            format,
            values,
            min_items,
            unique_items,
            min_properties,
            required,
            all_of,
            any_of,
            one_of,
            not,
        } = self;
        minimum.is_none()
            && maximum.is_none()
            && multiple_of.is_none()
            && min_length.is_none()
            && pattern.is_none()
            && format.is_none()
            && values.is_none()
            && min_items.is_none()
            && !unique_items
            && min_properties.is_none()
            && required.is_empty()
            && all_of.is_empty()
            && any_of.is_empty()
            && one_of.is_empty()
            && not.is_none()
    }
}

fn strings(value: Option<&Value>) -> Vec<String> {
    let list = value.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    list.iter().filter_map(Value::as_str).map(str::to_owned).collect()
}
