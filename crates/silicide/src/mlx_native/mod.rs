//! The names that mlx-native 0.4.7 gives to its multi-section rotary embedding, for code that comes from there.
//!
//! The call sequence is the same and the import changes: `use mlx_native::..` becomes `use silicide::mlx_native::..`. It runs
//! on Apple's GPUs and on CPUs, whose memory the host reads and writes as slices. New code is better served by
//! [`ops::rope_multi`](crate::ops::rope_multi), which has the parameters that this form fixes: here pairs are
//! [`HeadHalves`](crate::ops::Pairing::HeadHalves) and the fallback axis is
//! [`Extra`](crate::ops::FallbackAxis::Extra). MLX and transformers pair `Halves` and fall back to `Temporal`, which
//! differs where `rope_dim < head_dim`, as in Qwen3.5.
//!
//! ```
//! use silicide::mlx_native::ops::rope_multi::{
//!     RopeMultiMode, RopeMultiParams, build_rope_multi_buffers, dispatch_rope_multi,
//! };
//! use silicide::mlx_native::{DType, KernelRegistry, MlxDevice};
//!
//! # fn main() -> silicide::mlx_native::Result<()> {
//! let device = MlxDevice::new()?;
//! let mut registry = KernelRegistry::new();
//! let params = RopeMultiParams {
//!     head_dim: 8,
//!     rope_dim: 8,
//!     n_heads: 1,
//!     seq_len: 2,
//!     freq_base: 10_000.0,
//!     mode: RopeMultiMode::Imrope,
//!     sections: [2, 1, 1, 0],
//! };
//!
//! let mut input = device.alloc_buffer(2 * 8 * 4, DType::F32, vec![2, 8])?;
//! input.as_mut_slice::<f32>()?.fill(1.0);
//! let output = device.alloc_buffer(2 * 8 * 4, DType::F32, vec![2, 8])?;
//! let mut positions = device.alloc_buffer(4 * 2 * 4, DType::I32, vec![8])?;
//! positions.as_mut_slice::<i32>()?.copy_from_slice(&[0, 1, 0, 1, 0, 1, 0, 1]);
//! let (params_buf, rope_params_buf, sections_buf) = build_rope_multi_buffers(&device, params)?;
//!
//! let mut encoder = device.command_encoder()?;
//! dispatch_rope_multi(
//!     &mut encoder,
//!     &mut registry,
//!     device.metal_device(),
//!     &input,
//!     &output,
//!     &positions,
//!     &params_buf,
//!     &rope_params_buf,
//!     &sections_buf,
//!     params,
//! )?;
//! encoder.commit_and_wait()?;
//!
//! let turned = output.as_slice::<f32>()?;
//! assert_eq!(turned[..8], [1.0; 8]);
//! assert!((turned[8] - (1f32.cos() - 1f32.sin())).abs() < 1e-6);
//! # Ok(())
//! # }
//! ```

mod buffer;
mod device;
pub mod ops;
mod registry;
#[cfg(test)]
mod tests;

pub use self::buffer::{HostSlice, MlxBuffer};
pub use self::device::{CommandEncoder, MlxDevice};
pub use self::ops::rope_multi::{RopeMultiMode, RopeMultiParams, build_rope_multi_buffers, dispatch_rope_multi};
pub use self::registry::KernelRegistry;
pub use crate::DType;

/// What the device calls itself in metal-rs.
// An alias and not a second export, which compilers might show for `Device` in messages.
pub type DeviceRef = crate::Device;

/// What can go wrong.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum MlxError {
    /// Running what was encoded failed.
    #[error("command buffer: {0}")]
    CommandBufferError(String),
    /// A kernel did not compile.
    #[error("kernel {name}: {message}")]
    ShaderCompilationError {
        /// The kernel's name.
        name: String,
        /// The compiler's words.
        message: String,
    },
    /// There is not enough memory.
    #[error("cannot allocate a buffer of {bytes} bytes")]
    BufferAllocationError {
        /// Bytes asked for.
        bytes: usize,
    },
    /// An argument does not fit; the message says what was got and what was wanted.
    #[error("{0}")]
    InvalidArgument(String),
}

/// The result of this module's calls.
pub type Result<T> = std::result::Result<T, MlxError>;

impl From<crate::Error> for MlxError {
    fn from(error: crate::Error) -> MlxError {
        match error {
            crate::Error::Argument { .. } => MlxError::InvalidArgument(error.to_string()),
            crate::Error::OutOfMemory { wanted, .. } => MlxError::BufferAllocationError { bytes: wanted },
            crate::Error::Kernel { kernel, message } => MlxError::ShaderCompilationError { name: kernel, message },
            _ => MlxError::CommandBufferError(error.to_string()),
        }
    }
}

/// An [`MlxError::InvalidArgument`] unless `ok`.
fn check(ok: bool, message: impl FnOnce() -> String) -> Result<()> {
    if ok { Ok(()) } else { Err(MlxError::InvalidArgument(message())) }
}
