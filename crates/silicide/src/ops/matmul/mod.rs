//! Products with a weight matrix, dense or quantised.

pub mod cpu;
pub(super) mod few;
mod gpu;
pub(super) mod peak;
#[cfg(test)]
pub(super) mod tests;
pub(super) mod units;
pub(super) mod wgmma;

use std::fmt;
use std::sync::Arc;

pub use self::cpu::Precision;
use self::cpu::{DenseView, Factor, Method, PackLayout, RowsMut};
pub(super) use self::gpu::{MatrixParts, ROWS, SIMDGROUPS, UNIT, defines, parts, reader, splits};
#[cfg(test)]
pub(super) use self::gpu::{NVIDIA, SOURCE};
pub use self::peak::{PeakRates, peak_rates};
use crate::device::cpu::scratch::with_scratch;
use crate::device::cpu::vector::{narrow, vectorized, widen};
use crate::device::cpu::{Call, Entry, Features};
use crate::device::{Launch, Stream};
use crate::kernels::kernel_params;
use crate::matrix::{Matrix, MatrixFormat};
use crate::ops::check::{Rows, check, float_entry, size};
use crate::quant::QuantView;
use crate::{DType, Device, Error, Float, Result, Tensor};

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

/// [`matmul`] of one `x` with each of several weights. The CPU reads and rounds `x` once for all, in one launch.
///
/// # Errors
///
/// As [`matmul`].
pub fn matmul_each<const N: usize>(
    stream: &mut Stream,
    x: &Tensor,
    weights: [&Weight; N],
    precision: Precision,
) -> Result<[Tensor; N]> {
    let mut shape = *x.shape();
    check(OP, shape.rank() > 0, || format!("x: got {x:?}, wanted at least one axis"))?;
    let last = shape.rank() - 1;
    let mut outs = Vec::with_capacity(N);
    for weight in weights {
        shape[last] = weight.rows;
        outs.push(stream.empty(x.dtype(), shape)?);
    }
    let outs: [Tensor; N] = outs.try_into().expect("there is one for each weight");
    matmul_each_into::<N>(stream, x, std::array::from_fn(|i| (weights[i], &outs[i])), precision)?;
    Ok(outs)
}

/// [`matmul_each`] into the tensors beside the weights, which share no memory with `x` or with each other.
pub fn matmul_each_into<const N: usize>(
    stream: &mut Stream,
    x: &Tensor,
    products: [(&Weight, &Tensor); N],
    precision: Precision,
) -> Result<()> {
    let x_rows = Rows::of(OP, "x", x)?;
    let mut strides = [0; N];
    for (stride, (weight, out)) in strides.iter_mut().zip(products) {
        let out_rows = Rows::of(OP, "out", out)?;
        check(OP, weight.device() == stream.device(), || {
            format!("weight: it is on device {:?}, the stream on another {:?}", weight.device(), stream.device())
        })?;
        check(OP, x.dtype().is_float() && x_rows.len as usize == weight.columns, || {
            format!("x: got {x:?}, wanted floats [.., {}]", weight.columns)
        })?;
        check(
            OP,
            out.dtype() == x.dtype() && out_rows.len as usize == weight.rows && out_rows.count == x_rows.count,
            || format!("out: got {out:?}, wanted {} [{}, {}]", x.dtype(), x_rows.count, weight.rows),
        )?;
        *stride = out_rows.stride;
    }
    if x_rows.count == 0 {
        return Ok(());
    }
    if stream.device().as_cpu().is_some() {
        return launch_on_cpu(stream, x, &x_rows, products, strides, precision);
    }
    let stored = products.into_iter().zip(strides).filter_map(|((weight, out), stride)| {
        let Form::Stored(matrix) = &weight.form else { unreachable!("a GPU's weights are stored") };
        (weight.rows > 0).then_some(gpu::Product { matrix: matrix.as_ref(), out, stride })
    });
    gpu::launch(stream, x, &x_rows, &stored.collect::<Vec<_>>(), precision)
}

