//! Elements by index: whole rows, or one element a place along an axis.

mod cpu;
#[cfg(test)]
mod tests;

use crate::device::cpu::Entry;
use crate::device::{Gpu, Launch, Stream};
use crate::kernels::{KernelParams, KernelSource, kernel_params};
use crate::ops::check::{broadcast, check, size};
use crate::ops::walk::Walk;
use crate::{DType, Error, Result, Shape, Tensor};

/// The rows of `x` that `ids` name: `out[i, ..] = x[ids[i], ..]`.
///
/// `x` is of any type and has one axis or more, whose first is looked up; `ids` is u32 or i32 of one axis or more. Both
/// have any strides. The result is row-major, in the shape of `ids` followed by that of a row. An id past the last row
/// gives zeros, and so does a negative one, as [`embedding`](crate::ops::embedding()) has it; mlx counts negative ones
/// from the end instead.
///
/// # Errors
///
/// [`Error::Argument`](crate::Error::Argument) where shapes or types do not fit.
///
/// ```
/// use silicide::{Device, ops};
/// # fn main() -> silicide::Result<()> {
/// let device = Device::cpu();
/// let stream = &mut device.stream();
/// let x = device.tensor(&[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0], [3, 2])?;
/// let ids = device.tensor(&[2u32, 0, 7], [3])?;
/// assert_eq!(ops::gather(stream, &x, &ids)?.to_vec::<f32>(stream)?, [5.0, 6.0, 1.0, 2.0, 0.0, 0.0]);
/// # Ok(())
/// # }
/// ```
pub fn gather(stream: &mut Stream, x: &Tensor, ids: &Tensor) -> Result<Tensor> {
    let out = stream.empty(x.dtype(), gathered(x, ids)?)?;
    gather_into(stream, x, ids, &out)?;
    Ok(out)
}

/// [`gather`] into `out`, a view of any strides that shares no memory with the others.
pub fn gather_into(stream: &mut Stream, x: &Tensor, ids: &Tensor, out: &Tensor) -> Result<()> {
    let shape = gathered(x, ids)?;
    check_out(GATHER, x, &shape, out)?;
    if out.elements() == 0 {
        return Ok(());
    }
    // Each id stands for all elements of its row: axes are added in front, then put behind.
    let (lead, rest) = (ids.rank(), x.rank() - 1);
    let dims: Vec<usize> = shape[lead..].iter().chain(ids.shape().iter()).copied().collect();
    let order: Vec<usize> = (rest..rest + lead).chain(0..rest).collect();
    let wide = ids.broadcast_to(Shape::new(&dims).expect("as many axes as the result"))?.permute(&order)?;
    run(stream, GATHER, x, 0, &wide, out)
}

/// One element of `x` for each index, along an axis: with axis 1 of 3, `out[i, j, k] = x[i, indices[i, j, k], k]`.
///
/// `x` is of any type, `indices` u32 or i32; they have as many axes, and all but `axis` broadcast. Both have any strides.
/// The result is row-major, with the size of `indices` along `axis`. An index past the end gives zero, and so does a
/// negative one; mlx counts negative ones from the end instead.
///
/// # Errors
///
/// [`Error::Argument`](crate::Error::Argument) where shapes or types do not fit.
///
/// ```
/// use silicide::{Device, ops};
/// # fn main() -> silicide::Result<()> {
/// let device = Device::cpu();
/// let stream = &mut device.stream();
/// let x = device.tensor(&[1.0f32, 9.0, 5.0, 8.0, 2.0, 7.0], [2, 3])?;
/// let indices = device.tensor(&[1u32, 2, 2, 0], [2, 2])?;
/// let taken = ops::take_along_axis(stream, &x, &indices, 1)?;
/// assert_eq!(taken.to_vec::<f32>(stream)?, [9.0, 5.0, 7.0, 8.0]);
/// # Ok(())
/// # }
/// ```
pub fn take_along_axis(stream: &mut Stream, x: &Tensor, indices: &Tensor, axis: usize) -> Result<Tensor> {
    let out = stream.empty(x.dtype(), taken(x, indices, axis)?)?;
    take_along_axis_into(stream, x, indices, axis, &out)?;
    Ok(out)
}

/// [`take_along_axis`] into `out`, a view of any strides that shares no memory with the others.
pub fn take_along_axis_into(
    stream: &mut Stream,
    x: &Tensor,
    indices: &Tensor,
    axis: usize,
    out: &Tensor,
) -> Result<()> {
    let shape = taken(x, indices, axis)?;
    check_out(TAKE, x, &shape, out)?;
    if out.elements() == 0 {
        return Ok(());
    }
    run(stream, TAKE, x, axis, &indices.broadcast_to(shape)?, out)
}

