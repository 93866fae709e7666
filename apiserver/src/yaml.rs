//! Writing YAML as Kubernetes does: block style, sorted keys, strings quoted only where they would read as something
//! else.

use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write;

pub(crate) fn to_string(value: &Value) -> String {
    let mut out = String::new();
    match value {
        Value::Object(fields) if !fields.is_empty() => mapping(&mut out, fields, 0, false),
        Value::Array(items) if !items.is_empty() => sequence(&mut out, items, 0),
        scalar => {
            write_scalar(&mut out, scalar, 0);
            out.push('\n');
        }
    }
    out
}

fn indent(out: &mut String, depth: usize) {
    out.extend(std::iter::repeat_n(' ', depth));
}

fn mapping(out: &mut String, fields: &serde_json::Map<String, Value>, depth: usize, mut continued: bool) {
    let sorted: BTreeMap<&String, &Value> = fields.iter().collect();
    for (key, value) in sorted {
        if !continued {
            indent(out, depth);
        }
        continued = false;
        text(out, key, depth, true);
        out.push(':');
        match value {
            Value::Object(fields) if !fields.is_empty() => {
                out.push('\n');
                mapping(out, fields, depth + 2, false);
            }
            Value::Array(items) if !items.is_empty() => {
                out.push('\n');
                sequence(out, items, depth);
            }
            scalar => {
                out.push(' ');
                write_scalar(out, scalar, depth);
                out.push('\n');
            }
        }
    }
}

fn sequence(out: &mut String, items: &[Value], depth: usize) {
    for item in items {
        indent(out, depth);
        out.push_str("- ");
        match item {
            Value::Object(fields) if !fields.is_empty() => mapping(out, fields, depth + 2, true),
            Value::Array(items) if !items.is_empty() => {
                // The first item of the inner sequence shares the dash's line.
                let mut inner = String::new();
                sequence(&mut inner, items, depth + 2);
                out.push_str(inner.trim_start());
            }
            scalar => {
                write_scalar(out, scalar, depth);
                out.push('\n');
            }
        }
    }
}

fn write_scalar(out: &mut String, value: &Value, depth: usize) {
    match value {
        Value::Object(_) => out.push_str("{}"),
        Value::Array(_) => out.push_str("[]"),
        Value::String(string) => text(out, string, depth, false),
        other => {
            let _ = write!(out, "{other}");
        }
    }
}

fn text(out: &mut String, string: &str, depth: usize, key: bool) {
    let printable = string.chars().all(|c| !unprintable(c) || c == '\n');
    if !key && printable && string.contains('\n') && !string.starts_with([' ', '\n', '\t']) {
        out.push('|');
        if !string.ends_with('\n') {
            out.push('-');
        } else if string.ends_with("\n\n") {
            out.push('+');
        }
        let body = string.strip_suffix('\n').unwrap_or(string);
        for line in body.split('\n') {
            out.push('\n');
            if !line.is_empty() {
                indent(out, depth + 2);
                out.push_str(line);
            }
        }
    } else if plain(string) {
        out.push_str(string);
    } else {
        // A JSON string is a double-quoted YAML scalar, once what YAML does not print is escaped.
        for c in Value::String(string.to_owned()).to_string().chars() {
            if unprintable(c) {
                let _ = write!(out, "\\u{:04x}", c as u32);
            } else {
                out.push(c);
            }
        }
    }
}

/// Characters that a YAML document cannot carry as they are, or that end a line.
fn unprintable(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}')
}

/// Whether the text, unquoted, reads as the same string.
fn plain(text: &str) -> bool {
    const WORDS: [&str; 14] =
        ["true", "false", "yes", "no", "on", "off", "y", "n", "null", "~", ".nan", ".inf", "-.inf", "+.inf"];
    let Some(first) = text.chars().next() else { return false };
    let lower = text.to_ascii_lowercase();
    let numeric = text.parse::<f64>().is_ok()
        || text.starts_with("0x")
        || text.starts_with("0o")
        || text != "."
            && (first.is_ascii_digit() || "+-.".contains(first))
            && text.chars().all(|c| c.is_ascii_digit() || ":+-._eExX".contains(c));
    let timestamp = text.len() >= 10
        && text.as_bytes()[..10]
            .iter()
            .enumerate()
            .all(|(i, b)| if i == 4 || i == 7 { *b == b'-' } else { b.is_ascii_digit() });
    let indicator = "-?:,[]{}#&*!|>'\"%@`".contains(first)
        && !(matches!(first, '-' | '?' | ':') && text.chars().nth(1).is_some_and(|c| c != ' '));
    !(WORDS.contains(&lower.as_str())
        || numeric
        || timestamp
        || indicator
        || text == "-"
        || text == "="
        || text == "<<"
        || text.starts_with("---")
        || text.starts_with("...")
        || text.starts_with(' ')
        || text.ends_with(' ')
        || text.ends_with(':')
        || text.contains(": ")
        || text.contains(" #")
        || text.chars().any(unprintable))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn yaml_is_written_as_kubernetes_writes_it() {
        let value = json!({"b": {"c": [1, "1", {"x": "y", "a": []}, [1, [2]]], "d": {}}, "a": "yes", "t": "2020-01-01T00:00:00Z",
            "m": "x\ny\n", "n": "x\n\ny", "u": "0b9e7c1c-0000-4000-8000-000000000000", "v": "apps/v1", "w": null, "z": "a: b", "f:x": ".", "k": "-p"});
        let expected = "a: \"yes\"\nb:\n  c:\n  - 1\n  - \"1\"\n  - a: []\n    x: \"y\"\n  - - 1\n    - - 2\n  d: {}\nf:x: .\nk: -p\n\
                        m: |\n  x\n  y\n\"n\": |-\n  x\n\n  y\nt: \"2020-01-01T00:00:00Z\"\nu: 0b9e7c1c-0000-4000-8000-000000000000\nv: apps/v1\n\
                        w: null\nz: \"a: b\"\n";
        assert_eq!(to_string(&value), expected);
    }

    proptest::proptest! {
        #[test]
        fn what_is_written_reads_back(texts in proptest::collection::vec(".{0,12}|[-:#0-9 a-z\n.,]{0,8}", 0..6)) {
            let value = json!({"list": texts.clone(), "map": {"k": texts.clone()}, "keys": texts.iter().map(|t| (t.clone(), json!(1))).collect::<serde_json::Map<_, _>>()});
            let text = to_string(&value);
            let back: Value = serde_saphyr::from_str(&text).map_err(|e| proptest::test_runner::TestCaseError::fail(format!("{e}\n{text}")))?;
            proptest::prop_assert_eq!(back, value, "{}", text);
        }
    }
}
