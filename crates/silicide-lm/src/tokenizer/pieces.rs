//! What each token id adds to the text: the decoder of a tokenizer, as a table.
//!
//! The decoders of generative vocabularies (byte-level, SentencePiece with byte fallback, Metaspace) turn each token into
//! bytes without regard to its neighbours, save for a space trimmed at the very start. So decoding is a look-up, and a
//! stream of it is linear.

use serde::Deserialize;

/// Ids are table indices, so an id of a hostile file must not choose the size of the table.
const MAX_VOCAB: u32 = 1 << 24;

/// Spelling, bytes and kind of every token.
pub(crate) struct Pieces {
    tokens: Blob,
    bytes: Blob,
    special: Vec<bool>,
    lead: Lead,
}

/// What is trimmed at the start of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lead {
    /// Up to this many bytes of this ASCII character, from the start of the text.
    Strip(u8, usize),
    /// Every space that stands for a `▁`, from the first token (Metaspace).
    FirstToken,
}

/// Byte strings by index, one allocation for all.
#[derive(Default)]
struct Blob {
    data: Vec<u8>,
    ends: Vec<u32>,
}

impl Blob {
    fn push(&mut self, item: &[u8]) {
        self.data.extend_from_slice(item);
        self.ends.push(self.data.len() as u32);
    }

    fn get(&self, index: usize) -> Option<&[u8]> {
        let end = *self.ends.get(index)? as usize;
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before] as usize);
        Some(&self.data[start..end])
    }
}

impl std::fmt::Debug for Pieces {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pieces").field("len", &self.len()).field("lead", &self.lead).finish_non_exhaustive()
    }
}

impl Pieces {
    /// Reads the vocabulary and the decoder of a tokenizer. An error is `(field, message)`.
    pub(super) fn new(tokenizer: &tokenizers::Tokenizer) -> Result<Self, (&'static str, String)> {
        let decoder = Decoder::of(tokenizer).map_err(|message| ("decoder", message))?;
        let vocab = tokenizer.get_vocab(true);
        let size = vocab.values().max().map_or(0, |&id| u64::from(id) + 1);
        if size > u64::from(MAX_VOCAB) {
            return Err(("model.vocab", format!("token id {} is out of range (at most {MAX_VOCAB} tokens)", size - 1)));
        }
        let mut by_id: Vec<Option<&str>> = vec![None; size as usize];
        for (token, &id) in &vocab {
            by_id[id as usize] = Some(token);
        }
        let added = tokenizer.get_added_tokens_decoder();
        let mut pieces = Pieces {
            tokens: Blob::default(),
            bytes: Blob::default(),
            special: vec![false; size as usize],
            lead: decoder.lead,
        };
        let mut bytes = Vec::new();
        for (id, token) in by_id.iter().enumerate() {
            bytes.clear();
            if let Some(token) = token {
                decoder.bytes_of(token, &mut bytes);
            }
            pieces.tokens.push(token.unwrap_or_default().as_bytes());
            pieces.bytes.push(&bytes);
            pieces.special[id] = added.get(&(id as u32)).is_some_and(|token| token.special);
        }
        Ok(pieces)
    }

    pub(crate) fn bytes(&self, id: u32) -> Option<&[u8]> {
        self.bytes.get(id as usize)
    }

    pub(crate) fn is_special(&self, id: u32) -> bool {
        self.special.get(id as usize).copied().unwrap_or(false)
    }

    pub(crate) fn lead(&self) -> Lead {
        self.lead
    }

    pub(super) fn token(&self, id: u32) -> Option<&str> {
        // Ids that no token has are empty, and no token is.
        self.tokens.get(id as usize).filter(|token| !token.is_empty()).and_then(|token| std::str::from_utf8(token).ok())
    }

    pub(super) fn len(&self) -> usize {
        self.special.len()
    }
}

/// The steps of a decoder that matter for one token.
#[derive(Debug)]
struct Decoder {
    kind: Kind,
    lead: Lead,
}

#[derive(Debug)]
enum Kind {
    /// Each character of a token stands for a byte.
    ByteLevel,
    /// Text, with `(from, to)` replaced, then `<0xNN>` read as a byte.
    Text { replace: Vec<(String, String)>, byte_fallback: bool },
}

