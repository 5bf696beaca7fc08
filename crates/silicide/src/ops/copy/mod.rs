//! Copies between views of any strides: transposed, sliced and broadcast tensors made row-major, and parts put together.

mod cpu;
#[cfg(test)]
mod tests;

use crate::device::cpu::Entry;
use crate::device::{Gpu, Launch, Stream};
use crate::kernels::{KernelParams, KernelSource, kernel_params};
use crate::ops::check::check;
use crate::ops::rows::whole;
use crate::ops::walk::Walk;
use crate::{Result, Tensor};

/// A row-major tensor with the elements of `x`, which is of any type and has any strides.
///
/// # Errors
///
/// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
///
/// ```
/// use silicide::{Device, ops};
/// # fn main() -> silicide::Result<()> {
/// let device = Device::cpu();
/// let stream = &mut device.stream();
/// let x = device.tensor(&[1u8, 2, 3, 4, 5, 6], [2, 3])?;
/// let turned = ops::copy(stream, &x.permute(&[1, 0])?)?;
/// assert!(turned.is_contiguous());
/// assert_eq!(turned.to_vec::<u8>(stream)?, [1, 4, 2, 5, 3, 6]);
/// # Ok(())
/// # }
/// ```
///
/// Rows of flattened patches for a vision tower, whose embedding is then one [`matmul`](fn@super::matmul), in the order of
/// Qwen2-VL's and Qwen3-VL's image processors: blocks of `merge` by `merge` patches one after the other, and within a patch
/// channels, frames, rows, columns. An image has the same frame `frames` times; of a video each `frames` frames are one
/// such copy, of a [`slice`](Tensor::slice), with axes 0 and 1 of the `reshape` in place of the broadcast.
///
/// ```
/// use silicide::{Device, ops};
/// # fn main() -> silicide::Result<()> {
/// # let device = Device::cpu();
/// # let stream = &mut device.stream();
/// let (channels, height, width, patch, merge, frames) = (3, 8, 12, 2, 2, 2);
/// let pixels: Vec<i32> = (0..288).collect();
/// let image = device.tensor(&pixels, [channels, height, width])?;
///
/// let (down, across) = (height / (merge * patch), width / (merge * patch));
/// let blocks = image.reshape([channels, down, merge, patch, across, merge, patch])?;
/// let blocks = blocks.broadcast_to([frames, channels, down, merge, patch, across, merge, patch])?;
/// let patches = ops::copy(stream, &blocks.permute(&[2, 5, 3, 6, 1, 0, 4, 7])?)?
///     .reshape([down * across * merge * merge, channels * frames * patch * patch])?;
///
/// let rows = patches.to_vec::<i32>(stream)?;
/// assert_eq!(rows[..8], [0, 1, 12, 13, 0, 1, 12, 13]);
/// // The second patch is the first's right neighbour, the third is below the first.
/// assert_eq!((rows[24], rows[48]), (2, 24));
///
/// // The four of a block already lie together, so merging them is a view.
/// let merged = patches.reshape([down * across, merge * merge * 24])?;
/// // Of rows in the order of the image it is another copy.
/// let raster = device.tensor(&pixels, [24, 12])?.reshape([down, merge, across, merge, 12])?;
/// let merged = ops::copy(stream, &raster.permute(&[0, 2, 1, 3, 4])?)?.reshape([down * across, merge * merge * 12])?;
/// # Ok(())
/// # }
/// ```
pub fn copy(stream: &mut Stream, x: &Tensor) -> Result<Tensor> {
    let out = stream.empty(x.dtype(), *x.shape())?;
    copy_into(stream, x, &out)?;
    Ok(out)
}

/// [`copy`] into `out`, a view of any strides that shares no memory with `x`.
///
/// # Errors
///
/// [`Error::Argument`](crate::Error::Argument) where shapes or types differ, or the memory overlaps.
pub fn copy_into(stream: &mut Stream, x: &Tensor, out: &Tensor) -> Result<()> {
    check(OP, x.shape() == out.shape() && x.dtype() == out.dtype(), || format!("out: got {out:?}, wanted {x:?}"))?;
    if out.elements() == 0 {
        return Ok(());
    }
    let on_cpu = stream.device().as_cpu().is_some();
    let (walk, size) = widest(Walk::elements(OP, &[x, out])?, x, out, if on_cpu { 8 } else { 16 });
    let plain = Params { walk, out_stride: 0, across: 0, squares: [0; 2], pad: 0 };
    // A CPU finds by itself what is turned.
    let turned = if on_cpu { None } else { Params::turned(&walk, size, x, out) };
    let launch = Launch::new(OP, turned.as_ref().map_or(&plain, |(params, _)| params)).read(x).write(out);
    let entry = match size {
        1 => cpu::run::<u8> as Entry,
        2 => cpu::run::<u16>,
        4 => cpu::run::<u32>,
        _ => cpu::run::<i64>,
    };
    stream.launch(launch, entry, || {
        let (entry, (threadgroups, threads), packs) = match turned {
            Some((params, packs)) => ("copy_turned", params.grid(size, packs), packs),
            None => ("copy", walk.steps(1), false),
        };
        let entry = format!("{entry}_{}", 8 * size);
        Gpu { source: &SOURCE, defines: whole(packs), entry, threadgroups, threads }
    })
}

