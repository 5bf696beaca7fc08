//! Buffers that the host reads and writes as slices.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use bytemuck::Pod;

use super::{MlxError, Result, check};
use crate::DType;
use crate::device::Buffer;

/// Device memory that holds a row-major tensor.
///
/// There is one handle to the memory, this one: share it by reference.
pub struct MlxBuffer {
    buffer: Buffer,
    dtype: DType,
    shape: Vec<usize>,
    elements: usize,
    usage: Arc<Usage>,
}

impl MlxBuffer {
    pub(super) fn new(buffer: Buffer, dtype: DType, shape: Vec<usize>, elements: usize) -> MlxBuffer {
        MlxBuffer { buffer, dtype, shape, elements, usage: Arc::default() }
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The dimensions.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The product of the dimensions.
    pub fn element_count(&self) -> usize {
        self.elements
    }

    /// The size of the memory in bytes.
    pub fn byte_len(&self) -> usize {
        self.buffer.len()
    }

    /// The memory as elements of `T`, to read.
    ///
    /// # Errors
    ///
    /// [`MlxError::InvalidArgument`] where the size is not a multiple of `T`'s, or encoded work writes the buffer.
    pub fn as_slice<T: Pod>(&self) -> Result<HostSlice<'_, T>> {
        self.check_element::<T>("as_slice")?;
        let mark = Usage::read(&self.usage).ok_or_else(|| busy("as_slice", "writes"))?;
        // SAFETY: work that writes the buffer is refused until the mark is dropped, the host writes through `&mut self` only,
        // and no other handle exists.
        let bytes = unsafe { self.buffer.bytes() };
        Ok(HostSlice { elements: bytemuck::cast_slice(bytes), _mark: mark })
    }

    /// The memory as elements of `T`, to write.
    ///
    /// # Errors
    ///
    /// [`MlxError::InvalidArgument`] where the size is not a multiple of `T`'s, or encoded work uses the buffer.
    pub fn as_mut_slice<T: Pod>(&mut self) -> Result<&mut [T]> {
        self.check_element::<T>("as_mut_slice")?;
        let bytes = self.buffer.bytes_mut().ok_or_else(|| busy("as_mut_slice", "uses"))?;
        Ok(bytemuck::cast_slice_mut(bytes))
    }

    fn check_element<T>(&self, call: &str) -> Result<()> {
        let (bytes, size) = (self.byte_len(), size_of::<T>());
        let fits = size > 0 && bytes.is_multiple_of(size) && self.buffer.address().is_multiple_of(align_of::<T>());
        check(fits, || format!("{call}: got elements of {size} bytes, wanted a size that divides {bytes} bytes"))
    }

    pub(super) fn buffer(&self) -> &Buffer {
        &self.buffer
    }

    /// Marks the buffer as written by encoded work.
    ///
    /// # Errors
    ///
    /// [`MlxError::InvalidArgument`] where the host is reading it.
    pub(super) fn mark_written(&self, name: &str) -> Result<WriteMark> {
        let message = || format!("{name}: got a buffer that the host is reading; drop what as_slice returned first");
        Usage::write(&self.usage).ok_or_else(|| MlxError::InvalidArgument(message()))
    }
}

impl fmt::Debug for MlxBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:?}", self.dtype, self.shape)
    }
}

fn busy(call: &str, does: &str) -> MlxError {
    MlxError::InvalidArgument(format!("{call}: encoded work {does} the buffer; commit_and_wait for it first"))
}

/// A buffer's elements. While it is held, work that writes the buffer is refused.
pub struct HostSlice<'a, T> {
    elements: &'a [T],
    _mark: ReadMark,
}

impl<T> Deref for HostSlice<'_, T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        self.elements
    }
}

impl<T: fmt::Debug> fmt::Debug for HostSlice<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.elements.fmt(f)
    }
}

/// Counts who uses a buffer: readers on the host as positive, encoders that write it as negative; never both.
#[derive(Default)]
struct Usage(AtomicI32);

/// One reader on the host.
struct ReadMark(Arc<Usage>);

/// One dispatch that writes.
pub(super) struct WriteMark(Arc<Usage>);

impl Usage {
    fn read(this: &Arc<Usage>) -> Option<ReadMark> {
        this.count(|n| (0..i32::MAX).contains(&n).then(|| n + 1))?;
        Some(ReadMark(this.clone()))
    }

    fn write(this: &Arc<Usage>) -> Option<WriteMark> {
        this.count(|n| (-i32::MAX..=0).contains(&n).then(|| n - 1))?;
        Some(WriteMark(this.clone()))
    }

    fn count(&self, next: impl FnMut(i32) -> Option<i32>) -> Option<i32> {
        self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, next).ok()
    }
}

impl Drop for ReadMark {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Release);
    }
}

impl Drop for WriteMark {
    fn drop(&mut self) {
        self.0.0.fetch_add(1, Ordering::Release);
    }
}
