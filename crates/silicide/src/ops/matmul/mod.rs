//! Products with a weight matrix, dense or quantised.

pub mod cpu;
#[cfg(test)]
pub(super) mod tests;

use std::fmt;
use std::sync::Arc;

pub use self::cpu::Precision;
use self::cpu::{DenseView, Factor, Method, PackLayout, RowsMut};
use crate::device::cpu::scratch::with_scratch;
use crate::device::cpu::vector::{narrow, vectorized, widen};
use crate::device::cpu::{Call, Entry, Features};
use crate::device::{Gpu, Launch, Stream};
use crate::kernels::{KernelParams, KernelSource, kernel_params};
use crate::matrix::{Matrix, MatrixFormat};
use crate::ops::check::{Rows, check, float_entry, size};
use crate::quant::{QuantFormat, QuantView};
use crate::{DType, Device, DeviceKind, Error, Float, Result, Tensor};

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
/// `x`'s type. Sums are f32. `precision` says whether the CPU may round activations; GPUs never round further than `x`'s
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
    products.into_iter().zip(strides).filter(|((weight, _), _)| weight.rows > 0).try_for_each(
        |((weight, out), stride)| {
            let Form::Stored(matrix) = &weight.form else { unreachable!("a GPU's weights are stored") };
            launch_on_gpu(stream, x, &x_rows, matrix, out, stride, precision)
        },
    )
}

/// The parameters for the rows of `x` with weights of `n` rows in all.
fn params(x: &Rows, n: usize) -> Result<Params> {
    Ok(Params {
        code_stride: 0,
        m: x.count,
        n: size(OP, "weight", n)?,
        k: x.len,
        x_stride: x.stride,
        out_stride: 0,
        group_size: 0,
        splits: 1,
    })
}

