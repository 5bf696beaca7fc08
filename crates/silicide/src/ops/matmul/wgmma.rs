//! Many rows of 16 bits on NVIDIA's Hopper GPUs: the weight as dense rows of the same type, then the kernel of `wgmma.cu`.

use super::gpu::{self, PARAMS, Product};
use super::{AT_ONCE, OP, Params, Precision, flops, params};
use crate::device::{Gpu, Launch, Stream};
use crate::kernels::KernelSource;
use crate::matrix::{Matrix, MatrixFormat};
use crate::ops::Gate;
use crate::ops::check::{Rows, size};
use crate::{DType, Device, Result, Tensor};

/// Bytes that dequantised rows of one weight may take for a while.
const ROOM: usize = 1 << 30;

/// Whether products go this way: enough rows of x to fill tiles, and to repay dequantising.
pub(super) fn pays(device: &Device, x: &Tensor, x_rows: &Rows, products: &[Product], precision: Precision) -> bool {
    let aligned = |t: &Tensor| t.byte_range().start.is_multiple_of(16);
    let dense = |m: &Matrix| m.format() == MatrixFormat::Dense(x.dtype());
    // The instructions are those of 9.0 alone.
    matches!(device.compute_capability(), Some((9, _)))
        && precision == Precision::Reduced
        && x.dtype() != DType::F32
        && x_rows.len.is_multiple_of(gpu::UNIT)
        && x.vectors_align(8)
        && products.iter().all(|Product { matrix, .. }| match dense(matrix) {
            true => x_rows.count > 64 && aligned(matrix.codes()) && matrix.code_stride().is_multiple_of(16),
            false => x_rows.count >= 256 && matrix.rows() * matrix.columns() <= ROOM / 2,
        })
}

/// The products, of weights of one format, `AT_ONCE` of them at most.
pub(super) fn launch(
    stream: &mut Stream,
    x: &Tensor,
    x_rows: &Rows,
    products: &[Product],
    glu: Option<Gate>,
) -> Result<()> {
    let format = products[0].matrix.format();
    let dense = MatrixFormat::Dense(x.dtype());
    let dequantised = match format == dense {
        true => None,
        false => Some(products.iter().map(|p| dequantize(stream, x, x_rows, p.matrix)).collect::<Result<Vec<_>>>()?),
    };
    let weights: Vec<&Matrix> = match &dequantised {
        Some(all) => all.iter().collect(),
        None => products.iter().map(|p| p.matrix).collect(),
    };
    let code_stride = size(OP, "weight", weights[0].code_stride())?;
    let mut params = Params { code_stride, ..gpu::product_params(x_rows, products)? };
    let down = params.m.div_ceil(TILE_M);
    let across = |width: u32| gpu::blocks(&params, width, glu);
    // Wide tiles read less, as long as there are enough of them for most of the processors.
    let wide = down * across(256).iter().sum::<u32>() >= 96;
    let (entry, width) = if wide { ("matmul_wgmma_256", 256) } else { ("matmul_wgmma_128", 128) };
    params.blocks = across(width);
    let launch = gpu::product_launch(&params, x, products, weights, glu)
        .flops(flops(&params))
        .threadgroup_memory(STAGES * (TILE_M + width) * TILE_K * 2 + 1024)
        .choice(format!("{entry} {dense}"), "");
    stream.launch(
        launch,
        |_| unreachable!("the stream is a GPU's"),
        || Gpu {
            source: &SOURCE,
            defines: defines(x.dtype()) + &gpu::function(glu),
            entry: entry.into(),
            threadgroups: [params.blocks.iter().sum(), down, 1],
            threads: [256, 1, 1],
        },
    )
}

/// The weight as rows of `x`'s type, in the stream's memory.
fn dequantize(stream: &mut Stream, x: &Tensor, x_rows: &Rows, matrix: &Matrix) -> Result<Matrix> {
    let out = stream.empty(x.dtype(), [matrix.rows(), matrix.columns()])?;
    let gpu::MatrixParts { defines, group_size } = gpu::parts(matrix, x.dtype(), true);
    let mut params =
        Params { code_stride: size(OP, "weight", matrix.code_stride())?, group_size, ..params(x_rows, 0)? };
    params.n[0] = size(OP, "weight", matrix.rows())?;
    let mut launch = Launch::new(OP, &params)
        .read(x)
        .read(matrix.codes())
        .read_optional(matrix.scales())
        .read_optional(matrix.biases())
        .read_optional(None)
        .read_optional(None)
        .write(&out);
    for _ in 6..6 * AT_ONCE {
        launch = launch.read_optional(None);
    }
    let launch = launch
        .reads_bytes(matrix.bytes())
        .choice(format!("matmul_dequantize {}", matrix.format()), "the tensor cores of Hopper take dense tiles");
    let units = params.n[0] * (params.k / gpu::UNIT);
    stream.launch(
        launch,
        |_| unreachable!("the stream is a GPU's"),
        || Gpu {
            source: &gpu::NVIDIA,
            defines,
            entry: "matmul_dequantize".into(),
            threadgroups: [units.div_ceil(1024), 1, 1],
            threads: [256, 1, 1],
        },
    )?;
    Matrix::from_tensor(&out)
}

/// Rows of x, columns and stages of a tile; `wgmma.cu` has the same.
const TILE_M: u32 = 128;
const TILE_K: u32 = 64;
const STAGES: u32 = 4;

pub(in crate::ops) fn defines(scalar: DType) -> String {
    let half = if scalar == DType::F16 { "\n#define HALF" } else { "" };
    gpu::defines(&gpu::reader(MatrixFormat::Dense(scalar)), scalar, true) + half
}

pub(in crate::ops) static SOURCE: KernelSource =
    KernelSource { name: "matmul/wgmma.cu", params: PARAMS, body: include_str!("wgmma.cu") };
