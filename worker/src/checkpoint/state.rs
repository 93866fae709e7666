//! What is saved: tensors by name, and sections of plain data by name. Whoever has state adds it here, and takes it back
//! from a [`super::Loaded`] under the same name.

use std::collections::BTreeMap;
use std::ops::Range;

use safetensors::Dtype;
use serde::Serialize;
use serde_json::Value;
use tch::{Kind, Tensor};

/// Where a piece of memory begins in the staging buffer: at a line of the cache.
const ALIGNMENT: usize = 64;

/// Which of the parts of a checkpoint a rank writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    pub rank: usize,
    pub world: usize,
}

impl Part {
    /// All of it.
    pub const WHOLE: Part = Part { rank: 0, world: 1 };
}

/// The state of a run at one step. Tensors are not copied before it is saved.
#[derive(Debug, Default)]
pub struct State {
    flats: Vec<Flat>,
    sections: BTreeMap<String, Value>,
}

/// A contiguous piece of memory and the tensors in it, in the order of the memory.
#[derive(Debug)]
struct Flat {
    /// Of one dimension.
    memory: Tensor,
    element: usize,
    entries: Vec<Entry>,
}

/// A tensor of the state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// In elements, one for each dimension.
    pub strides: Vec<usize>,
    /// Bytes from the beginning of the memory that holds it.
    pub at: usize,
}

impl Entry {
    fn new(name: String, view: &Tensor, at: usize) -> Entry {
        let dtype = dtype_of(view.kind());
        let number = |size: &i64| usize::try_from(*size).expect("sizes and strides are not negative");
        let shape = view.size().iter().map(number).collect();
        let strides = view.stride().iter().map(number).collect();
        Entry { name, dtype, shape, strides, at }
    }

    pub(super) fn element(&self) -> usize {
        self.dtype.bitsize() / 8
    }

    /// Of the tensor itself.
    pub(super) fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.element()
    }

    /// Of the memory from its first element to behind its last.
    pub(super) fn span(&self) -> usize {
        if self.shape.contains(&0) {
            return 0;
        }
        let last: usize = self.shape.iter().zip(&self.strides).map(|(size, stride)| (size - 1) * stride).sum();
        (last + 1) * self.element()
    }
}

impl State {
    pub fn new() -> State {
        State::default()
    }

    /// Adds a tensor. One that is contiguous is copied once, when it is saved.
    pub fn tensor(&mut self, name: impl Into<String>, tensor: &Tensor) {
        let tensor = tensor.detach().contiguous();
        let entry = Entry::new(name.into(), &tensor, 0);
        self.flats.push(Flat { element: entry.element(), memory: tensor.view(-1), entries: vec![entry] });
    }

    /// Adds views of one flat tensor, as `prefix.name`; those that one rank saves are copied in one piece. Gaps between
    /// them do not matter, neither does how a view's elements lie in its part of the memory.
    pub fn views<N: AsRef<str>>(&mut self, prefix: &str, flat: &Tensor, views: impl IntoIterator<Item = (N, Tensor)>) {
        assert!(flat.dim() == 1 && flat.is_contiguous(), "the memory of views is flat");
        let memory = flat.detach();
        let element = dtype_of(memory.kind()).bitsize() / 8;
        let (begin, length) = (memory.data_ptr() as usize, memory.numel() * element);
        let entry = |(name, view): (N, Tensor)| {
            let name = format!("{prefix}.{}", name.as_ref());
            // Nothing is nowhere.
            let at = if view.numel() == 0 { 0 } else { (view.data_ptr() as usize).wrapping_sub(begin) };
            let entry = Entry::new(name, &view, at);
            let inside = entry.at <= length && entry.span() <= length - entry.at;
            assert!(inside && view.kind() == memory.kind(), "{} is a view of its memory", entry.name);
            entry
        };
        let mut entries: Vec<Entry> = views.into_iter().map(entry).collect();
        entries.sort_by_key(|entry| entry.at);
        self.flats.push(Flat { memory, element, entries });
    }

    /// Adds plain data, which is saved in the JSON file.
    pub fn section(&mut self, name: impl Into<String>, data: &impl Serialize) -> &mut State {
        let value = serde_json::to_value(data).expect("a section is plain data with names for keys");
        self.sections.insert(name.into(), value);
        self
    }

    pub(super) fn take_sections(&mut self) -> BTreeMap<String, Value> {
        std::mem::take(&mut self.sections)
    }

    /// Which tensors each rank writes: in the order of the memory, about as many bytes each, and none is cut.
    pub(super) fn layout(&self, part: Part) -> Layout {
        let total: usize = self.flats.iter().flat_map(|flat| &flat.entries).map(Entry::bytes).sum();
        let mut layout = Layout::default();
        let mut before = 0;
        for (index, flat) in self.flats.iter().enumerate() {
            let mine: Vec<&Entry> = (flat.entries.iter())
                .filter(|entry| {
                    let middle = before + entry.bytes() / 2;
                    before += entry.bytes();
                    let rank = (middle as u128 * part.world as u128 / total.max(1) as u128) as usize;
                    rank.min(part.world - 1) == part.rank
                })
                .collect();
            let start = mine.iter().map(|entry| entry.at).min().unwrap_or(0);
            let end = mine.iter().map(|entry| entry.at + entry.span()).max().unwrap_or(0);
            let to = layout.bytes.next_multiple_of(ALIGNMENT);
            layout.entries.extend(mine.into_iter().map(|entry| Entry { at: to + entry.at - start, ..entry.clone() }));
            layout.bytes = to + end - start;
            layout.copies.push(Piece { flat: index, from: start..end, to });
        }
        layout
    }