/// A decoder as `tokenizer.json` writes it.
#[derive(Deserialize)]
#[serde(tag = "type")]
enum Step {
    ByteLevel,
    ByteFallback,
    Fuse,
    Metaspace { replacement: char, prepend_scheme: String },
    Replace { pattern: Pattern, content: String },
    Sequence { decoders: Vec<Step> },
    Strip { content: char, start: usize, stop: usize },
}

#[derive(Deserialize)]
enum Pattern {
    String(String),
}

impl Decoder {
    fn of(tokenizer: &tokenizers::Tokenizer) -> Result<Self, String> {
        const SUPPORTED: &str =
            "supported are ByteLevel, Metaspace, and sequences of Replace (of a string), ByteFallback, Fuse and Strip";
        let Some(decoder) = tokenizer.get_decoder() else { return Err(format!("missing; {SUPPORTED}")) };
        let json = serde_json::to_value(decoder).map_err(|e| e.to_string())?;
        let step = Step::deserialize(&json).map_err(|e| format!("{e}; {SUPPORTED}"))?;
        let steps = match step {
            Step::Sequence { decoders } => decoders,
            step => vec![step],
        };
        let mut decoder =
            Decoder { kind: Kind::Text { replace: Vec::new(), byte_fallback: false }, lead: Lead::Strip(b' ', 0) };
        let mut fused = false;
        for step in steps {
            match (step, &mut decoder.kind) {
                (Step::ByteLevel, kind @ Kind::Text { byte_fallback: false, .. }) => *kind = Kind::ByteLevel,
                (Step::Metaspace { replacement, prepend_scheme }, Kind::Text { replace, byte_fallback: false }) => {
                    replace.push((replacement.into(), " ".into()));
                    if prepend_scheme != "never" {
                        decoder.lead = Lead::FirstToken;
                    }
                }
                (
                    Step::Replace { pattern: Pattern::String(from), content },
                    Kind::Text { replace, byte_fallback: false },
                ) if !from.is_empty() => {
                    replace.push((from, content));
                }
                (Step::ByteFallback, Kind::Text { byte_fallback, .. }) => *byte_fallback = true,
                (Step::Fuse, _) => fused = true,
                (Step::Strip { content, start, stop: 0 }, _) if fused && content.is_ascii() => {
                    decoder.lead = Lead::Strip(content as u8, start);
                }
                _ => return Err(format!("these steps in this order are not known; {SUPPORTED}")),
            }
        }
        Ok(decoder)
    }

    fn bytes_of(&self, token: &str, out: &mut Vec<u8>) {
        match &self.kind {
            Kind::ByteLevel => {
                if !token.chars().all(|c| byte_of(c).inspect(|&byte| out.push(byte)).is_some()) {
                    // An added token in its own letters.
                    out.clear();
                    out.extend_from_slice(token.as_bytes());
                }
            }
            Kind::Text { byte_fallback: true, .. } if hex_byte(token).is_some() => out.extend(hex_byte(token)),
            Kind::Text { replace, .. } => {
                let text = replace.iter().fold(token.to_string(), |text, (from, to)| text.replace(from, to));
                out.extend_from_slice(text.as_bytes());
            }
        }
    }
}

/// The byte that `<0x0A>` names.
fn hex_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok())?
}

/// GPT-2's spelling of bytes: printable Latin-1 stands for itself, the 68 others for U+0100 and up in order.
fn byte_of(c: char) -> Option<u8> {
    const fn printable(byte: u8) -> bool {
        matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF)
    }
    const OTHERS: [u8; 68] = {
        let (mut others, mut count, mut byte) = ([0; 68], 0, 0);
        while byte < 256 {
            if !printable(byte as u8) {
                others[count] = byte as u8;
                count += 1;
            }
            byte += 1;
        }
        others
    };
    match u32::from(c) {
        code @ 0..=0xFF => printable(code as u8).then_some(code as u8),
        code => OTHERS.get((code - 0x100) as usize).copied(),
    }
}
