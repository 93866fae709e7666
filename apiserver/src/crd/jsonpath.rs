//! The simple JSON paths of definitions: `.spec.replicas`, `.status.conditions[?(@.type=="Ready")].status`,
//! `.items[-1:].name`, `.metadata.annotations['a\.b']`.

use serde_json::Value;

/// A parsed path.
#[derive(Clone, Debug, PartialEq)]
pub struct JsonPath {
    steps: Vec<Step>,
}

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Field(String),
    Index(i64),
    /// From, to (both may count from the end).
    Slice(Option<i64>, Option<i64>),
    All,
    /// Items whose value at a path equals, or differs from, a literal.
    Filter(Vec<Step>, bool, Value),
    /// Items that have a value at a path.
    Exists(Vec<Step>),
}

const MAX_STEPS: usize = 64;

impl JsonPath {
    /// Parses a path, with or without braces around it; `None` where it is no simple path.
    pub fn parse(text: &str) -> Option<JsonPath> {
        let text = text.trim();
        let text = text.strip_prefix('{').and_then(|t| t.strip_suffix('}')).unwrap_or(text);
        let mut parser = Parser { rest: text.strip_prefix('$').unwrap_or(text) };
        let steps = parser.steps()?;
        (parser.rest.is_empty() && steps.len() <= MAX_STEPS).then_some(JsonPath { steps })
    }

    /// The values that the path leads to.
    pub fn find<'a>(&self, value: &'a Value) -> Vec<&'a Value> {
        find(&self.steps, value)
    }

    /// The names of a path of plain fields.
    pub fn fields(&self) -> Option<Vec<&str>> {
        let names = self.steps.iter().map(|step| match step {
            Step::Field(name) => Some(name.as_str()),
            _ => None,
        });
        names.collect()
    }
}

fn find<'a>(steps: &[Step], value: &'a Value) -> Vec<&'a Value> {
    let mut found = vec![value];
    for step in steps {
        found = found.into_iter().flat_map(|value| take(step, value)).collect();
    }
    found
}

fn take<'a>(step: &Step, value: &'a Value) -> Vec<&'a Value> {
    match (step, value) {
        (Step::Field(name), Value::Object(map)) => map.get(name).into_iter().collect(),
        (Step::All, Value::Object(map)) => map.values().collect(),
        (Step::All, Value::Array(items)) => items.iter().collect(),
        (Step::Index(at), Value::Array(items)) => {
            place(*at, items.len()).and_then(|at| items.get(at)).into_iter().collect()
        }
        (Step::Slice(from, to), Value::Array(items)) => {
            let bound = |at: &Option<i64>, default: usize| match at {
                None => default,
                Some(at) if *at < 0 => items.len().saturating_sub(usize::try_from(-*at).unwrap_or(usize::MAX)),
                Some(at) => usize::try_from(*at).unwrap_or(usize::MAX).min(items.len()),
            };
            let (from, to) = (bound(from, 0), bound(to, items.len()));
            items.get(from..to).map(|items| items.iter().collect()).unwrap_or_default()
        }
        (Step::Filter(path, equal, literal), Value::Array(items)) => {
            let fits = |item: &&Value| find(path, item).first().is_some_and(|found| (*found == literal) == *equal);
            items.iter().filter(fits).collect()
        }
        (Step::Exists(path), Value::Array(items)) => items.iter().filter(|item| !find(path, item).is_empty()).collect(),
        _ => Vec::new(),
    }
}

fn place(at: i64, len: usize) -> Option<usize> {
    if at < 0 { len.checked_sub(usize::try_from(-at).ok()?) } else { usize::try_from(at).ok() }
}

struct Parser<'a> {
    rest: &'a str,
}