    /// Copies what a layout has into a buffer of at least its size.
    pub(super) fn copy(&self, layout: &Layout, buffer: &mut [u8]) {
        for Piece { flat, from, to } in layout.copies.iter().filter(|copy| !copy.from.is_empty()) {
            let Flat { memory, element, .. } = &self.flats[*flat];
            let (start, count) = (from.start / element, from.len() / element);
            memory.narrow(0, start as i64, count as i64).copy_data_u8(&mut buffer[*to..to + from.len()], count);
        }
    }
}

/// Where the tensors of a part are once they have been copied.
#[derive(Debug, Default)]
pub(super) struct Layout {
    pub entries: Vec<Entry>,
    copies: Vec<Piece>,
    pub bytes: usize,
}

/// A piece of a flat memory that is copied as it is.
#[derive(Debug)]
struct Piece {
    flat: usize,
    from: Range<usize>,
    to: usize,
}

fn dtype_of(kind: Kind) -> Dtype {
    match kind {
        Kind::Bool => Dtype::BOOL,
        Kind::Uint8 => Dtype::U8,
        Kind::Int8 => Dtype::I8,
        Kind::Int16 => Dtype::I16,
        Kind::Int => Dtype::I32,
        Kind::Int64 => Dtype::I64,
        Kind::Half => Dtype::F16,
        Kind::BFloat16 => Dtype::BF16,
        Kind::Float => Dtype::F32,
        Kind::Double => Dtype::F64,
        other => unreachable!("no state is of kind {other:?}"),
    }
}

pub(super) fn kind_of(dtype: Dtype) -> Option<Kind> {
    Some(match dtype {
        Dtype::BOOL => Kind::Bool,
        Dtype::U8 => Kind::Uint8,
        Dtype::I8 => Kind::Int8,
        Dtype::I16 => Kind::Int16,
        Dtype::I32 => Kind::Int,
        Dtype::I64 => Kind::Int64,
        Dtype::F16 => Kind::Half,
        Dtype::BF16 => Kind::BFloat16,
        Dtype::F32 => Kind::Float,
        Dtype::F64 => Kind::Double,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Parameters of these sizes in one memory, with gaps, and buffers of their own.
    fn state(sizes: &[usize], single: usize) -> State {
        let flat = Tensor::arange(sizes.iter().map(|size| size + 3).sum::<usize>() as i64, (Kind::Float, tch::Device::Cpu));
        let mut at = 0;
        let views: Vec<(String, Tensor)> = (sizes.iter().enumerate())
            .map(|(index, size)| {
                let view = flat.narrow(0, at, *size as i64);
                at += *size as i64 + 3;
                (format!("p{index}"), view)
            })
            .collect();
        let mut state = State::new();
        state.views("model", &flat, views.into_iter().rev());
        (0..single).for_each(|index| state.tensor(format!("b{index}"), &Tensor::from(index as i64)));
        state
    }

    proptest! {
        #[test]
        fn each_tensor_is_in_the_part_of_one_rank(
            sizes in proptest::collection::vec(0..50usize, 1..20), single in 0..4usize, world in 1..9usize,
        ) {
            let state = state(&sizes, single);
            let mut seen = Vec::new();
            let largest = sizes.iter().max().unwrap() * 4;
            let total = sizes.iter().sum::<usize>() * 4 + single * 8;
            for rank in 0..world {
                let layout = state.layout(Part { rank, world });
                let mut buffer = vec![0; layout.bytes];
                state.copy(&layout, &mut buffer);
                let bytes: usize = layout.entries.iter().map(Entry::bytes).sum();
                prop_assert!(bytes <= total / world + largest + 8, "{} of {}", bytes, total);
                for entry in &layout.entries {
                    let bytes = &buffer[entry.at..][..entry.bytes()];
                    if let Some(index) = entry.name.strip_prefix("model.p") {
                        let index: usize = index.parse().unwrap();
                        let first = sizes[..index].iter().map(|size| size + 3).sum::<usize>() as f32;
                        let wanted: Vec<u8> =
                            (0..sizes[index]).flat_map(|at| (first + at as f32).to_le_bytes()).collect();
                        prop_assert_eq!(bytes, wanted);
                    }
                    seen.push(entry.name.clone());
                }
            }
            seen.sort();
            let mut wanted: Vec<String> = (0..sizes.len()).map(|index| format!("model.p{index}")).collect();
            wanted.extend((0..single).map(|index| format!("b{index}")));
            wanted.sort();
            prop_assert_eq!(seen, wanted);
        }
    }
}
