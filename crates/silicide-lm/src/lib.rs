//! From a checkpoint to streamed text.

mod detokenize;
mod error;
mod generation_config;
mod sample;
mod stop;
mod template;
mod tokenizer;

pub use detokenize::Detokenizer;
pub use error::{Error, Result};
pub use generation_config::GenerationConfig;
pub use sample::{Sampler, SamplingOptions};
pub use stop::{StopSequences, StopStream};
pub use template::{ChatTemplate, Message, TemplateOptions};
pub use tokenizer::{GgufVocab, Tokenizer};