impl Parser<'_> {
    fn steps(&mut self) -> Option<Vec<Step>> {
        let mut steps = Vec::new();
        loop {
            if let Some(rest) = self.rest.strip_prefix('.') {
                self.rest = rest;
                if let Some(rest) = self.rest.strip_prefix('*') {
                    self.rest = rest;
                    steps.push(Step::All);
                } else if !self.rest.starts_with('[') {
                    let name = self.name()?;
                    if name.is_empty() {
                        // A lone dot is the object itself.
                        return self.rest.is_empty().then_some(steps);
                    }
                    steps.push(Step::Field(name));
                }
            } else if let Some(rest) = self.rest.strip_prefix('[') {
                self.rest = rest;
                steps.push(self.bracket()?);
                self.rest = self.rest.strip_prefix(']')?;
            } else {
                return Some(steps);
            }
        }
    }

    /// A field name up to the next dot, bracket or operator; a backslash takes the next character as it is.
    fn name(&mut self) -> Option<String> {
        let mut name = String::new();
        let mut chars = self.rest.char_indices();
        let mut end = self.rest.len();
        while let Some((at, c)) = chars.next() {
            match c {
                '\\' => name.push(chars.next()?.1),
                '.' | '[' | ']' | '=' | '!' | ')' | ' ' => {
                    end = at;
                    break;
                }
                _ => name.push(c),
            }
        }
        self.rest = &self.rest[end..];
        Some(name)
    }

    fn bracket(&mut self) -> Option<Step> {
        if let Some(rest) = self.rest.strip_prefix('*') {
            self.rest = rest;
            return Some(Step::All);
        }
        if let Some(rest) = self.rest.strip_prefix("?(") {
            self.rest = rest.trim_start();
            return self.filter();
        }
        if self.rest.starts_with(['\'', '"']) {
            return self.quoted().map(Step::Field);
        }
        let end = self.rest.find(']')?;
        let text = &self.rest[..end];
        self.rest = &self.rest[end..];
        let number = |text: &str| if text.is_empty() { Some(None) } else { text.parse().ok().map(Some) };
        match text.split_once(':') {
            Some((from, to)) => Some(Step::Slice(number(from)?, number(to)?)),
            None => text.parse().ok().map(Step::Index),
        }
    }

    fn filter(&mut self) -> Option<Step> {
        self.rest = self.rest.strip_prefix('@')?;
        let path = self.steps()?;
        self.rest = self.rest.trim_start();
        if let Some(rest) = self.rest.strip_prefix(')') {
            self.rest = rest;
            return Some(Step::Exists(path));
        }
        let equal = self.rest.starts_with("==");
        self.rest = self.rest.strip_prefix("==").or_else(|| self.rest.strip_prefix("!="))?.trim_start();
        let literal = if self.rest.starts_with(['\'', '"']) {
            Value::String(self.quoted()?)
        } else {
            let end = self.rest.find(')')?;
            let text = self.rest[..end].trim();
            self.rest = &self.rest[end..];
            serde_json::from_str(text).ok()?
        };
        self.rest = self.rest.trim_start().strip_prefix(')')?;
        Some(Step::Filter(path, equal, literal))
    }

    fn quoted(&mut self) -> Option<String> {
        let quote = self.rest.chars().next()?;
        let inner = &self.rest[1..];
        let end = inner.find(quote)?;
        self.rest = &inner[end + 1..];
        Some(inner[..end].to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn paths_lead_to_values() {
        let object = json!({"spec": {"replicas": 2, "a.b": "dot"}, "status": {"conditions": [
            {"type": "Created", "status": "True"}, {"type": "Running", "status": "False"}]}});
        for (path, found) in [
            (".spec.replicas", vec![json!(2)]),
            ("{.spec.replicas}", vec![json!(2)]),
            (".status.conditions[-1:].type", vec![json!("Running")]),
            (".status.conditions[0].type", vec![json!("Created")]),
            (".status.conditions[*].type", vec![json!("Created"), json!("Running")]),
            (".status.conditions[?(@.type==\"Running\")].status", vec![json!("False")]),
            (".status.conditions[?(@.type != 'Running')].type", vec![json!("Created")]),
            (".spec.a\\.b", vec![json!("dot")]),
            (".spec['a.b']", vec![json!("dot")]),
            (".nosuch.deep", vec![]),
        ] {
            let parsed = JsonPath::parse(path).expect(path);
            let values: Vec<Value> = parsed.find(&object).into_iter().cloned().collect();
            assert_eq!(values, found, "{path}");
        }
        assert_eq!(JsonPath::parse(".spec[").map(|_| ()), None);
        assert_eq!(
            JsonPath::parse(".spec.replicas").as_ref().and_then(JsonPath::fields),
            Some(vec!["spec", "replicas"])
        );
    }

    proptest! {
        #[test]
        fn never_panics(path in "[.\\[\\]a-c*:?(@)='\"\\\\0-9é-]{0,20}", value in crate::schema::arbitrary::value()) {
            if let Some(path) = JsonPath::parse(&path) {
                path.find(&value);
            }
        }
    }
}
