//! The forms for GPUs.

use super::{AT_ONCE, Form, GLU, OP, Params, Placed, Precision, few, flops, groups, one, params, wgmma};
use crate::device::{Gpu, Launch, Stream};
use crate::kernels::{KernelParams, KernelSource};
use crate::matrix::{Matrix, MatrixFormat};
use crate::ops::Gate;
use crate::ops::check::{Rows, size};
use crate::quant::QuantFormat;
use crate::{DType, Device, Result, Tensor};

/// A product, and its weight's matrix.
#[derive(Clone, Copy)]
pub(super) struct Product<'a> {
    pub(super) matrix: &'a Matrix,
    pub(super) placed: &'a Placed<'a>,
}

impl<'a> Product<'a> {
    pub(super) fn new(placed: &'a Placed<'a>) -> Product<'a> {
        let Form::Stored(matrix) = &placed.weight.form else { unreachable!("a GPU's weights are stored") };
        Product { matrix, placed }
    }
}

/// The parameters of a launch of some products, all but those of its form.
pub(super) fn product_params(x_rows: &Rows, products: &[Product]) -> Result<Params> {
    let mut params = params(x_rows, 0)?;
    for (i, Product { matrix, placed }) in products.iter().enumerate() {
        params.n[i] = size(OP, "weight", matrix.rows())?;
        params.out_stride[i] = placed.stride;
        params.residual_stride[i] = placed.residual_stride;
        params.has_bias[i] = placed.bias.is_some().into();
        params.has_residual[i] = placed.residual.is_some().into();
    }
    Ok(params)
}

/// A launch of some products, with matrices beside them that kernels read as their weights.
pub(super) fn product_launch<'a, P: KernelParams>(
    params: &P,
    x: &Tensor,
    products: &[Product<'a>],
    matrices: impl IntoIterator<Item = &'a Matrix>,
    glu: Option<Gate>,
) -> Launch {
    let mut launch = Launch::new(if glu.is_some() { GLU } else { OP }, params).read_apart_optional(Some(x));
    let mut matrices = matrices.into_iter();
    for i in 0..AT_ONCE {
        let matrix = matrices.next();
        for part in [matrix.map(Matrix::codes), matrix.and_then(Matrix::scales), matrix.and_then(Matrix::biases)] {
            launch = launch.read_apart_optional(part);
        }
        launch = match products.get(i) {
            Some(Product { placed, .. }) if glu.is_none() || i == 0 => placed.bind_out(placed.bind_added(launch)),
            _ => (0..3).fold(launch, |launch, _| launch.read_optional(None)),
        };
    }
    launch
}

/// Threadgroups along the rows of each weight, where one has `rows` of them, or half as many of both.
pub(super) fn blocks(params: &Params, rows: u32, glu: Option<Gate>) -> [u32; AT_ONCE] {
    match glu {
        None => params.n.map(|n| n.div_ceil(rows)),
        Some(_) => [params.n[0].div_ceil(rows / 2), 0, 0],
    }
}

/// The line that has a kernel take two weights in turn.
pub(super) fn function(glu: Option<Gate>) -> String {
    glu.map_or_else(String::new, |gate| gate.define())
}

/// Products of one `x`: as many in a launch as have one format.
pub(super) fn launch(
    stream: &mut Stream,
    x: &Tensor,
    x_rows: &Rows,
    products: &[Product],
    glu: Option<Gate>,
    precision: Precision,
) -> Result<()> {
    let alike = |a: &Product, b: &Product| a.matrix.format() == b.matrix.format();
    for run in products.chunk_by(alike).flat_map(|run| run.chunks(AT_ONCE)) {
        launch_run(stream, x, x_rows, run, glu, precision)?;
    }
    Ok(())
}