/// The parameters for the rows of `x` with weights of `n` rows in all.
fn params(x: &Rows, n: usize) -> Result<Params> {
    Ok(Params {
        m: x.count,
        n: [size(OP, "weight", n)?, 0, 0],
        k: x.len,
        x_stride: x.stride,
        out_stride: [0; AT_ONCE],
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

/// What the CPU form of `N` products is given beside `x`, each packed weight and its output.
struct Packed<const N: usize> {
    precision: Precision,
    layouts: [Arc<PackLayout>; N],
    /// Between an output's rows.
    strides: [usize; N],
}

fn launch_on_cpu<const N: usize>(
    stream: &mut Stream,
    x: &Tensor,
    x_rows: &Rows,
    products: [(&Weight, &Tensor); N],
    strides: [u32; N],
    precision: Precision,
) -> Result<()> {
    let params = params(x_rows, products.iter().map(|(weight, _)| weight.rows).sum())?;
    let features = stream.device().as_cpu().map_or_else(Features::detect, |cpu| cpu.features());
    let layouts = products.map(|(weight, _)| match &weight.form {
        Form::Packed { layout, .. } => layout.clone(),
        Form::Stored(_) => unreachable!("the CPU's weights are packed"),
    });
    let formats = listed(products.iter().map(|(weight, _)| weight.format.to_string()));
    let rows = params.m as usize;
    let reasons =
        listed(layouts.iter().map(|layout| Method::of(layout, features, precision, rows).reason(precision, rows)));
    let mut launch = Launch::new(OP, &params).read(x);
    for (weight, out) in products {
        let Form::Packed { bytes, .. } = &weight.form else { unreachable!("as above") };
        launch = launch.read(bytes).write(out);
    }
    let context = Arc::new(Packed { precision, layouts, strides: strides.map(|stride| stride as usize) });
    let launch = launch.context(&context).flops(flops(&params)).choice(format!("cpu {formats} {features}"), reasons);
    let entry: Entry = float_entry!(x.dtype(), T => run::<T, N>);
    stream.launch(launch, entry, || unreachable!("the stream is the CPU's"))
}

/// What there is among some strings, each once.
fn listed(all: impl Iterator<Item = String>) -> String {
    let mut once: Vec<String> = Vec::new();
    all.for_each(|s| {
        if !once.contains(&s) {
            once.push(s)
        }
    });
    once.join(" and ")
}

/// The CPU form: rows of another type than f32 are widened on the way in and rounded on the way out.
fn run<T: Float, const N: usize>(call: &Call) {
    let p: Params = call.params();
    let packed: &Packed<N> = call.context();
    let (m, k, x_stride) = (p.m as usize, p.k as usize, p.x_stride as usize);
    let product = |x: &[f32], x_stride: usize, outs: [(&mut [f32], usize); N]| {
        let mut outs = outs.into_iter().enumerate();
        let mut factors = std::array::from_fn::<_, N, _>(|_| {
            let (i, (out, stride)) = outs.next().expect("there are as many");
            let layout = &*packed.layouts[i];
            let out = RowsMut::new(out, m, layout.rows(), stride).expect("rows were checked");
            Factor { layout, weight: call.slice::<u8>(1 + 2 * i), rows: 0..m, out }
        });
        let x = cpu::Rows::new(x, m, k, x_stride).expect("rows were checked");
        cpu::matmul(call.pool, call.features, packed.precision, x, &mut factors).expect("shapes were checked");
    };
    let x = call.view::<T>(0);
    // SAFETY: nothing writes x.
    let x = unsafe { x.row(0, x.len()) };
    let outs = std::array::from_fn::<_, N, _>(|i| {
        let out = call.view::<T>(2 + 2 * i);
        // SAFETY: nobody else has this output.
        (unsafe { out.row_mut(0, out.len()) }, packed.strides[i])
    });
    if T::DTYPE == DType::F32 {
        return product(bytemuck::cast_slice(x), x_stride, outs.map(|(out, s)| (bytemuck::cast_slice_mut(out), s)));
    }
    with_scratch(m * (p.n[0] as usize + k), |scratch| {
        let (wide_x, wide_outs) = scratch.split_at_mut(m * k);
        vectorized(
            #[inline(always)]
            || {
                for (row, wide) in wide_x.chunks_exact_mut(k.max(1)).enumerate() {
                    widen(&x[row * x_stride..][..k], wide);
                }
            },
        );
        let mut rest = &mut *wide_outs;
        let wide = packed.layouts.each_ref().map(|layout| {
            let (out, after) = std::mem::take(&mut rest).split_at_mut(m * layout.rows());
            rest = after;
            (out, layout.rows())
        });
        product(wide_x, k, wide);
        let mut rest = &*wide_outs;
        for ((out, stride), layout) in outs.into_iter().zip(&packed.layouts) {
            let n = layout.rows();
            let (wide, after) = rest.split_at(m * n);
            rest = after;
            vectorized(
                #[inline(always)]
                || {
                    for (row, wide) in wide.chunks_exact(n.max(1)).enumerate() {
                        narrow(wide, &mut out[row * stride..][..n]);
                    }
                },
            );
        }
    });
}

const OP: &str = "matmul";

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
        /// Threadgroups along the rows of each weight.
        blocks: [u32; 3],
        code_stride: u32,
        group_size: u32,
        /// Simdgroups that share the columns of a row of the weight.
        splits: u32,
    }
}
