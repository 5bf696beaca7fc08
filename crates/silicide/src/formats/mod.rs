//! Checkpoint files: what is in them, where it lies, and nothing about what it is for.
//!
//! [`Checkpoint`] is the one view that a loader needs, over a folder as MLX and Hugging Face write it or over a GGUF
//! file. Beneath it are the readers of each format: [`safetensors`], [`gguf`], [`json`] for `config.json`, and [`mlx`]
//! for its quantisation block.
//!
//! Files are memory maps. Opening one reads its header only; a tensor's bytes are a [`Mapped`] range, fetched by the
//! system when somebody looks at them. **A mapped file must not be truncated or rewritten in place while it is open**:
//! the system answers a read past the new end with SIGBUS, which ends the process. Replacing a file by renaming
//! another over it, as download tools do, is safe.
//!
//! Files may be hostile. Every offset, count and product is checked against the file before it is used, no allocation
//! follows a count that the file merely claims, and each error names the file and the field.

mod checkpoint;
pub mod gguf;
pub mod json;
mod mapped;
pub mod mlx;
pub mod safetensors;
mod table;

pub use checkpoint::{Checkpoint, Kind};
pub use mapped::Mapped;
pub use table::{RawTensor, StoredType, TensorEntry, TensorTable};
