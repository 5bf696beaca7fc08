//! Matrices as checkpoints store them, dense or quantised.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use memmap2::Mmap;

use crate::formats::Mapped;
use crate::quant::{QuantFormat, QuantView};
use crate::{DType, Device, DeviceKind, Error, Result, Tensor, ops};

/// The widest load of a kernel, in bytes.
const ALIGNMENT: usize = 16;

/// How the elements of a [`Matrix`] are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MatrixFormat {
    /// One element after the other.
    Dense(DType),
    /// Quantised; affine scales and biases have this element type.
    Quantized(QuantFormat, DType),
}

impl MatrixFormat {
    /// Bytes of codes in a row of `columns` elements.
    fn row_bytes(self, columns: usize) -> usize {
        match self {
            MatrixFormat::Dense(dtype) => columns * dtype.size(),
            MatrixFormat::Quantized(format, _) => format.row_bytes(columns),
        }
    }
}

impl fmt::Display for MatrixFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MatrixFormat::Dense(dtype) => dtype.fmt(f),
            MatrixFormat::Quantized(format @ QuantFormat::Affine { .. }, scales) => write!(f, "{format} ({scales})"),
            MatrixFormat::Quantized(format, _) => format.fmt(f),
        }
    }
}

/// A matrix on a device, in the bytes that its checkpoint has: what [`embedding`](crate::ops::embedding) reads, and what a
/// [`Weight`](crate::ops::Weight) is made from.
///
/// Bytes of a mapped file are shared, not copied, wherever the device can read them where they lie.
#[derive(Clone)]
pub struct Matrix {
    format: MatrixFormat,
    rows: usize,
    columns: usize,
    /// Dense elements, codes, or whole GGUF blocks, as bytes.
    codes: Tensor,
    scales: Option<Tensor>,
    biases: Option<Tensor>,
}

impl Matrix {
    /// A matrix of `rows` rows of `columns` elements. `scales` and `biases` as [`QuantFormat`] says that the format has
    /// them.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] where lengths do not fit the format and the shape.
    pub fn new(
        device: &Device,
        format: MatrixFormat,
        rows: usize,
        columns: usize,
        codes: &Mapped,
        scales: Option<&Mapped>,
        biases: Option<&Mapped>,
    ) -> Result<Matrix> {
        match format {
            MatrixFormat::Dense(dtype) => {
                let wanted = rows.checked_mul(columns).and_then(|n| n.checked_mul(dtype.size()));
                if !dtype.is_float() || wanted != Some(codes.len()) {
                    let message = format!("got {} bytes of {dtype} for [{rows}, {columns}]", codes.len());
                    return Err(Error::argument("Matrix::new", message));
                }
            }
            MatrixFormat::Quantized(format, dtype) => {
                let scales = scales.map_or(&[][..], |b| &b[..]);
                let biases = biases.map_or(&[][..], |b| &b[..]);
                QuantView::new(format, rows, columns, codes, scales, biases, dtype)?;
            }
        }
        let on_device = |bytes: Option<&Mapped>| bytes.map(|b| on_device(device, b)).transpose();
        Ok(Matrix {
            format,
            rows,
            columns,
            codes: self::on_device(device, codes)?,
            scales: on_device(scales)?,
            biases: on_device(biases)?,
        })
    }

