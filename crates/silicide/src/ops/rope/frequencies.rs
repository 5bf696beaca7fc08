//! Inverse frequencies of rotary embeddings, and the ways that models stretch them to longer contexts.

use std::f64::consts::TAU;

use crate::{Error, Result};

/// The angle that each pair of a head turns by from one position to the next, in radians, and the factor that cosine and
/// sine are multiplied by.
///
/// Kept in f64; [`Rope::new`](super::Rope::new) brings it to a device. The `i`th of `rope_dim / 2` pairs turns by
/// `base^(-2i / rope_dim)` before any scaling.
///
/// ```
/// use silicide::ops::{Llama3Scaling, RopeFrequencies};
/// # fn main() -> silicide::Result<()> {
/// let plain = RopeFrequencies::new(64, 500_000.0)?;
/// let scaling =
///     Llama3Scaling { factor: 32.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_positions: 8192.0 };
/// let stretched = plain.clone().llama3(scaling)?;
/// assert_eq!(stretched.inverse()[0], plain.inverse()[0]);
/// assert_eq!(stretched.inverse()[31], plain.inverse()[31] / 32.0);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct RopeFrequencies {
    inverse: Vec<f64>,
    attention_factor: f64,
}

/// The scaling of Llama 3.1 and later: long wavelengths are stretched, short ones are not, those between are blended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Llama3Scaling {
    /// How much longer the context is than the original.
    pub factor: f64,
    /// Wavelengths past `original_max_positions / low_freq_factor` are stretched in full.
    pub low_freq_factor: f64,
    /// Wavelengths below `original_max_positions / high_freq_factor` are left as they are.
    pub high_freq_factor: f64,
    /// The context that the model was first trained with.
    pub original_max_positions: f64,
}

/// YaRN: Peng et al., "YaRN: Efficient Context Window Extension of Large Language Models", 2023.
///
/// `YarnScaling::new(factor, original_max_positions)` gives the usual values of the rest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct YarnScaling {
    /// How much longer the context is than the original.
    pub factor: f64,
    /// The context that the model was first trained with.
    pub original_max_positions: f64,
    /// Pairs that turn more often than this over the original context are left as they are: 32.
    pub beta_fast: f64,
    /// Pairs that turn less often than this over the original context are stretched in full: 1.
    pub beta_slow: f64,
    /// Whether the range of pairs between the two is widened to whole pairs: true.
    pub truncate: bool,
    /// Multiplies cosine and sine. None for `0.1 ln(factor) + 1`, or what `mscale` and `mscale_all_dim` give.
    pub attention_factor: Option<f64>,
    /// With `mscale_all_dim`, both not 0: the attention factor is the quotient of `0.1 m ln(factor) + 1` for the two.
    pub mscale: f64,
    /// See `mscale`.
    pub mscale_all_dim: f64,
}

impl YarnScaling {
    /// The usual values.
    pub fn new(factor: f64, original_max_positions: f64) -> YarnScaling {
        YarnScaling {
            factor,
            original_max_positions,
            beta_fast: 32.0,
            beta_slow: 1.0,
            truncate: true,
            attention_factor: None,
            mscale: 0.0,
            mscale_all_dim: 0.0,
        }
    }
}

impl RopeFrequencies {
    /// `base^(-2i / rope_dim)` for `i` in `0..rope_dim / 2`.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] where `rope_dim` is 0 or odd, or `base` is not finite and positive.
    pub fn new(rope_dim: usize, base: f64) -> Result<RopeFrequencies> {
        RopeFrequencies::proportional(rope_dim, rope_dim, base)
    }

    /// `base^(-2i / head_dim)` for `i` in `0..rope_dim / 2`: partial rotation with the frequencies that full rotation
    /// would have ("proportional" in Gemma's configuration, where the pairs are halves of the whole head).
    ///
    /// # Errors
    ///
    /// As for [`new`](Self::new); also where `head_dim` is less than `rope_dim`.
    pub fn proportional(rope_dim: usize, head_dim: usize, base: f64) -> Result<RopeFrequencies> {
        check(rope_dim > 0 && rope_dim.is_multiple_of(2) && rope_dim <= head_dim, || {
            format!("rope_dim: got {rope_dim}, wanted an even number from 2 to {head_dim}")
        })?;
        check_positive("base", base)?;
        let inverse = (0..rope_dim / 2).map(|i| base.powf(-2.0 * i as f64 / head_dim as f64)).collect();
        Ok(RopeFrequencies { inverse, attention_factor: 1.0 })
    }

    /// These inverse frequencies, one a pair, in radians from one position to the next.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] where there is none, or one is not finite.
    pub fn from_inverse(inverse: Vec<f64>) -> Result<RopeFrequencies> {
        check(!inverse.is_empty(), || "inverse frequencies: got none, wanted one a pair".into())?;
        if let Some(i) = inverse.iter().position(|f| !f.is_finite()) {
            return Err(Error::argument(OP, format!("inverse frequency {i}: got {}, wanted a number", inverse[i])));
        }
        Ok(RopeFrequencies { inverse, attention_factor: 1.0 })
    }

    /// Every frequency divided by `factor`, which is the same as every position divided by it.
    pub fn linear(mut self, factor: f64) -> Result<RopeFrequencies> {
        check_positive("factor", factor)?;
        self.inverse.iter_mut().for_each(|f| *f /= factor);
        Ok(self)
    }

