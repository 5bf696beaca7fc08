//! More than a few rows of 16 bits on NVIDIA's Hopper GPUs: the kernel of `wgmma.cu`, behind dequantising to memory where it
//! does not read the rows themselves.

use bytemuck::Zeroable;

use super::gpu::{self, Product};
use super::{AT_ONCE, OP, Params, Precision, few, flops, params};
use crate::device::{Gpu, Launch, Stream, TileMap, Tiles};
use crate::kernels::{KernelParams, KernelSource, kernel_params};
use crate::matrix::{Matrix, MatrixFormat};
use crate::ops::Gate;
use crate::ops::check::{Rows, size};
use crate::quant::{GgmlFormat, QuantFormat};
use crate::{DType, Device, DeviceKind, Result, Tensor};

/// Bytes that dequantised rows of one weight may take for a while.
const ROOM: usize = 1 << 30;

/// Whether products go this way: more rows of x than the forms for few take, which repay even dequantising to memory.
pub(super) fn pays(device: &Device, x: &Tensor, x_rows: &Rows, products: &[Product], precision: Precision) -> bool {
    let dense = |m: &Matrix| m.format() == MatrixFormat::Dense(x.dtype());
    // The instructions are those of 9.0 alone, and none that is emulated.
    device.kind() == DeviceKind::Cuda
        && device.takes_nvidia_kernels()
        && matches!(device.compute_capability(), Some((9, _)))
        && precision == Precision::Reduced
        && x.dtype() != DType::F32
        && x_rows.count > few::MOST
        && x_rows.len > 0
        && x_rows.len.is_multiple_of(gpu::UNIT)
        && x.vectors_align(8)
        // The copy engine wants rows apart, where a broadcast view has one for all.
        && x_rows.stride >= x_rows.len
        && products.iter().all(|Product { matrix, placed }| {
            placed.out.vectors_align(8)
                && match dense(matrix) {
                    true => aligned(matrix),
                    false => in_registers(x, matrix).is_some() || matrix.rows() * matrix.columns() <= ROOM / 2,
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
    let format = if codes.is_some() { stored.format() } else { dense };
    let dequantised = match stored.format() == format {
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
    // Narrow tiles cost more a row of x, which has to pay for dequantising the weight, and leave fewer processors idle in
    // the end, for which the last of wide tiles are narrow too where that fills the processors.
    let price = if codes.is_some() { 1.35 } else { 1.05 };
    let (rounds, rest) = (tiles(256) / clusters, tiles(256) % clusters);
    let halves = rest > 0 && 2 * rest <= clusters;
    // In rounds of narrow tiles.
    let last = match rest {
        0 => 0.0,
        _ if halves => price,
        _ => 2.0,
    };
    let wide = ((2 * rounds) as f32 + last) < price * tiles(128).div_ceil(clusters) as f32;
    // Narrower yet where each is the only one of its cluster. Clusters of several pairs, which share the columns, find room on three
    // quarters of the processors.
    let (entry, tokens) = match tiles(64) <= clusters {
        true => ("matmul_wgmma_64", 64),
        false if wide => ("matmul_wgmma_256", 256),
        false => ("matmul_wgmma_128", 128),
    };
    let fits = |splits: &u32| 4 * tiles(64) * splits <= 3 * clusters && params.k >= LEAST_SHARE * splits;
    let splits = [4, 3, 2].into_iter().find(fits).unwrap_or(1);
    let pieces = tiles(tokens) + if tokens == 256 && halves { rest } else { 0 };
    // What a row of the weight and of a tile is to the copy engine, of which blocks are pairs of bytes.
    let stride = stored.code_stride() as u32;
    let (w_dtype, w_columns, w_tile) = match codes {
        Some(Codes::Apart { bits, .. }) => (DType::U8, stride, TILE_K * bits / 8),
        Some(Codes::Blocks { pitch, .. }) => (x.dtype(), stride / 2, pitch / 2),
        None => (x.dtype(), params.k, TILE_K),
    };
    // Rows that a threadgroup's tile has of each weight.
    let of_each = if glu.is_some() { HALF_N / 2 } else { HALF_N };
    // Bytes of tiles of the weight that come with those of x, and less often.
    let (w_bytes, slabs) = match codes {
        Some(Codes::Blocks { pitch, .. }) => (0, SLABS * (HALF_N * pitch + 16)),
        _ => (HALF_N * w_tile * w_dtype.size() as u32, 0),
    };
    let stage = TILE_K * 2 * tokens + w_bytes;
    let stages = (SHARED - 1024 - OUT - slabs) / (stage + 16);
    params.splits = splits;
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
        let (n, tile) = (params.n[i], (of_each, w_tile));
        launch = launch.tiles(tiled(1 + i, 1 + 6 * i, w_dtype, (n, w_columns), weight.code_stride(), tile));
    }
    for (i, product) in products.iter().enumerate().take(if glu.is_some() { 1 } else { AT_ONCE }) {
        let (n, tile) = (params.n[i], (tokens.min(128), of_each / 2));
        launch = launch.tiles(tiled(4 + i, 6 + 6 * i, x.dtype(), (params.m, n), two(product.placed.stride), tile));
    }
    let launch = launch
        .flops(flops(&params))
        .threadgroup_memory(stages * (stage + 16) + slabs + OUT + 1024)
        .cluster(2 * splits)
        .choice(format!("{entry} {format}"), "");
    stream.launch(
        launch,
        |_| unreachable!("the stream is a GPU's"),
        || Gpu {
            source: &SOURCE,
            defines: defines(format, x.dtype(), codes, stages) + &gpu::function(glu),
            entry: entry.into(),
            threadgroups: [2 * splits * pieces.min(clusters), 1, 1],
            threads: [384, 1, 1],
        },
    )
}

/// Codes that the kernel dequantises in registers.
#[derive(Clone, Copy)]
enum Codes {
    /// Of so many bits, so many of which share a scale.
    Apart { bits: u32, group: u32 },
    /// With their scales, in slabs of so many columns, and the bytes that a slab's row has in threadgroup memory.
    Blocks { columns: u32, pitch: u32 },
}

/// Codes that have a way through registers, in rows of whole tiles, or none: blocks, and codes of 4 or 8 bits whose scales `x`'s
/// type has, so that one 16-bit multiply-add gives what dequantising and rounding would.
fn in_registers(x: &Tensor, matrix: &Matrix) -> Option<Codes> {
    let MatrixFormat::Quantized(format, scales) = matrix.format() else { return None };
    let group = format.group_size() as u32;
    let codes = match format {
        QuantFormat::Affine { bits: bits @ (4 | 8), .. } if scales == x.dtype() => {
            Codes::Apart { bits: bits.into(), group }
        }
        QuantFormat::Nvfp4 => Codes::Apart { bits: 4, group },
        QuantFormat::Mxfp4 if x.dtype() == DType::BF16 => Codes::Apart { bits: 4, group },
        QuantFormat::Mxfp8 if x.dtype() == DType::BF16 => Codes::Apart { bits: 8, group },
        QuantFormat::Ggml(ggml) if x.dtype() == DType::BF16 && !has_minimum(ggml) => {
            // Where blocks begin anywhere the copy engine begins with up to seven pairs of bytes more.
            let columns = ggml.block_elements().max(128);
            let bytes = format.row_bytes(columns) as u32;
            let bytes = if bytes.is_multiple_of(16) { bytes } else { bytes + 14 };
            Codes::Blocks { columns: columns as u32, pitch: 16 * (bytes.div_ceil(16) | 1) }
        }
        _ => return None,
    };
    let columns = match codes {
        Codes::Apart { group, .. } => TILE_K.max(group),
        Codes::Blocks { columns, .. } => columns,
    };
    let whole = matrix.columns().is_multiple_of(columns as usize);
    (whole && aligned(matrix)).then_some(codes)
}

/// Whether elements are more than products of a code and a scale.
fn has_minimum(format: GgmlFormat) -> bool {
    use GgmlFormat::*;
    match format {
        Q4_1 | Q5_1 | Q2_K | Q4_K | Q5_K => true,
        Q4_0 | Q5_0 | Q8_0 | Q3_K | Q6_K | IQ4_NL | IQ4_XS => false,
    }
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

/// Columns of a tile and rows of the weight, bytes of the tiles of the result, tiles of blocks; `wgmma.cu` has the same.
const TILE_K: u32 = 64;
const HALF_N: u32 = 128;
const OUT: u32 = 2 * 128 * 128;
const SLABS: u32 = 2;
/// Columns of a row that are worth a share.
const LEAST_SHARE: u32 = 512;
/// Threadgroup memory of a processor that one threadgroup can have.
const SHARED: u32 = 227 << 10;

fn defines(format: MatrixFormat, scalar: DType, codes: Option<Codes>, stages: u32) -> String {
    let half = if scalar == DType::F16 { "\n#define HALF_TYPES" } else { "" };
    let reader = gpu::defines(&gpu::reader(format), scalar, true);
    let group = match codes {
        Some(Codes::Apart { group, .. }) => group,
        _ => TILE_K,
    };
    format!("{reader}\n#define GROUP_SIZE {group}\n#define STAGES {stages}{half}")
}

/// Every reader of the kernel, for the test that compiles it.
#[cfg(test)]
pub(in crate::ops) fn some_defines() -> std::collections::BTreeSet<String> {
    let apart = |format: QuantFormat, bits| (format, Some(Codes::Apart { bits, group: format.group_size() as u32 }));
    let affine = |bits, group_size| apart(QuantFormat::Affine { bits, group_size }, bits.into());
    let of = |scalar: DType| {
        let blocks = GgmlFormat::ALL.iter().filter(move |&&format| scalar == DType::BF16 && !has_minimum(format));
        let blocks = blocks.map(|&format| (QuantFormat::Ggml(format), Some(Codes::Blocks { columns: 0, pitch: 0 })));
        let floats = [apart(QuantFormat::Nvfp4, 4), apart(QuantFormat::Mxfp4, 4), apart(QuantFormat::Mxfp8, 8)];
        let floats = &floats[..if scalar == DType::BF16 { 3 } else { 1 }];
        let codes = [affine(4, 32), affine(4, 64), affine(8, 32), affine(8, 128)];
        let codes = codes.into_iter().chain(floats.to_vec()).chain(blocks);
        let codes = codes.map(move |(format, codes)| (MatrixFormat::Quantized(format, scalar), codes));
        codes.chain([(MatrixFormat::Dense(scalar), None)]).map(move |(format, codes)| defines(format, scalar, codes, 4))
    };
    DType::FLOATS[1..].iter().flat_map(|&scalar| of(scalar)).collect()
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