/// Tensors put one after the other along an axis.
///
/// # Errors
///
/// [`Error::Argument`](crate::Error::Argument) where there is no tensor, types differ, or shapes differ in another axis.
pub fn concat(stream: &mut Stream, tensors: &[&Tensor], axis: usize) -> Result<Tensor> {
    const OP: &str = "concat";
    check(OP, !tensors.is_empty(), || "got no tensors, wanted one or more".into())?;
    let first = tensors[0];
    check(OP, axis < first.rank(), || format!("axis: got {axis}, wanted one of {}", first.shape()))?;
    let mut shape = *first.shape();
    shape[axis] = 0;
    for t in tensors {
        let mut rest = *t.shape();
        let fits = t.rank() == first.rank() && t.dtype() == first.dtype() && {
            rest[axis] = shape[axis];
            rest == shape
        };
        check(OP, fits, || format!("got {t:?} beside {first:?}, wanted a difference in axis {axis} only"))?;
        shape[axis] += t.shape()[axis];
    }
    let out = stream.empty(first.dtype(), shape)?;
    let mut start = 0;
    for t in tensors {
        let end = start + t.shape()[axis];
        copy_into(stream, t, &out.slice(axis, start..end)?)?;
        start = end;
    }
    Ok(out)
}

/// The same bytes as fewer, larger elements, of up to `most` bytes, where both views have them so; and their size.
fn widest(mut walk: Walk, x: &Tensor, out: &Tensor, most: usize) -> (Walk, usize) {
    let mut size = x.dtype().size();
    while size < most && x.starts_aligned(2 * size) && out.starts_aligned(2 * size) && walk.pair() {
        size *= 2;
    }
    (walk, size)
}

const OP: &str = "copy";

/// Threads that turn a square.
const THREADS: u32 = 128;

kernel_params! {
    struct Params {
        /// Of what is turned without the axis along which `x` is contiguous.
        walk: Walk,
        /// From element to element of that axis in `out`.
        out_stride: u64,
        /// Elements of that axis; 0 where nothing is turned.
        across: u32,
        /// Squares along rows of `out`, and along that axis.
        squares: [u32; 2],
        /// Makes the size a multiple of 8.
        pad: u32,
    }
}

impl Params {
    /// For elements of `size` bytes by squares, where lines of `x` become columns of `out` and both are long enough to fill some;
    /// and whether lines are whole packets.
    fn turned(walk: &Walk, size: usize, x: &Tensor, out: &Tensor) -> Option<(Params, bool)> {
        /// Elements of a line that are read or written together.
        const FEWEST: usize = 16;
        let axis = walk.turned()?;
        let (rest, across) = walk.without(axis);
        let side = 128 / size;
        let squares = [walk.row_len(), across].map(|len| len.div_ceil(side));
        let groups = squares[0].checked_mul(squares[1])?.checked_mul(rest.row_count() as usize)?;
        if across.min(walk.row_len()) < FEWEST || groups > i32::MAX as usize {
            return None;
        }
        let packet = 16 / size;
        let mut strides =
            rest.outer_strides().chain([walk.outer_stride(1, axis), walk.stride(0), across, walk.row_len()]);
        let packs = x.starts_aligned(16) && out.starts_aligned(16) && strides.all(|s| s.is_multiple_of(packet));
        let params = Params {
            walk: rest,
            out_stride: walk.outer_stride(1, axis) as u64,
            across: across as u32,
            squares: squares.map(|n| n as u32),
            pad: 0,
        };
        Some((params, packs))
    }

    fn grid(&self, size: usize, packs: bool) -> ([u32; 3], [u32; 3]) {
        let squares = self.squares[0] * self.squares[1] * self.walk.row_count();
        let packets = if packs { 8 } else { 128 / size as u32 };
        ([squares, 1, 1], [packets, THREADS / packets, 1])
    }
}

pub(super) static SOURCE: KernelSource = KernelSource {
    name: "copy",
    params: &[Walk::DECLARATION, Params::DECLARATION],
    body: include_str!("kernel.metal"),
};
