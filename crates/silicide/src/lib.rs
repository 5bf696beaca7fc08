//! Tensors, devices and model operations.

mod dtype;
pub mod device;
mod error;
pub mod ops;
pub mod quant;
mod shape;

pub use dtype::{DType, Element, Float};
pub use error::{Error, Result};
pub use shape::{MAX_RANK, Shape};
