//! Tensors, devices and model operations.

mod dtype;
mod error;
pub mod formats;
pub mod quant;
mod shape;

pub use dtype::{DType, Element, Float};
pub use error::{Error, Result};
pub use shape::{MAX_RANK, Shape};
