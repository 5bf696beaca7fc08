//! The steps of [`Sampler`](super::Sampler) as launches, so that only the token comes to the host.

use silicide::ops::{self, Binary, Penalties, Sampling};
use silicide::{DType, Stream, Tensor};

use super::SamplingOptions;
use crate::error::{Error, Result};

/// What the launches for some options read and write beside the logits.
pub(crate) struct DeviceSampler {
    options: SamplingOptions,
    sampling: Sampling,
    penalties: Penalties,
    /// The seed and the step.
    state: Tensor,
    /// Added to the logits.
    bias: Option<Tensor>,
    /// The last tokens, where there are penalties, and their ids on the host.
    recent: Option<(Tensor, Vec<u32>)>,
}

/// Fills lists of tokens up: no token's id.
const NONE: u32 = u32::MAX;

impl DeviceSampler {
    /// For logits of `vocabulary` tokens; no more than `context` tokens are ever there.
    pub(crate) fn new(
        stream: &mut Stream,
        options: SamplingOptions,
        vocabulary: usize,
        context: usize,
    ) -> Result<DeviceSampler> {
        options.validate()?;
        let device = stream.device();
        let sampling = match options.temperature {
            // The one best token, which is none where the logits are broken.
            0.0 => Sampling { temperature: 1.0, top_k: 1, ..Sampling::default() },
            temperature => Sampling {
                temperature,
                top_p: options.top_p,
                min_p: options.min_p,
                top_k: options.top_k.min(u32::MAX as usize) as u32,
            },
        };
        let penalties = Penalties {
            repetition: options.repetition_penalty,
            presence: options.presence_penalty,
            frequency: options.frequency_penalty,
        };
        let bias = match options.logit_bias.is_empty() {
            true => None,
            false => {
                let mut bias = vec![0.0f32; vocabulary];
                for &(token, more) in &options.logit_bias {
                    let message = || format!("token {token} is outside the {vocabulary} logits");
                    *bias.get_mut(token as usize).ok_or_else(|| Error::Options(message()))? += more;
                }
                Some(device.tensor(&bias, [1, vocabulary])?)
            }
        };
        let count = options.penalty_context.min(context);
        let recent = match penalties == Penalties::default() || count == 0 {
            true => None,
            false => Some((device.zeros(DType::U32, [1, count])?, vec![NONE; count])),
        };
        let state = ops::sample_state(device, &[0])?;
        Ok(DeviceSampler { options, sampling, penalties, state, bias, recent })
    }

    /// Whether it is for these options, but for the seed.
    pub(crate) fn fits(&self, options: &SamplingOptions) -> bool {
        self.options == SamplingOptions { seed: self.options.seed, ..options.clone() }
    }

    /// Starts anew from a seed.
    pub(crate) fn seed(&self, stream: &mut Stream, seed: u64) -> Result<()> {
        Ok(stream.write(&self.state, &[seed as u32, (seed >> 32) as u32, 0, 0])?)
    }

    /// Brings the tokens so far to where the launches read them.
    pub(crate) fn set_history(&mut self, stream: &mut Stream, history: &[u32]) -> Result<()> {
        if let Some((tensor, ids)) = &mut self.recent {
            let last = &history[history.len().saturating_sub(ids.len())..];
            ids[..last.len()].copy_from_slice(last);
            ids[last.len()..].fill(NONE);
            stream.write(tensor, ids)?;
        }
        Ok(())
    }

    /// Launches the choice of a token from `logits`, `[1, vocabulary]`, which stay as they are.
    pub(crate) fn sample(&self, stream: &mut Stream, logits: &Tensor) -> Result<Tensor> {
        let biased = match (&self.bias, &self.recent) {
            (Some(bias), _) => Some(ops::binary(stream, Binary::Add, logits, bias)?),
            (None, Some(_)) => Some(ops::copy(stream, logits)?),
            (None, None) => None,
        };
        if let (Some(logits), Some((recent, _))) = (&biased, &self.recent) {
            ops::penalize_in_place(stream, logits, recent, self.penalties)?;
        }
        Ok(ops::sample(stream, biased.as_ref().unwrap_or(logits), self.sampling, &self.state)?)
    }
}
