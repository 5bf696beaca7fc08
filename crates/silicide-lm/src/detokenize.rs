//! Token ids to text as they come.

use std::sync::Arc;

use crate::tokenizer::{Lead, Pieces};

/// Turns ids into text one at a time, in linear time, and never gives half a character.
///
/// The pieces that [`push`](Detokenizer::push) and [`finish`](Detokenizer::finish) give, joined, are
/// [`Tokenizer::decode`](crate::Tokenizer::decode) of the same ids. Bytes that may still become a character are held back;
/// those that cannot become U+FFFD.
#[derive(Clone, Debug)]
pub struct Detokenizer {
    pieces: Arc<Pieces>,
    skip_special: bool,
    /// Bytes of a character that is not complete, at most three.
    pending: Vec<u8>,
    /// The last piece given; kept for its allocation.
    text: String,
    lead: Trim,
}

/// What is still to be trimmed at the start.
#[derive(Clone, Copy, Debug)]
enum Trim {
    Bytes(u8, usize),
    FirstToken,
    Done,
}

impl Detokenizer {
    pub(crate) fn new(pieces: Arc<Pieces>, skip_special: bool) -> Self {
        let mut stream =
            Detokenizer { pieces, skip_special, pending: Vec::new(), text: String::new(), lead: Trim::Done };
        stream.reset();
        stream
    }

    /// The text that this token completes; empty while a character lacks bytes.
    pub fn push(&mut self, id: u32) -> &str {
        self.text.clear();
        let Some(bytes) = self.pieces.bytes(id) else { return "" };
        if self.skip_special && self.pieces.is_special(id) {
            return "";
        }
        match self.lead {
            Trim::Done => self.pending.extend_from_slice(bytes),
            Trim::Bytes(byte, count) => {
                let cut = bytes.iter().take(count).take_while(|&&b| b == byte).count();
                self.lead = if cut == bytes.len() && cut < count { Trim::Bytes(byte, count - cut) } else { Trim::Done };
                self.pending.extend_from_slice(&bytes[cut..]);
            }
            Trim::FirstToken => {
                self.pending.extend(bytes.iter().filter(|&&byte| byte != b' '));
                self.lead = Trim::Done;
            }
        }
        self.flush(false);
        &self.text
    }

    /// Ends the text: a character that never became complete comes out as U+FFFD. The stream is then as new.
    pub fn finish(&mut self) -> &str {
        self.text.clear();
        self.flush(true);
        self.reset();
        &self.text
    }

    fn reset(&mut self) {
        self.pending.clear();
        self.lead = match self.pieces.lead() {
            Lead::Strip(_, 0) => Trim::Done,
            Lead::Strip(byte, count) => Trim::Bytes(byte, count),
            Lead::FirstToken => Trim::FirstToken,
        };
    }

    /// Moves what can be decided from `pending` to `text`.
    fn flush(&mut self, end: bool) {
        let mut rest = self.pending.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    self.text.push_str(valid);
                    rest = &[];
                    break;
                }
                Err(e) => {
                    let (valid, after) = rest.split_at(e.valid_up_to());
                    self.text.extend(std::str::from_utf8(valid));
                    match e.error_len() {
                        Some(bad) => rest = &after[bad..],
                        None if end => rest = &[],
                        None => {
                            rest = after;
                            break;
                        }
                    }
                    self.text.push('\u{FFFD}');
                }
            }
        }
        let kept = rest.len();
        let start = self.pending.len() - kept;
        self.pending.drain(..start);
    }
}
