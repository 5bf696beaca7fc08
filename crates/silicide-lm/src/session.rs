//! A conversation with a model: the tokens so far, their keys and values, and the recorded decode step.

use silicide::device::Plan;
use silicide::{DType, Stream, Tensor, ops};

use crate::cache::KvCache;
use crate::error::{Error, Result};
use crate::generate::{GenerateOptions, Generator, Prompt};
use crate::model::Model;
use crate::nn::Step;
use crate::sample::{DeviceSampler, SamplingOptions};

/// Tokens that a model has seen, and what it keeps of them.
///
/// A later prompt that begins with the same tokens computes only the rest, as the turns of a conversation do.
pub struct Session {
    model: Model,
    stream: Stream,
    cache: KvCache,
    /// The tokens in the cache.
    tokens: Vec<u32>,
    /// The pass over one token.
    decode: Option<Recorded>,
    /// How tokens are chosen.
    sampler: Option<DeviceSampler>,
    /// The last position's logits on the device, and the token chosen from them where it has been.
    last: Option<(Tensor, Option<Tensor>)>,
    /// Room for logits on the host.
    logits: Vec<f32>,
}

/// A pass over some tokens, recorded for a cache.
struct Recorded {
    plan: Plan,
    tokens: Tensor,
    positions: Tensor,
    logits: Tensor,
    /// The token chosen from them.
    token: Option<Tensor>,
}

impl Session {
    pub(crate) fn new(model: Model) -> Session {
        let stream = model.device().stream();
        Session {
            model,
            stream,
            cache: KvCache::empty(),
            tokens: Vec::new(),
            decode: None,
            sampler: None,
            last: None,
            logits: Vec::new(),
        }
    }

    /// Generates an answer to a prompt; what the prompt shares with the tokens so far is not computed again.
    ///
    /// # Errors
    /// As for [`Model::generate`].
    pub fn generate(&mut self, prompt: impl Into<Prompt>, options: GenerateOptions) -> Result<Generator<'_>> {
        Generator::start(self.into(), &prompt.into(), options)
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The tokens whose keys and values are kept.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Keeps the tokens that `ids` begins with and forgets the rest, and makes room for `capacity` in all. At least the last of `ids`
    /// is left to compute, since its logits are wanted. Gives how many are kept.
    pub(crate) fn rewind(&mut self, ids: &[u32], capacity: usize) -> Result<usize> {
        let same = self.tokens.iter().zip(ids).take_while(|(a, b)| a == b).count();
        self.tokens.truncate(same.min(ids.len().saturating_sub(1)));
        if capacity > self.cache.capacity() {
            self.grow(capacity)?;
        }
        Ok(self.tokens.len())
    }

    /// Chooses tokens by these options from now on, the first by the first number of `seed`.
    pub(crate) fn set_sampling(&mut self, options: SamplingOptions, seed: u64) -> Result<()> {
        if !self.sampler.as_ref().is_some_and(|sampler| sampler.fits(&options)) {
            let (vocabulary, context) = (self.model.vocabulary(), self.model.max_positions());
            self.sampler = Some(DeviceSampler::new(&mut self.stream, options, vocabulary, context)?);
            // The pass ends with the choice.
            self.decode = None;
        }
        self.sampler.as_ref().expect("made above").seed(&mut self.stream, seed)
    }

    /// Runs `ids`, at most `chunk` at a time. Each position's logits are appended to `keep` where they are wanted; the
    /// last one's are kept for [`token`](Self::token).
    pub(crate) fn prefill(&mut self, ids: &[u32], chunk: usize, mut keep: Option<&mut Vec<f32>>) -> Result<()> {
        self.last = None;
        let chunks = ids.chunks(chunk.max(1));
        let last = chunks.len().saturating_sub(1);
        for (i, ids) in chunks.enumerate() {
            let first = self.tokens.len() as u32;
            let device = self.model.device();
            let tokens = device.tensor(ids, [ids.len()])?;
            let positions: Vec<u32> = (first..first + ids.len() as u32).collect();
            let positions = device.tensor(&positions, [ids.len()])?;
            let model = self.model.inner();
            let mut step = Step { stream: &mut self.stream, positions: &positions, cache: &self.cache };
            let hidden = model.decoder.forward(&mut step, &tokens)?;
            self.tokens.extend(ids);
            if let Some(keep) = keep.as_deref_mut() {
                let logits = f32_logits(&mut step, &self.model, &hidden)?;
                let from = keep.len();
                keep.resize(from + logits.elements(), 0.0);
                self.stream.read(&logits, &mut keep[from..])?;
                self.last = Some((logits.slice(0, ids.len() - 1..ids.len())?, None));
            } else if i == last {
                let hidden = hidden.slice(0, ids.len() - 1..ids.len())?;
                self.last = Some((f32_logits(&mut step, &self.model, &hidden)?, None));
            }
        }
        self.stream.synchronize()?;
        // A prompt's temporaries are large, and of no use to the steps that follow.
        self.stream.trim();
        Ok(())
    }

