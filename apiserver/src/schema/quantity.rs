//! Quantities (`1500m`, `2Gi`) in their canonical form, as the encoder of `resource.Quantity` writes them.

const WRONG: &str = "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";
const WRONG_SUFFIX: &str = "unable to parse quantity's suffix";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    /// k, M, G: powers of ten.
    Decimal,
    /// Ki, Mi, Gi: powers of 1024.
    Binary,
    /// e3, E6.
    Exponent,
}

/// The canonical spelling, or Go's words for why there is none.
pub fn canonical(text: &str) -> Result<String, String> {
    let text = text.trim();
    let (nanos, format) = parse(text)?;
    Ok(write(nanos, format))
}

/// The value in units of 10^-9 (rounded up beyond that, bounded as upstream bounds it).
pub fn nanos(text: &str) -> Result<i128, String> {
    parse(text.trim()).map(|(nanos, _)| nanos)
}

fn parse(text: &str) -> Result<(i128, Format), String> {
    let (negative, rest) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
    let (number, suffix) = rest.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return Err(WRONG.to_owned());
    }
    let (base, power, format) = unit(suffix)?;
    // The mantissa, in units of 10^-18, so that binary suffixes keep their fractions.
    const LIMIT: i128 = i64::MAX as i128;
    let digits: String = whole.chars().chain(fraction.chars()).collect();
    let digits = digits.trim_start_matches('0');
    let sign = if negative { -1 } else { 1 };
    let bounded = |value: Option<i128>| value.unwrap_or(i128::MAX).min(LIMIT.saturating_mul(1_000_000_000));
    if digits.is_empty() {
        return Ok((0, format));
    }
    let mantissa: i128 =
        digits.get(..digits.len().min(30)).unwrap_or_default().parse().map_err(|_| WRONG.to_owned())?;
    let dropped = i32::try_from(digits.len().saturating_sub(30)).unwrap_or(i32::MAX);
    let scale = -i32::try_from(fraction.len()).unwrap_or(i32::MAX) + dropped;
    let nanos = match base {
        10 => scaled(mantissa, scale.saturating_add(power).saturating_add(9)),
        _ => {
            let factor = 1024_i128.checked_pow(u32::try_from(power).unwrap_or(0));
            factor.and_then(|f| mantissa.checked_mul(f)).and_then(|m| scaled(m, scale.saturating_add(9)))
        }
    };
    Ok((sign * bounded(nanos), format))
}

/// mantissa * 10^power, rounded up; `None` where it is beyond bounds.
fn scaled(mantissa: i128, power: i32) -> Option<i128> {
    if power >= 0 {
        return 10_i128.checked_pow(u32::try_from(power).ok()?)?.checked_mul(mantissa);
    }
    let divisor = 10_i128.checked_pow(power.unsigned_abs());
    Some(match divisor {
        Some(divisor) => mantissa / divisor + i128::from(mantissa % divisor != 0),
        None => 1,
    })
}

fn unit(suffix: &str) -> Result<(i32, i32, Format), String> {
    let plain = |power| Ok((10, power, Format::Decimal));
    let binary = |power| Ok((1024, power, Format::Binary));
    match suffix {
        "n" => plain(-9),
        "u" => plain(-6),
        "m" => plain(-3),
        "" => plain(0),
        "k" => plain(3),
        "M" => plain(6),
        "G" => plain(9),
        "T" => plain(12),
        "P" => plain(15),
        "E" => plain(18),
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        _ => match suffix.strip_prefix(['e', 'E']) {
            Some(exponent) if exponent.len() < 6 => {
                exponent.parse().map(|power| (10, power, Format::Exponent)).map_err(|_| WRONG_SUFFIX.to_owned())
            }
            _ if suffix.chars().all(|c| "eEinumkKMGTP+-0123456789".contains(c)) => Err(WRONG_SUFFIX.to_owned()),
            _ => Err(WRONG.to_owned()),
        },
    }
}

fn write(nanos: i128, format: Format) -> String {
    if nanos == 0 {
        return "0".to_owned();
    }
    const ONE: i128 = 1_000_000_000;
    if format == Format::Binary && nanos % ONE == 0 && (nanos / ONE).abs() >= 1024 {
        let mut value = nanos / ONE;
        let mut suffix = "";
        for next in ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"] {
            if value % 1024 != 0 {
                break;
            }
            value /= 1024;
            suffix = next;
        }
        return format!("{value}{suffix}");
    }
    let mut value = nanos;
    let mut power = -9;
    while value % 1000 == 0 && power < 18 {
        value /= 1000;
        power += 3;
    }
    if format == Format::Exponent {
        return if power == 0 { value.to_string() } else { format!("{value}e{power}") };
    }
    let suffix = match power {
        -9 => "n",
        -6 => "u",
        -3 => "m",
        0 => "",
        3 => "k",
        6 => "M",
        9 => "G",
        12 => "T",
        15 => "P",
        _ => "E",
    };
    format!("{value}{suffix}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn spellings_become_canonical() {
        for (text, canon) in [
            ("0", "0"),
            ("1", "1"),
            ("1000m", "1"),
            ("1500m", "1500m"),
            ("0.5", "500m"),
            (".5", "500m"),
            ("1.5Gi", "1536Mi"),
            ("1024Mi", "1Gi"),
            ("1000Ki", "1000Ki"),
            ("100M", "100M"),
            ("1000000", "1M"),
            ("1e3", "1e3"),
            ("12e6", "12e6"),
            ("512", "512"),
            ("-1500m", "-1500m"),
            ("0.0000000001", "1n"),
            ("1Ei", "1Ei"),
            ("0.5Gi", "512Mi"),
            ("100Ti", "100Ti"),
        ] {
            assert_eq!(canonical(text).as_deref(), Ok(canon), "{text}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "x", "1x", "1.2.3", "--1", "1 Gi"] {
            assert!(canonical(text).is_err(), "{text}");
        }
        assert_eq!(canonical("1kk"), Err(WRONG_SUFFIX.to_owned()));
    }

    proptest! {
        #[test]
        fn canonical_form_is_a_fixed_point(text in "[0-9]{1,12}(\\.[0-9]{1,4})?(m|k|M|G|Ki|Mi|Gi|e[0-9])?") {
            let once = canonical(&text).expect("well formed");
            prop_assert_eq!(canonical(&once), Ok(once.clone()));
            prop_assert_eq!(nanos(&once), nanos(&text));
        }

        #[test]
        fn never_panics(text in "\\PC{0,40}") {
            let _ = canonical(&text);
        }
    }
}
