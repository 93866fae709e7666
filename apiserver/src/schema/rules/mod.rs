//! Rules of `x-kubernetes-validations`: compiled with the schema, checked against its fields, evaluated on values.
//! Evaluation has a budget that is reckoned before a rule runs, from its size and the sizes of the values.

mod check;

use super::facts::ListKind;
use super::node::{JsonType, Node};
use super::validate::path_or_nil;
use cel::objects::{Key, Map as CelMap, OptionalValue};
use cel::{Context, Env, Program, Value as CelValue};
use check::{Checker, Ty};
use muster_api::field::{FieldError, Reason};
use serde_json::Value;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

/// Steps that the rules of one object may take together.
const BUDGET: u64 = 50_000_000;
/// Bytes that one rule may have.
const MAX_RULE: usize = 10 * 1024;

const BLOCKED: &str = "some validation rules were not checked because the object was invalid; correct the existing \
                       errors to complete validation";

/// One rule.
#[derive(Debug)]
pub struct Rule {
    source: String,
    program: Compiled,
    message: Option<String>,
    message_expression: Option<Compiled>,
    reason: Reason,
    /// Path of the field that is blamed, without its leading dot.
    field_path: Option<String>,
    optional_old_self: bool,
}

struct Compiled {
    program: Program,
    /// Nodes of the expression, and how deeply its loops nest.
    nodes: u64,
    loops: u32,
    uses_old_self: bool,
}

impl std::fmt::Debug for Compiled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Compiled").field("nodes", &self.nodes).field("loops", &self.loops).finish_non_exhaustive()
    }
}

static ENV: LazyLock<Arc<Env>> = LazyLock::new(|| {
    let mut env = Env::stdlib();
    env.add_extension(cel::extensions::strings).expect("the string functions are declared once");
    env.add_extension(cel::extensions::lists).expect("the list functions are declared once");
    Arc::new(env)
});

/// Compiles the rules at one place of a schema; what does not compile is an error at `PATH.x-kubernetes-validations[i]`.
pub(crate) fn compile(schema: &Value, node: &Node, path: &str, errors: &mut Vec<FieldError>) -> Vec<Rule> {
    let list = schema.get("x-kubernetes-validations").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let mut rules = Vec::new();
    for (i, rule) in list.iter().enumerate() {
        let at = |name: &str| {
            let prefix = if path.is_empty() { String::new() } else { format!("{path}.") };
            format!("{prefix}x-kubernetes-validations[{i}].{name}")
        };
        let text = |name: &str| rule.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
        let Some(source) = text("rule").filter(|text| !text.trim().is_empty()) else {
            errors.push(FieldError::required(at("rule"), "rule is not specified"));
            continue;
        };
        let mut program = |source: &str, field: &str, wanted: Ty<'_>| match compile_one(source, node, path, wanted) {
            Ok(program) => Some(program),
            Err(why) => {
                let why = format!("compilation failed: {why}");
                errors.push(FieldError::invalid(at(field), &Value::from(source), why));
                None
            }
        };
        let Some(compiled) = program(source, "rule", Ty::Bool) else { continue };
        let message_expression = match text("messageExpression") {
            Some(source) => match program(source, "messageExpression", Ty::Text) {
                Some(compiled) => Some(compiled),
                None => continue,
            },
            None => None,
        };
        rules.push(Rule {
            source: source.trim().to_owned(),
            program: compiled,
            message: text("message").map(|message| message.trim().to_owned()),
            message_expression,
            reason: match text("reason") {
                Some("FieldValueForbidden") => Reason::Forbidden,
                Some("FieldValueRequired") => Reason::Required,
                Some("FieldValueDuplicate") => Reason::Duplicate,
                _ => Reason::Invalid,
            },
            field_path: text("fieldPath").map(|path| path.trim_start_matches('.').to_owned()),
            optional_old_self: rule.get("optionalOldSelf").and_then(Value::as_bool).unwrap_or(false),
        });
    }
    rules
}

fn compile_one(source: &str, node: &Node, path: &str, wanted: Ty<'_>) -> Result<Compiled, String> {
    if source.len() > MAX_RULE {
        return Err(format!("the expression has more than {MAX_RULE} bytes"));
    }
    let program = ENV.compile(source).map_err(|errors| errors.to_string())?;
    let mut checker = Checker::new(node, path.is_empty());
    let found = checker.check(program.expression(), &mut Vec::new(), 0)?;
    if !found.may_be(&wanted) {
        let wanted = if matches!(wanted, Ty::Bool) { "bool" } else { "string" };
        return Err(format!("cel expression must evaluate to a {wanted}"));
    }
    let (nodes, loops) = (checker.nodes, checker.loops);
    let uses_old_self = program.references().has_variable("oldSelf");
    Ok(Compiled { program, nodes, loops, uses_old_self })
}

