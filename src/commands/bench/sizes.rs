//! Sizes as the command line has them: `64KiB`, `100MB`, a range, or several behind commas.

use std::fmt;
use std::str::FromStr;

/// The most that one rank may hold of an operation.
const MOST: usize = 16 << 30;

/// Sizes in bytes, ascending, each once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sizes(pub(crate) Vec<usize>);

impl FromStr for Sizes {
    type Err = String;

    fn from_str(text: &str) -> Result<Sizes, String> {
        let mut sizes = Vec::new();
        for part in text.split(',') {
            match part.split_once("..") {
                None => sizes.push(size(part)?),
                Some((from, to)) => {
                    let (from, to) = (size(from)?, size(to)?);
                    if from > to {
                        return Err(format!("the range {part} ends before it begins"));
                    }
                    sizes.extend(range(from, to));
                }
            }
        }
        sizes.sort_unstable();
        sizes.dedup();
        Ok(Sizes(sizes))
    }
}

/// Both ends, and between them the first times powers of four.
fn range(from: usize, to: usize) -> impl Iterator<Item = usize> {
    let steps = std::iter::successors(Some(from), |size| size.checked_mul(4));
    steps.take_while(move |size| *size < to).chain([to])
}

fn size(text: &str) -> Result<usize, String> {
    let malformed = || format!("expected a size such as 4KiB, 1MiB, 100MB or 8192, not {text:?}");
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit: usize = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        _ => return Err(malformed()),
    };
    match number.parse::<usize>().map_err(|_| malformed())?.checked_mul(unit) {
        Some(0) => Err("a size of 0 bytes has nothing to measure; see `muster bench barrier`".to_owned()),
        Some(size) if size <= MOST => Ok(size),
        _ => Err(format!("{text} is more than 16GiB")),
    }
}

/// A size for people, in the unit that it is a whole number of.
pub(super) struct Bytes(pub(super) usize);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1_000_000, "MB"), (1 << 10, "KiB"), (1000, "kB"), (1, "B")];
        let (unit, name) =
            units.into_iter().find(|(unit, _)| self.0 >= *unit && self.0.is_multiple_of(*unit)).unwrap_or((1, "B"));
        write!(f, "{}{name}", self.0 / unit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_binary_and_decimal_units() {
        for (text, want) in [
            ("4KiB", vec![4096]),
            ("100MB", vec![100_000_000]),
            ("8192", vec![8192]),
            ("1M,64k, 1kb", vec![1000, 65_536, 1 << 20]),
            ("1MiB,1048576", vec![1 << 20]),
            ("1KiB..16KiB", vec![1024, 4096, 16_384]),
            ("4KiB..100MB", vec![4096, 16_384, 65_536, 1 << 18, 1 << 20, 1 << 22, 1 << 24, 1 << 26, 100_000_000]),
            ("4KiB..4KiB", vec![4096]),
        ] {
            assert_eq!(text.parse(), Ok(Sizes(want)), "{text}");
        }
        for wrong in ["", "4XiB", "KiB", "0", "-1", "1MiB..4KiB", "17GiB", "99999999999999999999", "4KiB.."] {
            assert!(wrong.parse::<Sizes>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_size_is_shown_in_its_largest_whole_unit() {
        let shown = [4096, 100_000_000, 1 << 24, 1500, 1 << 30].map(|size| Bytes(size).to_string());
        assert_eq!(shown, ["4KiB", "100MB", "16MiB", "1500B", "1GiB"]);
    }
}
