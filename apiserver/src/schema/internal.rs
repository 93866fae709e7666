//! Values as kube-apiserver prints them in messages: in its internal Go types, whose fields go by their Go names and
//! are all written. `internal.txt` holds those types; `apiserver/tools/internal` prints it.

use crate::diff::unified;
use muster_api::field::{FieldError, Reason};
use serde_json::Value;
use std::collections::HashMap;
use std::fmt::Write;

/// Types nest no deeper than this; values of maps and lists do not make them deeper.
const DEPTH: usize = 32;

struct Field {
    name: &'static str,
    /// Where the value is in the served form.
    from: &'static str,
    ty: &'static str,
    omit_empty: bool,
}

struct Table(HashMap<&'static str, Vec<Field>>);

impl Table {
    /// Read anew for each message: such messages are rare, and the table is not worth keeping.
    fn read() -> Self {
        let mut types: HashMap<&'static str, Vec<Field>> = HashMap::new();
        let mut current = "";
        for line in include_str!("internal.txt").lines() {
            if let Some(name) = line.strip_prefix("type ") {
                current = name;
                continue;
            }
            let mut words = line.split_whitespace();
            if let (Some(name), Some(from), Some(ty)) = (words.next(), words.next(), words.next()) {
                let (ty, omit_empty) = ty.strip_suffix('?').map_or((ty, false), |ty| (ty, true));
                types.entry(current).or_default().push(Field { name, from, ty, omit_empty });
            }
        }
        Table(types)
    }
}

/// One document being written.
struct Writer<'a> {
    table: &'a Table,
    out: String,
    /// Whether it is written over several lines, indented by one blank a level.
    lines: bool,
    level: usize,
}

impl Writer<'_> {
    fn open(&mut self, bracket: char) {
        self.out.push(bracket);
        self.level += 1;
    }

    /// Before a member of an object or list.
    fn next(&mut self, first: bool) {
        if !first {
            self.out.push(',');
        }
        self.new_line();
    }

    fn new_line(&mut self) {
        if self.lines {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(' ', self.level));
        }
    }

    fn close(&mut self, bracket: char, empty: bool) {
        self.level -= 1;
        if !empty {
            self.new_line();
        }
        self.out.push(bracket);
    }

    fn key(&mut self, key: &str) {
        text(&mut self.out, key);
        self.out.push_str(if self.lines { ": " } else { ":" });
    }

    fn value(&mut self, ty: &'static str, value: &Value, around: &Value, depth: usize) {
        if depth == 0 {
            self.out.push_str("null");
            return;
        }
        if let Some(inner) = ty.strip_prefix('*') {
            match value {
                Value::Null => self.out.push_str("null"),
                value => self.value(inner, value, around, depth - 1),
            }
        } else if let Some(inner) = ty.strip_prefix("[]") {
            let Value::Array(items) = value else { return self.out.push_str("null") };
            self.open('[');
            for (place, item) in items.iter().enumerate() {
                self.next(place == 0);
                self.value(inner, item, value, depth - 1);
            }
            self.close(']', items.is_empty());
        } else if let Some(inner) = ty.strip_prefix("{}") {
            let Value::Object(members) = value else { return self.out.push_str("null") };
            self.open('{');
            for (place, (key, member)) in members.iter().enumerate() {
                self.next(place == 0);
                self.key(key);
                self.value(inner, member, value, depth - 1);
            }
            self.close('}', members.is_empty());
        } else if let Some(fields) = self.table.0.get(ty) {
            self.structure(fields, value, around, depth - 1);
        } else {
            match (ty, value) {
                ("bool", Value::Null) => self.out.push_str("false"),
                ("int" | "@intorstring", Value::Null) => self.out.push('0'),
                ("@quantity", Value::Null) => self.out.push_str("\"0\""),
                ("string", Value::Null) => self.out.push_str("\"\""),
                (_, Value::String(string)) => text(&mut self.out, string),
                (_, other) => {
                    let _ = write!(self.out, "{other}");
                }
            }
        }
    }

    fn structure(&mut self, fields: &[Field], value: &Value, around: &Value, depth: usize) {
        self.open('{');
        let mut first = true;
        for field in fields {
            let found = match field.from.strip_prefix('^') {
                Some(name) => around.get(name),
                None => field.from.split('/').try_fold(value, |value, name| value.get(name)),
            };
            let found = found.unwrap_or(&Value::Null);
            if field.omit_empty && is_empty(found) {
                continue;
            }
            self.next(first);
            first = false;
            self.key(field.name);
            self.value(field.ty, found, value, depth);
        }
        self.close('}', first);
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(members) => members.is_empty(),
        Value::Bool(true) => false,
    }
}

/// A string as Go's encoder writes it: what HTML treats specially is escaped.
fn text(out: &mut String, text: &str) {
    for c in Value::from(text).to_string().chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
}

fn print(ty: &'static str, value: &Value, lines: bool) -> String {
    let table = Table::read();
    let mut writer = Writer { table: &table, out: String::new(), lines, level: 0 };
    writer.value(ty, value, &Value::Null, DEPTH);
    writer.out
}

/// The value of an internal type in one line; `ty` is its name in the table, as `core.PodTemplateSpec`, or a pointer to
/// it, as `*batch.PodFailurePolicy`.
pub(crate) fn json(ty: &'static str, value: &Value) -> String {
    print(ty, value, false)
}

/// How two values of an internal type differ, line by line.
pub(crate) fn diff(ty: &'static str, old: &Value, new: &Value) -> String {
    unified(&print(ty, old, true), &print(ty, new, true))
}

/// `Invalid value: ...` with the value in its internal form.
pub(crate) fn invalid(field: &str, ty: &'static str, value: &Value, why: &str) -> FieldError {
    FieldError::new(Reason::Invalid, field, format!("Invalid value: {}: {why}", json(ty, value)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json as value;

    #[test]
    fn all_fields_are_written_by_their_go_names() {
        let role = value!({"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "a<b"});
        assert_eq!(
            json("rbac.RoleRef", &role),
            r#"{"APIGroup":"rbac.authorization.k8s.io","Kind":"Role","Name":"a\u003cb"}"#
        );
        assert_eq!(json("*core.PodSpec", &Value::Null), "null");
        let taint = value!({"key": "k", "effect": "NoSchedule"});
        assert_eq!(json("core.Taint", &taint), r#"{"Key":"k","Value":"","Effect":"NoSchedule","TimeAdded":null}"#);
    }

    #[test]
    fn the_namespaces_of_the_host_stand_in_the_security_context() {
        let template =
            value!({"metadata": {"labels": {"a": "b"}}, "spec": {"hostNetwork": true, "securityContext": {}}});
        let text = json("core.PodTemplateSpec", &template);
        assert!(text.starts_with(r#"{"labels":{"a":"b"},"Spec":{"Volumes":null,"#), "{text}");
        assert!(text.contains(r#""SecurityContext":{"HostNetwork":true,"HostPID":false,"#), "{text}");
    }

    #[test]
    fn differences_show_three_lines_around() {
        let old = value!({"accessModes": ["ReadWriteOnce"]});
        let new = value!({"accessModes": ["ReadWriteMany"]});
        assert_eq!(
            diff("core.PersistentVolumeClaimSpec", &old, &new),
            "@@ -1,6 +1,6 @@\n {\n  \"AccessModes\": [\n-  \"ReadWriteOnce\"\n+  \"ReadWriteMany\"\n  ],\n  \
             \"Selector\": null,\n  \"Resources\": {\n"
        );
    }
}
