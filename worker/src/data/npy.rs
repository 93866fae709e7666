//! The header of an npy file: what the array's elements are, its shape, and where they begin.

use std::ops::Range;

use super::arrays::Element;

/// A header is a line; this is far more than any has.
const MAX_HEADER: usize = 1 << 16;
const MAX_DIMENSIONS: usize = 32;

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub element: Element,
    pub shape: Vec<usize>,
    /// Where the elements are in the file.
    pub data: Range<usize>,
}

/// Reads the header of a whole file.
pub(super) fn parse(bytes: &[u8]) -> Result<Header, String> {
    let rest = bytes.strip_prefix(b"\x93NUMPY").ok_or("it does not start as an npy file")?;
    let short = "it ends within its header";
    let (length, begin) = match rest {
        [1, _, low, high, ..] => (usize::from(u16::from_le_bytes([*low, *high])), 10),
        [2 | 3, _, a, b, c, d, ..] => (u32::from_le_bytes([*a, *b, *c, *d]) as usize, 12),
        [1..=3, ..] | [] => return Err(short.into()),
        [version, ..] => return Err(format!("version {version} of the format is not known, only 1 to 3")),
    };
    if length > MAX_HEADER {
        return Err(format!("its header has {length} bytes"));
    }
    let text = bytes.get(begin..begin + length).ok_or(short)?;
    let text = std::str::from_utf8(text).map_err(|_| "its header is no text")?;
    let Fields { descr, fortran_order, shape } = Fields::parse(text)?;
    let element = Element::of_npy(&descr)?;
    if fortran_order && shape.len() > 1 {
        return Err("it is in Fortran's order: save numpy.ascontiguousarray(array)".into());
    }
    let needed = shape.iter().try_fold(element.bytes(), |bytes, size| bytes.checked_mul(*size));
    let have = bytes.len() - begin - length;
    if needed != Some(have) {
        return Err(format!("an array of {shape:?} {element:?} does not have the {have} bytes that are there"));
    }
    Ok(Header { element, shape, data: begin + length..bytes.len() })
}

/// The dictionary of a header, a literal of Python's.
struct Fields {
    descr: String,
    fortran_order: bool,
    shape: Vec<usize>,
}

impl Fields {
    fn parse(text: &str) -> Result<Fields, String> {
        let mut scan = Scan(text);
        let (mut descr, mut order, mut shape) = (None, None, None);
        scan.token("{")?;
        while !scan.take("}") {
            let key = scan.string()?;
            scan.token(":")?;
            match key {
                "descr" => descr = Some(scan.string()?.to_owned()),
                "fortran_order" if scan.take("False") => order = Some(false),
                "fortran_order" if scan.take("True") => order = Some(true),
                "shape" => shape = Some(scan.tuple()?),
                _ => return Err(format!("its header has an unexpected {key:?}")),
            }
            if !scan.take(",") {
                scan.token("}")?;
                break;
            }
        }
        match (descr, order, shape) {
            (Some(descr), Some(fortran_order), Some(shape)) if scan.0.trim().is_empty() => {
                Ok(Fields { descr, fortran_order, shape })
            }
            _ => Err("its header lacks a part, or has more behind it".into()),
        }
    }
}

/// What is left to read.
struct Scan<'a>(&'a str);

impl<'a> Scan<'a> {
    fn take(&mut self, token: &str) -> bool {
        let rest = self.0.trim_start().strip_prefix(token);
        self.0 = rest.unwrap_or(self.0);
        rest.is_some()
    }

    fn token(&mut self, token: &str) -> Result<(), String> {
        if self.take(token) { Ok(()) } else { Err(format!("its header has no {token:?} where one belongs")) }
    }

    fn string(&mut self) -> Result<&'a str, String> {
        let quote = if self.take("'") { '\'' } else { self.token("\"").map(|()| '"')? };
        let (string, rest) = self.0.split_once(quote).ok_or("a string in its header has no end")?;
        self.0 = rest;
        Ok(string)
    }

    fn number(&mut self) -> Result<usize, String> {
        let text = self.0.trim_start();
        let end = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
        let number = text[..end].parse().map_err(|_| "its shape is not one of numbers")?;
        self.0 = &text[end..];
        Ok(number)
    }

    fn tuple(&mut self) -> Result<Vec<usize>, String> {
        let mut numbers = Vec::new();
        self.token("(")?;
        while !self.take(")") {
            if numbers.len() == MAX_DIMENSIONS {
                return Err(format!("it has more than {MAX_DIMENSIONS} dimensions"));
            }
            numbers.push(self.number()?);
            if !self.take(",") {
                self.token(")")?;
                break;
            }
        }
        Ok(numbers)
    }
}