    /// Runs one token and chooses the next; the cache has room for it.
    pub(crate) fn decode(&mut self, id: u32) -> Result<()> {
        self.tokens.push(id);
        let run = self.run_last(id);
        if run.is_err() {
            self.tokens.pop();
        }
        run
    }

    fn run_last(&mut self, id: u32) -> Result<()> {
        if self.decode.is_none() {
            self.decode = Some(self.record(1)?);
        }
        if let Some(sampler) = &mut self.sampler {
            sampler.set_history(&mut self.stream, &self.tokens)?;
        }
        let Recorded { plan, tokens, positions, logits, token } = self.decode.as_ref().expect("recorded above");
        self.stream.write(tokens, &[id])?;
        self.stream.write(positions, &[self.tokens.len() as u32 - 1])?;
        self.stream.replay(plan)?;
        self.last = Some((logits.clone(), token.clone()));
        Ok(())
    }

    /// The token chosen after the last position; none where its logits allow none.
    pub(crate) fn token(&mut self) -> Result<Option<u32>> {
        let (Some((logits, token)), Some(sampler)) = (&mut self.last, &mut self.sampler) else { return Ok(None) };
        if token.is_none() {
            sampler.set_history(&mut self.stream, &self.tokens)?;
        }
        let token = match token {
            Some(token) => token,
            None => token.insert(sampler.sample(&mut self.stream, logits)?),
        };
        let mut id = [0];
        self.stream.read(token, &mut id)?;
        Ok((id[0] != u32::MAX).then_some(id[0]))
    }

    /// The last position's logits, brought to the host, and the tokens so far.
    pub(crate) fn logits(&mut self) -> Result<(&mut [f32], &[u32])> {
        if let Some((logits, _)) = &self.last {
            self.logits.resize(logits.elements(), 0.0);
            self.stream.read(logits, &mut self.logits)?;
        }
        Ok((&mut self.logits, &self.tokens))
    }

    /// The launches of one pass over `tokens` tokens and the choice of a token after the last, recorded and not run.
    pub(crate) fn plan(&mut self, tokens: usize) -> Result<Plan> {
        self.set_sampling(SamplingOptions::default(), 0)?;
        self.rewind(&[], tokens)?;
        Ok(self.record(tokens)?.plan)
    }

    fn record(&mut self, tokens: usize) -> Result<Recorded> {
        let device = self.model.device();
        let token_ids = device.zeros(DType::U32, [tokens])?;
        let positions = device.zeros(DType::U32, [tokens])?;
        let (model, cache) = (&self.model, &self.cache);
        let sampler = self.sampler.as_ref();
        let (plan, (logits, token)) = self.stream.record(|stream| {
            let mut step = Step { stream, positions: &positions, cache };
            let hidden = model.inner().decoder.forward(&mut step, &token_ids)?;
            let logits = f32_logits(&mut step, model, &hidden.slice(0, tokens - 1..tokens)?)?;
            let token = sampler.map(|sampler| sampler.sample(step.stream, &logits)).transpose()?;
            Ok::<_, Error>((logits, token))
        })?;
        Ok(Recorded { plan, tokens: token_ids, positions, logits, token })
    }

    /// Moves to a larger cache.
    fn grow(&mut self, capacity: usize) -> Result<()> {
        /// Room is made by so many tokens, so that a conversation seldom moves.
        const STEP: usize = 256;
        let capacity = capacity.next_multiple_of(STEP);
        let model = self.model.inner();
        let larger = KvCache::new(&model.device, model.decoder.cache_shape(), model.cache_dtype, capacity)?;
        let used = self.tokens.len();
        if used > 0 {
            for (from, to) in self.cache.tensors().zip(larger.tensors()) {
                ops::copy_into(&mut self.stream, &from.slice(0, 0..used)?, &to.slice(0, 0..used)?)?;
            }
            self.stream.synchronize()?;
        }
        self.cache = larger;
        self.tokens.reserve(capacity - used);
        self.decode = None;
        Ok(())
    }
}

/// Logits as f32, whatever the type of activations.
fn f32_logits(step: &mut Step, model: &Model, hidden: &Tensor) -> Result<Tensor> {
    let logits = model.inner().decoder.logits(step, hidden)?;
    match logits.dtype() {
        DType::F32 => Ok(logits),
        _ => Ok(ops::cast(step.stream, &logits, DType::F32)?),
    }
}
