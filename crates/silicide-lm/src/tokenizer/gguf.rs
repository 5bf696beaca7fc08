//! The tokenizer that a GGUF file describes: its vocabulary, without the pipeline around it.
//!
//! Two kinds: `gpt2`, byte-level BPE, where `tokenizer.ggml.pre` names how the text is cut before merging; and `llama`,
//! SentencePiece BPE, where merges follow from the scores. The pipelines built here are those of the models' own
//! `tokenizer.json`.

use std::collections::{BTreeMap, HashMap};

use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::{NFC, Prepend, Replace, Sequence as Normalizers};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{
    DecoderWrapper, NormalizerWrapper, PreTokenizerWrapper, SplitDelimiterBehavior, Tokenizer as Inner, decoders,
};

use super::{SpecialTokens, TokenizerConfig, whole_token};
use crate::error::{Error, Result};

/// The tokenizer metadata of a GGUF file, by the names of its `tokenizer.*` keys.
#[derive(Clone, Debug, Default)]
pub struct GgufVocab {
    /// `ggml.model`: `gpt2` (byte-level BPE), `llama` (SentencePiece) or `gemma4` (SentencePiece with its merges listed).
    pub model: String,
    /// `ggml.pre`: how a `gpt2` vocabulary cuts text; absent means `default`.
    pub pre: Option<String>,
    /// `ggml.tokens`, in the order of their ids.
    pub tokens: Vec<String>,
    /// `ggml.scores`, one a token; may be empty for `gpt2`.
    pub scores: Vec<f32>,
    /// `ggml.token_type`, one a token: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte. May be empty.
    pub token_types: Vec<i32>,
    /// `ggml.merges`: pairs with a space between, best first.
    pub merges: Vec<String>,
    /// `ggml.bos_token_id`.
    pub bos_id: Option<u32>,
    /// `ggml.eos_token_id`.
    pub eos_id: Option<u32>,
    /// `ggml.eot_token_id`, the end of a turn, where it differs from the end of a text.
    pub eot_id: Option<u32>,
    /// `ggml.unknown_token_id`.
    pub unk_id: Option<u32>,
    /// `ggml.padding_token_id`.
    pub pad_id: Option<u32>,
    /// `ggml.add_bos_token`.
    pub add_bos: Option<bool>,
    /// `ggml.add_eos_token`.
    pub add_eos: Option<bool>,
    /// `ggml.add_space_prefix`: a space before a SentencePiece text, which is so unless it says no.
    pub add_space_prefix: Option<bool>,
    /// `chat_template`.
    pub chat_template: Option<String>,
}

mod token_type {
    pub(super) const CONTROL: i32 = 3;
    pub(super) const USER_DEFINED: i32 = 4;
    pub(super) const NORMAL: i32 = 1;
    pub(super) const BYTE: i32 = 6;
}

/// Control tokens that end a turn whatever `eos_token_id` says, as llama.cpp has them.
const END_OF_TURN: [&str; 14] = [
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<end_of_turn>",
    "<turn|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<EOT>",
    "[EOT]",
    "<｜end▁of▁sentence｜>",
    "<end_of_utterance>",
];

