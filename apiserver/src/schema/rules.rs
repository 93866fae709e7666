//! Rules of `x-kubernetes-validations`, as the schema writes them.

use super::node::Node;
use muster_api::field::FieldError;
use serde_json::Value;

/// One rule.
#[derive(Clone, Debug)]
pub struct Rule {
    pub rule: String,
    pub message: Option<String>,
}

/// Reads the rules at one place of a schema.
pub(crate) fn compile(schema: &Value, _node: &Node, _path: &str, _errors: &mut Vec<FieldError>) -> Vec<Rule> {
    let list = schema.get("x-kubernetes-validations").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let text = |rule: &Value, name: &str| rule.get(name).and_then(Value::as_str).map(str::to_owned);
    list.iter().filter_map(|rule| Some(Rule { rule: text(rule, "rule")?, message: text(rule, "message") })).collect()
}
