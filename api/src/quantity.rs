//! Resource quantities (`100m`, `1Gi`, `2e3`): parsing, arithmetic, and the canonical text that the API prints.

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, Sub};
use std::str::FromStr;

const NANO: i128 = 1_000_000_000;
/// Values are capped at what 64 bits hold, as Kubernetes does.
const MAX: i128 = i64::MAX as i128 * NANO;

/// The family of suffixes that a quantity is printed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `Ki`, `Mi`, ...
    BinarySi,
    /// `m`, `k`, `M`, ...
    DecimalSi,
    /// `e3`, `e6`, ...
    DecimalExponent,
}

/// An exact amount, to a billionth. Two quantities compare by amount, whatever their suffixes.
#[derive(Clone, Copy, Debug)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

/// Why a text is no quantity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Form,
    #[error("unable to parse quantity's suffix")]
    Suffix,
    #[error("unable to parse numeric part of quantity")]
    Number,
}

impl Quantity {
    pub const ZERO: Quantity = Quantity { nanos: 0, format: Format::DecimalSi };

    pub fn from_units(units: i64) -> Self {
        Quantity { nanos: i128::from(units) * NANO, format: Format::DecimalSi }
    }

    pub fn from_milli(milli: i64) -> Self {
        Quantity { nanos: i128::from(milli) * (NANO / 1000), format: Format::DecimalSi }
    }

    /// An amount of bytes, printed with `Ki`, `Mi`, ...
    pub fn from_bytes(bytes: i64) -> Self {
        Quantity { nanos: i128::from(bytes) * NANO, format: Format::BinarySi }
    }

    /// The amount in whole units, rounded up (away from zero).
    pub fn units(self) -> i64 {
        i64::try_from(divide_away(self.nanos, NANO)).unwrap_or(i64::MAX)
    }

    /// The amount in thousandths, rounded up (away from zero).
    pub fn milli(self) -> i64 {
        i64::try_from(divide_away(self.nanos, NANO / 1000)).unwrap_or(i64::MAX)
    }

    pub fn is_negative(self) -> bool {
        self.nanos < 0
    }

    pub fn is_zero(self) -> bool {
        self.nanos == 0
    }

    /// Whether the amount is a whole number.
    pub fn is_integer(self) -> bool {
        self.nanos % NANO == 0
    }

