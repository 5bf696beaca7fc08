//! Architectures, one file a `model_type`, every file the same shape.

mod gemma3_text;
mod llama;
mod qwen2;
mod qwen3;

use silicide::Tensor;

use crate::cache::CacheShape;
use crate::error::{Error, Result};
use crate::load::Weights;
use crate::nn::Step;

/// A decoder: token ids to hidden states, hidden states to logits.
pub(crate) trait Decoder: Send + Sync {
    /// `tokens` is `[tokens]` in u32; the result `[tokens, hidden]`, past the last norm.
    fn forward(&self, step: &mut Step, tokens: &Tensor) -> Result<Tensor>;

    /// `hidden` is `[tokens, hidden]`; the result `[tokens, vocabulary]`.
    fn logits(&self, step: &mut Step, hidden: &Tensor) -> Result<Tensor>;

    /// What it keeps of each token.
    fn cache_shape(&self) -> CacheShape;

    /// The number of tokens it knows.
    fn vocabulary(&self) -> usize;

    /// The longest context that it was made for.
    fn max_positions(&self) -> usize;
}

type Load = fn(&Weights) -> Result<Box<dyn Decoder>>;

/// Every `model_type` that there is a file for, and those that are another name for one.
const MODELS: &[(&str, Load)] = &[
    ("gemma3_text", gemma3_text::load),
    ("llama", llama::load),
    ("mistral", llama::load),
    ("qwen2", qwen2::load),
    ("qwen3", qwen3::load),
];

/// The decoder of a checkpoint, by its `model_type`.
pub(crate) fn load(weights: &Weights) -> Result<Box<dyn Decoder>> {
    let model_type = weights.model_type()?;
    match MODELS.iter().find(|(name, _)| *name == model_type) {
        Some((_, load)) => load(weights),
        None => {
            let known: Vec<_> = MODELS.iter().map(|(name, _)| *name).collect();
            let message = format!("got {model_type:?}, wanted one of {}", known.join(", "));
            Err(Error::Config { field: "model_type".into(), message })
        }
    }
}

/// Whether there is a file for this `model_type`.
pub(crate) fn is_known(model_type: &str) -> bool {
    MODELS.iter().any(|(name, _)| *name == model_type)
}
