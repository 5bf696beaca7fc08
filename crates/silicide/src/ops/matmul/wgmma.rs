//! Many rows of 16 bits on NVIDIA's Hopper GPUs: the kernel of `wgmma.cu`, behind dequantising to memory where it
//! does not read the format itself.

use bytemuck::Zeroable;

use super::gpu::{self, Product};
use super::{AT_ONCE, OP, Params, Precision, flops, params};
use crate::device::{Gpu, Launch, Stream, TileMap, Tiles};
use crate::kernels::{KernelParams, KernelSource, kernel_params};
use crate::matrix::{Matrix, MatrixFormat};
use crate::ops::Gate;
use crate::ops::check::{Rows, size};
use crate::quant::QuantFormat;
use crate::{DType, Device, DeviceKind, Result, Tensor};

/// Bytes that dequantised rows of one weight may take for a while.
const ROOM: usize = 1 << 30;

/// Whether products go this way: enough rows of x to fill tiles, and to repay dequantising.
pub(super) fn pays(device: &Device, x: &Tensor, x_rows: &Rows, products: &[Product], precision: Precision) -> bool {
    let dense = |m: &Matrix| m.format() == MatrixFormat::Dense(x.dtype());
    // The instructions are those of 9.0 alone, and none that is emulated.
    device.kind() == DeviceKind::Cuda
        && matches!(device.compute_capability(), Some((9, _)))
        && precision == Precision::Reduced
        && x.dtype() != DType::F32
        && x_rows.len > 0
        && x_rows.len.is_multiple_of(gpu::UNIT)
        && x.vectors_align(8)
        // The copy engine wants rows apart, where a broadcast view has one for all.
        && x_rows.stride >= x_rows.len
        && products.iter().all(|Product { matrix, placed }| {
            placed.out.vectors_align(8)
                && match dense(matrix) {
                    true => x_rows.count > 64 && aligned(matrix),
                    false => {
                        (x_rows.count > 64 && in_registers(x, matrix).is_some())
                            || (x_rows.count >= 256 && matrix.rows() * matrix.columns() <= ROOM / 2)
                    }
                }
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
    let (stored, dense) = (products[0].matrix, MatrixFormat::Dense(x.dtype()));
    let codes = in_registers(x, stored);
    let dequantised = match stored.format() == dense || codes.is_some() {
        true => None,
        false => Some(products.iter().map(|p| dequantize(stream, x, x_rows, p.matrix)).collect::<Result<Vec<_>>>()?),
    };
    let weights: Vec<&Matrix> = match &dequantised {
        Some(all) => all.iter().collect(),
        None => products.iter().map(|p| p.matrix).collect(),
    };
    let mut params = gpu::product_params(x_rows, products)?;
    params.blocks = gpu::blocks(&params, 2 * HALF_N, glu);
    let clusters = (stream.device().processors().unwrap_or(2) / 2).max(1);
    let tiles = |tokens: u32| params.blocks.iter().sum::<u32>() * params.m.div_ceil(tokens);
    // Narrow tiles cost more a row of x, which has to pay for dequantising the weight, and leave fewer processors idle in the end.
    let price = if codes.is_some() { 1.35 } else { 1.05 };
    let time = |tokens: u32| (tiles(tokens).div_ceil(clusters) * tokens) as f32;
    let (entry, tokens) = match time(256) <= price * time(128) {
        true => ("matmul_wgmma_256", 256),
        false => ("matmul_wgmma_128", 128),
    };
    // Bytes of a tile's row of the weight.
    let (w_dtype, w_columns, w_row) = match codes {
        Some(Codes { bits, .. }) => (DType::U8, stored.code_stride() as u32, TILE_K * bits / 8),
        None => (x.dtype(), params.k, TILE_K * 2),
    };
    // Rows that a threadgroup's tile has of each weight.
    let of_each = if glu.is_some() { HALF_N / 2 } else { HALF_N };
    let stage = TILE_K * 2 * tokens + HALF_N * w_row;
    let stages = (SHARED - 1024 - OUT) / (stage + 16);
    let mapped = MappedParams {
        x: TileMap::zeroed(),
        weights: [TileMap::zeroed(); AT_ONCE],
        outs: [TileMap::zeroed(); AT_ONCE],
        p: params,
    };
    let tiled = |map, argument, dtype, (rows, columns), stride: usize, (tile_rows, tile_columns)| Tiles {
        map,
        argument,
        dtype,
        rows,
        columns,
        stride: stride as u64,
        tile_rows,
        tile_columns,
    };
    let two = |stride: u32| 2 * stride as usize;
    let x_map = tiled(0, 0, x.dtype(), (params.m, params.k), two(params.x_stride), (tokens / 2, TILE_K));
    let mut launch = gpu::product_launch(&mapped, x, products, weights.iter().copied(), glu).tiles(x_map);
    for (i, weight) in weights.iter().enumerate() {
        let (n, tile) = (params.n[i], (of_each, w_row / w_dtype.size() as u32));
        launch = launch.tiles(tiled(1 + i, 1 + 6 * i, w_dtype, (n, w_columns), weight.code_stride(), tile));
    }
    for (i, product) in products.iter().enumerate().take(if glu.is_some() { 1 } else { AT_ONCE }) {
        let (n, tile) = (params.n[i], (128, of_each / 2));
        launch = launch.tiles(tiled(4 + i, 6 + 6 * i, x.dtype(), (params.m, n), two(product.placed.stride), tile));
    }
    let format = if codes.is_some() { stored.format() } else { dense };
    let launch = launch
        .flops(flops(&params))
        .threadgroup_memory(stages * (stage + 16) + OUT + 1024)
        .cluster(2)
        .choice(format!("{entry} {format}"), "");
    stream.launch(
        launch,
        |_| unreachable!("the stream is a GPU's"),
        || Gpu {
            source: &SOURCE,
            defines: defines(format, x.dtype(), codes.map_or(TILE_K, |c| c.group), stages) + &gpu::function(glu),
            entry: entry.into(),
            threadgroups: [2 * tiles(tokens).min(clusters), 1, 1],
            threads: [384, 1, 1],
        },
    )
}

/// Codes that the kernel dequantises in registers.
#[derive(Clone, Copy)]
struct Codes {
    bits: u32,
    group: u32,
}

/// Codes of 4 or 8 bits whose scales `x`'s type has, so that one 16-bit multiply-add gives what dequantising and rounding
/// would, in rows of whole tiles; or none.
fn in_registers(x: &Tensor, matrix: &Matrix) -> Option<Codes> {
    let MatrixFormat::Quantized(format, scales) = matrix.format() else { return None };
    let bits = match format {
        QuantFormat::Affine { bits: bits @ (4 | 8), .. } if scales == x.dtype() => bits.into(),
        QuantFormat::Nvfp4 => 4,
        QuantFormat::Mxfp4 if x.dtype() == DType::BF16 => 4,
        QuantFormat::Mxfp8 if x.dtype() == DType::BF16 => 8,
        _ => return None,
    };
    let group = format.group_size() as u32;
    let whole = matrix.columns().is_multiple_of(TILE_K.max(group) as usize);
    (whole && aligned(matrix)).then_some(Codes { bits, group })
}

/// Whether the copy engine takes the codes.
fn aligned(matrix: &Matrix) -> bool {
    matrix.codes().byte_range().start.is_multiple_of(16) && matrix.code_stride().is_multiple_of(16)
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

/// Columns of a tile and rows of the weight, bytes of the tiles of the result; `wgmma.cu` has the same.
const TILE_K: u32 = 64;
const HALF_N: u32 = 128;
const OUT: u32 = 2 * 128 * 128;
/// Threadgroup memory of a processor that one threadgroup can have.
const SHARED: u32 = 227 << 10;

fn defines(format: MatrixFormat, scalar: DType, group: u32, stages: u32) -> String {
    let half = if scalar == DType::F16 { "\n#define HALF_TYPES" } else { "" };
    let reader = gpu::defines(&gpu::reader(format), scalar, true);
    format!("{reader}\n#define GROUP_SIZE {group}\n#define STAGES {stages}{half}")
}

/// Every reader of the kernel, for the test that compiles it.
#[cfg(test)]
pub(in crate::ops) fn some_defines() -> std::collections::BTreeSet<String> {
    let affine = |bits, group_size, scales| MatrixFormat::Quantized(QuantFormat::Affine { bits, group_size }, scales);
    DType::FLOATS[1..]
        .iter()
        .flat_map(|&t| {
            let codes =
                [(4, 32), (4, 64), (8, 32), (8, 128)].map(|(bits, group)| (affine(bits, group, t), group.into()));
            let floats = if t == DType::BF16 {
                &[QuantFormat::Mxfp4, QuantFormat::Mxfp8, QuantFormat::Nvfp4][..]
            } else {
                &[QuantFormat::Nvfp4]
            };
            let floats = floats.iter().map(move |&f| (MatrixFormat::Quantized(f, t), f.group_size() as u32));
            [(MatrixFormat::Dense(t), TILE_K)]
                .into_iter()
                .chain(codes)
                .chain(floats)
                .map(move |(f, group)| defines(f, t, group, 4))
        })
        .collect()
}

kernel_params! {
    struct MappedParams {
        x: TileMap,
        weights: [TileMap; 3],
        outs: [TileMap; 3],
        p: Params,
    }
}

pub(in crate::ops) static SOURCE: KernelSource = KernelSource {
    name: "matmul/wgmma.cu",
    params: &[Gate::DECLARATION, Params::DECLARATION, TileMap::DECLARATION, MappedParams::DECLARATION],
    body: include_str!("wgmma.cu"),
};
