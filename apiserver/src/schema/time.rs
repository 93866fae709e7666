//! Times in objects: RFC 3339, refused in the words of Go's `time.Parse`.

use jiff::{Timestamp, tz::TimeZone};

const LAYOUT: &str = "2006-01-02T15:04:05Z07:00";
const MICRO_LAYOUT: &str = "2006-01-02T15:04:05.000000Z07:00";

/// A time to the second, in UTC.
pub(crate) fn seconds(text: &str) -> Result<String, String> {
    let time = parse(text, LAYOUT)?;
    Ok(time.to_zoned(TimeZone::UTC).strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
}

/// A time to the microsecond, in UTC.
pub(crate) fn micros(text: &str) -> Result<String, String> {
    let time = parse(text, MICRO_LAYOUT)?;
    Ok(time.to_zoned(TimeZone::UTC).strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string())
}

fn parse(text: &str, layout: &str) -> Result<Timestamp, String> {
    if let Some((rest, element)) = mistake(text) {
        return Err(format!("parsing time {text:?} as \"{layout}\": cannot parse {rest:?} as {element:?}"));
    }
    text.parse::<Timestamp>().map_err(|_| format!("parsing time {text:?}: day out of range"))
}

/// Where the text leaves the layout: what is left of it, and the element of the layout that is looked for.
fn mistake(text: &str) -> Option<(&str, &'static str)> {
    let mut rest = text;
    for (digits, element, separator) in
        [(4, "2006", "-"), (2, "01", "-"), (2, "02", "T"), (2, "15", ":"), (2, "04", ":"), (2, "05", "")]
    {
        let head = rest.as_bytes();
        if head.len() < digits || !head[..digits].iter().all(u8::is_ascii_digit) {
            return Some((rest, element));
        }
        rest = &rest[digits..];
        if !rest.starts_with(separator) {
            return Some((rest, separator));
        }
        rest = &rest[separator.len()..];
    }
    if let Some(fraction) = rest.strip_prefix('.') {
        let end = fraction.find(|c: char| !c.is_ascii_digit()).unwrap_or(fraction.len());
        if end == 0 {
            return Some((rest, "Z07:00"));
        }
        rest = &fraction[end..];
    }
    let offset = rest.as_bytes();
    let whole = match offset {
        b"Z" => true,
        [b'+' | b'-', a, b, b':', c, d] => [a, b, c, d].iter().all(|byte| byte.is_ascii_digit()),
        _ => false,
    };
    if whole { None } else { Some((rest, "Z07:00")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_become_utc() {
        assert_eq!(seconds("2020-01-01T01:00:00.5+01:00").as_deref(), Ok("2020-01-01T00:00:00Z"));
        assert_eq!(micros("2020-01-01T00:00:00Z").as_deref(), Ok("2020-01-01T00:00:00.000000Z"));
    }

    #[test]
    fn mistakes_are_told_in_gos_words() {
        assert_eq!(
            seconds("yesterday").expect_err("no time"),
            "parsing time \"yesterday\" as \"2006-01-02T15:04:05Z07:00\": cannot parse \"yesterday\" as \"2006\""
        );
        assert_eq!(
            seconds("2020-01-01 00:00:00Z").expect_err("no time"),
            "parsing time \"2020-01-01 00:00:00Z\" as \"2006-01-02T15:04:05Z07:00\": cannot parse \" 00:00:00Z\" as \"T\""
        );
        assert!(seconds("2020-13-01T00:00:00Z").is_err());
        assert!(seconds("2020-01-01T00:00:00é").is_err());
    }
}
