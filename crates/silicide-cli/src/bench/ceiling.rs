//! The most that a device does, measured: what ops are held against.

use std::time::Duration;

use serde::Serialize;
use silicide::{DType, Device, DeviceKind, Result, ops};

use super::case::{Arithmetic, Call, Moved, Setup, call};
use super::measure;
use crate::report::{human_bytes, human_count};

/// What bounds a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Bound {
    /// Reading and writing memory.
    Copy,
    /// Reading memory alone, on a CPU.
    Read,
    /// Multiply-adds of f32.
    F32,
    /// Products of bf16.
    Bf16,
    /// Products of bytes, on a CPU.
    Int8,
}

impl Bound {
    pub(super) fn name(self) -> &'static str {
        match self {
            Bound::Copy => "copy",
            Bound::Read => "read",
            Bound::F32 => "f32",
            Bound::Bf16 => "bf16",
            Bound::Int8 => "int8",
        }
    }
}

/// Rates a second.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Ceilings {
    /// Bytes copied, read and written together.
    pub(super) copy_bytes: f64,
    /// Bytes read by the threads in use.
    pub(super) read_bytes: Option<f64>,
    /// Operations, a multiply-add being two, of vectors of f32,
    pub f32_flops: Option<f64>,
    /// of bf16 matrices (or of the widest that the device has),
    pub bf16_flops: Option<f64>,
    /// and of bytes.
    pub int8_ops: Option<f64>,
}

impl Ceilings {
    /// Measures `device`. `matrix_flops` is taken as it is.
    pub(super) fn measure(device: &Device, setup: &mut Setup, matrix_flops: Option<f64>) -> Result<Ceilings> {
        // The emulated device's own rates say nothing.
        let peak = if device.kind().is_emulated() { None } else { Some(ops::matmul::peak_rates(device)?) };
        Ok(Ceilings {
            copy_bytes: copy(device, setup)?,
            read_bytes: peak.and_then(|peak| peak.read),
            f32_flops: peak.map(|peak| peak.f32),
            bf16_flops: matrix_flops.or(peak.and_then(|peak| peak.bf16)),
            int8_ops: peak.and_then(|peak| peak.int8),
        })
    }

    /// For people.
    pub(super) fn line(&self) -> String {
        let bytes = |what, rate: f64| format!("{what} {}/s", human_bytes(rate as u64));
        let flops = |what, rate: f64, unit| format!("{what} {}{unit}/s", human_count(rate as u64));
        let mut rates = vec![bytes("copies", self.copy_bytes)];
        rates.extend(self.read_bytes.map(|rate| bytes("reads", rate)));
        rates.extend(self.f32_flops.map(|rate| flops("f32", rate, "FLOP")));
        rates.extend(self.bf16_flops.map(|rate| flops("bf16 products", rate, "FLOP")));
        rates.extend(self.int8_ops.map(|rate| flops("int8 products", rate, "OP")));
        rates.join(", ")
    }

    /// The least seconds that a call takes, and why.
    pub(super) fn floor(&self, moved: Moved, arithmetic: Arithmetic, flops: u64) -> (f64, Bound) {
        let bytes = (moved.read + moved.written) as f64;
        let memory = match self.read_bytes {
            // A CPU reads a line before it writes to it.
            Some(rate) if moved.written * 8 <= moved.read => (bytes / rate, Bound::Read),
            _ => (bytes / self.copy_bytes, Bound::Copy),
        };
        let f32 = self.f32_flops.map(|rate| (rate, Bound::F32));
        let bf16 = self.bf16_flops.map(|rate| (rate, Bound::Bf16)).or(f32);
        let int8 = self.int8_ops.map(|rate| (rate, Bound::Int8));
        let compute = match arithmetic {
            Arithmetic::None => None,
            Arithmetic::Vector => f32,
            Arithmetic::Scores if self.read_bytes.is_some() => f32,
            Arithmetic::Scores | Arithmetic::Matrix => bf16,
            Arithmetic::Codes => int8.or(bf16),
        };
        let compute = compute.map(|(rate, bound)| (flops as f64 / rate, bound));
        compute.filter(|compute| compute.0 > memory.0).unwrap_or(memory)
    }
}

/// Copies that go round a pool as cases do.
fn copy(device: &Device, setup: &mut Setup) -> Result<f64> {
    let elements = match device.kind() {
        DeviceKind::EmulatedMetal | DeviceKind::EmulatedCuda => 1 << 16,
        DeviceKind::Cpu => 16 << 20,
        DeviceKind::Metal | DeviceKind::Cuda => 32 << 20,
    };
    let mut calls: Vec<Call> = Vec::new();
    for _ in 0..4 {
        let (from, to) = (setup.input(DType::F32, [elements])?, setup.output(DType::F32, [elements])?);
        calls.push(call(move |stream| ops::copy_into(stream, &from, &to))?);
    }
    let times = measure::time(&mut device.stream(), &calls, 15, Duration::from_millis(300))?;
    Ok((8 * elements) as f64 / times.best)
}
