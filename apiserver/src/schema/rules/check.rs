//! Static checks of a rule's expression: fields must exist in the schema, names must be declared, and the type of the
//! result must be able to be the one wanted. What is not known passes.

use super::super::node::{JsonType, Node};
use super::escape;
use cel::common::ast::{EntryExpr, Expr, IdedExpr, LiteralValue, operators};

/// What is known of the type of an expression.
#[derive(Clone)]
pub(super) enum Ty<'a> {
    Node(&'a Node),
    /// The object as a whole, which has metadata too.
    Root(&'a Node),
    Bool,
    Text,
    /// A number, list, map or other literal.
    Other,
    Unknown,
}

impl Ty<'_> {
    pub(super) fn may_be(&self, wanted: &Ty<'_>) -> bool {
        let bool_wanted = matches!(wanted, Ty::Bool);
        match self {
            Ty::Unknown => true,
            Ty::Bool => bool_wanted,
            Ty::Text => !bool_wanted,
            Ty::Other | Ty::Root(_) => false,
            Ty::Node(node) => match node.ty {
                None => true,
                Some(JsonType::Boolean) => bool_wanted,
                Some(JsonType::String) => !bool_wanted,
                Some(_) => false,
            },
        }
    }
}

/// Walks an expression: fields must exist in the schema, names must be declared.
pub(super) struct Checker<'a> {
    self_node: &'a Node,
    root: bool,
    /// Nodes of the expression.
    pub(super) nodes: u64,
    /// How deeply its loops nest.
    pub(super) loops: u32,
}

impl<'a> Checker<'a> {
    pub(super) fn new(self_node: &'a Node, root: bool) -> Self {
        Checker { self_node, root, nodes: 0, loops: 0 }
    }

    pub(super) fn check(
        &mut self,
        expr: &IdedExpr,
        scope: &mut Vec<(String, Ty<'a>)>,
        depth: u32,
    ) -> Result<Ty<'a>, String> {
        self.nodes += 1;
        self.loops = self.loops.max(depth);
        match &expr.expr {
            Expr::Ident(name) => self.ident(name, scope),
            Expr::Literal(LiteralValue::Boolean(_)) => Ok(Ty::Bool),
            Expr::Literal(LiteralValue::String(_)) => Ok(Ty::Text),
            Expr::Literal(_) => Ok(Ty::Other),
            Expr::Select(select) => {
                if let Some(namespace) = namespace(&select.operand.expr) {
                    if scope.iter().all(|(name, _)| name != namespace) {
                        return Ok(Ty::Unknown);
                    }
                }
                let operand = self.check(&select.operand, scope, depth)?;
                let field = field_type(&operand, &select.field)?;
                Ok(if select.test { Ty::Bool } else { field })
            }
            Expr::Call(call) => {
                let target = match &call.target {
                    Some(target) if namespace(&target.expr).is_none() => Some(self.check(target, scope, depth)?),
                    _ => None,
                };
                let mut arguments = Vec::new();
                for argument in &call.args {
                    arguments.push(self.check(argument, scope, depth)?);
                }
                call_type(&call.func_name, target.is_some(), &arguments)
            }
            Expr::List(list) => {
                for element in &list.elements {
                    self.check(element, scope, depth)?;
                }
                Ok(Ty::Other)
            }
            Expr::Map(map) => {
                self.entries(map.entries.iter().map(|entry| &entry.expr), scope, depth)?;
                Ok(Ty::Other)
            }
            Expr::Struct(made) => {
                self.entries(made.entries.iter().map(|entry| &entry.expr), scope, depth)?;
                Ok(Ty::Other)
            }
            Expr::Comprehension(loop_) => {
                let range = self.check(&loop_.iter_range, scope, depth)?;
                let item = match &range {
                    Ty::Node(node) => match (node.items.as_deref(), node.additional_schema()) {
                        (Some(items), _) => Ty::Node(items),
                        (None, Some(_)) => Ty::Text,
                        _ => Ty::Unknown,
                    },
                    _ => Ty::Unknown,
                };
                let before = scope.len();
                scope.push((loop_.accu_var.clone(), Ty::Unknown));
                self.check(&loop_.accu_init, scope, depth)?;
                // Of two variables the first is an index or a key.
                let (first, second) = match &loop_.iter_var2 {
                    Some(second) => (Ty::Unknown, Some((second.clone(), item))),
                    None => (item, None),
                };
                scope.push((loop_.iter_var.clone(), first));
                scope.extend(second);
                // What a loop collects is copied as it grows, so that it counts for two.
                let collects = matches!(loop_.accu_init.expr, Expr::List(_) | Expr::Map(_));
                let inner = depth + if collects { 2 } else { 1 };
                self.check(&loop_.loop_cond, scope, inner)?;
                self.check(&loop_.loop_step, scope, inner)?;
                let result = self.check(&loop_.result, scope, depth)?;
                scope.truncate(before);
                Ok(match (&loop_.accu_init.expr, result) {
                    (Expr::Literal(LiteralValue::Boolean(_)), _) => Ty::Bool,
                    (_, result) => result,
                })
            }
            Expr::Unspecified => Ok(Ty::Unknown),
        }
    }