/// How a property's name is written in a rule.
fn escape(name: &str) -> String {
    const RESERVED: &[&str] = &[
        "true",
        "false",
        "null",
        "in",
        "as",
        "break",
        "const",
        "continue",
        "else",
        "for",
        "function",
        "if",
        "import",
        "let",
        "loop",
        "package",
        "namespace",
        "return",
        "var",
        "void",
        "while",
    ];
    if RESERVED.contains(&name) {
        return format!("__{name}__");
    }
    name.replace("__", "__underscores__").replace('.', "__dot__").replace('-', "__dash__").replace('/', "__slash__")
}

/// Evaluates all rules of the schema on an object. Without errors of types and bounds alone: with them rules are not
/// checked, and one error more says so.
pub(crate) fn validate(root: &Node, new: &Value, old: Option<&Value>, errors: &mut Vec<FieldError>) {
    let blocking = |error: &FieldError| {
        matches!(
            error.reason,
            Reason::NotSupported | Reason::Required | Reason::TooLong | Reason::TooMany | Reason::TypeInvalid
        )
    };
    if errors.iter().any(blocking) {
        errors.push(FieldError::invalid("<nil>", &Value::Null, BLOCKED));
        return;
    }
    let mut run = Run { budget: BUDGET, errors };
    run.visit(root, new, old, "", true);
}

struct Run<'e> {
    budget: u64,
    errors: &'e mut Vec<FieldError>,
}

impl Run<'_> {
    /// Says whether there is budget left.
    fn visit(&mut self, node: &Node, new: &Value, old: Option<&Value>, path: &str, root: bool) -> bool {
        if new.is_null() || !node.has_rules() {
            return true;
        }
        if !node.rules.is_empty() && !self.rules(node, new, old, path, root) {
            return false;
        }
        match new {
            Value::Object(map) => map.iter().all(|(name, value)| {
                let at = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                let before = old.and_then(|old| old.get(name));
                match (node.properties.get(name), node.additional_schema()) {
                    (Some(property), _) => self.visit(property, value, before, &at, false),
                    (None, Some(schema)) => self.visit(schema, value, before, &format!("{path}[{name}]"), false),
                    _ => true,
                }
            }),
            Value::Array(items) => {
                let Some(item) = node.items.as_deref() else { return true };
                items.iter().enumerate().all(|(i, value)| {
                    let before = match &node.list.0 {
                        ListKind::Map(keys) => old.and_then(Value::as_array).and_then(|old| {
                            old.iter().find(|other| keys.iter().all(|key| other.get(key) == value.get(key)))
                        }),
                        _ => None,
                    };
                    self.visit(item, value, before, &format!("{path}[{i}]"), false)
                })
            }
            _ => true,
        }
    }

    fn rules(&mut self, node: &Node, new: &Value, old: Option<&Value>, path: &str, root: bool) -> bool {
        let shown = Value::from(node.ty.map(JsonType::as_str).unwrap_or_default());
        let this = to_cel(node, new, root);
        let before = old.filter(|old| !old.is_null()).map(|old| to_cel(node, old, root));
        let largest = longest(new).max(old.map(longest).unwrap_or(0)).max(2);
        for rule in &node.rules {
            if rule.program.uses_old_self && before.is_none() && !rule.optional_old_self {
                continue;
            }
            if !rule.program.uses_old_self && old == Some(new) {
                // What has not changed is not complained about.
                continue;
            }
            let cost = rule.program.cost(largest);
            if cost > self.budget {
                self.errors.push(FieldError::invalid(
                    path_or_nil(path),
                    &shown,
                    "validation failed due to running out of cost budget, no further validation rules will be run",
                ));
                return false;
            }
            self.budget -= cost;
            let old_self = match (&before, rule.optional_old_self) {
                (Some(value), false) => Some(value.clone()),
                (None, false) => None,
                (Some(value), true) => Some(CelValue::Opaque(Arc::new(OptionalValue::of(value.clone())))),
                (None, true) => Some(CelValue::Opaque(Arc::new(OptionalValue::none()))),
            };
            let at = match &rule.field_path {
                Some(field) if path.is_empty() => field.clone(),
                Some(field) => format!("{path}.{field}"),
                None => path_or_nil(path).to_owned(),
            };
            match rule.program.run(&this, old_self.as_ref()) {
                Ok(CelValue::Bool(true)) => {}
                Ok(_) => {
                    let message = rule.failure(&this, old_self.as_ref(), largest, &mut self.budget);
                    self.errors.push(match rule.reason {
                        Reason::Forbidden => FieldError::forbidden(at, message),
                        Reason::Required => FieldError::required(at, &message),
                        Reason::Duplicate => FieldError::duplicate(at, &shown),
                        _ => FieldError::invalid(at, &shown, message),
                    });
                }
                Err(error) => {
                    let why = format!("{error} evaluating rule: {}", rule.name());
                    self.errors.push(FieldError::invalid(path_or_nil(path), &shown, why));
                }
            }
        }
        true
    }
}

