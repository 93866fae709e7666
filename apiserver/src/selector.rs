//! Label and field selectors, in the grammar and with the error messages of Kubernetes.

use crate::builtin::names;
use crate::error::{ApiError, ApiResult};
use crate::store::Index;

/// A parsed `labelSelector`: all requirements must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector(Vec<Requirement>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirement {
    key: String,
    test: Test,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Test {
    Exists,
    Absent,
    In(Vec<String>),
    NotIn(Vec<String>),
    Greater(i64),
    Less(i64),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Symbol(&'static str),
    End,
}

impl Token {
    fn text(&self) -> &str {
        match self {
            Token::Word(word) => word,
            Token::Symbol(symbol) => symbol,
            Token::End => "",
        }
    }
}

fn tokens(text: &str) -> Vec<Token> {
    const SYMBOLS: [&str; 9] = ["!=", "==", "=", "!", "(", ")", ",", ">", "<"];
    let mut rest = text;
    let mut tokens = Vec::new();
    loop {
        rest = rest.trim_start_matches([' ', '\t', '\r', '\n']);
        if rest.is_empty() {
            tokens.push(Token::End);
            return tokens;
        }
        if let Some(symbol) = SYMBOLS.iter().find(|s| rest.starts_with(**s)) {
            tokens.push(Token::Symbol(symbol));
            rest = &rest[symbol.len()..];
        } else {
            let end = rest.find(|c| " \t\r\n!=(),><".contains(c)).unwrap_or(rest.len());
            tokens.push(Token::Word(rest[..end].to_owned()));
            rest = &rest[end..];
        }
    }
}

struct Parser {
    tokens: std::iter::Peekable<std::vec::IntoIter<Token>>,
}

impl Parser {
    fn peek(&mut self) -> Token {
        self.tokens.peek().cloned().unwrap_or(Token::End)
    }

    fn next(&mut self) -> Token {
        self.tokens.next().unwrap_or(Token::End)
    }

    fn selector(&mut self) -> Result<Vec<Requirement>, String> {
        let mut requirements = Vec::new();
        loop {
            match self.peek() {
                Token::Word(_) | Token::Symbol("!") => {
                    let requirement = self.requirement().map_err(|e| format!("unable to parse requirement: {e}"))?;
                    requirements.push(requirement);
                    match self.next() {
                        Token::End => return Ok(requirements),
                        Token::Symbol(",") => match self.peek() {
                            Token::Word(_) | Token::Symbol("!") => {}
                            other => return Err(format!("found '{}', expected: identifier after ','", other.text())),
                        },
                        other => return Err(format!("found '{}', expected: ',' or 'end of string'", other.text())),
                    }
                }
                Token::End => return Ok(requirements),
                other => return Err(format!("found '{}', expected: !, identifier, or 'end of string'", other.text())),
            }
        }
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        let mut absent = false;
        let mut token = self.next();
        if token == Token::Symbol("!") {
            absent = true;
            token = self.next();
        }
        let Token::Word(key) = token else { return Err(format!("found '{}', expected: identifier", token.text())) };
        if let Some(why) = names::qualified(&key).into_iter().next() {
            return Err(format!("<nil>: Invalid value: {key:?}: {why}"));
        }
        if absent {
            return Ok(Requirement { key, test: Test::Absent });
        }
        if matches!(self.peek(), Token::End | Token::Symbol(",")) {
            return Ok(Requirement { key, test: Test::Exists });
        }
        let operator = self.next();
        let test = match operator.text() {
            "in" => Test::In(self.values()?),
            "notin" => Test::NotIn(self.values()?),
            "=" | "==" => Test::In(vec![self.value()?]),
            "!=" => Test::NotIn(vec![self.value()?]),
            ">" => Test::Greater(self.number()?),
            "<" => Test::Less(self.number()?),
            other => return Err(format!("found '{other}', expected: in, notin, =, ==, !=, gt, lt")),
        };
        if let Test::In(values) | Test::NotIn(values) = &test {
            for (place, value) in values.iter().enumerate() {
                if let Some(why) = names::label_value(value).into_iter().next() {
                    return Err(format!("values[{place}][{key}]: Invalid value: {value:?}: {why}"));
                }
            }
        }
        Ok(Requirement { key, test })
    }

    fn value(&mut self) -> Result<String, String> {
        match self.peek() {
            Token::End | Token::Symbol(",") => Ok(String::new()),
            _ => match self.next() {
                Token::Word(value) => Ok(value),
                other => Err(format!("found '{}', expected: identifier", other.text())),
            },
        }
    }

    fn number(&mut self) -> Result<i64, String> {
        let value = self.value()?;
        value.parse().map_err(|_| {
            format!("values[0]: Invalid value: {value:?}: for 'Gt', 'Lt' operators, the value must be an integer")
        })
    }

    fn values(&mut self) -> Result<Vec<String>, String> {
        let open = self.next();
        if open != Token::Symbol("(") {
            return Err(format!("found '{}' expected: '('", open.text()));
        }
        let mut values = Vec::new();
        loop {
            match self.next() {
                Token::Word(value) => {
                    values.push(value);
                    match self.next() {
                        Token::Symbol(",") => {}
                        Token::Symbol(")") => return Ok(values),
                        other => return Err(format!("found '{}', expected: ',' or ')'", other.text())),
                    }
                }
                Token::Symbol(",") => values.push(String::new()),
                Token::Symbol(")") => {
                    values.push(String::new());
                    return Ok(values);
                }
                other => return Err(format!("found '{}', expected: ',', ')' or identifier", other.text())),
            }
        }
    }
}

impl LabelSelector {
    pub fn parse(text: &str) -> ApiResult<Self> {
        let mut parser = Parser { tokens: tokens(text).into_iter().peekable() };
        Ok(LabelSelector(parser.selector().map_err(ApiError::bad_request)?))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn matches(&self, index: &Index) -> bool {
        self.0.iter().all(|requirement| {
            let value = index.label(&requirement.key);
            match &requirement.test {
                Test::Exists => value.is_some(),
                Test::Absent => value.is_none(),
                Test::In(values) => value.is_some_and(|value| values.iter().any(|v| v == value)),
                Test::NotIn(values) => value.is_none_or(|value| values.iter().all(|v| v != value)),
                Test::Greater(than) => value.and_then(|v| v.parse::<i64>().ok()).is_some_and(|v| v > *than),
                Test::Less(than) => value.and_then(|v| v.parse::<i64>().ok()).is_some_and(|v| v < *than),
            }
        })
    }
}

/// A parsed `fieldSelector`: (field, value, whether it must be equal).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector(pub Vec<(String, String, bool)>);

impl FieldSelector {
    pub fn parse(text: &str) -> ApiResult<Self> {
        let mut terms = Vec::new();
        for term in split_terms(text) {
            if term.is_empty() {
                continue;
            }
            let (key, value, equal) = split_term(&term).ok_or_else(|| {
                ApiError::bad_request(format!("invalid selector: '{text}'; can't understand '{term}'"))
            })?;
            let value = unescape(value).ok_or_else(|| {
                let wrong = value.chars().find(|c| matches!(c, '=' | ',')).map_or(u32::from('\\'), u32::from);
                ApiError::bad_request(format!("invalid field selector: unescaped character in value: {wrong}"))
            })?;
            terms.push((key.to_owned(), value, equal));
        }
        Ok(FieldSelector(terms))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// `value_of` answers the value of a field, empty where the object has none.
    pub fn matches<'a>(&self, mut value_of: impl FnMut(&str) -> std::borrow::Cow<'a, str>) -> bool {
        self.0.iter().all(|(key, value, equal)| (value_of(key) == value.as_str()) == *equal)
    }

    /// The name that the selector demands, if it demands one.
    pub fn name(&self) -> Option<&str> {
        self.0.iter().find(|(key, _, equal)| key == "metadata.name" && *equal).map(|(_, value, _)| value.as_str())
    }
}

fn split_terms(text: &str) -> Vec<String> {
    let mut terms = vec![String::new()];
    let mut escaped = false;
    for c in text.chars() {
        if c == ',' && !escaped {
            terms.push(String::new());
            continue;
        }
        escaped = c == '\\' && !escaped;
        if let Some(term) = terms.last_mut() {
            term.push(c);
        }
    }
    terms
}

fn split_term(term: &str) -> Option<(&str, &str, bool)> {
    let place = term.find(['=', '!'])?;
    let (key, rest) = term.split_at(place);
    if let Some(value) = rest.strip_prefix("!=") {
        Some((key, value, false))
    } else if let Some(value) = rest.strip_prefix("==").or_else(|| rest.strip_prefix('=')) {
        Some((key, value, true))
    } else {
        None
    }
}

fn unescape(text: &str) -> Option<String> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next()? {
                c @ ('\\' | ',' | '=') => out.push(c),
                _ => return None,
            },
            ',' | '=' => return None,
            c => out.push(c),
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn index(labels: serde_json::Value) -> Index {
        Index::of(&json!({"metadata": {"labels": labels}}), [])
    }

    #[test]
    fn label_selectors_match_as_in_kubernetes() {
        let a = index(json!({"app": "a", "tier": "x", "n": "5"}));
        let none = index(json!({}));
        for (selector, on_a, on_none) in [
            ("app=a", true, false),
            ("app==b", false, false),
            ("app!=a", false, true),
            ("app in (a,b)", true, false),
            ("app notin (a)", false, true),
            ("tier", true, false),
            ("!tier", false, true),
            ("app=a,tier=x", true, false),
            ("app in (a), !tier", false, false),
            ("n>4", true, false),
            ("n<4", false, false),
            ("", true, true),
            ("app=", false, false),
        ] {
            let parsed = LabelSelector::parse(selector).expect(selector);
            assert_eq!((parsed.matches(&a), parsed.matches(&none)), (on_a, on_none), "{selector}");
        }
    }

    #[test]
    fn wrong_label_selectors_are_refused_in_kubernetes_words() {
        for (selector, message) in [
            ("app in a", "unable to parse requirement: found 'a' expected: '('"),
            ("a b", "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt"),
            ("app=bad value", "found 'value', expected: ',' or 'end of string'"),
            ("=x", "found '=', expected: !, identifier, or 'end of string'"),
            ("a,", "found '', expected: identifier after ','"),
        ] {
            assert_eq!(LabelSelector::parse(selector).expect_err(selector).message, message);
        }
    }

    #[test]
    fn field_selectors_compare_values() {
        let value = |key: &str| std::borrow::Cow::from(if key == "metadata.name" { "p1" } else { "" });
        for (selector, expected) in [
            ("metadata.name=p1", true),
            ("metadata.name!=p1", false),
            ("spec.nodeName=", true),
            ("spec.nodeName!=", false),
            ("metadata.name==p1,spec.nodeName=n", false),
        ] {
            assert_eq!(FieldSelector::parse(selector).expect(selector).matches(value), expected, "{selector}");
        }
        let error = FieldSelector::parse("metadata.name").expect_err("no operator");
        assert_eq!(error.message, "invalid selector: 'metadata.name'; can't understand 'metadata.name'");
        assert_eq!(FieldSelector::parse(r"a=b\,c").expect("escaped").0[0].1, "b,c");
    }
}