    fn entries<'e>(
        &mut self,
        entries: impl Iterator<Item = &'e EntryExpr>,
        scope: &mut Vec<(String, Ty<'a>)>,
        depth: u32,
    ) -> Result<(), String> {
        for entry in entries {
            match entry {
                EntryExpr::MapEntry(entry) => {
                    self.check(&entry.key, scope, depth)?;
                    self.check(&entry.value, scope, depth)?;
                }
                EntryExpr::StructField(field) => drop(self.check(&field.value, scope, depth)?),
            }
        }
        Ok(())
    }

    fn ident(&self, name: &str, scope: &[(String, Ty<'a>)]) -> Result<Ty<'a>, String> {
        if let Some((_, ty)) = scope.iter().rev().find(|(declared, _)| declared == name) {
            return Ok(ty.clone());
        }
        const TYPES: &[&str] =
            &["bool", "int", "uint", "double", "string", "bytes", "list", "map", "null_type", "type", "dyn"];
        match name {
            "self" | "oldSelf" if self.root => Ok(Ty::Root(self.self_node)),
            "self" => Ok(Ty::Node(self.self_node)),
            // With optionalOldSelf it is an optional value, whose functions are not fields.
            "oldSelf" => Ok(Ty::Node(self.self_node)),
            _ if TYPES.contains(&name) => Ok(Ty::Unknown),
            _ => Err(format!("undeclared reference to '{name}' (in container '')")),
        }
    }
}

/// Names in front of functions that are no values.
fn namespace(expr: &Expr) -> Option<&str> {
    match expr {
        Expr::Ident(name) if matches!(name.as_str(), "optional" | "math" | "strings" | "lists" | "base64") => {
            Some(name)
        }
        _ => None,
    }
}

fn field_type<'a>(operand: &Ty<'a>, field: &str) -> Result<Ty<'a>, String> {
    let undefined = || Err(format!("undefined field '{field}'"));
    match operand {
        Ty::Root(_) if matches!(field, "apiVersion" | "kind") => Ok(Ty::Text),
        Ty::Root(_) if field == "metadata" => Ok(Ty::Unknown),
        Ty::Node(node) | Ty::Root(node) => {
            if let Some((_, property)) = node.properties.iter().find(|(name, _)| escape(name) == field) {
                return Ok(Ty::Node(property));
            }
            if let Some(schema) = node.additional_schema() {
                return Ok(Ty::Node(schema));
            }
            match node.ty {
                Some(JsonType::Object) if node.embedded && matches!(field, "apiVersion" | "kind" | "metadata") => {
                    Ok(Ty::Unknown)
                }
                Some(JsonType::Object) => undefined(),
                Some(ty) => Err(format!("type '{}' does not support field selection", ty.as_str())),
                None => Ok(Ty::Unknown),
            }
        }
        Ty::Unknown | Ty::Other => Ok(Ty::Unknown),
        Ty::Bool | Ty::Text => Err("type does not support field selection".to_owned()),
    }
}

fn call_type<'a>(name: &str, method: bool, arguments: &[Ty<'a>]) -> Result<Ty<'a>, String> {
    const BOOLEAN: &[&str] = &[
        operators::LOGICAL_AND,
        operators::LOGICAL_OR,
        operators::LOGICAL_NOT,
        operators::EQUALS,
        operators::NOT_EQUALS,
        operators::GREATER,
        operators::GREATER_EQUALS,
        operators::LESS,
        operators::LESS_EQUALS,
        operators::IN,
        operators::NOT_STRICTLY_FALSE,
        "startsWith",
        "endsWith",
        "contains",
        "matches",
        "hasValue",
        "bool",
    ];
    const OTHER: &[&str] = &["size", "int", "uint", "double", "length"];
    if BOOLEAN.contains(&name) {
        return Ok(Ty::Bool);
    }
    if OTHER.contains(&name) {
        return Ok(Ty::Other);
    }
    match (name, arguments) {
        (
            "string" | "lowerAscii" | "upperAscii" | "replace" | "substring" | "trim" | "join" | "charAt" | "format",
            _,
        ) => Ok(Ty::Text),
        (operators::INDEX, [Ty::Node(node), ..]) => Ok(match (node.items.as_deref(), node.additional_schema()) {
            (Some(items), _) => Ty::Node(items),
            (None, Some(schema)) => Ty::Node(schema),
            _ => Ty::Unknown,
        }),
        (operators::CONDITIONAL, [_, a, _]) => Ok(a.clone()),
        (operators::ADD, [a, b]) if matches!(a, Ty::Text) || matches!(b, Ty::Text) => Ok(Ty::Text),
        _ => {
            let operator = name.starts_with(|c: char| !c.is_ascii_alphabetic());
            if operator || method || KNOWN.contains(&name) {
                Ok(Ty::Unknown)
            } else {
                Err(format!("undeclared reference to '{name}' (in container '')"))
            }
        }
    }
}

/// Global functions beside those whose type matters.
const KNOWN: &[&str] =
    &["bytes", "dyn", "type", "matches", "min", "max", "of", "none", "ofNonZeroValue", "range", "quote"];
