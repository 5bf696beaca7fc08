//! Tensors, devices and model operations.

pub mod device;
mod dtype;
mod error;
pub mod ops;
pub mod quant;
mod shape;

pub use dtype::{DType, Element, Float};
pub use error::{Error, Result};
pub use shape::{MAX_RANK, Shape};
