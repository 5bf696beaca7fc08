//! Products with a weight matrix, dense or quantised.

pub mod cpu;
#[cfg(test)]
pub(super) mod epilogue_tests;
pub(super) mod few;
mod gpu;
pub(super) mod groups;
mod host;
pub(super) mod one;
pub(super) mod peak;
mod stages;
#[cfg(test)]
mod tensor_tests;
#[cfg(test)]
pub(super) mod tests;
pub(super) mod wgmma;

use std::fmt;
use std::sync::Arc;

pub use self::cpu::Precision;
use self::cpu::{DenseView, PackLayout};
pub(super) use self::gpu::{MatrixParts, ROWS, SIMDGROUPS, UNIT, defines, parts, reader, splits};
#[cfg(test)]
pub(super) use self::gpu::{NVIDIA, SOURCE};
pub use self::peak::{PeakRates, peak_rates};
use crate::device::{Launch, Stream};
use crate::kernels::kernel_params;
use crate::matrix::{Matrix, MatrixFormat};
use crate::ops::Gate;
use crate::ops::check::{Rows, check, size};
use crate::quant::QuantView;
use crate::{DType, Device, Error, Result, Shape, Tensor};

/// A matrix made ready for products on its device.
///
/// A GPU reads the checkpoint's own bytes. The CPU has them packed, once, so that vector lanes are output features; the
/// packed form takes about as much memory as the original, which may be dropped.
#[derive(Clone)]
pub struct Weight {
    rows: usize,
    columns: usize,
    format: MatrixFormat,
    form: Form,
}

/// One weight, or several of one shape and format.
#[derive(Clone)]
pub(super) enum Form {
    /// As the layout says, one after another.
    Packed {
        layout: Arc<PackLayout>,
        bytes: Tensor,
    },
    Stored(Box<Matrix>),
}

impl Weight {
    /// Makes a matrix ready for products.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`].
    pub fn new(matrix: &Matrix) -> Result<Weight> {
        let (rows, columns, format) = (matrix.rows(), matrix.columns(), matrix.format());
        let form = match matrix.device().as_cpu() {
            Some(_) => Form::packed(std::slice::from_ref(matrix), 1)?,
            None => Form::Stored(Box::new(matrix.clone())),
        };
        Ok(Weight { rows, columns, format, form })
    }

    /// Output features.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input features.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// How the matrix was stored.
    pub fn format(&self) -> MatrixFormat {
        self.format
    }

    /// The device it is on.
    pub fn device(&self) -> &Device {
        self.form.device()
    }

    /// Bytes that a product reads.
    pub fn bytes(&self) -> usize {
        self.form.bytes()
    }
}

impl fmt::Debug for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [{}, {}]", self.format, self.rows, self.columns)
    }
}

impl Form {
    /// Packs matrices of one shape and format, each of them a stack of `each` weights, on the CPU.
    pub(super) fn packed(matrices: &[Matrix], each: usize) -> Result<Form> {
        let first = &matrices[0];
        let device = first.device();
        let pool = device.as_cpu().expect("only the CPU packs").pool();
        let (rows, columns) = (first.rows() / each, first.columns());
        let layout = match first.format() {
            MatrixFormat::Dense(dtype) => PackLayout::dense(dtype, rows, columns)?,
            MatrixFormat::Quantized(format, scales) => PackLayout::quantized(format, scales, rows, columns)?,
        };
        let size = layout.bytes();
        let Some(bytes) = size.checked_mul(matrices.len() * each) else {
            return Err(Error::argument(
                "pack",
                format!("{first:?}, {} times, is past the address space", matrices.len()),
            ));
        };
        let packed = Tensor::new(device.allocate_weight(bytes)?, 0, DType::U8, [bytes])?;
        let part = |t: Option<&Tensor>, f: &mut dyn FnMut(&[u8])| match t {
            Some(t) => t.buffer().host_read(t.byte_range(), f),
            None => f(&[]),
        };
        let mut result = Ok(());
        for (i, matrix) in matrices.iter().enumerate() {
            part(Some(matrix.codes()), &mut |codes| {
                part(matrix.scales(), &mut |scales| {
                    part(matrix.biases(), &mut |biases| {
                        packed.buffer().host_fill(|out| {
                            for e in 0..each {
                                let of_one = |all: &[u8]| e * (all.len() / each)..(e + 1) * (all.len() / each);
                                let out = &mut out[(i * each + e) * size..][..size];
                                let codes = &codes[of_one(codes)];
                                let packed = match matrix.format() {
                                    MatrixFormat::Dense(dtype) => {
                                        layout.pack_dense(DenseView { dtype, bytes: codes }, out, pool)
                                    }
                                    MatrixFormat::Quantized(format, dtype) => {
                                        let (scales, biases) = (&scales[of_one(scales)], &biases[of_one(biases)]);
                                        QuantView::new(format, rows, columns, codes, scales, biases, dtype)
                                            .and_then(|view| layout.pack_quantized(&view, out, pool))
                                    }
                                };
                                if result.is_ok() {
                                    result = packed;
                                }
                            }
                        });
                    });
                });
            });
        }
        result?;
        Ok(Form::Packed { layout: Arc::new(layout), bytes: packed })
    }

