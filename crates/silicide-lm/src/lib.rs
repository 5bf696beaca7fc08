//! From an MLX, Hugging Face or GGUF checkpoint to streamed text.

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