fn launch_run(
    stream: &mut Stream,
    x: &Tensor,
    x_rows: &Rows,
    products: &[Product],
    glu: Option<Gate>,
    precision: Precision,
) -> Result<()> {
    if wgmma::pays(stream.device(), x, x_rows, products, precision) {
        return wgmma::launch(stream, x, x_rows, products, glu);
    }
    let matrix = products[0].matrix;
    let whole = x_rows.len.is_multiple_of(UNIT) && x.vectors_align(4);
    let MatrixParts { defines, group_size } = parts(matrix, x.dtype(), whole);
    let code_stride = size(OP, "weight", matrix.code_stride())?;
    let mut params = Params { code_stride, group_size, ..product_params(x_rows, products)? };
    let (form, why) = match tensor_cores(stream.device(), x, whole, &params, products, precision) {
        Ok(form) => (form, ""),
        Err(why) => (GpuForm::of(&params), why),
    };
    params.splits = form.splits;
    params.blocks = blocks(&params, form.rows, glu);
    let launch = product_launch(&params, x, products, products.iter().map(|product| product.matrix), glu)
        .flops(flops(&params))
        .threadgroup_memory(form.threadgroup_memory)
        .choice(format!("{} {}", form.entry, matrix.format()), why);
    stream.launch(
        launch,
        |_| unreachable!("the stream is a GPU's"),
        || Gpu {
            source: form.source,
            defines: defines + &function(glu),
            entry: form.entry.into(),
            threadgroups: [params.blocks.iter().sum::<u32>().min(form.at_most), params.m.div_ceil(form.tokens), 1],
            threads: [form.threads, 1, 1],
        },
    )
}

/// An entry point of the kernel, and how much of the result one of its threadgroups computes.
pub(super) struct GpuForm {
    pub(super) source: &'static KernelSource,
    pub(super) entry: &'static str,
    /// Output features; of a block of the parameters, where a threadgroup takes several.
    pub(super) rows: u32,
    /// Rows of `x`.
    pub(super) tokens: u32,
    pub(super) threads: u32,
    /// Simdgroups that share the columns of a row of the weight.
    pub(super) splits: u32,
    /// Beside what the kernel declares.
    pub(super) threadgroup_memory: u32,
    /// Threadgroups along the output features, which share their blocks.
    pub(super) at_most: u32,
}

impl GpuForm {
    fn of(p: &Params) -> GpuForm {
        let splits = splits(p.n.iter().sum(), p.k);
        let few = |entry, tokens| GpuForm {
            source: &SOURCE,
            entry,
            rows: ROWS * SIMDGROUPS / splits,
            tokens,
            threads: 32 * SIMDGROUPS,
            splits,
            threadgroup_memory: 0,
            at_most: u32::MAX,
        };
        // A tile computes 32 rows of x whether they are there or not; half of them pay for it.
        match p.m {
            1 => few("matmul_one", 1),
            2..=16 => few("matmul_few", 4),
            _ => GpuForm { entry: "matmul_tiled", rows: 64, tokens: 32, threads: 128, splits: 1, ..few("", 0) },
        }
    }

    /// The form of `kernel.cu` for many rows of `x`.
    fn tensor_many(p: &Params) -> GpuForm {
        // Larger tiles read less, as long as there are enough of them for all processors.
        let tiles: u32 = p.n.iter().map(|n| n.div_ceil(128)).sum();
        let large = p.m.div_ceil(128) * tiles >= 132;
        let (entry, tokens) = if large { ("matmul_tensor_128", 128) } else { ("matmul_tensor_64", 64) };
        GpuForm {
            source: &NVIDIA,
            entry,
            rows: 128,
            tokens,
            threads: 256,
            splits: 1,
            threadgroup_memory: 0,
            at_most: u32::MAX,
        }
    }
}

/// Rows of the weight that a simdgroup computes where there are few rows of `x`, and simdgroups of a threadgroup;
/// `kernels/product.h` has the same.
pub(in crate::ops) const ROWS: u32 = 2;
pub(in crate::ops) const SIMDGROUPS: u32 = 8;

/// How many simdgroups share the columns of a row where there are few rows of `x`, of `n` weight rows of `k`.
pub(in crate::ops) fn splits(n: u32, k: u32) -> u32 {
    // So many simdgroups keep a large GPU's memory busy. Each lane must find a unit of its own.
    const ENOUGH: u32 = 4096;
    let wanted = (ENOUGH * ROWS).div_ceil(n.max(1)).next_power_of_two();
    wanted.min(k.div_ceil(UNIT * 32).next_power_of_two()).min(SIMDGROUPS)
}

