//! From a prompt to tokens, one at a time.

use crate::detokenize::Detokenizer;
use crate::error::{Error, Result};
use crate::sample::{Sampler, SamplingOptions};
use crate::session::Session;
use crate::stop::{StopSequences, StopStream};
use crate::template::Message;

/// What to generate from.
#[derive(Clone, Debug, PartialEq)]
pub enum Prompt {
    /// A text, fed as it is but for the special tokens that the tokenizer adds.
    Text(String),
    /// Token ids, fed as they are.
    Tokens(Vec<u32>),
    /// A conversation, put into the model's chat template.
    Messages(Vec<Message>),
}

impl From<&str> for Prompt {
    fn from(text: &str) -> Prompt {
        Prompt::Text(text.into())
    }
}

impl From<String> for Prompt {
    fn from(text: String) -> Prompt {
        Prompt::Text(text)
    }
}

impl From<Vec<u32>> for Prompt {
    fn from(ids: Vec<u32>) -> Prompt {
        Prompt::Tokens(ids)
    }
}

impl From<Vec<Message>> for Prompt {
    fn from(messages: Vec<Message>) -> Prompt {
        Prompt::Messages(messages)
    }
}

/// How to generate.
#[derive(Clone, Debug)]
pub struct GenerateOptions {
    /// The most tokens to generate.
    pub max_tokens: usize,
    /// How tokens are chosen; None for what the model's `generation_config.json` says.
    pub sampling: Option<SamplingOptions>,
    /// Texts that end the generation and are not given.
    pub stop: Vec<String>,
    /// Goes on past the tokens that end a text.
    pub ignore_eos: bool,
    /// The most prompt tokens that are computed at once. Results in f32 do not depend on it.
    pub prefill_chunk: usize,
    /// Keeps the logits of every position, for [`Generator::logits`].
    pub keep_logits: bool,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        GenerateOptions {
            max_tokens: 256,
            sampling: None,
            stop: Vec::new(),
            ignore_eos: false,
            prefill_chunk: 512,
            keep_logits: false,
        }
    }
}

/// One generated token.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// The text that it completes: empty while a character or a possible stop text is held back.
    pub text: String,
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// A token that ends a text, or a stop text.
    Stop,
    /// `max_tokens`, or the end of the model's context.
    Length,
}

/// Generates a token a call. Dropping it, or not calling it again, ends the generation.
pub struct Generator<'a> {
    session: SessionHandle<'a>,
    sampler: Sampler,
    text: Option<(Detokenizer, StopStream)>,
    eos: Vec<u32>,
    max_tokens: usize,
    prompt: Vec<u32>,
    /// Prompt tokens that the session had already.
    reused: usize,
    tokens: Vec<u32>,
    finish: Option<FinishReason>,
    /// There was an error, and there is nothing after it.
    failed: bool,
    logits: Option<Vec<f32>>,
}

/// A session of one's own, or one that goes on after the generation.
pub(crate) enum SessionHandle<'a> {
    Own(Box<Session>),
    Borrowed(&'a mut Session),
}

impl From<Session> for SessionHandle<'static> {
    fn from(session: Session) -> Self {
        SessionHandle::Own(Box::new(session))
    }
}

impl<'a> From<&'a mut Session> for SessionHandle<'a> {
    fn from(session: &'a mut Session) -> Self {
        SessionHandle::Borrowed(session)
    }
}

impl SessionHandle<'_> {
    fn get(&mut self) -> &mut Session {
        match self {
            SessionHandle::Own(session) => session,
            SessionHandle::Borrowed(session) => session,
        }
    }
}