const GATHER: &str = "gather";
const TAKE: &str = "take_along_axis";

/// The shape of [`gather`]'s result.
fn gathered(x: &Tensor, ids: &Tensor) -> Result<Shape> {
    check_indices(GATHER, "ids", ids)?;
    check(GATHER, x.rank() > 0, || format!("x: got {x:?}, wanted one axis or more"))?;
    let dims: Vec<usize> = ids.shape().iter().chain(&x.shape()[1..]).copied().collect();
    Shape::new(&dims)
        .ok_or_else(|| Error::argument(GATHER, format!("got {x:?} and {ids:?}, whose result has too many axes")))
}

/// The shape of [`take_along_axis`]'s result.
fn taken(x: &Tensor, indices: &Tensor, axis: usize) -> Result<Shape> {
    check_indices(TAKE, "indices", indices)?;
    check(TAKE, axis < x.rank(), || format!("axis: got {axis}, wanted one of {}", x.shape()))?;
    check(TAKE, indices.rank() == x.rank(), || format!("indices: got {indices:?}, wanted as many axes as {x:?} has"))?;
    let mut apart = *x.shape();
    apart[axis] = indices.shape()[axis];
    broadcast(TAKE, &apart, indices.shape())
}

fn check_indices(op: &'static str, name: &str, t: &Tensor) -> Result<()> {
    check(op, matches!(t.dtype(), DType::U32 | DType::I32) && t.rank() > 0, || {
        format!("{name}: got {t:?}, wanted u32 or i32 of one axis or more")
    })
}

fn check_out(op: &'static str, x: &Tensor, shape: &Shape, out: &Tensor) -> Result<()> {
    let dtype = x.dtype();
    check(op, out.shape() == shape && out.dtype() == dtype, || format!("out: got {out:?}, wanted {dtype}{shape}"))
}

/// Looks `axis` of `x` up for each element of `out`; `indices` have its shape.
fn run(stream: &mut Stream, op: &'static str, x: &Tensor, axis: usize, indices: &Tensor, out: &Tensor) -> Result<()> {
    let axis_len = size(op, "the axis", x.shape()[axis])?;
    // Where there is nothing to read, anything will do that walks as the output does.
    let first = match x.elements() {
        0 => out.clone(),
        _ => x.slice(axis, 0..1)?.broadcast_to(*out.shape())?,
    };
    let mut params = Params {
        walk: Walk::elements(op, &[&first, indices, out])?,
        axis_stride: x.strides()[axis] as u64,
        axis_len,
        pad: 0,
    };
    let mut size = x.dtype().size();
    let address = |t: &Tensor| t.buffer().address() + t.offset();
    while size < 8 && (address(x) | address(out)).is_multiple_of(2 * size) && params.pair() {
        size *= 2;
    }
    let bytes = out.elements() * x.dtype().size() + indices.byte_range().len();
    let launch = Launch::new(op, &params).read(x).read(indices).write(out).reads_bytes(bytes);
    let entry = match size {
        1 => cpu::run::<u8> as Entry,
        2 => cpu::run::<u16>,
        4 => cpu::run::<u32>,
        _ => cpu::run::<i64>,
    };
    stream.launch(launch, entry, || {
        let (threadgroups, threads) = params.walk.grid();
        Gpu { source: &SOURCE, defines: String::new(), entry: format!("gather_{}", 8 * size), threadgroups, threads }
    })
}

impl Params {
    /// Takes two elements of a row for one of twice the size, where they are found by one index; whether it did.
    fn pair(&mut self) -> bool {
        const X: usize = 0;
        const OUT: usize = 2;
        let walk = &mut self.walk;
        let moved = |i: &usize| [X, OUT].contains(&(i / crate::MAX_RANK));
        let even = walk.strides.iter().enumerate().filter(|(i, _)| moved(i)).all(|(_, s)| s.is_multiple_of(2));
        let whole = walk.len.is_multiple_of(2) && self.axis_stride.is_multiple_of(2);
        let paired = even && whole && walk.inner[..3] == [1, 0, 1];
        if paired {
            walk.len /= 2;
            self.axis_stride /= 2;
            walk.strides.iter_mut().enumerate().filter(|(i, _)| moved(i)).for_each(|(_, s)| *s /= 2);
        }
        paired
    }
}

kernel_params! {
    struct Params {
        /// Of `x` at index 0, the indices and the output.
        walk: Walk,
        /// Elements from one index to the next.
        axis_stride: u64,
        axis_len: u32,
        /// Makes the size a multiple of 8.
        pad: u32,
    }
}

pub(super) static SOURCE: KernelSource = KernelSource {
    name: "gather",
    params: &[Walk::DECLARATION, Params::DECLARATION],
    body: include_str!("kernel.metal"),
};