    pub(super) fn device(&self) -> &Device {
        match self {
            Form::Packed { bytes, .. } => bytes.device(),
            Form::Stored(matrix) => matrix.device(),
        }
    }

    pub(super) fn bytes(&self) -> usize {
        match self {
            Form::Packed { bytes, .. } => bytes.elements(),
            Form::Stored(matrix) => matrix.bytes(),
        }
    }
}

/// A weight to multiply with, and what is added to the sums before they are rounded.
///
/// A `&Weight` is one to which nothing is added.
#[derive(Clone, Copy, Debug)]
pub struct Product<'a> {
    /// The weight.
    pub weight: &'a Weight,
    /// `[rows]` in `x`'s type, contiguous: added to each row of the result.
    pub bias: Option<&'a Tensor>,
    /// Of the result's shape and type, with any stride between rows. It may be the very view that the result goes to.
    pub residual: Option<&'a Tensor>,
}

impl<'a> From<&'a Weight> for Product<'a> {
    fn from(weight: &'a Weight) -> Product<'a> {
        Product { weight, bias: None, residual: None }
    }
}

/// `x W^T`: every row of `x` times every row of the weight.
///
/// `x` is `[.., columns]` in f32, f16 or bf16 with any offset and any stride between rows; the result is `[.., rows]` in
/// `x`'s type. Sums are f32. `precision` says whether anything else may be rounded; GPUs never round further than to `x`'s
/// own type.
///
/// # Errors
///
/// [`Error::Argument`] where shapes or types do not fit.
///
/// ```
/// use silicide::ops::{self, Precision, Weight};
/// use silicide::{Device, Matrix};
/// # fn main() -> silicide::Result<()> {
/// let device = Device::cpu();
/// let stream = &mut device.stream();
/// let weight = Weight::new(&Matrix::from_tensor(&device.tensor(&[1.0f32, 2.0, 3.0, 4.0], [2, 2])?)?)?;
/// let x = device.tensor(&[10.0f32, 1.0], [1, 2])?;
/// let y = ops::matmul(stream, &x, &weight, Precision::F32)?;
/// assert_eq!(y.to_vec::<f32>(stream)?, [12.0, 34.0]);
/// # Ok(())
/// # }
/// ```
pub fn matmul(stream: &mut Stream, x: &Tensor, weight: &Weight, precision: Precision) -> Result<Tensor> {
    let [out] = matmul_each(stream, x, [weight], precision)?;
    Ok(out)
}

/// [`matmul`] into `out`, which shares no memory with `x`.
pub fn matmul_into(stream: &mut Stream, x: &Tensor, weight: &Weight, precision: Precision, out: &Tensor) -> Result<()> {
    matmul_each_into(stream, x, [(weight, out)], precision)
}

/// [`matmul`] of one `x` with each of several weights, plus biases and residuals where there are any: `x W^T + b + r`. The
/// CPU reads and rounds `x` once for all, in one launch.
///
/// # Errors
///
/// As [`matmul`].
///
/// ```
/// use silicide::ops::{self, Precision, Product, Weight};
/// use silicide::{Device, Matrix};
/// # fn main() -> silicide::Result<()> {
/// let device = Device::cpu();
/// let stream = &mut device.stream();
/// let weight = Weight::new(&Matrix::from_tensor(&device.tensor(&[1.0f32, 2.0, 3.0, 4.0], [2, 2])?)?)?;
/// let x = device.tensor(&[10.0f32, 1.0], [1, 2])?;
/// let bias = device.tensor(&[0.5f32, -0.5], [2])?;
/// let biased = Product { weight: &weight, bias: Some(&bias), residual: None };
/// let [plain, y] = ops::matmul_each(stream, &x, [Product::from(&weight), biased], Precision::F32)?;
/// assert_eq!(plain.to_vec::<f32>(stream)?, [12.0, 34.0]);
/// assert_eq!(y.to_vec::<f32>(stream)?, [12.5, 33.5]);
/// # Ok(())
/// # }
/// ```
pub fn matmul_each<'a, P: Into<Product<'a>>, const N: usize>(
    stream: &mut Stream,
    x: &Tensor,
    products: [P; N],
    precision: Precision,
) -> Result<[Tensor; N]> {
    let products = products.map(Into::into);
    let mut outs = Vec::with_capacity(N);
    for product in products {
        outs.push(stream.empty(x.dtype(), result_shape(OP, x, product.weight)?)?);
    }
    let outs: [Tensor; N] = outs.try_into().expect("there is one for each weight");
    matmul_each_into::<_, N>(stream, x, std::array::from_fn(|i| (products[i], &outs[i])), precision)?;
    Ok(outs)
}