    /// The dense matrix that a tensor of two axes is, in the same memory.
    ///
    /// Work in a stream that writes the tensor has to be done: [`synchronize`](crate::Stream::synchronize) it first.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] where the tensor is not of floats, not `[rows, columns]`, or has gaps, and where a GPU would
    /// have to read it from an odd address.
    ///
    /// ```
    /// use silicide::{Device, Matrix};
    /// # fn main() -> silicide::Result<()> {
    /// let matrix = Matrix::from_tensor(&Device::cpu().tensor(&[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0], [2, 3])?)?;
    /// assert_eq!((matrix.rows(), matrix.columns()), (2, 3));
    /// # Ok(())
    /// # }
    /// ```
    pub fn from_tensor(tensor: &Tensor) -> Result<Matrix> {
        let &[rows, columns] = &tensor.shape()[..] else {
            return Err(Error::argument("Matrix::from_tensor", format!("got {tensor:?}, wanted [rows, columns]")));
        };
        if !tensor.dtype().is_float() || !tensor.is_contiguous() {
            let message = format!("got {tensor:?}, wanted f32, f16 or bf16, contiguous");
            return Err(Error::argument("Matrix::from_tensor", message));
        }
        if tensor.device().kind() != DeviceKind::Cpu && !tensor.offset().is_multiple_of(ALIGNMENT) {
            let message = format!("got a view from byte {}, wanted a multiple of {ALIGNMENT}", tensor.offset());
            return Err(Error::argument("Matrix::from_tensor", message + "; copy it first"));
        }
        let bytes = tensor.elements() * tensor.dtype().size();
        let codes = Tensor::new(tensor.buffer().clone(), tensor.offset(), DType::U8, [bytes])?;
        Ok(Matrix { format: MatrixFormat::Dense(tensor.dtype()), rows, columns, codes, scales: None, biases: None })
    }

    /// The rows of matrices of one format, one after another, in memory of their own.
    pub(crate) fn concat(matrices: &[Matrix]) -> Result<Matrix> {
        let first = &matrices[0];
        let stream = &mut first.device().stream();
        let mut join = |part: fn(&Matrix) -> Option<&Tensor>| {
            let parts: Vec<&Tensor> = matrices.iter().filter_map(part).collect();
            if parts.is_empty() { Ok(None) } else { ops::concat(stream, &parts, 0).map(Some) }
        };
        let codes = join(|m| Some(&m.codes))?.expect("every matrix has codes");
        let (scales, biases) = (join(|m| m.scales.as_ref())?, join(|m| m.biases.as_ref())?);
        stream.synchronize()?;
        let rows = matrices.iter().map(|m| m.rows).sum();
        Ok(Matrix { format: first.format, rows, columns: first.columns, codes, scales, biases })
    }

    /// How its elements are stored.
    pub fn format(&self) -> MatrixFormat {
        self.format
    }

    /// The number of rows: output features of a weight, tokens of an embedding.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Elements in a row.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The device it is on.
    pub fn device(&self) -> &Device {
        self.codes.device()
    }

    /// Bytes it takes, scales and biases included.
    pub fn bytes(&self) -> usize {
        [Some(&self.codes), self.scales.as_ref(), self.biases.as_ref()]
            .into_iter()
            .flatten()
            .map(Tensor::elements)
            .sum()
    }

    /// Bytes that one row takes, scales and biases included.
    pub(crate) fn row_bytes(&self) -> usize {
        self.bytes() / self.rows.max(1)
    }

    pub(crate) fn codes(&self) -> &Tensor {
        &self.codes
    }

    pub(crate) fn scales(&self) -> Option<&Tensor> {
        self.scales.as_ref()
    }

    pub(crate) fn biases(&self) -> Option<&Tensor> {
        self.biases.as_ref()
    }

    /// Bytes from one row of codes to the next.
    pub(crate) fn code_stride(&self) -> usize {
        self.format.row_bytes(self.columns)
    }
}

impl fmt::Debug for Matrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [{}, {}]", self.format, self.rows, self.columns)
    }
}

/// A mapped range as a tensor of bytes: in place where the device can, else copied.
fn on_device(device: &Device, bytes: &Mapped) -> Result<Tensor> {
    /// GPUs share whole pages; no page is larger.
    const PAGE: usize = 16384;
    let range = bytes.range();
    if device.kind() != DeviceKind::Cpu && !range.start.is_multiple_of(ALIGNMENT) {
        return device.tensor(&bytes[..], [bytes.len()]);
    }
    let first = range.start / PAGE * PAGE;
    let pages = Pages { map: bytes.map().clone(), range: first..range.end };
    Tensor::new(device.adopt(Arc::new(pages))?, range.start - first, DType::U8, [bytes.len()])
}

/// Part of a map, from the start of a page.
struct Pages {
    map: Arc<Mmap>,
    range: Range<usize>,
}

impl AsRef<[u8]> for Pages {
    fn as_ref(&self) -> &[u8] {
        &self.map[self.range.clone()]
    }
}