    /// Each frequency divided by its own factor: LongRoPE's short or long factors, GGUF's `rope_freqs.weight`.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] where there are not as many factors as pairs, or one is not positive.
    pub fn divided_by(mut self, factors: &[f64]) -> Result<RopeFrequencies> {
        check(factors.len() == self.inverse.len(), || {
            format!("factors: got {}, wanted {}, one a pair", factors.len(), self.inverse.len())
        })?;
        for (f, &factor) in self.inverse.iter_mut().zip(factors) {
            // GGUF writes 1e30 for pairs that do not turn; an infinite factor says so as well.
            check(factor > 0.0, || format!("factors: got {factor}, wanted a positive number"))?;
            *f /= factor;
        }
        Ok(self)
    }

    /// The base raised for a context `length` beyond `max_positions`, by "NTK-aware" scaling; the plain frequencies for a
    /// `length` within it.
    pub fn dynamic_ntk(
        rope_dim: usize,
        base: f64,
        factor: f64,
        max_positions: f64,
        length: f64,
    ) -> Result<RopeFrequencies> {
        check_positive("factor", factor)?;
        check_positive("max_positions", max_positions)?;
        check(rope_dim > 2, || format!("rope_dim: got {rope_dim}, wanted 4 or more"))?;
        let stretch = factor * length.max(max_positions) / max_positions - (factor - 1.0);
        let dim = rope_dim as f64;
        RopeFrequencies::new(rope_dim, base * stretch.powf(dim / (dim - 2.0)))
    }

    /// [`Llama3Scaling`] of these frequencies.
    pub fn llama3(mut self, scaling: Llama3Scaling) -> Result<RopeFrequencies> {
        let Llama3Scaling { factor, low_freq_factor: low, high_freq_factor: high, original_max_positions } = scaling;
        check_positive("factor", factor)?;
        check_positive("original_max_positions", original_max_positions)?;
        check(low < high, || {
            format!("low_freq_factor: got {low}, wanted less than high_freq_factor, which is {high}")
        })?;
        for f in &mut self.inverse {
            let turns = original_max_positions * *f / TAU;
            let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
            *f = kept * *f + (1.0 - kept) * *f / factor;
        }
        Ok(self)
    }

    /// The frequencies of `rope_dim` and `base` under [`YarnScaling`].
    pub fn yarn(rope_dim: usize, base: f64, scaling: YarnScaling) -> Result<RopeFrequencies> {
        let YarnScaling { factor, original_max_positions, beta_fast, beta_slow, .. } = scaling;
        let mut plain = RopeFrequencies::new(rope_dim, base)?;
        for (name, value) in [
            ("factor", factor),
            ("original_max_positions", original_max_positions),
            ("beta_fast", beta_fast),
            ("beta_slow", beta_slow),
        ] {
            check_positive(name, value)?;
        }
        check(base != 1.0, || "base: got 1, wanted another number: all pairs would turn alike".into())?;
        // The (fractional) pair that turns so often over the original context.
        let pair_of = |turns: f64| rope_dim as f64 * (original_max_positions / (turns * TAU)).ln() / (2.0 * base.ln());
        let (mut low, mut high) = (pair_of(beta_fast), pair_of(beta_slow));
        if scaling.truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(rope_dim as f64 - 1.0));
        if low == high {
            high += 0.001;
        }
        for (i, f) in plain.inverse.iter_mut().enumerate() {
            let stretched = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
            *f = stretched * *f / factor + (1.0 - stretched) * *f;
        }
        let mscale = |m: f64| if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
        let attention_factor = match scaling.attention_factor {
            Some(given) => given,
            None if scaling.mscale != 0.0 && scaling.mscale_all_dim != 0.0 => {
                mscale(scaling.mscale) / mscale(scaling.mscale_all_dim)
            }
            None => mscale(1.0),
        };
        plain.with_attention_factor(attention_factor)
    }

    /// LongRoPE: each frequency divided by its factor, and the attention factor `sqrt(1 + ln(factor) /
    /// ln(original_max_positions))`, `factor` being how much longer the context is than the original. Mathematics: Ding et
    /// al., "LongRoPE: Extending LLM Context Window Beyond 2 Million Tokens", 2024.
    pub fn longrope(
        rope_dim: usize,
        base: f64,
        factors: &[f64],
        factor: f64,
        original_max_positions: f64,
    ) -> Result<RopeFrequencies> {
        check_positive("factor", factor)?;
        check(original_max_positions > 1.0, || {
            format!("original_max_positions: got {original_max_positions}, wanted more than 1")
        })?;
        let attention_factor =
            if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / original_max_positions.ln()).sqrt() };
        RopeFrequencies::new(rope_dim, base)?.divided_by(factors)?.with_attention_factor(attention_factor)
    }

    /// The same frequencies with another factor for cosine and sine.
    pub fn with_attention_factor(mut self, factor: f64) -> Result<RopeFrequencies> {
        check(factor.is_finite(), || format!("attention_factor: got {factor}, wanted a number"))?;
        self.attention_factor = factor;
        Ok(self)
    }

    /// Radians from one position to the next, one a pair.
    pub fn inverse(&self) -> &[f64] {
        &self.inverse
    }

    /// What cosine and sine are multiplied by.
    pub fn attention_factor(&self) -> f64 {
        self.attention_factor
    }

    /// The dimensions of a head that turn: two a pair.
    pub fn rope_dim(&self) -> usize {
        2 * self.inverse.len()
    }
}

const OP: &str = "rope frequencies";

fn check(ok: bool, message: impl FnOnce() -> String) -> Result<()> {
    crate::ops::check::check(OP, ok, message)
}

fn check_positive(name: &str, value: f64) -> Result<()> {
    check(value.is_finite() && value > 0.0, || format!("{name}: got {value}, wanted a finite positive number"))
}