impl Compiled {
    /// Steps at most, when no list is longer than this.
    fn cost(&self, largest: u64) -> u64 {
        self.nodes.saturating_mul(largest.saturating_pow(self.loops))
    }

    fn run(&self, this: &CelValue, old: Option<&CelValue>) -> Result<CelValue, String> {
        let mut context = Context::with_env(ENV.clone());
        context.add_variable_from_value("self", this.clone());
        if let Some(old) = old {
            context.add_variable_from_value("oldSelf", old.clone());
        }
        self.program.execute(&context).map_err(|error| error.to_string())
    }
}

impl Rule {
    fn name(&self) -> &str {
        self.message.as_deref().unwrap_or(&self.source)
    }

    fn failure(&self, this: &CelValue, old: Option<&CelValue>, largest: u64, budget: &mut u64) -> String {
        let default = || self.message.clone().unwrap_or_else(|| format!("failed rule: {}", self.source));
        let Some(expression) = &self.message_expression else { return default() };
        let cost = expression.cost(largest);
        if cost > *budget {
            return default();
        }
        *budget -= cost;
        match expression.run(this, old) {
            Ok(CelValue::String(text)) if !text.trim().is_empty() && !text.contains('\n') => text.trim().to_owned(),
            _ => default(),
        }
    }
}

/// The length of the longest list or map within.
fn longest(value: &Value) -> u64 {
    match value {
        Value::Array(items) => items.iter().map(longest).max().unwrap_or(0).max(items.len() as u64),
        Value::Object(map) => map.values().map(longest).max().unwrap_or(0).max(map.len() as u64),
        _ => 0,
    }
}

/// A value as rules see it: properties under their escaped names, numbers as the schema says. Of the whole object's
/// metadata only the names are there.
fn to_cel(node: &Node, value: &Value, root: bool) -> CelValue {
    match value {
        Value::Null => CelValue::Null,
        Value::Bool(b) => CelValue::Bool(*b),
        Value::Number(n) => match n.as_i64() {
            Some(n) if node.ty != Some(JsonType::Number) => CelValue::Int(n),
            _ => CelValue::Float(n.as_f64().unwrap_or_default()),
        },
        Value::String(text) => CelValue::String(Arc::new(text.clone())),
        Value::Array(items) => {
            let free = Node::default();
            let item = node.items.as_deref().unwrap_or(&free);
            CelValue::List(Arc::new(items.iter().map(|value| to_cel(item, value, false)).collect()))
        }
        Value::Object(map) => {
            let free = Node::default();
            let mut out: HashMap<Key, CelValue> = HashMap::with_capacity(map.len());
            for (name, value) in map {
                if root && name == "metadata" {
                    out.insert(Key::from(name.as_str()), names_only(value));
                    continue;
                }
                let (key, child) = match node.properties.get(name) {
                    Some(property) => (escape(name), property),
                    None => (name.clone(), node.additional_schema().unwrap_or(&free)),
                };
                out.insert(Key::from(key), to_cel(child, value, false));
            }
            CelValue::Map(CelMap { map: Arc::new(out) })
        }
    }
}

fn names_only(metadata: &Value) -> CelValue {
    let names = ["name", "generateName"].iter().filter_map(|name| {
        let text = metadata.get(*name)?.as_str()?;
        Some((Key::from(*name), CelValue::String(Arc::new(text.to_owned()))))
    });
    CelValue::Map(CelMap { map: Arc::new(names.collect()) })
}

#[cfg(test)]
mod tests {
    use crate::schema::{Schema, arbitrary};
    use proptest::prelude::*;
    use serde_json::{Value, json};
    use std::sync::Arc;

