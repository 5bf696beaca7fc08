//! Tensors, devices and model operations.

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