impl<'a> Generator<'a> {
    /// Checks the options and computes the prompt.
    pub(crate) fn start(mut session: SessionHandle<'a>, prompt: &Prompt, options: GenerateOptions) -> Result<Self> {
        let model = session.get().model().clone();
        let prompt = model.encode(prompt)?;
        let limit = model.max_positions();
        if prompt.len() > limit {
            let message = format!("the prompt has {} tokens; the model's context is {limit}", prompt.len());
            return Err(Error::Options(message));
        }
        let sampling = options.sampling.unwrap_or_else(|| model.generation_config().sampling());
        let sampler = Sampler::new(sampling.clone())?;
        let stops = StopSequences::new(options.stop)?;
        let text = model.tokenizer().map(|tokenizer| (tokenizer.stream(true), stops.stream()));
        let max_tokens = options.max_tokens.min(limit - prompt.len());
        let eos = if options.ignore_eos { Vec::new() } else { model.generation_config().eos_token_ids.clone() };
        let mut logits = options.keep_logits.then(Vec::new);
        let owned = session.get();
        if options.keep_logits {
            // Every position is wanted, so nothing that is known already may be passed over.
            owned.rewind(&[], 0)?;
        }
        owned.set_sampling(sampling, sampler.seed())?;
        let reused = owned.rewind(&prompt, prompt.len() + max_tokens)?;
        owned.prefill(&prompt[reused..], options.prefill_chunk, logits.as_mut())?;
        Ok(Generator {
            session,
            sampler,
            text,
            eos,
            max_tokens,
            prompt,
            reused,
            // No more than the cache has room for.
            tokens: Vec::with_capacity(max_tokens),
            finish: (max_tokens == 0).then_some(FinishReason::Length),
            failed: false,
            logits,
        })
    }

    /// The prompt's ids.
    pub fn prompt_tokens(&self) -> &[u32] {
        &self.prompt
    }

    /// Prompt tokens that were not computed, since the session had them.
    pub fn reused_tokens(&self) -> usize {
        self.reused
    }

    /// The ids generated so far.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Why it ended; None while it goes on, and after an error.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.finish
    }

    /// The logits of every position so far, prompt and generated tokens alike, `[positions, vocabulary]`; empty unless
    /// [`keep_logits`](GenerateOptions::keep_logits) asked for them.
    pub fn logits(&self) -> &[f32] {
        self.logits.as_deref().unwrap_or_default()
    }

    fn step(&mut self) -> Result<Token> {
        // A token is run when the next is asked for, so that each is given as soon as it is known.
        if let Some(&last) = self.tokens.last() {
            self.run(last)?;
        }
        let session = self.session.get();
        let id = match session.token()? {
            Some(id) => id,
            // The host says what is wrong with the logits.
            None => {
                let (logits, history) = session.logits()?;
                self.sampler.sample(logits, history)?
            }
        };
        self.tokens.push(id);
        let mut text = String::new();
        let mut stopped = false;
        if let Some((detokenizer, stops)) = &mut self.text {
            stopped = stops.push(detokenizer.push(id), &mut text);
        }
        if stopped || self.eos.contains(&id) {
            self.finish = Some(FinishReason::Stop);
        } else if self.tokens.len() == self.max_tokens {
            self.finish = Some(FinishReason::Length);
        }
        if let (Some(_), Some((detokenizer, stops))) = (self.finish, &mut self.text) {
            stops.push(detokenizer.finish(), &mut text);
            stops.finish(&mut text);
        }
        // The last token's own logits are wanted only by those who keep them all.
        if self.finish.is_some() && self.logits.is_some() {
            self.run(id)?;
        }
        Ok(Token { id, text })
    }

    fn run(&mut self, id: u32) -> Result<()> {
        let session = self.session.get();
        session.decode(id)?;
        if let Some(kept) = &mut self.logits {
            kept.extend_from_slice(session.logits()?.0);
        }
        Ok(())
    }
}

impl Iterator for Generator<'_> {
    type Item = Result<Token>;

    fn next(&mut self) -> Option<Result<Token>> {
        if self.finish.is_some() || self.failed {
            return None;
        }
        let token = self.step();
        self.failed = token.is_err();
        Some(token)
    }
}