    /// The amount times a count, e.g. replicas.
    pub fn times(self, count: i64) -> Self {
        Quantity { nanos: clamp(self.nanos.saturating_mul(i128::from(count))), format: self.format }
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

/// Sums keep the suffix family of the left side, unless that side is zero.
impl Add for Quantity {
    type Output = Quantity;

    fn add(self, other: Quantity) -> Quantity {
        let format = if self.nanos == 0 { other.format } else { self.format };
        Quantity { nanos: clamp(self.nanos + other.nanos), format }
    }
}

impl Sub for Quantity {
    type Output = Quantity;

    fn sub(self, other: Quantity) -> Quantity {
        let format = if self.nanos == 0 { other.format } else { self.format };
        Quantity { nanos: clamp(self.nanos - other.nanos), format }
    }
}

impl Sum for Quantity {
    fn sum<I: Iterator<Item = Quantity>>(iter: I) -> Quantity {
        iter.fold(Quantity::ZERO, Add::add)
    }
}

impl FromStr for Quantity {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let (negative, rest) = match text.as_bytes().first() {
            None => return Err(ParseError::Form),
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            Some(_) => (false, text),
        };
        let number_end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, suffix) = rest.split_at(number_end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if number.is_empty() || fraction.contains('.') {
            return Err(ParseError::Form);
        }
        if whole.is_empty() && fraction.is_empty() {
            return Err(ParseError::Number);
        }
        let letters = suffix.find(|c: char| !"eEinumkKMGTP".contains(c)).unwrap_or(suffix.len());
        let exponent = &suffix[letters..];
        let digits = exponent.strip_prefix(['-', '+']).unwrap_or(exponent);
        if !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(ParseError::Form);
        }
        let (multiplier, power, format) = scale(suffix)?;
        let mut nanos = decimal(whole, fraction, power).saturating_mul(multiplier);
        if negative {
            nanos = -nanos;
        }
        Ok(Quantity { nanos: clamp(nanos), format })
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let small = self.nanos.abs() < 1024 * NANO;
        match self.format {
            Format::BinarySi if !small && self.is_integer() => {
                let (mut amount, mut steps) = (self.nanos / NANO, 0);
                while amount % 1024 == 0 && steps < 6 {
                    amount /= 1024;
                    steps += 1;
                }
                write!(f, "{amount}{}", ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"][steps])
            }
            Format::DecimalExponent => {
                let (amount, power) = self.thousands();
                if power == 0 { write!(f, "{amount}") } else { write!(f, "{amount}e{power}") }
            }
            _ => {
                let (amount, power) = self.thousands();
                let suffix = match power {
                    -9 => "n",
                    -6 => "u",
                    -3 => "m",
                    3 => "k",
                    6 => "M",
                    9 => "G",
                    12 => "T",
                    15 => "P",
                    18 => "E",
                    _ => "",
                };
                write!(f, "{amount}{suffix}")
            }
        }
    }
}

impl Quantity {
    /// The amount as (mantissa, power of ten), the power the largest multiple of 3 that leaves a whole mantissa.
    fn thousands(&self) -> (i128, i32) {
        if self.nanos == 0 {
            return (0, 0);
        }
        let (mut amount, mut power) = (self.nanos, -9);
        while amount % 1000 == 0 && power < 18 {
            amount /= 1000;
            power += 3;
        }
        (amount, power)
    }
}

/// (factor, power of ten, family) of a suffix.
fn scale(suffix: &str) -> Result<(i128, i32, Format), ParseError> {
    let binary = |steps: u32| Ok((1i128 << (10 * steps), 0, Format::BinarySi));
    let decimal = |power: i32| Ok((1, power, Format::DecimalSi));
    match suffix {
        "" => decimal(0),
        "n" => decimal(-9),
        "u" => decimal(-6),
        "m" => decimal(-3),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        _ => match suffix.strip_prefix(['e', 'E']).map(str::parse::<i32>) {
            Some(Ok(power)) => Ok((1, power, Format::DecimalExponent)),
            _ => Err(ParseError::Suffix),
        },
    }
}

/// `whole.fraction * 10^power` in billionths, rounded up, saturating far above the cap.
fn decimal(whole: &str, fraction: &str, power: i32) -> i128 {
    let mut digits = whole.trim_start_matches('0').to_owned();
    digits.push_str(fraction);
    let digits = digits.trim_start_matches('0');
    // The value is 0.digits-as-integer * 10^shift billionths.
    let shift = i64::from(power) + 9 - fraction.len() as i64;
    if digits.is_empty() {
        return 0;
    }
    if digits.len() as i64 + shift > 36 {
        return i128::MAX / 2;
    }
    if shift >= 0 {
        let mut amount: i128 = digits.parse().unwrap_or(MAX);
        for _ in 0..shift {
            amount = amount.saturating_mul(10);
        }
        return amount;
    }
    let kept = (digits.len() as i64 + shift).max(0) as usize;
    let amount: i128 = digits[..kept].parse().unwrap_or(0);
    let rest = digits[kept..].bytes().any(|b| b != b'0');
    amount + i128::from(rest)
}

fn clamp(nanos: i128) -> i128 {
    nanos.clamp(-MAX, MAX)
}

fn divide_away(nanos: i128, unit: i128) -> i128 {
    let (quotient, rest) = (nanos / unit, nanos % unit);
    quotient + rest.signum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_texts() {
        for (text, canonical) in [
            ("0", "0"),
            ("1", "1"),
            ("1000m", "1"),
            ("0.5", "500m"),
            (".5", "500m"),
            ("1.", "1"),
            ("1500m", "1500m"),
            ("1000", "1k"),
            ("100000", "100k"),
            ("1024", "1024"),
            ("1Ki", "1Ki"),
            ("1024Mi", "1Gi"),
            ("1.5Gi", "1536Mi"),
            ("0.5Gi", "512Mi"),
            ("512", "512"),
            ("0.5Ki", "512"),
            ("0.1Ki", "102400m"),
            ("1e3", "1e3"),
            ("1E3", "1e3"),
            ("12e2", "1200"),
            ("1E", "1E"),
            ("-1", "-1"),
            ("+3", "3"),
            ("1n", "1n"),
            ("0.1n", "1n"),
            ("9223372036854775807", "9223372036854775807"),
            ("9Ei", "9223372036854775807"),
            ("1e99", "9223372036854775807"),
            ("1e-99", "1e-9"),
            ("16Gi", "16Gi"),
        ] {
            let parsed: Quantity = text.parse().unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(parsed.to_string(), canonical, "{text}");
        }
    }

    #[test]
    fn refused_texts() {
        for (text, error) in [
            ("", ParseError::Form),
            ("lots", ParseError::Form),
            ("1x", ParseError::Form),
            ("1 Gi", ParseError::Form),
            ("1.2.3", ParseError::Form),
            ("1uu", ParseError::Suffix),
            ("1Kib", ParseError::Form),
            ("1e", ParseError::Suffix),
            (".", ParseError::Number),
            ("١", ParseError::Form),
        ] {
            assert_eq!(text.parse::<Quantity>().err(), Some(error), "{text}");
        }
    }

    #[test]
    fn arithmetic_and_rounding() {
        let sum: Quantity = ["100m", "1", "900m"].iter().map(|t| t.parse::<Quantity>().unwrap()).sum();
        assert_eq!(sum.to_string(), "2");
        assert_eq!("1100m".parse::<Quantity>().unwrap().units(), 2);
        assert_eq!("1.0001".parse::<Quantity>().unwrap().milli(), 1001);
        assert!("1Gi".parse::<Quantity>().unwrap() > "1G".parse::<Quantity>().unwrap());
        assert_eq!((Quantity::ZERO + Quantity::from_bytes(2048)).to_string(), "2Ki");
        assert_eq!(Quantity::from_milli(250).times(4).to_string(), "1");
    }
}