pub(super) fn build(mut vocab: GgufVocab) -> Result<(Inner, SpecialTokens, TokenizerConfig)> {
    validate(&vocab)?;
    let (mut inner, add_bos) = match vocab.model.as_str() {
        "gpt2" => byte_level(&mut vocab)?,
        "llama" | "gemma4" => sentencepiece(&mut vocab)?,
        other => {
            return Err(bad(
                "ggml.model",
                format!("{other:?} is not known; supported are \"gpt2\", \"llama\" and \"gemma4\""),
            ));
        }
    };
    let of_type = |wanted: i32| {
        let typed = vocab.tokens.iter().zip(&vocab.token_types);
        typed.filter(move |(token, kind)| **kind == wanted && !token.is_empty()).map(|(token, _)| token.as_str())
    };
    let whole = |kind, special| of_type(kind).map(move |token| whole_token(token, special));
    inner.add_special_tokens(whole(token_type::CONTROL, true)).map_err(|e| bad("ggml.tokens", e))?;
    inner.add_tokens(whole(token_type::USER_DEFINED, false)).map_err(|e| bad("ggml.tokens", e))?;

    let mut eos: Vec<u32> = vocab.eos_id.into_iter().chain(vocab.eot_id).collect();
    // Where there is `<|return|>`, `<|end|>` ends a message and not the turn (gpt-oss).
    let harmony = of_type(token_type::CONTROL).any(|token| token == "<|return|>");
    let ends_turn = |token: &&str| END_OF_TURN.contains(token) && !(harmony && *token == "<|end|>");
    let ends = of_type(token_type::CONTROL).filter(ends_turn);
    eos.extend(ends.filter_map(|token| inner.token_to_id(token)));
    let mut seen = std::collections::HashSet::new();
    eos.retain(|&id| seen.insert(id));

    let before = vocab.bos_id.filter(|_| vocab.add_bos.unwrap_or(add_bos));
    let after = vocab.eos_id.filter(|_| vocab.add_eos == Some(true));
    let special = SpecialTokens { bos: vocab.bos_id, eos, wrap: Some((before, after)) };
    let named = [
        ("bos_token", vocab.bos_id),
        ("eos_token", vocab.eos_id),
        ("unk_token", vocab.unk_id),
        ("pad_token", vocab.pad_id),
    ];
    let special_tokens =
        named.iter().filter_map(|&(name, id)| Some((name.into(), vocab.tokens.get(id? as usize)?.clone())));
    let config = TokenizerConfig {
        special_tokens: special_tokens.collect(),
        chat_templates: vocab
            .chat_template
            .iter()
            .map(|source| ("default".into(), source.clone()))
            .collect::<BTreeMap<_, _>>(),
        ..TokenizerConfig::default()
    };
    Ok((inner, special, config))
}

fn validate(vocab: &GgufVocab) -> Result<()> {
    let size = vocab.tokens.len();
    if size == 0 {
        return Err(bad("ggml.tokens", "missing or empty"));
    }
    for (name, len) in [("ggml.scores", vocab.scores.len()), ("ggml.token_type", vocab.token_types.len())] {
        if len != 0 && len != size {
            return Err(bad(name, format!("{len} entries for {size} tokens")));
        }
    }
    let ids = [
        ("ggml.bos_token_id", vocab.bos_id),
        ("ggml.eos_token_id", vocab.eos_id),
        ("ggml.eot_token_id", vocab.eot_id),
        ("ggml.unknown_token_id", vocab.unk_id),
    ];
    for (name, id) in ids {
        if let Some(id) = id.filter(|&id| id as usize >= size) {
            return Err(bad(name, format!("id {id} is outside the vocabulary of {size} tokens")));
        }
    }
    Ok(())
}

/// Byte-level BPE: cut by regular expressions, then merged. Also whether a beginning-of-sequence token is the rule.
fn byte_level(vocab: &mut GgufVocab) -> Result<(Inner, bool)> {
    let name = vocab.pre.as_deref().unwrap_or("default");
    let pre = PRE_TOKENIZERS.iter().find(|pre| pre.names.contains(&name)).ok_or_else(|| {
        let known: Vec<_> = PRE_TOKENIZERS.iter().flat_map(|pre| pre.names).copied().collect();
        bad("ggml.pre", format!("{name:?} is not known; supported are {}", known.join(", ")))
    })?;
    if vocab.merges.is_empty() {
        return Err(bad("ggml.merges", "missing: a gpt2 vocabulary needs its merges"));
    }
    let merges = listed_merges(vocab)?;
    let builder = BPE::builder().vocab_and_merges(ids_by_token(&vocab.tokens), merges).ignore_merges(pre.ignore_merges);
    let mut inner = Inner::new(builder.build().map_err(|e| bad("ggml.merges", e))?);
    if pre.nfc {
        inner.with_normalizer(Some(NFC)).map_err(|e| bad("ggml.pre", e))?;
    }
    let mut steps = Vec::new();
    for &regex in pre.splits {
        let split = Split::new(SplitPattern::Regex(regex.into()), SplitDelimiterBehavior::Isolated, false);
        steps.push(PreTokenizerWrapper::from(split.map_err(|e| bad("ggml.pre", e))?));
    }
    steps.push(ByteLevel::new(false, false, pre.gpt2_split).into());
    inner.with_pre_tokenizer(Some(PreTokenizers::new(steps)));
    inner.with_decoder(Some(ByteLevel::default()));
    Ok((inner, pre.add_bos))
}

