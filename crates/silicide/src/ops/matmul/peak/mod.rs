//! How many multiply-adds a device does at best, where no memory holds it up, and how fast a CPU reads: what products are measured against.

mod cpu;

use std::time::{Duration, Instant};

use crate::device::{Gpu, Launch};
use crate::kernels::{KernelParams, KernelSource, kernel_params};
use crate::{DType, Device, DeviceKind, Error, Result, Stream, Tensor};

/// Operations a second of multiply-adds on registers, a multiply-add being two; and of a CPU what feeds them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PeakRates {
    /// Of vectors of f32.
    pub f32: f64,
    /// Of bf16 with sums in f32, by the widest instruction that there is: tiles, matrices or vectors. None without any.
    pub bf16: Option<f64>,
    /// Of bytes with sums in 32 bits, on a CPU. None without such instructions.
    pub int8: Option<f64>,
    /// Bytes a second that a CPU's threads read of what no cache holds.
    pub read: Option<f64>,
}

/// Measures what the device multiplies at best, in some tens of milliseconds, and what a CPU reads, in half a second.
///
/// On an NVIDIA GPU `bf16` is by `wgmma` where that exists, which is Hopper, and by `mma` elsewhere; GPUs after Hopper can do
/// more than that.
///
/// # Errors
///
/// Those of the device.
///
/// ```
/// let rates = silicide::ops::matmul::peak_rates(&silicide::Device::cpu())?;
/// assert!(rates.f32 > 1e8);
/// # Ok::<(), silicide::Error>(())
/// ```
pub fn peak_rates(device: &Device) -> Result<PeakRates> {
    if let Some(cpu) = device.as_cpu() {
        return cpu::peak_rates(device, cpu.pool(), cpu.features());
    }
    // The emulated device's rates mean nothing, so it is not kept busy for long.
    let size = if device.kind().is_emulated() { Size { groups: 2, steps: 2 } } else { FULL };
    let f32 = rate(device, &F32, size)?;
    let bf16 = match device.kind() {
        DeviceKind::Cuda => match rate(device, &WGMMA, size) {
            Err(Error::Kernel { .. }) => rate(device, &MMA, size)?,
            rate => rate?,
        },
        _ => rate(device, &MATRICES, size)?,
    };
    Ok(PeakRates { f32, bf16: Some(bf16), int8: None, read: None })
}

/// Threadgroups of a launch, and steps of each.
#[derive(Clone, Copy)]
struct Size {
    groups: u32,
    steps: u32,
}

/// So many threadgroups that the last of them leave few processors idle.
const FULL: Size = Size { groups: 16384, steps: 1024 };

/// An entry point, and what one of its threadgroups does.
struct Probe {
    source: &'static KernelSource,
    defines: &'static str,
    entry: &'static str,
    threads: u32,
    /// Operations of a threadgroup in `per` steps of a launch.
    flops: u64,
    per: u32,
}

const F32: Probe = Probe { source: &SOURCE, defines: "", entry: "peak_f32", threads: 256, flops: 256 * 16 * 2, per: 1 };
const MATRICES: Probe =
    Probe { source: &SOURCE, defines: "", entry: "peak_bf16", threads: 128, flops: 4 * 8 * 2 * 8 * 8 * 8, per: 4 };
const MMA: Probe =
    Probe { source: &NVIDIA, defines: "", entry: "peak_mma", threads: 128, flops: 4 * 8 * 2 * 16 * 8 * 16, per: 4 };
const WGMMA: Probe = Probe {
    source: &NVIDIA,
    defines: "#define WGMMA",
    entry: "peak_wgmma",
    threads: 128,
    flops: 8 * 2 * 64 * 128 * 16,
    per: 32,
};

/// The best of some launches.
fn rate(device: &Device, probe: &Probe, size: Size) -> Result<f64> {
    const LAUNCHES: usize = 8;
    const LONG: Duration = Duration::from_millis(60);
    let stream = &mut device.stream();
    // Ordinary numbers as f32 and as bf16, with no pattern: units draw less power, and run faster, where operands are alike.
    let mut seed = 1u32;
    let mut next = || {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        seed >> 8 & 0x807f_807f | 0x3f00_3f00
    };
    let seeds: Vec<u32> = (0..4096).map(|_| next()).collect();
    let seeds = device.tensor(bytemuck::cast_slice::<u32, f32>(&seeds), [4096])?;
    let out = device.zeros(DType::F32, [1])?;
    let steps = (size.steps / probe.per).max(1);
    let (plan, ()) = stream.record(|stream| {
        (0..LAUNCHES).try_for_each(|_| launch(stream, probe, Params { steps, never: -1.5 }, size.groups, &seeds, &out))
    })?;
    let flops = LAUNCHES as f64 * f64::from(size.groups) * f64::from(steps) * probe.flops as f64;
    // The first time compiles.
    stream.replay(&plan)?;
    stream.synchronize()?;
    let (begun, mut best) = (Instant::now(), 0f64);
    loop {
        let replayed = Instant::now();
        stream.replay(&plan)?;
        stream.synchronize()?;
        best = best.max(flops / replayed.elapsed().as_secs_f64());
        if begun.elapsed() > LONG || device.kind().is_emulated() {
            return Ok(best);
        }
    }
}

fn launch(stream: &mut Stream, probe: &Probe, params: Params, groups: u32, seeds: &Tensor, out: &Tensor) -> Result<()> {
    let launch = Launch::new("peak", &params).read(seeds).write(out);
    stream.launch(
        launch,
        |_| unreachable!("the stream is a GPU's"),
        || Gpu {
            source: probe.source,
            defines: probe.defines.into(),
            entry: probe.entry.into(),
            threadgroups: [groups, 1, 1],
            threads: [probe.threads, 1, 1],
        },
    )
}

kernel_params! {
    struct Params {
        steps: u32,
        /// What no result is.
        never: f32,
    }
}

pub(in crate::ops) static SOURCE: KernelSource = KernelSource {
    name: "matmul/peak/kernel.metal",
    params: &[Params::DECLARATION],
    body: include_str!("kernel.metal"),
};

pub(in crate::ops) static NVIDIA: KernelSource =
    KernelSource { name: "matmul/peak/kernel.cu", params: &[Params::DECLARATION], body: include_str!("kernel.cu") };

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::on_every_device;

    #[test]
    fn every_device_has_rates() {
        on_every_device(|stream| {
            let rates = peak_rates(stream.device()).unwrap();
            let all = [Some(rates.f32), rates.bf16, rates.int8];
            assert!(all.into_iter().flatten().all(|rate| rate.is_finite() && rate > 0.0), "{rates:?}");
        });
    }
}
