//! How fast the CPU quantises keys and values and attends to them: `cargo run --release -p silicide --example kv_speed
//! [THREADS] [ROWS]`.
//!
//! 8 heads of 128. What quantises is counted by the f32 that it reads or writes; attention, of one query with 1 or 4 heads a
//! head of keys, by the codes, scales and norms that it reads. Times are the shortest of many runs.

use std::time::{Duration, Instant};

use silicide::device::CpuOptions;
use silicide::ops::{
    self, AffineOptions, AffineRows, Attention, CacheLayout, KvCodec, KvCodecOptions, KvDomain, Mask, QuantizedRows,
};
use silicide::{DType, Device, Result, Stream, Tensor};

const HEADS: usize = 8;
const DIM: usize = 128;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1).map(|arg| arg.parse::<usize>().expect("a number"));
    let (threads, keys) = (args.next().unwrap_or(2), args.next().unwrap_or(4096));
    let device = Device::cpu_with(CpuOptions { threads, ..CpuOptions::default() });
    let stream = &mut device.stream();
    println!("{}, {keys} rows", device.description());
    let x: Vec<f32> = (0..keys * HEADS * DIM).map(|i| ((i * 7919) as f32).sin()).collect();
    let slots: Vec<u32> = (0..keys as u32).collect();
    let (x, slots) = (device.tensor(&x, [keys, HEADS, DIM])?, device.tensor(&slots, [keys])?);
    let out = device.zeros(DType::F32, [HEADS, keys, DIM])?;
    let floats = |time: Duration| gigabytes(&[&x], time);

    for bits in [4, 8] {
        let options = AffineOptions { bits, group_size: 64, dtype: DType::F16 };
        let rows = AffineRows::zeros(&device, HEADS, keys, DIM, options)?;
        let there = shortest(|| ops::kv_quantize_affine(stream, &x, &slots, CacheLayout::Rows, &rows))?;
        let back = shortest(|| ops::kv_dequantize_affine_into(stream, &rows, &out))?;
        print!("affine, {bits} bits: {:.2} GB/s to codes, {:.2} GB/s back", floats(there), floats(back));
        let parts = [&rows.codes, &rows.scales, &rows.biases];
        attention(stream, QuantizedRows::Affine(&rows), &[&parts[..], &parts[..]].concat())?;
    }
    for bits in [4, 5, 6, 8] {
        let signs = ops::hadamard_signs(&device, DIM, 1)?;
        let codec = KvCodec::new(&device, DIM, KvCodecOptions { bits, signs: Some(&signs), norms: 1 })?;
        let (codes, norms) = codec.cache(HEADS, keys)?;
        let there = shortest(|| ops::kv_quantize(stream, &x, &slots, &codec, &codes, &norms))?;
        let mut back =
            |domain| shortest(|| ops::kv_dequantize_into(stream, &codes, &norms, &codec, domain, &out)).map(floats);
        let (original, rotated) = (back(KvDomain::Original)?, back(KvDomain::Rotated)?);
        print!(
            "rotated, {bits} bits: {:.2} GB/s to codes, {original:.2} GB/s back, {rotated:.2} GB/s to the rotated domain",
            floats(there)
        );
        let rows = QuantizedRows::Rotated { codes: &codes, norms: &norms, codec: &codec };
        attention(stream, rows, &[&codes, &norms, &codes, &norms])?;
    }
    let dense = ops::cast(stream, &x, DType::F16)?;
    print!("f16");
    for group in [1, 4] {
        let q = device.zeros(DType::F32, [1, HEADS * group, DIM])?;
        let time = shortest(|| ops::attention(stream, &q, &dense, &dense, OPTIONS).map(drop))?;
        print!(", {:.1} GB/s of attention ({:.0} us)", gigabytes(&[&dense, &dense], time), time.as_secs_f64() * 1e6);
    }
    println!();
    Ok(())
}

const OPTIONS: Attention =
    Attention { scale: 0.1, mask: Mask::Full, window: None, softcap: None, sinks: None, cache: CacheLayout::Rows };

fn attention(stream: &mut Stream, rows: QuantizedRows, read: &[&Tensor]) -> Result<()> {
    for group in [1, 4] {
        let q = stream.device().zeros(DType::F32, [1, HEADS * group, DIM])?;
        let time = shortest(|| ops::quantized_attention(stream, &q, rows, rows, OPTIONS).map(drop))?;
        print!(", {:.1} GB/s of attention ({:.0} us)", gigabytes(read, time), time.as_secs_f64() * 1e6);
    }
    println!();
    Ok(())
}

fn gigabytes(read: &[&Tensor], time: Duration) -> f64 {
    let bytes: usize = read.iter().map(|t| t.elements() * t.dtype().size()).sum();
    bytes as f64 / time.as_secs_f64() / 1e9
}

/// The shortest of the runs of half a second.
fn shortest(mut f: impl FnMut() -> Result<()>) -> Result<Duration> {
    let (start, mut least) = (Instant::now(), Duration::MAX);
    while start.elapsed() < Duration::from_millis(500) {
        let run = Instant::now();
        f()?;
        least = least.min(run.elapsed());
    }
    Ok(least)
}
