//! What a device does at best, as measured here and now.

use std::time::Instant;

use silicide::ops::{self, Precision, Weight};
use silicide::{DType, Device, DeviceKind, Matrix, Stream};

/// What plans are held against.
#[derive(Clone, Copy)]
pub struct Rates {
    /// Read and written together.
    pub bytes_per_second: f64,
    /// Of products with a bf16 weight.
    pub flops_per_second: f64,
}

/// The best of a few copies and a few products, none of which fits the caches.
pub fn measure(device: &Device) -> silicide::Result<Rates> {
    Ok(Rates { bytes_per_second: copies(device)?, flops_per_second: products(device)? })
}

/// Bytes a second that the device copies, read and written together.
pub fn copies(device: &Device) -> silicide::Result<f64> {
    let elements = if device.kind() == DeviceKind::Cpu { 32 << 20 } else { 128 << 20 };
    let (from, to) = (device.zeros(DType::F32, [elements])?, device.zeros(DType::F32, [elements])?);
    let seconds = fastest(device, |stream| ops::copy_into(stream, &from, &to))?;
    Ok((8 * elements) as f64 / seconds)
}

/// Floating-point operations a second of a large product with a bf16 weight.
fn products(device: &Device) -> silicide::Result<f64> {
    let (m, n, k, x) = match device.kind() {
        DeviceKind::Cpu => (512, 2048, 2048, DType::F32),
        _ => (4096, 4096, 4096, DType::BF16),
    };
    let weight = Weight::new(&Matrix::from_tensor(&device.zeros(DType::BF16, [n, k])?)?)?;
    let x = device.zeros(x, [m, k])?;
    let seconds = fastest(device, |stream| ops::matmul(stream, &x, &weight, Precision::Reduced).map(drop))?;
    Ok((2 * m * n * k) as f64 / seconds)
}

fn fastest(device: &Device, run: impl Fn(&mut Stream) -> silicide::Result<()>) -> silicide::Result<f64> {
    const TRIES: usize = 5;
    let stream = &mut device.stream();
    let mut best = f64::INFINITY;
    for _ in 0..TRIES {
        let begun = Instant::now();
        run(stream)?;
        stream.synchronize()?;
        best = best.min(begun.elapsed().as_secs_f64());
    }
    Ok(best)
}
