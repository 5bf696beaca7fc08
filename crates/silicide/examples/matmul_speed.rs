//! How fast the CPU packs and multiplies weights: `cargo run --release -p silicide --example matmul_speed [THREADS] [FILTER]`.
//!
//! Times are the shortest of many runs. Decode runs through copies of a weight that together exceed the caches, as the
//! layers of a model do; `read` is what the same threads read of such a set in the same run.

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use silicide::DType;
use silicide::device::cpu::{Features, Pool};
use silicide::ops::matmul::cpu::{DenseView, Factor, PackLayout, Precision, Rows, RowsMut, matmul};
use silicide::quant::{GgmlFormat, QuantFormat, QuantView};

/// Bytes of weights that a decode measurement goes through: more than the caches hold.
const SET: usize = 160 << 20;

fn main() {
    let mut args = std::env::args().skip(1);
    let threads = args.next().map_or(2, |t| t.parse().expect("a number of threads"));
    let filter = args.next().unwrap_or_default();
    let pool = Pool::new(threads);
    println!("{} threads, best level {}", pool.threads(), Features::detect());
    println!("read: {:.1} GB/s", read_bandwidth(&pool) / 1e9);

    let affine = |bits, group_size| QuantFormat::Affine { bits, group_size };
    let ggml = QuantFormat::Ggml;
    let quantized = |f| PackLayoutOf::Quantized(f);
    let formats = [
        quantized(affine(4, 64)),
        quantized(affine(4, 32)),
        quantized(affine(8, 64)),
        quantized(ggml(GgmlFormat::Q4_0)),
        quantized(ggml(GgmlFormat::Q8_0)),
        PackLayoutOf::Dense(DType::BF16),
        PackLayoutOf::Dense(DType::F32),
        PackLayoutOf::Dense(DType::F16),
        quantized(affine(2, 64)),
        quantized(affine(3, 64)),
        quantized(affine(5, 64)),
        quantized(affine(6, 64)),
        quantized(QuantFormat::Mxfp4),
        quantized(QuantFormat::Mxfp8),
        quantized(QuantFormat::Nvfp4),
        quantized(ggml(GgmlFormat::Q4_K)),
        quantized(ggml(GgmlFormat::Q6_K)),
        quantized(ggml(GgmlFormat::Q2_K)),
        quantized(ggml(GgmlFormat::Q3_K)),
        quantized(ggml(GgmlFormat::IQ4_XS)),
    ];
    let shapes = [
        (576, 576),
        (192, 576),
        (1536, 576),
        (576, 1536),
        (49152, 576),
        (2048, 2048),
        (8192, 2048),
        (2048, 8192),
        (128256, 2048),
    ];
    for format in formats {
        for (n, k) in shapes {
            // Two shapes tell enough of the rarer formats.
            let Some(layout) = format.layout(n, k) else { continue };
            let name = format!("{format} [{n}, {k}]");
            if name.contains(&filter) && (!format.rare() || (n, k) == (8192, 2048)) {
                measure(&pool, &name, &layout, n, k, format);
            }
        }
    }
}

#[derive(Clone, Copy)]
enum PackLayoutOf {
    Dense(DType),
    Quantized(QuantFormat),
}

impl PackLayoutOf {
    fn layout(self, n: usize, k: usize) -> Option<PackLayout> {
        match self {
            PackLayoutOf::Dense(dtype) => PackLayout::dense(dtype, n, k).ok(),
            PackLayoutOf::Quantized(f) if k.is_multiple_of(f.group_size()) => {
                PackLayout::quantized(f, DType::BF16, n, k).ok()
            }
            PackLayoutOf::Quantized(_) => None,
        }
    }

    /// Packs a weight whose bytes are all 0x11.
    fn pack(self, pool: &Pool, layout: &PackLayout, bytes: &[u8], out: &mut [u8]) {
        let (n, k) = (layout.rows(), layout.columns());
        match self {
            PackLayoutOf::Dense(dtype) => {
                let bytes = &bytes[..n * k * dtype.size()];
                layout.pack_dense(DenseView { dtype, bytes }, out, pool).unwrap();
            }
            PackLayoutOf::Quantized(format) => {
                let groups = n * k / format.group_size();
                let (scales, biases) = match format {
                    QuantFormat::Affine { .. } => (groups * 2, groups * 2),
                    QuantFormat::Ggml(_) => (0, 0),
                    _ => (groups, 0),
                };
                let (codes, rest) = bytes.split_at(n * format.row_bytes(k));
                let (scales, rest) = rest.split_at(scales);
                let view = QuantView::new(format, n, k, codes, scales, &rest[..biases], DType::BF16).unwrap();
                layout.pack_quantized(&view, out, pool).unwrap();
            }
        }
    }