/// [`matmul_each`] into the tensors beside the weights, which share no memory with another tensor here, but for a residual
/// that is the very view.
pub fn matmul_each_into<'a, P: Into<Product<'a>>, const N: usize>(
    stream: &mut Stream,
    x: &Tensor,
    products: [(P, &'a Tensor); N],
    precision: Precision,
) -> Result<()> {
    let x_rows = Rows::of(OP, "x", x)?;
    let mut placed = Vec::with_capacity(N);
    for (product, out) in products {
        placed.push(Placed::check(OP, stream.device(), (x, &x_rows), product.into(), out)?);
    }
    let placed: [Placed; N] = placed.try_into().unwrap_or_else(|_| unreachable!("there is one for each weight"));
    for (i, product) in placed.iter().enumerate() {
        for residual in placed.iter().enumerate().filter(|&(j, _)| j != i).filter_map(|(_, other)| other.residual) {
            check(OP, !product.out.overlaps(residual), || {
                format!("residual: got {residual:?}, which shares memory with the output of another product")
            })?;
        }
    }
    launch(stream, x, &x_rows, placed, None, precision)
}

/// `activation(x G^T) * (x U^T)` for two weights of one shape and format: the first half of a gated feed-forward network,
/// in one launch. Sums and the activation are f32, rounded once.
///
/// `x` and the result are as for [`matmul`].
///
/// # Errors
///
/// [`Error::Argument`] where shapes or types do not fit, or the weights differ in shape or format.
///
/// ```
/// use silicide::ops::{self, Gate, Precision, Weight};
/// use silicide::{Device, Matrix};
/// # fn main() -> silicide::Result<()> {
/// let device = Device::cpu();
/// let stream = &mut device.stream();
/// let weight = |row| Weight::new(&Matrix::from_tensor(&device.tensor::<f32>(row, [1, 2])?)?);
/// let (gate, up) = (weight(&[4.0, 0.0])?, weight(&[0.0, 3.0])?);
/// let x = device.tensor(&[10.0f32, 1.0], [1, 2])?;
/// let y = ops::matmul_glu(stream, &x, &gate, &up, Gate::Silu, Precision::F32)?;
/// assert_eq!(y.to_vec::<f32>(stream)?, [120.0]);
/// # Ok(())
/// # }
/// ```
pub fn matmul_glu(
    stream: &mut Stream,
    x: &Tensor,
    gate: &Weight,
    up: &Weight,
    activation: Gate,
    precision: Precision,
) -> Result<Tensor> {
    let out = stream.empty(x.dtype(), result_shape(GLU, x, gate)?)?;
    matmul_glu_into(stream, x, gate, up, activation, precision, &out)?;
    Ok(out)
}

/// [`matmul_glu`] into `out`, which shares no memory with `x`.
pub fn matmul_glu_into(
    stream: &mut Stream,
    x: &Tensor,
    gate: &Weight,
    up: &Weight,
    activation: Gate,
    precision: Precision,
    out: &Tensor,
) -> Result<()> {
    let alike = |w: &Weight| (w.rows, w.columns, w.format);
    check(GLU, alike(gate) == alike(up), || {
        format!("up: got {up:?}, wanted the gate's {gate:?}; take the two products by matmul_each, then glu")
    })?;
    let x_rows = Rows::of(GLU, "x", x)?;
    let gate = Placed::check(GLU, stream.device(), (x, &x_rows), gate.into(), out)?;
    let up = Placed::check(GLU, stream.device(), (x, &x_rows), up.into(), out)?;
    launch(stream, x, &x_rows, [gate, up], Some(activation), precision)
}

/// The shape of a product.
fn result_shape(op: &'static str, x: &Tensor, weight: &Weight) -> Result<Shape> {
    let mut shape = *x.shape();
    let Some(last) = shape.last_mut() else {
        return Err(Error::argument(op, format!("x: got {x:?}, wanted at least one axis")));
    };
    *last = weight.rows;
    Ok(shape)
}

/// A product whose arguments fit, and where it goes. Strides are between rows.
struct Placed<'a> {
    weight: &'a Weight,
    bias: Option<&'a Tensor>,
    residual: Option<&'a Tensor>,
    residual_stride: u32,
    out: &'a Tensor,
    stride: u32,
}

impl<'a> Placed<'a> {
    fn check(
        op: &'static str,
        device: &Device,
        (x, x_rows): (&Tensor, &Rows),
        product: Product<'a>,
        out: &'a Tensor,
    ) -> Result<Placed<'a>> {
        let Product { weight, bias, residual } = product;
        let out_rows = Rows::of(op, "out", out)?;
        check(op, weight.device() == device, || {
            format!("weight: it is on device {:?}, the stream on another {device:?}", weight.device())
        })?;
        check(op, x.dtype().is_float() && x_rows.len as usize == weight.columns, || {
            format!("x: got {x:?}, wanted floats [.., {}]", weight.columns)
        })?;
        let fits = |t: &Tensor, rows: &Rows| {
            t.dtype() == x.dtype() && rows.len as usize == weight.rows && rows.count == x_rows.count
        };
        let wanted = || format!("wanted {} [{}, {}]", x.dtype(), x_rows.count, weight.rows);
        check(op, fits(out, &out_rows), || format!("out: got {out:?}, {}", wanted()))?;
        if let Some(bias) = bias {
            check(op, bias.dtype() == x.dtype() && bias.shape()[..] == [weight.rows] && bias.is_contiguous(), || {
                format!("bias: got {bias:?}, wanted {} [{}], contiguous", x.dtype(), weight.rows)
            })?;
        }
        let mut residual_stride = 0;
        if let Some(residual) = residual {
            let rows = Rows::of(op, "residual", residual)?;
            check(op, fits(residual, &rows), || format!("residual: got {residual:?}, {}", wanted()))?;
            residual_stride = rows.stride;
        }
        Ok(Placed { weight, bias, residual, residual_stride, out, stride: out_rows.stride })
    }

    /// Whether the residual is where the product goes.
    fn in_place(&self) -> bool {
        self.residual.is_some_and(|residual| residual.overlaps(self.out))
    }

    /// Adds to a launch what is added to the sums.
    fn bind_added(&self, launch: Launch) -> Launch {
        launch.read_apart_optional(self.bias).read_optional(self.residual)
    }

    /// Adds to a launch where the product goes.
    fn bind_out(&self, launch: Launch) -> Launch {
        if self.in_place() { launch.write_in_place(self.out) } else { launch.write(self.out) }
    }
}

