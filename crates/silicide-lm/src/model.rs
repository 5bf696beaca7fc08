//! A loaded model.

use std::path::Path;
use std::sync::Arc;

use silicide::device::Plan;
use silicide::formats::Checkpoint;
use silicide::ops::Precision;
use silicide::{DType, Device, DeviceKind};

use crate::error::{Error, Result};
use crate::generate::{GenerateOptions, Generator, Prompt};
use crate::generation_config::GenerationConfig;
use crate::load::Weights;
use crate::models::{self, Decoder};
use crate::session::Session;
use crate::template::{ChatTemplate, Message, TemplateOptions};
use crate::tokenizer::Tokenizer;
use crate::{gguf, load};

/// How a model is loaded.
#[derive(Clone, Copy, Debug, Default)]
pub struct LoadOptions {
    /// The type of activations, keys and values; None for what is best on the device.
    ///
    /// On the CPU that is f32 activations that products may round, and keys and values in f16: a model whose values pass
    /// 65504 wants `BF16`. With `F32` nothing is rounded to less than f32 anywhere, so that results can be held against an
    /// f32 reference.
    pub dtype: Option<DType>,
}

/// A model ready to generate: weights on a device, tokenizer, template and defaults. Cloning gives another handle.
///
/// ```no_run
/// use silicide::Device;
/// use silicide_lm::{GenerateOptions, Model};
///
/// let model = Model::load("SmolLM2-135M-Instruct-4bit", &Device::auto())?;
/// for token in model.generate("Once upon a time", GenerateOptions::default())? {
///     print!("{}", token?.text);
/// }
/// # Ok::<(), silicide_lm::Error>(())
/// ```
#[derive(Clone)]
pub struct Model(Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) decoder: Box<dyn Decoder>,
    pub(crate) device: Device,
    pub(crate) dtype: DType,
    /// The type of the keys and values kept.
    pub(crate) cache_dtype: DType,
    tokenizer: Option<Tokenizer>,
    template: Option<ChatTemplate>,
    pub(crate) defaults: GenerationConfig,
    warnings: Vec<String>,
}

impl Model {
    /// Loads an MLX or Hugging Face folder, or a GGUF file.
    ///
    /// # Errors
    /// A file that is missing or malformed, named with the field; an architecture that is not known; weights that are larger
    /// than the room on a device with memory of its own.
    pub fn load(path: impl AsRef<Path>, device: &Device) -> Result<Model> {
        Model::load_with(path, device, LoadOptions::default())
    }

    /// [`load`](Self::load) with options.
    ///
    /// # Errors
    /// As for [`load`](Self::load).
    pub fn load_with(path: impl AsRef<Path>, device: &Device, options: LoadOptions) -> Result<Model> {
        let path = path.as_ref();
        let checkpoint = Checkpoint::open(path)?;
        check_room(&checkpoint, device)?;
        let dtype = match options.dtype {
            Some(dtype) if !dtype.is_float() => {
                return Err(Error::Options(format!("dtype is {dtype}; want f32, f16 or bf16")));
            }
            Some(dtype) => dtype,
            // The CPU computes in f32 anyway, and rounding rows in between would only cost.
            None if device.kind() == DeviceKind::Cpu => DType::F32,
            None => load::stored_dtype(&checkpoint),
        };
        let precision = match options.dtype {
            Some(DType::F32) => Precision::F32,
            _ => Precision::Reduced,
        };
        // Keys and values are most of what a long context reads; f16 halves them where rounding is allowed, and rounds
        // eight times less than bf16.
        let cache_dtype = if options.dtype.is_none() && dtype == DType::F32 { DType::F16 } else { dtype };
        let weights = Weights::new(&checkpoint, device, dtype, precision).map_err(|e| e.within(&checkpoint))?;
        let decoder = models::load(&weights).map_err(|e| e.within(&checkpoint))?;
        let (tokenizer, mut defaults) = match checkpoint.gguf() {
            Some(metadata) => (Some(Tokenizer::from_gguf(gguf::vocabulary(metadata)?)?), GenerationConfig::default()),
            None if path.join("tokenizer.json").exists() => {
                (Some(Tokenizer::from_folder(path)?), GenerationConfig::from_folder(path)?)
            }
            None => (None, GenerationConfig::from_folder(path)?),
        };
        if defaults.eos_token_ids.is_empty()
            && let Some(tokenizer) = &tokenizer
        {
            defaults.eos_token_ids = tokenizer.eos_ids().to_vec();
        }
        let template = tokenizer.as_ref().map(|t| t.chat_template(false)).transpose()?.flatten();
        Ok(Model(Arc::new(Inner {
            decoder,
            device: device.clone(),
            dtype,
            cache_dtype,
            tokenizer,
            template,
            defaults,
            warnings: checkpoint.warnings().to_vec(),
        })))
    }

