//! From an MLX, Hugging Face or GGUF checkpoint to streamed text.
//!
//! ```
//! use silicide::Device;
//! use silicide_lm::{GenerateOptions, Model, SamplingOptions};
//!
//! # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../oracle/tiny/llama-mlx-4bit-gs64-bf16");
//! let model = Model::load(path, &Device::cpu())?;
//! let sampling = SamplingOptions { temperature: 0.7, top_p: 0.9, seed: Some(1), ..SamplingOptions::default() };
//! let options = GenerateOptions { max_tokens: 8, sampling: Some(sampling), ..GenerateOptions::default() };
//! let mut generator = model.generate("Once upon a time", options)?;
//! for token in generator.by_ref() {
//!     print!("{}", token?.text);
//! }
//! println!("\n{} tokens, then {:?}", generator.tokens().len(), generator.finish_reason());
//! # Ok::<(), silicide_lm::Error>(())
//! ```
//!
//! [`Model`] loads and generates, [`Session`] holds a conversation whose earlier turns are not computed again, and
//! [`Inspection`] reads headers alone. [`Tokenizer`], [`ChatTemplate`] and [`Sampler`] are of use by themselves too.

mod cache;
mod detokenize;
mod error;
mod generate;
mod generation_config;
mod gguf;
mod inspect;
mod load;
mod model;
mod models;
mod nn;
mod sample;
mod session;
mod stop;
mod template;
mod tokenizer;

pub use detokenize::Detokenizer;
pub use error::{Error, Result};
pub use generate::{FinishReason, GenerateOptions, Generator, Prompt, Token};
pub use generation_config::GenerationConfig;
pub use inspect::{FormatLine, Inspection, TensorLine};
pub use model::{LoadOptions, Model};
pub use sample::{Sampler, SamplingOptions};
pub use session::Session;
pub use stop::{StopSequences, StopStream};
pub use template::{ChatTemplate, Message, TemplateOptions};
pub use tokenizer::{GgufVocab, Tokenizer};
