//! Tensors that are written row by row, without a copy of them in between.

#![allow(unsafe_code)]

use std::mem::MaybeUninit;

use tch::kind::Element;
use tch::{Device, Tensor};

/// A tensor of `rows` rows of this shape. `write` is given the number and the memory of each row, all of which it
/// writes.
pub(super) fn rows<T: Element, E>(
    rows: usize,
    shape: &[i64],
    mut write: impl FnMut(usize, &mut [MaybeUninit<T>]) -> Result<(), E>,
) -> Result<Tensor, E> {
    let mut size = vec![rows as i64];
    size.extend(shape);
    let tensor = Tensor::empty(&size, (T::KIND, Device::Cpu));
    let row = shape.iter().product::<i64>() as usize;
    // SAFETY: a fresh tensor on the CPU is contiguous and aligned, has as many elements of this kind as its shape says,
    // and nobody else knows it. An empty one may have no memory, and is not looked at.
    let memory: &mut [MaybeUninit<T>] = match rows * row {
        0 => &mut [],
        count => unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast::<MaybeUninit<T>>(), count) },
    };
    for (index, memory) in memory.chunks_exact_mut(row.max(1)).enumerate() {
        write(index, memory)?;
    }
    Ok(tensor)
}

/// Writes each of `numbers` into the row, which has as many elements.
pub(super) fn fill<T>(row: &mut [MaybeUninit<T>], numbers: impl IntoIterator<Item = T>) {
    for (element, number) in row.iter_mut().zip(numbers) {
        element.write(number);
    }
}