/// Launches products of one `x`, or two as `glu`.
fn launch<const N: usize>(
    stream: &mut Stream,
    x: &Tensor,
    x_rows: &Rows,
    products: [Placed; N],
    glu: Option<Gate>,
    precision: Precision,
) -> Result<()> {
    if x_rows.count == 0 {
        return Ok(());
    }
    if stream.device().as_cpu().is_some() {
        return host::launch(stream, x, x_rows, products, glu, precision);
    }
    let stored = products.iter().filter(|product| product.weight.rows > 0).map(gpu::Product::new);
    gpu::launch(stream, x, x_rows, &stored.collect::<Vec<_>>(), glu, precision)
}

/// The parameters for the rows of `x` with weights of `n` rows in all.
fn params(x: &Rows, n: usize) -> Result<Params> {
    Ok(Params {
        m: x.count,
        n: [size(OP, "weight", n)?, 0, 0],
        k: x.len,
        x_stride: x.stride,
        out_stride: [0; AT_ONCE],
        residual_stride: [0; AT_ONCE],
        has_bias: [0; AT_ONCE],
        has_residual: [0; AT_ONCE],
        blocks: [0; AT_ONCE],
        code_stride: 0,
        group_size: 0,
        splits: 1,
    })
}

fn flops(p: &Params) -> usize {
    let n: usize = p.n.iter().map(|&n| n as usize).sum();
    2 * p.m as usize * n * p.k as usize
}

const OP: &str = "matmul";
const GLU: &str = "matmul_glu";

/// Products that a GPU takes in one launch.
const AT_ONCE: usize = 3;

kernel_params! {
    /// `x` is m rows of k, a weight n rows of k; strides in elements, the weights' in bytes.
    struct Params {
        m: u32,
        n: [u32; 3],
        k: u32,
        x_stride: u32,
        out_stride: [u32; 3],
        residual_stride: [u32; 3],
        has_bias: [u32; 3],
        has_residual: [u32; 3],
        /// Threadgroups along the rows of each weight.
        blocks: [u32; 3],
        code_stride: u32,
        group_size: u32,
        /// Simdgroups that share the columns of a row of the weight.
        splits: u32,
    }
}
