//! Text to token ids and back.
//!
//! The encoding is that of the `tokenizers` crate, from a folder's `tokenizer.json` or from the vocabulary inside a GGUF
//! file. Where transformers and mlx-lm let the reader choose, the choices are these:
//!
//! - `tokenizer.json` is the truth. `tokenizer_class` is not looked at: transformers rebuilds the pipeline from the class
//!   for some names and then loses steps that the file has (`GPT2Tokenizer` drops SmolLM2's split of digits).
//! - Its post-processor says what goes around a text; `add_bos_token` and `add_eos_token` in `tokenizer_config.json` are not
//!   looked at, as in transformers 5. A GGUF file has such flags alone, and they count.
//! - Decoding never cleans up spaces (`clean_up_tokenization_spaces`): it damages code, and mlx-lm's streams do not either.
//! - Bytes that are not UTF-8 become one U+FFFD for each maximal ill-formed part, as in Python and mlx-lm, in
//!   [`Tokenizer::decode`] and in a [`Detokenizer`] alike. (`tokenizers` agrees for byte-level vocabularies; for byte fallback
//!   it turns a whole run of byte tokens into U+FFFD when any of it is ill-formed.)

mod config;
mod gguf;
mod pieces;

use std::path::Path;
use std::sync::Arc;

use tokenizers::AddedToken;

use crate::detokenize::Detokenizer;
use crate::error::{Error, Result};
use crate::template::ChatTemplate;
pub(crate) use config::TokenizerConfig;
pub use gguf::GgufVocab;
pub(crate) use pieces::{Lead, Pieces};

/// A tokenizer, its special tokens and its chat templates.
///
/// Cheap to share behind an `Arc`; every method takes `&self`.
///
/// ```no_run
/// let tokenizer = silicide_lm::Tokenizer::from_folder("SmolLM2-135M-Instruct-4bit")?;
/// let ids = tokenizer.encode("Hello, world", true)?;
/// assert_eq!(tokenizer.decode(&ids, true), "Hello, world");
/// # Ok::<(), silicide_lm::Error>(())
/// ```
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    pieces: Arc<Pieces>,
    special: SpecialTokens,
    config: TokenizerConfig,
}

/// What the configuration says of the special tokens, as ids.
#[derive(Debug, Default)]
struct SpecialTokens {
    bos: Option<u32>,
    eos: Vec<u32>,
    /// `(prefix, suffix)` that `encode` adds; `None` leaves it to the post-processor of `tokenizer.json`.
    wrap: Option<(Option<u32>, Option<u32>)>,
}

impl Tokenizer {
    /// Reads `tokenizer.json`, and `tokenizer_config.json`, `special_tokens_map.json` and the chat templates where they are
    /// there, from a model folder.
    ///
    /// # Errors
    /// A file that is missing, unreadable or malformed, named with the field at fault.
    pub fn from_folder(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        let mut inner = config::read_tokenizer(folder)?;
        let config = TokenizerConfig::read(folder)?;
        let config_path = folder.join("tokenizer_config.json");

        for (id, token) in &config.added_tokens {
            if inner.token_to_id(&token.content).is_some() {
                continue;
            }
            inner.add_tokens([token.clone()]).map_err(|e| Error::file(&config_path, "added_tokens_decoder", e))?;
            let got = inner.token_to_id(&token.content);
            if got != Some(*id) {
                let message =
                    format!("token {:?} should have id {id}, but tokenizer.json makes it {got:?}", token.content);
                return Err(Error::file(&config_path, "added_tokens_decoder", message));
            }
        }

        let id_of = |name: &str| -> Result<Option<u32>> {
            let Some(token) = config.special_tokens.get(name) else { return Ok(None) };
            let id = inner.token_to_id(token);
            id.map(Some).ok_or_else(|| Error::file(&config_path, name, format!("{token:?} is not in the vocabulary")))
        };
        let (bos, eos) = (id_of("bos_token")?, id_of("eos_token")?);
        let pieces = Pieces::new(&inner)
            .map_err(|(field, message)| Error::file(folder.join("tokenizer.json"), field, message))?;
        let special = SpecialTokens { bos, eos: eos.into_iter().collect(), wrap: None };
        Ok(Tokenizer { inner, pieces: Arc::new(pieces), special, config })
    }