fn flops(p: &Params) -> usize {
    2 * p.m as usize * p.n as usize * p.k as usize
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

fn launch_on_gpu(
    stream: &mut Stream,
    x: &Tensor,
    x_rows: &Rows,
    matrix: &Matrix,
    out: &Tensor,
    out_stride: u32,
    precision: Precision,
) -> Result<()> {
    let whole = x_rows.len.is_multiple_of(UNIT) && x.vectors_align(4);
    let MatrixParts { defines, group_size } = parts(matrix, x.dtype(), whole);
    let plain = params(x_rows, matrix.rows())?;
    let (tensor, why) = tensor_cores(stream.device(), x, whole, plain.m, precision);
    let form = if tensor { GpuForm::tensor_cores(&plain) } else { GpuForm::of(&plain) };
    let params = Params {
        code_stride: size(OP, "weight", matrix.code_stride())?,
        out_stride,
        group_size,
        splits: form.splits,
        ..plain
    };
    let launch = Launch::new(OP, &params)
        .read(x)
        .read(matrix.codes())
        .read_optional(matrix.scales())
        .read_optional(matrix.biases())
        .write(out)
        .flops(flops(&params))
        .choice(format!("{} {}", form.entry, matrix.format()), why);
    stream.launch(
        launch,
        |_| unreachable!("the stream is a GPU's"),
        || Gpu {
            source: form.source,
            defines,
            entry: form.entry.into(),
            threadgroups: [params.n.div_ceil(form.rows), params.m.div_ceil(form.tokens), 1],
            threads: [form.threads, 1, 1],
        },
    )
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
    with_scratch(m * (p.n as usize + k), |scratch| {
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

/// An entry point of the kernel, and how much of the result one of its threadgroups computes.
struct GpuForm {
    source: &'static KernelSource,
    entry: &'static str,
    /// Output features.
    rows: u32,
    /// Rows of `x`.
    tokens: u32,
    threads: u32,
    /// Simdgroups that share the columns of a row of the weight.
    splits: u32,
}

impl GpuForm {
    fn of(p: &Params) -> GpuForm {
        let splits = splits(p.n, p.k);
        let few = |entry, tokens| GpuForm {
            source: &SOURCE,
            entry,
            rows: ROWS * SIMDGROUPS / splits,
            tokens,
            threads: 32 * SIMDGROUPS,
            splits,
        };
        // A tile computes 32 rows of x whether they are there or not; half of them pay for it.
        match p.m {
            1 => few("matmul_one", 1),
            2..=16 => few("matmul_few", 4),
            _ => GpuForm { source: &SOURCE, entry: "matmul_tiled", rows: 64, tokens: 32, threads: 128, splits: 1 },
        }
    }

    /// The form of `kernel.cu`.
    fn tensor_cores(p: &Params) -> GpuForm {
        // Larger tiles read less, as long as there are enough of them for all processors.
        let large = p.m.div_ceil(128) * p.n.div_ceil(128) >= 132;
        let (entry, tokens) = if large { ("matmul_tensor_128", 128) } else { ("matmul_tensor_64", 64) };
        GpuForm { source: &NVIDIA, entry, rows: 128, tokens, threads: 256, splits: 1 }
    }
}

/// Rows of the weight that a simdgroup computes where there are few rows of `x`, and simdgroups of a threadgroup;
/// `kernels/product.h` has the same.
pub(super) const ROWS: u32 = 2;
pub(super) const SIMDGROUPS: u32 = 8;

/// How many simdgroups share the columns of a row where there are few rows of `x`, of `n` weight rows of `k`.
pub(super) fn splits(n: u32, k: u32) -> u32 {
    // So many simdgroups keep a large GPU's memory busy. Each lane must find a unit of its own.
    const ENOUGH: u32 = 4096;
    let wanted = (ENOUGH * ROWS).div_ceil(n.max(1)).next_power_of_two();
    wanted.min(k.div_ceil(UNIT * 32).next_power_of_two()).min(SIMDGROUPS)
}

/// Whether `kernel.cu` takes the product, and why it does or does not.
fn tensor_cores(device: &Device, x: &Tensor, whole: bool, m: u32, precision: Precision) -> (bool, &'static str) {
    if device.kind() != DeviceKind::Cuda || m <= 16 {
        return (false, "");
    }
    match x.dtype() {
        DType::F32 => (false, "tensor cores take 16 bits, and x is f32"),
        _ if precision == Precision::F32 => (false, "tensor cores would round the weight to 16 bits"),
        _ if !whole || !x.vectors_align(8) => (false, "rows of x are not aligned to 16 bytes"),
        _ => (true, "tensor cores, which the weight is rounded for"),
    }
}

/// Elements that a kernel's reader gives at once.
pub(super) const UNIT: u32 = 16;

/// What a kernel that reads a stored matrix is compiled with.
pub(crate) struct MatrixParts {
    /// Names the reader in `kernels/matrix.h` and the type of the other tensors.
    pub(crate) defines: String,
    pub(crate) group_size: u32,
}

/// How `kernels/matrix.h` reads this matrix, beside tensors of `scalar`; `whole` says that rows are whole units and that
/// vectors of four lie aligned.
pub(crate) fn parts(matrix: &Matrix, scalar: DType, whole: bool) -> MatrixParts {
    let group_size = match matrix.format() {
        MatrixFormat::Dense(_) => 0,
        MatrixFormat::Quantized(format, _) => format.group_size() as u32,
    };
    MatrixParts { defines: defines(&reader(matrix.format()), scalar, whole), group_size }
}

/// The reader of a format in `kernels/matrix.h`.
pub(super) fn reader(format: MatrixFormat) -> String {
    match format {
        MatrixFormat::Dense(dtype) => format!("Dense<{}>", dtype.msl()),
        MatrixFormat::Quantized(QuantFormat::Affine { bits, .. }, dtype) => format!("Affine<{bits}, {}>", dtype.msl()),
        MatrixFormat::Quantized(QuantFormat::Mxfp4, _) => "Mxfp4".into(),
        MatrixFormat::Quantized(QuantFormat::Mxfp8, _) => "Mxfp8".into(),
        MatrixFormat::Quantized(QuantFormat::Nvfp4, _) => "Nvfp4".into(),
        MatrixFormat::Quantized(QuantFormat::Ggml(format), _) => format!("Blocks<{}>", format.name()),
    }
}

pub(super) fn defines(reader: &str, scalar: DType, whole: bool) -> String {
    format!("#define MATRIX {reader}\n#define SCALAR {}\n#define WHOLE {whole}", scalar.msl())
}

const OP: &str = "matmul";

kernel_params! {
    /// `x` is m rows of k, the weight n rows of k; strides in elements, the weight's in bytes.
    struct Params {
        code_stride: u32,
        m: u32,
        n: u32,
        k: u32,
        x_stride: u32,
        out_stride: u32,
        group_size: u32,
        /// Simdgroups that share the columns of a row of the weight.
        splits: u32,
    }
}

pub(super) static SOURCE: KernelSource =
    KernelSource { name: "matmul", params: &[Params::DECLARATION], body: include_str!("kernel.metal") };

/// What NVIDIA GPUs have of their own.
pub(super) static NVIDIA: KernelSource =
    KernelSource { name: "matmul/kernel.cu", params: &[Params::DECLARATION], body: include_str!("kernel.cu") };