    /// Generates from a prompt: text, token ids, or messages.
    ///
    /// # Errors
    /// Options out of range, an empty prompt, ids that the model does not know, a text without a tokenizer.
    pub fn generate(&self, prompt: impl Into<Prompt>, options: GenerateOptions) -> Result<Generator<'static>> {
        Generator::start(self.session().into(), &prompt.into(), options)
    }

    /// A conversation, whose tokens are computed once.
    pub fn session(&self) -> Session {
        Session::new(self.clone())
    }

    /// The launches of one pass over `tokens` tokens and the logits of the last, recorded and not run.
    ///
    /// # Errors
    /// [`Error::Silicide`] where there is no memory for the pass.
    pub fn plan(&self, tokens: usize) -> Result<Plan> {
        self.session().plan(tokens)
    }

    /// The device it is on.
    pub fn device(&self) -> &Device {
        &self.0.device
    }

    /// The type of activations.
    pub fn dtype(&self) -> DType {
        self.0.dtype
    }

    /// The tokenizer; a folder may come without one, for prompts of token ids.
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        self.0.tokenizer.as_ref()
    }

    /// The number of tokens that it knows: the length of a row of logits.
    pub fn vocabulary(&self) -> usize {
        self.0.decoder.vocabulary()
    }

    /// The longest context that it was made for, in tokens.
    pub fn max_positions(&self) -> usize {
        self.0.decoder.max_positions()
    }

    /// What its makers say about sampling and ends.
    pub fn generation_config(&self) -> &GenerationConfig {
        &self.0.defaults
    }

    /// The chat template, where it has one.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.0.template.as_ref()
    }

    /// What looked wrong with the checkpoint and may not matter: shards that are missing, an index that disagrees.
    pub fn warnings(&self) -> &[String] {
        &self.0.warnings
    }

    /// The ids of a prompt.
    ///
    /// # Errors
    /// As for [`generate`](Self::generate).
    pub fn encode(&self, prompt: &Prompt) -> Result<Vec<u32>> {
        let tokenizer = || {
            let message = "this model came without a tokenizer; give the prompt as token ids";
            self.tokenizer().ok_or_else(|| Error::Tokenizer(message.into()))
        };
        let ids = match prompt {
            Prompt::Tokens(ids) => ids.clone(),
            Prompt::Text(text) => tokenizer()?.encode(text, true)?,
            Prompt::Messages(messages) => match &self.0.template {
                // A template writes the special tokens itself.
                Some(template) => tokenizer()?.encode(&self.render(template, messages)?, false)?,
                None => {
                    let text: Vec<_> = messages.iter().map(Message::text).collect();
                    tokenizer()?.encode(&text.join("\n\n"), true)?
                }
            },
        };
        if ids.is_empty() {
            return Err(Error::Options("the prompt is empty; want at least one token".into()));
        }
        if let Some(id) = ids.iter().find(|&&id| id as usize >= self.vocabulary()) {
            let message = format!("the prompt has token {id}; the model knows 0 to {}", self.vocabulary() - 1);
            return Err(Error::Options(message));
        }
        Ok(ids)
    }

    fn render(&self, template: &ChatTemplate, messages: &[Message]) -> Result<String> {
        template.render(messages, &TemplateOptions { add_generation_prompt: true, ..TemplateOptions::default() })
    }

    pub(crate) fn inner(&self) -> &Inner {
        &self.0
    }
}

/// Refuses weights that the device's own memory has no room for, before any is read.
fn check_room(checkpoint: &Checkpoint, device: &Device) -> Result<()> {
    let Some(free) = device.free_memory() else { return Ok(()) };
    let needed: usize = checkpoint.entries().map(|entry| entry.span.len()).sum();
    if needed <= free {
        return Ok(());
    }
    let mib = |bytes: usize| bytes.div_ceil(1 << 20);
    let message = format!(
        "the weights take {} MiB, and {} MiB of the device's memory may be used; take a smaller conversion, or the cpu device",
        mib(needed),
        mib(free)
    );
    Err(silicide::Error::Device { device: device.kind().name().into(), message }.into())
}