    fn schema() -> Arc<Schema> {
        Schema::custom(Some(&json!({"type": "object", "required": ["spec"], "properties": {"spec": {
            "type": "object",
            "required": ["min", "max"],
            "properties": {
                "min": {"type": "integer"}, "max": {"type": "integer"},
                "name": {"type": "string", "x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "name is immutable"}]},
                "steps": {"type": "array", "maxItems": 10, "items": {"type": "string"}},
                "owner": {"type": "string", "x-kubernetes-validations": [{"rule": "self.startsWith('team-')",
                    "messageExpression": "'owner must start with team-, not ' + self", "reason": "FieldValueForbidden"}]},
            },
            "x-kubernetes-validations": [
                {"rule": "self.min <= self.max", "message": "min must not be above max", "fieldPath": ".min"},
                {"rule": "!has(self.steps) || self.steps.size() < 3"},
                {"rule": "!has(self.steps) || self.steps.all(s, s.size() > 0)", "message": "no empty step"},
                {"rule": "!has(oldSelf.name) || has(self.name)", "message": "name may not be removed"},
            ],
        }}})))
        .expect("the rules compile")
    }

    fn check(new: Value, old: Option<Value>) -> Vec<String> {
        let wrap = |spec: Value| json!({"apiVersion": "g/v1", "kind": "Rule", "metadata": {"name": "x"}, "spec": spec});
        let old = old.map(wrap);
        schema().validate(&wrap(new), old.as_ref(), "").iter().map(ToString::to_string).collect()
    }

    #[test]
    fn rules_speak_as_upstream() {
        let none: Vec<String> = Vec::new();
        assert_eq!(check(json!({"min": 1, "max": 2, "name": "n"}), None), none);
        assert_eq!(
            check(json!({"min": 3, "max": 2, "owner": "me"}), None),
            [
                "spec.min: Invalid value: \"object\": min must not be above max",
                "spec.owner: Forbidden: owner must start with team-, not me",
            ]
        );
        assert_eq!(
            check(json!({"min": 1, "max": 2, "steps": ["a", "b", ""]}), None),
            [
                "spec: Invalid value: \"object\": failed rule: !has(self.steps) || self.steps.size() < 3",
                "spec: Invalid value: \"object\": no empty step",
            ]
        );
    }

    #[test]
    fn transitions_need_an_old_value() {
        let old = || Some(json!({"min": 1, "max": 2, "name": "n"}));
        assert_eq!(
            check(json!({"min": 1, "max": 2, "name": "other"}), old()),
            ["spec.name: Invalid value: \"string\": name is immutable"]
        );
        assert_eq!(
            check(json!({"min": 1, "max": 2}), old()),
            ["spec: Invalid value: \"object\": name may not be removed"]
        );
    }

    #[test]
    fn wrong_types_block_rules() {
        assert_eq!(
            check(json!({"min": "1", "max": 2}), None)[1],
            "<nil>: Invalid value: null: some validation rules were not checked because the object was invalid; \
             correct the existing errors to complete validation"
        );
    }

    #[test]
    fn rules_that_do_not_compile_refuse_the_schema() {
        for rule in ["self.nosuch == 'x'", "self.a ==", "nosuch(self)", "self.a", "other.a == 'x'", "self.a.b == 1"] {
            let schema = json!({"type": "object", "properties": {"spec": {"type": "object",
                "properties": {"a": {"type": "string"}}, "x-kubernetes-validations": [{"rule": rule}]}}});
            let errors = Schema::custom(Some(&schema)).expect_err(rule);
            assert_eq!(errors[0].field, "properties[spec].x-kubernetes-validations[0].rule", "{rule}");
        }
        for rule in [
            "self.a == 'x'",
            "self.all(k, k.startsWith('a'))",
            "self.a.matches('^a')",
            "has(self.a) ? self.a != '' : true",
        ] {
            let schema = json!({"type": "object", "properties": {"a": {"type": "string"}},
                "x-kubernetes-validations": [{"rule": rule}]});
            assert!(Schema::custom(Some(&schema)).is_ok(), "{rule}");
        }
    }

    #[test]
    fn evaluation_has_a_budget() {
        let schema = Schema::custom(Some(&json!({"type": "object", "properties": {"l": {"type": "array",
            "items": {"type": "integer"},
            "x-kubernetes-validations": [{"rule": "self.all(a, self.all(b, self.all(c, a + b + c >= 0)))"}]}}})))
        .expect("compiles");
        let long: Vec<i64> = (0..10_000).collect();
        let errors = schema.validate(&json!({"l": long}), None, "");
        assert!(errors[0].message.contains("cost budget"), "{errors:?}");
    }

    proptest! {
        #[test]
        fn never_panics(rule in "[a-z.()\\[\\]'&|!<>=+0-9 ]{0,40}", value in arbitrary::value()) {
            let schema = json!({"type": "object", "properties": {"a": {"type": "string"}},
                "x-kubernetes-validations": [{"rule": rule}]});
            if let Ok(schema) = Schema::custom(Some(&schema)) {
                schema.validate(&value, Some(&json!({"a": "x"})), "");
            }
        }
    }
}
