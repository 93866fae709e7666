//! Reading request bodies: JSON or YAML into a [`Tree`], and what a document says it is.

use super::json;
use super::tree::Tree;
use crate::error::ApiError;
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::Number;

/// A body that is no document.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ParseError {
    /// `unexpected end of JSON input`, `yaml: line 3: ...`.
    pub message: String,
    pub yaml: bool,
}

impl ParseError {
    /// The 400 for a body in which not even a kind can be found; `kind` is the one that the URL asks for.
    pub fn unrecognized(&self, kind: &str, body: &[u8]) -> ApiError {
        let why = if self.yaml {
            self.message.clone()
        } else {
            format!("couldn't get version/kind; json parse error: {}", self.message)
        };
        unrecognized(kind, &why, body)
    }
}

/// The 400 for a document that does not say what it is.
pub fn unrecognized(kind: &str, why: &str, body: &[u8]) -> ApiError {
    ApiError::bad_request(format!(
        "the object provided is unrecognized (must be of type {kind}): {why} ({})",
        summary(body)
    ))
}

/// The first bytes of a body for a message: as text when it may be JSON, else in hexadecimal.
fn summary(body: &[u8]) -> String {
    const LIMIT: usize = 30;
    let start = &body[..body.len().min(LIMIT)];
    let more = if body.len() > LIMIT { " ..." } else { "" };
    match body.first() {
        None => "<empty>".to_owned(),
        Some(b'{') => format!("{}{more}", String::from_utf8_lossy(start)),
        Some(_) => {
            let hex: String = start.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("{hex}{more}")
        }
    }
}

/// Parses a body. YAML is read when the media type says so (`application/yaml`, `application/apply-patch+yaml`).
pub fn parse(body: &[u8], content_type: &str) -> Result<Tree, ParseError> {
    if content_type.contains("yaml") {
        yaml(body)
    } else {
        json::parse(body).map_err(|message| ParseError { message, yaml: false })
    }
}

/// YAML as Kubernetes reads it: the first document, YAML 1.1 booleans. JSON is YAML too, so it is tried first.
pub fn yaml(body: &[u8]) -> Result<Tree, ParseError> {
    if matches!(body.first(), Some(b'{' | b'[')) {
        if let Ok(tree) = json::parse(body) {
            return Ok(tree);
        }
    }
    let wrong = |message: String| ParseError { message: format!("yaml: {message}"), yaml: true };
    let text = std::str::from_utf8(body).map_err(|_| wrong("invalid leading UTF-8 octet".to_owned()))?;
    if text.trim().is_empty() {
        return Ok(Tree::Null);
    }
    let options = serde_saphyr::options! {
        duplicate_keys: serde_saphyr::DuplicateKeyPolicy::LastWins,
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options::<Tree>(text, options).map_err(|e| wrong(yaml_message(&e)))
}

fn yaml_message(error: &serde_saphyr::Error) -> String {
    let text = error.to_string();
    let first = text.lines().next().unwrap_or("invalid document").to_owned();
    match error.location() {
        Some(location) => format!("line {}: {first}", location.line()),
        None => first,
    }
}

/// `apiVersion` and `kind` of a document (empty where absent); an error has Go's words.
pub fn type_meta(tree: &Tree) -> Result<(String, String), String> {
    let object = match tree {
        Tree::Object(_) | Tree::Null => tree,
        other => {
            return Err(format!(
                "couldn't get version/kind; json parse error: json: cannot unmarshal {} into Go value of type struct \
                 {{ APIVersion string \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \"json:\\\"kind,omitempty\\\"\" }}",
                other.go_kind()
            ));
        }
    };
    let word = |json: &str, go: &str| match object.get(json) {
        None | Some(Tree::Null) => Ok(String::new()),
        Some(Tree::String(text)) => Ok(text.clone()),
        Some(other) => Err(format!(
            "couldn't get version/kind; json parse error: json: cannot unmarshal {} into Go struct field .{json} of \
             type string{go}",
            other.go_kind()
        )),
    };
    Ok((word("apiVersion", "")?, word("kind", "")?))
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Tree, D::Error> {
        deserializer.deserialize_any(TreeVisitor)
    }
}

struct TreeVisitor;

impl<'de> Visitor<'de> for TreeVisitor {
    type Value = Tree;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Tree, E> {
        Ok(Tree::Null)
    }

    fn visit_none<E>(self) -> Result<Tree, E> {
        Ok(Tree::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Tree, D::Error> {
        Tree::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Tree, E> {
        Ok(Tree::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Tree, E> {
        Ok(Tree::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Tree, E> {
        Ok(Tree::Number(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Tree, E> {
        Number::from_f64(value).map(Tree::Number).ok_or_else(|| E::custom("json: unsupported value"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Tree, E> {
        Ok(Tree::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Tree, E> {
        Ok(Tree::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Tree, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Tree::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tree, A::Error> {
        let mut fields = Vec::new();
        while let Some((key, value)) = map.next_entry::<Tree, Tree>()? {
            let key = match key {
                Tree::String(key) => key,
                Tree::Bool(key) => key.to_string(),
                Tree::Number(key) => key.to_string(),
                Tree::Null => "null".to_owned(),
                Tree::Array(_) | Tree::Object(_) => return Err(A::Error::custom("unsupported map key")),
            };
            fields.push((key, value));
        }
        Ok(Tree::Object(fields))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn yaml_is_read_as_yaml_1_1() {
        let tree = yaml(b"a: y\nb: \"y\"\nc: 1\nd: [1.5, null, ~]\ne: |\n  two\n  lines\n").expect("valid");
        assert_eq!(
            tree.into_value(),
            json!({"a": true, "b": "y", "c": 1, "d": [1.5, null, null], "e": "two\nlines\n"})
        );
    }

    #[test]
    fn repeated_fields_are_seen_in_both_forms() {
        let tree = parse(br#"{"data":{"a":"1","b":"1","a":"2"},"l":[{"x":1,"x":1}]}"#, "application/json");
        assert_eq!(tree.expect("valid").duplicates(), ["data.a", "l[0].x"]);
        let tree = parse(b"data:\n  a: '1'\n  a: '2'\n", "application/yaml").expect("valid");
        assert_eq!(tree.duplicates(), ["data.a"]);
        assert_eq!(tree.into_value(), json!({"data": {"a": "2"}}));
    }

    #[test]
    fn bodies_that_are_no_document_are_named() {
        let error = parse(b"{not json", "application/json").expect_err("invalid");
        assert_eq!(
            error.unrecognized("ConfigMap", b"{not json").message,
            "the object provided is unrecognized (must be of type ConfigMap): couldn't get version/kind; json parse \
             error: invalid character 'n' looking for beginning of object key string ({not json)"
        );
        assert!(parse(b"a: {b: [\n", "application/yaml").is_err());
    }

    proptest! {
        #[test]
        fn yaml_never_panics(text in "[-a:{}\\[\\]&*!|>#\" \\n0-9]{0,60}") {
            let _ = yaml(text.as_bytes());
        }
    }
}