    /// Rebuilds the tokenizer that a GGUF file's metadata describes.
    ///
    /// # Errors
    /// A kind or pre-tokeniser that is not known, lists whose lengths differ, ids outside the vocabulary, and broken merges.
    pub fn from_gguf(vocab: GgufVocab) -> Result<Self> {
        let (inner, special, config) = gguf::build(vocab)?;
        let pieces = Pieces::new(&inner)
            .map_err(|(field, message)| Error::Tokenizer(format!("GGUF vocabulary: {field}: {message}")))?;
        Ok(Tokenizer { inner, pieces: Arc::new(pieces), special, config })
    }

    /// The ids of a text.
    ///
    /// Special tokens written in the text are recognised, as in transformers. With `add_special`, what the model expects
    /// around a text is added (a beginning-of-sequence token, say); leave it out for the output of a chat template, which
    /// writes these tokens itself.
    ///
    /// # Errors
    /// A text with a symbol that the vocabulary can neither spell nor replace.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let wrap = if add_special { self.special.wrap } else { Some((None, None)) };
        let encoding = self
            .inner
            .encode_fast(text, wrap.is_none())
            .map_err(|e| Error::Tokenizer(format!("cannot encode: {e}")))?;
        let (before, after) = wrap.unwrap_or_default();
        Ok(before.into_iter().chain(encoding.get_ids().iter().copied()).chain(after).collect())
    }

    /// The text of ids; with `skip_special`, without the special tokens. Ids outside the vocabulary are nothing: models are
    /// padded to more rows than there are tokens.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let mut stream = self.stream(skip_special);
        let mut text = String::new();
        for &id in ids {
            text.push_str(stream.push(id));
        }
        text.push_str(stream.finish());
        text
    }

    /// A decoder that takes one id at a time; its pieces joined are what [`Tokenizer::decode`] gives.
    pub fn stream(&self, skip_special: bool) -> Detokenizer {
        Detokenizer::new(Arc::clone(&self.pieces), skip_special)
    }

    /// The id of the token that begins a sequence, if there is one.
    pub fn bos_id(&self) -> Option<u32> {
        self.special.bos
    }

    /// The ids that end a text. A model's `generation_config.json` may name more, see [`crate::GenerationConfig`].
    pub fn eos_ids(&self) -> &[u32] {
        &self.special.eos
    }

    /// How a token is spelled in the vocabulary (`Ġworld`, `▁world`, `<0x0A>`), which is not its text.
    pub fn token(&self, id: u32) -> Option<&str> {
        self.pieces.token(id)
    }

    /// The id of a token by its spelling in the vocabulary.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The bytes that a token adds to the text, before anything is trimmed at the start of it.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        self.pieces.bytes(id)
    }

    /// Whether a token is special: a mark for the model, and no text.
    pub fn is_special(&self, id: u32) -> bool {
        self.pieces.is_special(id)
    }

    /// One more than the highest id. The model's embedding may have more rows, never fewer.
    pub fn vocab_size(&self) -> usize {
        self.pieces.len()
    }

    /// The source of the chat template. Some models have a second one, used when there are `tools`.
    pub fn chat_template_source(&self, tools: bool) -> Option<&str> {
        let templates = &self.config.chat_templates;
        let tool_use = if tools { templates.get("tool_use") } else { None };
        tool_use.or_else(|| templates.get("default")).map(String::as_str)
    }

    /// The chat template, compiled, with this tokenizer's special tokens (`bos_token`, `eos_token`, ...) as variables.
    ///
    /// # Errors
    /// A template that does not parse.
    pub fn chat_template(&self, tools: bool) -> Result<Option<ChatTemplate>> {
        let Some(source) = self.chat_template_source(tools) else { return Ok(None) };
        let special = self.config.special_tokens.iter().map(|(name, token)| (name.as_str(), token.as_str()));
        Ok(Some(ChatTemplate::new(source)?.with_variables(special)))
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("vocab_size", &self.vocab_size()).field("special", &self.special).finish()
    }
}

/// A token that is matched whole in the text as it was written.
fn whole_token(content: &str, special: bool) -> AddedToken {
    AddedToken::from(content, special).normalized(false)
}