/// SentencePiece BPE: spaces written as `▁`, bytes for what the vocabulary lacks.
fn sentencepiece(vocab: &mut GgufVocab) -> Result<(Inner, bool)> {
    // Files write tokens of spaces alone as such, but text has them as `▁` when it is merged.
    for token in &mut vocab.tokens {
        if token.len() > 1 && token.bytes().all(|byte| byte == b' ') {
            *token = "▁".repeat(token.len());
        }
    }
    let merges = if vocab.merges.is_empty() { merges_by_score(vocab)? } else { listed_merges(vocab)? };
    let byte_fallback = vocab.token_types.contains(&token_type::BYTE);
    let mut builder = BPE::builder()
        .vocab_and_merges(ids_by_token(&vocab.tokens), merges)
        .byte_fallback(byte_fallback)
        .fuse_unk(true);
    if let Some(unk) = vocab.unk_id {
        builder = builder.unk_token(vocab.tokens[unk as usize].clone());
    } else if !byte_fallback {
        return Err(bad(
            "ggml.unknown_token_id",
            "missing, and there are no byte tokens to spell what the vocabulary lacks",
        ));
    }
    let mut inner = Inner::new(builder.build().map_err(|e| bad("ggml.merges", e))?);

    let prefix = vocab.add_space_prefix.unwrap_or(vocab.model == "llama");
    let mut normalizers: Vec<NormalizerWrapper> = Vec::new();
    let mut steps: Vec<DecoderWrapper> = Vec::new();
    if prefix {
        normalizers.push(Prepend::new("▁".into()).into());
    }
    normalizers.push(Replace::new(" ", "▁").map_err(|e| bad("ggml.model", e))?.into());
    steps.push(Replace::new("▁", " ").map_err(|e| bad("ggml.model", e))?.into());
    steps.push(decoders::byte_fallback::ByteFallback::new().into());
    steps.push(decoders::fuse::Fuse::new().into());
    if prefix {
        steps.push(decoders::strip::Strip::new(' ', 1, 0).into());
    }
    inner.with_normalizer(Some(Normalizers::new(normalizers))).map_err(|e| bad("ggml.model", e))?;
    inner.with_decoder(Some(decoders::sequence::Sequence::new(steps)));
    // A gemma4 template writes its own beginning of sequence.
    Ok((inner, vocab.model == "llama"))
}

fn ids_by_token(tokens: &[String]) -> ahash::AHashMap<String, u32> {
    tokens.iter().zip(0..).map(|(token, id)| (token.clone(), id)).collect()
}

fn listed_merges(vocab: &mut GgufVocab) -> Result<Vec<(String, String)>> {
    let pairs = vocab.merges.drain(..).enumerate().map(|(rank, merge)| {
        // A space inside a token is never written as one in a byte-level vocabulary, so the first space parts the pair.
        let at = merge.char_indices().skip(1).find(|&(_, c)| c == ' ').map(|(at, _)| at);
        let pair = at.map(|at| (merge[..at].to_string(), merge[at + 1..].to_string()));
        pair.ok_or_else(|| {
            bad("ggml.merges", format!("entry {rank} is {merge:?}; want two tokens with a space between"))
        })
    });
    pairs.collect()
}

/// The merges that SentencePiece's scores imply: every way to cut a token in two tokens, the best-scored token first.
///
/// User-defined tokens (runs of spaces, tabs and line breaks) have no score of their own; they are matched whole, so the longest
/// comes first and before all others.
fn merges_by_score(vocab: &GgufVocab) -> Result<Vec<(String, String)>> {
    if vocab.scores.is_empty() {
        return Err(bad("ggml.scores", "missing: a llama vocabulary needs scores or merges"));
    }
    if let Some(id) = vocab.scores.iter().position(|score| score.is_nan()) {
        return Err(bad("ggml.scores", format!("the score of token {id} is not a number")));
    }
    let kind = |id: usize| vocab.token_types.get(id).copied().unwrap_or(token_type::NORMAL);
    let mergeable = |id: usize| matches!(kind(id), token_type::NORMAL | token_type::USER_DEFINED);
    let ids: HashMap<&str, usize> = vocab.tokens.iter().map(String::as_str).zip(0..).collect();
    let mut order: Vec<usize> = (0..vocab.tokens.len()).filter(|&id| mergeable(id)).collect();
    let rank = |id: usize| match kind(id) {
        token_type::USER_DEFINED => (0, -(vocab.tokens[id].chars().count() as f32)),
        _ => (1, -vocab.scores[id]),
    };
    order.sort_by(|&a, &b| rank(a).partial_cmp(&rank(b)).unwrap_or(std::cmp::Ordering::Equal));
    let mut merges = Vec::new();
    for id in order {
        let token = vocab.tokens[id].as_str();
        for (at, _) in token.char_indices().skip(1).collect::<Vec<_>>().into_iter().rev() {
            let (left, right) = token.split_at(at);
            let part = |part| ids.get(part).is_some_and(|&id| mergeable(id));
            if part(left) && part(right) {
                merges.push((left.to_string(), right.to_string()));
            }
        }
    }
    Ok(merges)
}

