//! Tensors, devices and the operations that language models are made of.
//!
//! ```
//! use silicide::ops::{self, Gate, Precision, Weight};
//! use silicide::{Device, Matrix};
//!
//! # fn main() -> silicide::Result<()> {
//! let device = Device::cpu();
//! let stream = &mut device.stream();
//! let x = device.tensor(&[3.0f32, -4.0], [1, 2])?;
//! let norm = device.tensor(&[1.0f32, 1.0], [2])?;
//! let weight = Weight::new(&Matrix::from_tensor(&device.tensor(&[1.0f32, 0.0, 0.0, 1.0], [2, 2])?)?)?;
//!
//! let normed = ops::rms_norm(stream, &x, &norm, 1e-6)?;
//! let gate = ops::matmul(stream, &normed, &weight, Precision::F32)?;
//! let y = ops::glu(stream, Gate::Silu, &gate, &normed)?;
//! println!("{y:?} on {}: {:?}", device.kind().name(), y.to_vec::<f32>(stream)?);
//!
//! let message = ops::rms_norm(stream, &x, &y, 1e-6).unwrap_err().to_string();
//! assert_eq!(message, "rms_norm: weight: got f32[1, 2], wanted [2], contiguous");
//! # Ok(())
//! # }
//! ```
//!
//! - A [`Device`] is the CPU, Apple's GPU, or the Metal kernels run and checked on the CPU. It makes a [`Tensor`], a typed,
//!   strided view that owns its bounds, and a [`Matrix`], a weight as its checkpoint stores it, dense or quantised.
//! - A [`Stream`] takes [operations](ops) in order and runs them as their memory allows: nobody places a barrier. Each
//!   operation checks shapes and types, and has a form `_into` that takes its output. What was
//!   [recorded](Stream::record) once is replayed as a [plan](device::Plan).
//! - [`formats`] reads MLX and Hugging Face folders and GGUF files through memory maps; [`quant`] is what their codes mean.
//! - [`mlx_native`] has the names of the crate of that name, for code that comes from there.

pub mod device;
mod dtype;
mod error;
pub mod formats;
mod kernels;
mod matrix;
pub mod mlx_native;
pub mod ops;
pub mod quant;
mod shape;
mod tensor;
#[cfg(test)]
mod testing;

pub use device::{Device, DeviceKind, Stream};
pub use dtype::{DType, Element, Float};
pub use error::{Error, Result};
pub use matrix::{Matrix, MatrixFormat};
pub use shape::{MAX_RANK, Shape};
pub use tensor::Tensor;
