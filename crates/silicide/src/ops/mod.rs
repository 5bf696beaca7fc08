//! Model operations, one folder each: contract and checks in `mod.rs`, the CPU form in `cpu.rs`, the form for every GPU in
//! `kernel.metal`, and one test for all devices in `tests.rs`.

mod check;
mod rms_norm;

pub use rms_norm::{RmsNorm, rms_norm, rms_norm_into, rms_norm_with};
