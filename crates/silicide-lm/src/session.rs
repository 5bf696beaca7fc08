//! A conversation with a model: the tokens so far, their keys and values, and the recorded decode step.

use silicide::device::Plan;
use silicide::{DType, DeviceKind, Stream, Tensor, ops};

use crate::cache::KvCache;
use crate::error::{Error, Result};
use crate::generate::{GenerateOptions, Generator, Prompt};
use crate::model::Model;
use crate::nn::Step;

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
    /// The last position's logits, unless they are still where the recorded pass left them.
    logits: Vec<f32>,
    on_device: bool,
}

/// A pass over some tokens, recorded for a cache.
struct Recorded {
    plan: Plan,
    tokens: Tensor,
    positions: Tensor,
    logits: Tensor,
    /// The greatest logit and its token, where asking the device for them is quicker than for all logits.
    best: Option<(Tensor, Tensor)>,
}

impl Session {
    pub(crate) fn new(model: Model) -> Session {
        let stream = model.device().stream();
        let logits = vec![0.0; model.vocabulary()];
        Session { model, stream, cache: KvCache::empty(), tokens: Vec::new(), decode: None, logits, on_device: false }
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

    /// Runs `ids`, at most `chunk` at a time. Each position's logits are appended to `keep` where they are wanted; the
    /// last one's are in [`logits`](Self::logits).
    pub(crate) fn prefill(&mut self, ids: &[u32], chunk: usize, mut keep: Option<&mut Vec<f32>>) -> Result<()> {
        self.on_device = false;
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
            let vocabulary = self.logits.len();
            if let Some(keep) = keep.as_deref_mut() {
                let logits = f32_logits(&mut step, &self.model, &hidden)?;
                let from = keep.len();
                keep.resize(from + ids.len() * vocabulary, 0.0);
                self.stream.read(&logits, &mut keep[from..])?;
                self.logits.copy_from_slice(&keep[keep.len() - vocabulary..]);
            } else if i == last {
                let hidden = hidden.slice(0, ids.len() - 1..ids.len())?;
                let logits = f32_logits(&mut step, &self.model, &hidden)?;
                self.stream.read(&logits, &mut self.logits)?;
            }
        }
        self.stream.synchronize()?;
        // A prompt's temporaries are large, and of no use to the steps that follow.
        self.stream.trim();
        Ok(())
    }

    /// Runs one token; the cache has room for it.
    pub(crate) fn decode(&mut self, id: u32) -> Result<()> {
        if self.decode.is_none() {
            self.decode = Some(self.record(1)?);
        }
        let Recorded { plan, tokens, positions, .. } = self.decode.as_ref().expect("recorded above");
        self.stream.write(tokens, &[id])?;
        self.stream.write(positions, &[self.tokens.len() as u32])?;
        self.stream.replay(plan)?;
        self.on_device = true;
        self.tokens.push(id);
        Ok(())
    }

    /// The last position's logits, which the sampler writes over, and the tokens so far.
    pub(crate) fn logits(&mut self) -> Result<(&mut [f32], &[u32])> {
        if let Some(Recorded { logits, .. }) = self.decode.as_ref().filter(|_| self.on_device) {
            self.stream.read(logits, &mut self.logits)?;
            self.on_device = false;
        }
        Ok((&mut self.logits, &self.tokens))
    }

    /// The token of the last position's greatest logit, where the device has found it and the logit is a number.
    pub(crate) fn best(&mut self) -> Result<Option<u32>> {
        let recorded = self.decode.as_ref().filter(|_| self.on_device);
        let Some((logit, token)) = recorded.and_then(|recorded| recorded.best.as_ref()) else { return Ok(None) };
        let (mut greatest, mut best) = ([0.0], [0]);
        self.stream.read(token, &mut best)?;
        self.stream.read(logit, &mut greatest)?;
        Ok(greatest[0].is_finite().then_some(best[0]))
    }

    /// The launches of one pass over `tokens` tokens and the logits of the last, recorded and not run.
    pub(crate) fn plan(&mut self, tokens: usize) -> Result<Plan> {
        self.rewind(&[], tokens)?;
        Ok(self.record(tokens)?.plan)
    }

    fn record(&mut self, tokens: usize) -> Result<Recorded> {
        let device = self.model.device();
        let token_ids = device.zeros(DType::U32, [tokens])?;
        let positions = device.zeros(DType::U32, [tokens])?;
        let (model, cache) = (&self.model, &self.cache);
        let (plan, (logits, best)) = self.stream.record(|stream| {
            let mut step = Step { stream, positions: &positions, cache };
            let hidden = model.inner().decoder.forward(&mut step, &token_ids)?;
            let logits = f32_logits(&mut step, model, &hidden.slice(0, tokens - 1..tokens)?)?;
            let best = match device.kind() {
                DeviceKind::Cpu => None,
                _ => Some(ops::top_k(step.stream, &logits, 1)?),
            };
            Ok::<_, Error>((logits, best))
        })?;
        Ok(Recorded { plan, tokens: token_ids, positions, logits, best })
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