fn bad(field: &str, message: impl std::fmt::Display) -> Error {
    Error::Tokenizer(format!("GGUF tokenizer.{field}: {message}"))
}

/// How a `gpt2` vocabulary cuts text, by the value of `tokenizer.ggml.pre`.
struct PreTokenizer {
    names: &'static [&'static str],
    /// Each cuts what the one before left.
    splits: &'static [&'static str],
    /// Whether GPT-2's own pattern cuts last.
    gpt2_split: bool,
    /// Whether a word that is a token is taken as it is, merges or not.
    ignore_merges: bool,
    add_bos: bool,
    /// Whether the model's text is normalised to composed characters first.
    nfc: bool,
}

impl PreTokenizer {
    const fn of(names: &'static [&'static str], splits: &'static [&'static str]) -> Self {
        PreTokenizer { names, splits, gpt2_split: false, ignore_merges: false, add_bos: false, nfc: false }
    }

    const fn gpt2(mut self) -> Self {
        self.gpt2_split = true;
        self
    }

    const fn whole_words(mut self) -> Self {
        self.ignore_merges = true;
        self
    }

    const fn bos(mut self) -> Self {
        self.add_bos = true;
        self
    }

    const fn nfc(mut self) -> Self {
        self.nfc = true;
        self
    }
}

const PRE_TOKENIZERS: &[PreTokenizer] = &[
    PreTokenizer::of(&["default"], &[r"[\p{P}$+<=>^~|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"]),
    PreTokenizer::of(
        &[
            "gpt-2",
            "phi-2",
            "mpt",
            "olmo",
            "jais",
            "exaone4",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "trillion",
            "granite-docling",
        ],
        &[],
    )
    .gpt2(),
    PreTokenizer::of(
        &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"],
        &[r"\p{N}"],
    )
    .gpt2(),
    PreTokenizer::of(
        &["llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"],
        &[LLAMA3],
    )
    .whole_words()
    .bos(),
    PreTokenizer::of(&["dbrx", "smaug-bpe", "chatglm-bpe"], &[LLAMA3]),
    PreTokenizer::of(&["glm4", "glm5"], &[LLAMA3]).whole_words(),
    PreTokenizer::of(&["qwen2", "deepseek-r1-qwen", "stablelm2", "megrez", "kormo", "f2llmv2"], &[QWEN2]).nfc(),
    PreTokenizer::of(&["hunyuan", "solar-open", "grok-2"], &[QWEN2]),
    PreTokenizer::of(&["qwen35"], &[QWEN35]).nfc(),
    PreTokenizer::of(&["tekken"], &[TEKKEN]).whole_words().bos(),
    PreTokenizer::of(&["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"], &[GPT4O]),
    PreTokenizer::of(&["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"], &[r"\p{N}{1,3}", CJK, DEEPSEEK_V3]),
    PreTokenizer::of(&["deepseek-coder"], &["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}"]),
    PreTokenizer::of(&["falcon"], &[r"[\p{P}$+<=>^~|`]+", GPT2, "[0-9][0-9][0-9]"]),
    PreTokenizer::of(&["bailingmoe", "bailingmoe2", "llada-moe"], &[BAILING]),
    PreTokenizer::of(&["seed-coder"], &[SEED_CODER]),
];

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const CJK: &str = "[一-龥぀-ゟ゠-ヿ]+";
const DEEPSEEK_V3: &str = "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+";
const BAILING: &str =
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";
const SEED_CODER: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+";