/// The form of `kernel.cu` that takes the product, or why none does.
fn tensor_cores(
    device: &Device,
    x: &Tensor,
    whole: bool,
    p: &Params,
    products: &[Product],
    precision: Precision,
) -> Result<GpuForm, &'static str> {
    if !device.takes_nvidia_kernels() {
        return Err("");
    }
    if x.dtype() == DType::F32 {
        return Err("tensor cores take 16 bits, and x is f32");
    }
    if !whole || !x.vectors_align(8) {
        return Err("tensor cores want rows of x that are aligned to 16 bytes");
    }
    let form = one::form(device, x.dtype(), p, products)
        .or_else(|| few::form(device, p, products))
        .or_else(|| groups::form(device, x.dtype(), p, products));
    if let Some(form) = form {
        return Ok(form);
    }
    // GGUF's blocks take longer to read in tiles of few rows than their products take otherwise.
    let few =
        if matches!(products[0].matrix.format(), MatrixFormat::Quantized(QuantFormat::Ggml(_), _)) { 16 } else { 8 };
    match precision {
        _ if p.m <= few => Err("for few rows of x tensor cores want elements that 16 bits hold, in aligned rows"),
        Precision::F32 => Err("tensor cores would round the weight to 16 bits"),
        Precision::Reduced => Ok(GpuForm::tensor_many(p)),
    }
}

/// Elements that a kernel's reader gives at once.
pub(in crate::ops) const UNIT: u32 = 16;

/// What a kernel that reads a stored matrix is compiled with.
pub(in crate::ops) struct MatrixParts {
    /// Names the reader in `kernels/matrix.h` and the type of the other tensors.
    pub(in crate::ops) defines: String,
    pub(in crate::ops) group_size: u32,
}

/// How `kernels/matrix.h` reads this matrix, beside tensors of `scalar`; `whole` says that rows are whole units and that
/// vectors of four lie aligned.
pub(in crate::ops) fn parts(matrix: &Matrix, scalar: DType, whole: bool) -> MatrixParts {
    let group_size = match matrix.format() {
        MatrixFormat::Dense(_) => 0,
        MatrixFormat::Quantized(format, _) => format.group_size() as u32,
    };
    MatrixParts { defines: defines(&reader(matrix.format()), scalar, whole), group_size }
}

/// The reader of a format in `kernels/matrix.h`.
pub(in crate::ops) fn reader(format: MatrixFormat) -> String {
    match format {
        MatrixFormat::Dense(dtype) => format!("Dense<{}>", dtype.msl()),
        MatrixFormat::Quantized(QuantFormat::Affine { bits, .. }, dtype) => format!("Affine<{bits}, {}>", dtype.msl()),
        MatrixFormat::Quantized(QuantFormat::Mxfp4, _) => "Mxfp4".into(),
        MatrixFormat::Quantized(QuantFormat::Mxfp8, _) => "Mxfp8".into(),
        MatrixFormat::Quantized(QuantFormat::Nvfp4, _) => "Nvfp4".into(),
        MatrixFormat::Quantized(QuantFormat::Ggml(format), _) => format!("Blocks<{}>", format.name()),
    }
}

pub(in crate::ops) fn defines(reader: &str, scalar: DType, whole: bool) -> String {
    format!("#define MATRIX {reader}\n#define SCALAR {}\n#define WHOLE {whole}", scalar.msl())
}

/// What the kernels of products are declared with.
pub(super) const PARAMS: &[&str] = &[Gate::DECLARATION, Params::DECLARATION];

pub(in crate::ops) static SOURCE: KernelSource =
    KernelSource { name: "matmul", params: PARAMS, body: include_str!("kernel.metal") };

/// What NVIDIA GPUs have of their own.
pub(in crate::ops) static NVIDIA: KernelSource =
    KernelSource { name: "matmul/kernel.cu", params: PARAMS, body: include_str!("kernel.cu") };
