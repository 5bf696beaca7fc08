//! From options to a loaded model on a device.

use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use silicide::device::{CpuOptions, CudaOptions, EmulatedOptions};
use silicide::{DType, Device};
use silicide_lm::{LoadOptions, Model, SamplingOptions};

use crate::args::{ActivationType, DeviceArgs, DeviceChoice, HardwareArgs, SamplingArgs};

/// The device that the options name.
pub fn device(options: &DeviceArgs) -> silicide::Result<Device> {
    let threads = options.threads.unwrap_or(0);
    let cpu = || Device::cpu_with(CpuOptions { threads, ..CpuOptions::default() });
    let memory_limit = options.memory_limit;
    let cuda_with =
        |shared_kernels| Device::cuda_with(CudaOptions { memory_limit, shared_kernels, ..CudaOptions::default() });
    let cuda = || cuda_with(false);
    match options.device {
        DeviceChoice::Auto => Ok(Device::metal().or_else(|_| cuda()).unwrap_or_else(|_| cpu())),
        DeviceChoice::Cpu => Ok(cpu()),
        DeviceChoice::Metal => Device::metal(),
        DeviceChoice::Cuda => cuda(),
        DeviceChoice::CudaShared => cuda_with(true),
        DeviceChoice::EmulatedMetal => Device::emulated_metal(checked()),
        DeviceChoice::EmulatedCuda => Device::emulated_cuda(checked()),
    }
}

/// An emulated GPU is there for its checks.
pub fn checked() -> EmulatedOptions {
    EmulatedOptions { checks: true, ..EmulatedOptions::default() }
}

/// The model at `path` on the device that the options name, and how long loading took. What looked wrong with it goes to `notes`.
pub fn load(path: &Path, options: &HardwareArgs, notes: &mut dyn Write) -> anyhow::Result<(Model, Duration)> {
    let begun = Instant::now();
    let dtype = match options.dtype {
        ActivationType::Auto => None,
        ActivationType::F32 => Some(DType::F32),
        ActivationType::Bf16 => Some(DType::BF16),
        ActivationType::F16 => Some(DType::F16),
    };
    let model = Model::load_with(path, &device(&options.device)?, LoadOptions { dtype })?;
    let took = begun.elapsed();
    for warning in model.warnings() {
        writeln!(notes, "warning: {warning}")?;
    }
    Ok((model, took))
}

/// The model's own defaults with what the options say in their place.
pub fn sampling(model: &Model, options: &SamplingArgs) -> SamplingOptions {
    let defaults = model.generation_config().sampling();
    SamplingOptions {
        temperature: options.temp.unwrap_or(defaults.temperature),
        top_p: options.top_p.unwrap_or(defaults.top_p),
        top_k: options.top_k.unwrap_or(defaults.top_k),
        min_p: options.min_p.unwrap_or(defaults.min_p),
        repetition_penalty: options.repetition_penalty.unwrap_or(defaults.repetition_penalty),
        seed: options.seed,
        ..defaults
    }
}
