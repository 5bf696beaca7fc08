//! Tensors: typed, strided views of device memory that own their bounds.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use crate::device::{Buffer, Device, Stream};
use crate::{DType, Element, Error, Result, Shape};

/// A view of device memory: an element type, a shape and strides over part of a [`Buffer`].
///
/// Cloning a tensor, slicing it and transposing it make further views of the same memory and copy nothing. Every
/// view was checked against its buffer when it was made, so no operation can reach outside it.
///
/// ```
/// use silicide::{Device, Tensor};
/// # fn main() -> silicide::Result<()> {
/// let device = Device::cpu();
/// let t = device.tensor(&[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0], [2, 3])?;
/// let column = t.slice(1, 1..2)?;
/// assert_eq!(column.shape()[..], [2, 1]);
/// assert_eq!(column.to_vec::<f32>(&mut device.stream())?, [2.0, 5.0]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Tensor {
    buffer: Buffer,
    /// Bytes from the start of the buffer to element 0.
    offset: usize,
    dtype: DType,
    shape: Shape,
    /// In elements.
    strides: Shape,
}

impl Tensor {
    /// A row-major view of `buffer`, `offset` bytes in.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] where the view would pass the buffer's end or `offset` is not a multiple of the element size.
    pub fn new(buffer: Buffer, offset: usize, dtype: DType, shape: impl Into<Shape>) -> Result<Tensor> {
        let shape = shape.into();
        let bytes = shape.checked_elements().and_then(|n| n.checked_mul(dtype.size()));
        let end = bytes.and_then(|n| n.checked_add(offset));
        if end.is_none_or(|end| end > buffer.len()) {
            return Err(Error::argument(
                "Tensor::new",
                format!("{dtype} {shape} at byte {offset} does not fit a buffer of {} bytes", buffer.len()),
            ));
        }
        if !(buffer.address() + offset).is_multiple_of(dtype.size()) {
            return Err(Error::argument(
                "Tensor::new",
                format!("byte {offset} is not aligned for {dtype}; copy the data to an aligned buffer first"),
            ));
        }
        Ok(Tensor { buffer, offset, dtype, shape, strides: shape.contiguous_strides() })
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The dimensions.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Elements from one index to the next, by axis.
    pub fn strides(&self) -> &Shape {
        &self.strides
    }

    /// The number of axes.
    pub fn rank(&self) -> usize {
        self.shape.rank()
    }

    /// The size of an axis, counted from the front, or from the back where `axis` is negative.
    ///
    /// # Panics
    ///
    /// Where there is no such axis.
    pub fn dim(&self, axis: isize) -> usize {
        let i = if axis < 0 { self.rank() as isize + axis } else { axis };
        self.shape[i as usize]
    }

    /// The number of elements.
    pub fn elements(&self) -> usize {
        self.shape.elements()
    }

    /// The memory this is a view of.
    pub fn buffer(&self) -> &Buffer {
        &self.buffer
    }

    /// The device that holds the memory.
    pub fn device(&self) -> &Device {
        self.buffer.device()
    }

    /// Bytes from the start of the buffer to the first element.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// Whether the first element lies at a multiple of `bytes`.
    pub(crate) fn starts_aligned(&self, bytes: usize) -> bool {
        (self.buffer.address() + self.offset).is_multiple_of(bytes)
    }

    /// Whether `n` consecutive elements of the last axis, from any multiple of `n` on, lie aligned for a vector load.
    pub(crate) fn vectors_align(&self, n: usize) -> bool {
        self.starts_aligned(n * self.dtype.size())
            && (1..self.rank()).all(|axis| self.shape[axis - 1] == 1 || self.strides[axis - 1].is_multiple_of(n))
    }

    /// The range of the buffer's bytes that the view touches, gaps between strided rows included.
    pub fn byte_range(&self) -> Range<usize> {
        if self.elements() == 0 {
            return self.offset..self.offset;
        }
        let last: usize = self.shape.iter().zip(self.strides.iter()).map(|(d, s)| (d - 1) * s).sum();
        self.offset..self.offset + (last + 1) * self.dtype.size()
    }

    /// Whether it shares bytes with another, gaps between strided elements included.
    pub(crate) fn overlaps(&self, other: &Tensor) -> bool {
        let (ours, theirs) = (self.byte_range(), other.byte_range());
        Arc::ptr_eq(self.buffer.storage(), other.buffer.storage()) && ours.start < theirs.end && theirs.start < ours.end
    }

    /// Whether the elements lie in row-major order without gaps.
    pub fn is_contiguous(&self) -> bool {
        let wanted = self.shape.contiguous_strides();
        self.elements() == 0 || (0..self.rank()).all(|i| self.shape[i] == 1 || self.strides[i] == wanted[i])
    }

    /// The view as rows of its last axis: `(rows, length, elements from one row to the next)`, or `None` where the
    /// leading axes cannot be walked with one stride or the last is not contiguous.
    pub fn as_rows(&self) -> Option<(usize, usize, usize)> {
        let rank = self.rank();
        if rank == 0 {
            return Some((1, 1, 1));
        }
        let len = self.shape[rank - 1];
        if len > 1 && self.strides[rank - 1] != 1 {
            return None;
        }
        let (mut rows, mut step) = (1, None);
        for i in (0..rank - 1).rev() {
            if self.shape[i] == 1 {
                continue;
            }
            let step = *step.get_or_insert(self.strides[i]);
            if self.strides[i] != step * rows {
                return None;
            }
            rows *= self.shape[i];
        }
        Some((rows * usize::from(self.shape[..rank - 1].iter().all(|&d| d > 0)), len, step.unwrap_or(len)))
    }

    /// The elements `range` of one axis.
    pub fn slice(&self, axis: usize, range: Range<usize>) -> Result<Tensor> {
        if axis >= self.rank() || range.start > range.end || range.end > self.shape[axis] {
            return Err(Error::argument("slice", format!("{range:?} of axis {axis} of {}", self.shape)));
        }
        let mut view = self.clone();
        // An empty slice at the end must not start past the buffer.
        if !range.is_empty() {
            view.offset += range.start * self.strides[axis] * self.dtype.size();
        }
        view.shape[axis] = range.len();
        Ok(view)
    }

    /// The same elements in another shape.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] where the number of elements differs, or the view has gaps or another order
    /// (copy it first).
    pub fn reshape(&self, shape: impl Into<Shape>) -> Result<Tensor> {
        let shape = shape.into();
        if shape.checked_elements() != Some(self.elements()) {
            return Err(Error::argument("reshape", format!("{} has not as many elements as {shape}", self.shape)));
        }
        let strides = if self.is_contiguous() {
            shape.contiguous_strides()
        } else {
            self.strides_for(&shape).ok_or_else(|| {
                Error::argument(
                    "reshape",
                    format!("a view {} with strides {} has no view {shape}; copy it first", self.shape, self.strides),
                )
            })?
        };
        Ok(Tensor { shape, strides, ..self.clone() })
    }

    /// The strides that show a strided view in `shape`, where only rows are strided: the last axes split or merge.
    fn strides_for(&self, shape: &Shape) -> Option<Shape> {
        let (_, len, step) = self.as_rows()?;
        let mut strides = *shape;
        let (mut inner, mut outer) = (1, 1);
        for i in (0..shape.rank()).rev() {
            if inner < len {
                strides[i] = inner;
                inner *= shape[i];
            } else {
                strides[i] = step * outer;
                outer *= shape[i];
            }
        }
        (inner == len).then_some(strides)
    }

    /// The axes in another order: axis `i` of the result is axis `order[i]` of this.
    pub fn permute(&self, order: &[usize]) -> Result<Tensor> {
        let mut seen = [false; crate::MAX_RANK];
        let fits = order.len() == self.rank()
            && order.iter().all(|&a| a < self.rank() && !std::mem::replace(&mut seen[a], true));
        if !fits {
            return Err(Error::argument("permute", format!("{order:?} is not an order of the axes of {}", self.shape)));
        }
        let mut view = self.clone();
        for (i, &axis) in order.iter().enumerate() {
            view.shape[i] = self.shape[axis];
            view.strides[i] = self.strides[axis];
        }
        Ok(view)
    }

    /// The view with its axes of size 1 repeated, and axes added in front, to give `shape`; nothing is copied.
    pub fn broadcast_to(&self, shape: impl Into<Shape>) -> Result<Tensor> {
        let shape = shape.into();
        let wrong = || Error::argument("broadcast", format!("{} does not broadcast to {shape}", self.shape));
        let lead = shape.rank().checked_sub(self.rank()).ok_or_else(wrong)?;
        let mut strides = shape;
        for i in 0..shape.rank() {
            strides[i] = match i.checked_sub(lead).map(|j| (self.shape[j], self.strides[j])) {
                Some((d, s)) if d == shape[i] => s,
                Some((1, _)) | None => 0,
                Some(_) => return Err(wrong()),
            };
        }
        Ok(Tensor { shape, strides, ..self.clone() })
    }

    /// The elements in row-major order, once all work in `stream` that writes them is done.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] where `T` is not the element type.
    pub fn to_vec<T: Element>(&self, stream: &mut Stream) -> Result<Vec<T>> {
        let mut out = vec![T::zeroed(); self.elements()];
        stream.read(self, &mut out)?;
        Ok(out)
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.dtype, self.shape)
    }
}
