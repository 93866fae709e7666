//! The syntax of names, labels and keys. Each check gives the messages of what is wrong, none if nothing is.

const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', \
     and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
     '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must \
     start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
     '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const LABEL_1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an \
     alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for \
     validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const QUALIFIED: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
     alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
     '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or \
     '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex \
     used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const CONFIG_KEY: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. \
     'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";
const ENV_NAME: &str =
    "a valid environment variable name must consist only of printable ASCII characters other than '='";

fn too_long(max: usize) -> String {
    format!("must be no more than {max} characters")
}

fn alphanumeric(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit()
}

fn is_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    match (bytes.first(), bytes.last()) {
        (Some(&first), Some(&last)) => {
            alphanumeric(first) && alphanumeric(last) && bytes.iter().all(|&b| alphanumeric(b) || b == b'-')
        }
        _ => false,
    }
}

fn is_name_part(text: &str) -> bool {
    let bytes = text.as_bytes();
    match (bytes.first(), bytes.last()) {
        (Some(first), Some(last)) => {
            first.is_ascii_alphanumeric()
                && last.is_ascii_alphanumeric()
                && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(b))
        }
        _ => false,
    }
}

fn checks(checks: &[(bool, &dyn Fn() -> String)]) -> Vec<String> {
    checks.iter().filter(|(wrong, _)| *wrong).map(|(_, message)| message()).collect()
}

/// RFC 1123 subdomain: labels joined by dots, at most 253 characters.
pub fn subdomain(text: &str) -> Vec<String> {
    checks(&[(text.len() > 253, &|| too_long(253)), (!text.split('.').all(is_label), &|| SUBDOMAIN.to_owned())])
}

/// RFC 1123 label, at most 63 characters.
pub fn label(text: &str) -> Vec<String> {
    let dotted = !is_label(text) && subdomain(text).is_empty();
    let wrong = || if dotted { "must not contain dots".to_owned() } else { LABEL.to_owned() };
    checks(&[(text.len() > 63, &|| too_long(63)), (!is_label(text), &wrong)])
}

/// RFC 1035 label: as `label`, and begins with a letter.
pub fn label_1035(text: &str) -> Vec<String> {
    let valid = is_label(text) && text.starts_with(|c: char| c.is_ascii_lowercase());
    checks(&[(text.len() > 63, &|| too_long(63)), (!valid, &|| LABEL_1035.to_owned())])
}

/// A name that can be one segment of a path.
pub fn path_segment(text: &str) -> Vec<String> {
    if text == "." || text == ".." {
        return vec![format!("may not be '{text}'")];
    }
    ["/", "%"].iter().filter(|c| text.contains(**c)).map(|c| format!("may not contain '{c}'")).collect()
}

/// A key of labels, annotations, node selectors, taints, resources: `[prefix/]name`.
pub fn qualified(text: &str) -> Vec<String> {
    let parts: Vec<&str> = text.split('/').collect();
    let mut messages = Vec::new();
    let name = match parts[..] {
        [name] => name,
        [prefix, name] => {
            if prefix.is_empty() {
                messages.push("prefix part must be non-empty".to_owned());
            } else {
                messages.extend(subdomain(prefix).into_iter().map(|m| format!("prefix part {m}")));
            }
            name
        }
        _ => {
            return vec![format!(
                "a qualified name {QUALIFIED} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            )];
        }
    };
    if name.is_empty() {
        messages.push("name part must be non-empty".to_owned());
    } else if name.len() > 63 {
        messages.push(format!("name part {}", too_long(63)));
    }
    if !is_name_part(name) {
        messages.push(format!("name part {QUALIFIED}"));
    }
    messages
}

/// The value of a label.
pub fn label_value(text: &str) -> Vec<String> {
    let valid = text.is_empty() || is_name_part(text);
    checks(&[(text.len() > 63, &|| too_long(63)), (!valid, &|| LABEL_VALUE.to_owned())])
}

/// A key of a ConfigMap or Secret.
pub fn config_key(text: &str) -> Vec<String> {
    let valid = !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    let mut messages = checks(&[(text.len() > 253, &|| too_long(253)), (!valid, &|| CONFIG_KEY.to_owned())]);
    messages.extend(no_parent_path(text));
    messages
}

fn no_parent_path(text: &str) -> Option<String> {
    match text {
        "." => Some("must not be '.'".to_owned()),
        ".." => Some("must not be '..'".to_owned()),
        _ if text.starts_with("..") => Some("must not start with '..'".to_owned()),
        _ => None,
    }
}

/// The name of an environment variable.
pub fn env_name(text: &str) -> Vec<String> {
    let valid = !text.is_empty() && text.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b'=');
    checks(&[(!valid, &|| ENV_NAME.to_owned())])
}

/// The name of a container's port: an IANA service name.
pub fn port_name(text: &str) -> Vec<String> {
    let bytes = text.as_bytes();
    let mut messages = Vec::new();
    if text.len() > 15 {
        messages.push(too_long(15));
    }
    if !bytes.iter().all(|&b| alphanumeric(b) || b == b'-') || bytes.is_empty() {
        messages.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned());
    }
    if !bytes.iter().any(u8::is_ascii_lowercase) {
        messages.push("must contain at least one letter (a-z)".to_owned());
    }
    if text.contains("--") {
        messages.push("must not contain consecutive hyphens".to_owned());
    }
    if text.starts_with('-') || text.ends_with('-') {
        messages.push("must not begin or end with a hyphen".to_owned());
    }
    messages
}

/// A port number.
pub fn port(number: i64) -> Option<&'static str> {
    (!(1..=65535).contains(&number)).then_some("must be between 1 and 65535, inclusive")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepted_and_refused() {
        type Check = fn(&str) -> Vec<String>;
        let cases: &[(Check, &[&str], &[&str])] = &[
            (subdomain, &["a", "a.b", "a-b.c1", "0"], &["", "A", "a..b", ".a", "a.", "-a", "a_b", "a/b", "é"]),
            (label, &["a", "1a", "a-b"], &["", "a.b", "-a", "a-", "Ab"]),
            (label_1035, &["a", "a1"], &["1a", "", "a.b"]),
            (path_segment, &["system:node", "A b"], &[".", "..", "a/b", "a%b"]),
            (qualified, &["a", "A_b.c", "x.io/Y"], &["", "/a", "a/", "a b", "x/y/z", "X.io/y", "-a"]),
            (label_value, &["", "A", "1.2"], &["a b", "-a", "a-"]),
            (config_key, &["a", "a..b", ".x", "A_b"], &["", "a b", ".", "..", "..x"]),
            (env_name, &["A", "a.b-c", "1A"], &["", "A=B", "ü"]),
            (port_name, &["http", "p-1"], &["", "80", "a--b", "-a", "Http", "abcdefghijklmnop"]),
        ];
        for (check, good, bad) in cases {
            for text in *good {
                assert_eq!(check(text), Vec::<String>::new(), "{text}");
            }
            for text in *bad {
                assert_ne!(check(text), Vec::<String>::new(), "{text}");
            }
        }
    }

    #[test]
    fn long_names_are_named_as_such() {
        assert_eq!(subdomain(&"n".repeat(254)), ["must be no more than 253 characters"]);
        assert_eq!(label_1035(&"n".repeat(64)), ["must be no more than 63 characters"]);
        assert_eq!(qualified(&"n".repeat(64)), ["name part must be no more than 63 characters"]);
        assert_eq!(label_value(&"v".repeat(64)), ["must be no more than 63 characters"]);
    }
}