    fn rare(self) -> bool {
        use GgmlFormat::*;
        !matches!(
            self,
            PackLayoutOf::Dense(DType::BF16)
                | PackLayoutOf::Quantized(QuantFormat::Affine { bits: 4, group_size: 64 })
                | PackLayoutOf::Quantized(QuantFormat::Affine { bits: 8, .. } | QuantFormat::Ggml(Q4_0 | Q8_0))
        )
    }
}

impl std::fmt::Display for PackLayoutOf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            PackLayoutOf::Dense(dtype) => write!(f, "{dtype}"),
            PackLayoutOf::Quantized(format) => write!(f, "{format}"),
        }
    }
}

fn measure(pool: &Pool, name: &str, layout: &PackLayout, n: usize, k: usize, format: PackLayoutOf) {
    // Any bytes do as a weight here: 0x11 is a small number in each type of scale.
    let copies = (SET / layout.bytes()).clamp(1, 512);
    let mut weights = vec![0x11u8; copies * layout.bytes()];
    let source = vec![0x11u8; layout.bytes()];
    let pack =
        shortest(Duration::from_millis(300), || format.pack(pool, layout, &source, &mut weights[..layout.bytes()]));
    weights.fill(0x11);
    let weights: Vec<&[u8]> = weights.chunks(layout.bytes()).collect();
    let features = Features::detect();
    let x: Vec<f32> = (0..512 * k).map(|i| (i * 7 % 13) as f32 - 6.0).collect();
    let mut out = vec![0f32; 512 * n];
    let mut run = |precision, weight: &[u8], m| {
        let (x, out) = (Rows::new(&x, m, k, k).unwrap(), RowsMut::new(&mut out, m, n, n).unwrap());
        matmul(pool, features, precision, x, &mut [Factor { layout, weight, rows: 0..m, out }]).unwrap();
    };
    print!("{name:<34} | pack {:5.2} GB/s", layout.bytes() as f64 / pack / 1e9);
    for (what, precision) in [("reduced", Precision::Reduced), ("f32", Precision::F32)] {
        let mut weights = weights.iter().cycle();
        let time = shortest(Duration::from_millis(300), || run(precision, weights.next().expect("a cycle"), 1));
        print!(" | {what} {:7.1} us {:5.1} GB/s", time * 1e6, layout.bytes() as f64 / time / 1e9);
    }
    for (m, precision) in [(4, Precision::Reduced), (512, Precision::Reduced), (512, Precision::F32)] {
        if m * n > 512 * 49152 {
            continue;
        }
        let time = shortest(Duration::from_millis(300), || run(precision, weights[0], m));
        print!(
            " | {m}{} {:6.1} GFLOP/s",
            if precision == Precision::F32 { " f32" } else { "" },
            2.0 * (m * n * k) as f64 / time / 1e9
        );
    }
    println!();
}

/// Seconds of the fastest single run of those that fit in `budget`; other programs disturb the longer ones.
fn shortest(budget: Duration, mut run: impl FnMut()) -> f64 {
    let start = Instant::now();
    let mut best = f64::INFINITY;
    while best.is_infinite() || start.elapsed() < budget {
        let start = Instant::now();
        run();
        best = best.min(start.elapsed().as_secs_f64());
    }
    best
}

/// Bytes a second that all threads together read of a set as large as the weights'.
fn read_bandwidth(pool: &Pool) -> f64 {
    let data = vec![1u64; SET / 8];
    let tasks = pool.threads() * 8;
    // In pieces of a megabyte, each timed alone.
    let mut pieces = data.chunks_exact(1 << 17).cycle();
    let time = shortest(Duration::from_millis(500), || {
        let piece = pieces.next().expect("a cycle");
        let part = piece.len() / tasks;
        let total = AtomicU64::new(0);
        pool.parallel(tasks, &|i| {
            let mut sums = [0u64; 32];
            for line in piece[i * part..(i + 1) * part].as_chunks::<32>().0 {
                for (sum, x) in sums.iter_mut().zip(line) {
                    *sum = sum.wrapping_add(*x);
                }
            }
            total.fetch_add(sums.iter().sum(), Ordering::Relaxed);
        });
        black_box(total.into_inner());
    });
    (1 << 20) as f64 / time
}
