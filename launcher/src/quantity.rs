//! Kubernetes quantities (`500m`, `2Gi`, `1e3`) as whole numbers.

/// The amount of `resource` that `quantity` names: thousandths for `cpu`, whole units for everything else, rounded
/// up as the scheduler of Kubernetes does. `None` where the text is no quantity.
pub fn amount(resource: &str, quantity: &str) -> Option<i64> {
    let nano = nanos(quantity)?;
    let unit = if resource == "cpu" { 1_000_000 } else { 1_000_000_000 };
    let whole = nano.div_euclid(unit) + i128::from(nano.rem_euclid(unit) != 0);
    Some(i64::try_from(whole).unwrap_or(if whole < 0 { i64::MIN } else { i64::MAX }))
}

/// How a number of `amount` reads best: `250m` or `2` for cpu, `512Mi` for byte counts, the plain number otherwise.
pub fn render(resource: &str, value: i64) -> String {
    if resource == "cpu" {
        return if value % 1000 == 0 { (value / 1000).to_string() } else { format!("{value}m") };
    }
    let bytes = resource == "memory" || resource == "ephemeral-storage" || resource.starts_with("hugepages-");
    if bytes {
        for (suffix, shift) in [("Gi", 30), ("Mi", 20), ("Ki", 10)] {
            let unit = 1i64 << shift;
            if value.abs() >= unit && value % unit == 0 {
                return format!("{}{suffix}", value / unit);
            }
        }
        if value.abs() >= 1 << 20 {
            return format!("{}Mi", value.div_euclid(1 << 20) + 1);
        }
    }
    value.to_string()
}

/// The quantity in billionths, exact down to there and rounded up below.
fn nanos(text: &str) -> Option<i128> {
    const ONE: i128 = 1_000_000_000;
    let (negative, body) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let digits_end = body.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(body.len());
    let (number, suffix) = body.split_at(digits_end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') || number.len() > 30 {
        return None;
    }
    let mut value: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let scale = 10i128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    value = value.checked_mul(scale)?.checked_add(if fraction.is_empty() { 0 } else { fraction.parse().ok()? })?;
    let (numerator, denominator): (i128, i128) = match suffix {
        "" => (ONE, 1),
        "n" => (1, 1),
        "u" => (1_000, 1),
        "m" => (1_000_000, 1),
        "k" => (ONE * 1_000, 1),
        "M" => (ONE * 1_000_000, 1),
        "G" => (ONE * ONE, 1),
        "T" => (ONE * ONE * 1_000, 1),
        "P" => (ONE * ONE * 1_000_000, 1),
        "E" => (ONE * ONE * ONE, 1),
        "Ki" => (ONE << 10, 1),
        "Mi" => (ONE << 20, 1),
        "Gi" => (ONE << 30, 1),
        "Ti" => (ONE << 40, 1),
        "Pi" => (ONE << 50, 1),
        "Ei" => (ONE << 60, 1),
        exponent => {
            let power: i32 = exponent.strip_prefix(['e', 'E'])?.parse().ok()?;
            let factor = 10i128.checked_pow(power.unsigned_abs())?;
            if power < 0 { (ONE, factor) } else { (ONE.checked_mul(factor)?, 1) }
        }
    };
    let product = value.checked_mul(numerator)?;
    let divisor = scale.checked_mul(denominator)?;
    let result = product / divisor + i128::from(product % divisor != 0);
    Some(if negative { -result } else { result })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_become_whole_numbers() {
        for (resource, text, want) in [
            ("cpu", "1", Some(1000)),
            ("cpu", "250m", Some(250)),
            ("cpu", "0.5", Some(500)),
            ("cpu", "1u", Some(1)),
            ("cpu", ".1", Some(100)),
            ("memory", "1Gi", Some(1 << 30)),
            ("memory", "1.5Gi", Some(3 << 29)),
            ("memory", "128M", Some(128_000_000)),
            ("memory", "1e3", Some(1000)),
            ("memory", "12E", Some(i64::MAX)),
            ("memory", "100m", Some(1)),
            ("nvidia.com/gpu", "8", Some(8)),
            ("nvidia.com/gpu", "-1", Some(-1)),
            ("cpu", "", None),
            ("cpu", "m", None),
            ("cpu", "1x", None),
            ("cpu", "1.2.3", None),
            ("cpu", "1e", None),
            ("cpu", "1e400", None),
            ("cpu", "99999999999999999999999999999999999999999", None),
        ] {
            assert_eq!(amount(resource, text), want, "{resource} {text}");
        }
    }

    #[test]
    fn amounts_read_as_people_write_them() {
        for (resource, value, want) in [
            ("cpu", 2000, "2"),
            ("cpu", 1500, "1500m"),
            ("memory", 1 << 30, "1Gi"),
            ("memory", 512 << 20, "512Mi"),
            ("memory", 1000, "1000"),
            ("nvidia.com/gpu", 3, "3"),
        ] {
            assert_eq!(render(resource, value), want);
        }
    }
}
