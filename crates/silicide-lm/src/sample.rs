//! From logits to the next token, on the host; `device` has the same steps as launches, which generation uses.
//!
//! The steps and their order are mlx-lm's (`make_logits_processors`, then `make_sampler`): logit bias, repetition penalty,
//! presence penalty, frequency penalty; then, on the probabilities at temperature 1, top-p, min-p and top-k; then the
//! temperature, and a draw.

mod device;

pub(crate) use device::DeviceSampler;

use crate::error::{Error, Result};

/// How to choose tokens. The default is greedy, with no penalties.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingOptions {
    /// Divides the logits before the draw; 0 takes the most probable token. At least 0.
    pub temperature: f32,
    /// Draws from the fewest most probable tokens that hold this share of the probability. In (0, 1]; 1 is off.
    pub top_p: f32,
    /// Draws from this many most probable tokens; 0 is off.
    pub top_k: usize,
    /// Leaves out tokens below this share of the best token's probability. In [0, 1]; 0 is off.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of recent tokens. Above 0; 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted from the logits of recent tokens; 0 is off.
    pub presence_penalty: f32,
    /// Subtracted from the logits of recent tokens, once for each time they occur; 0 is off.
    pub frequency_penalty: f32,
    /// How many of the last tokens, those of the prompt included, count as recent.
    pub penalty_context: usize,
    /// Added to the logits of single tokens; negative infinity bans one.
    pub logit_bias: Vec<(u32, f32)>,
    /// The same logits, options and seed give the same tokens, on every platform. `None` takes a fresh seed.
    pub seed: Option<u64>,
}

impl Default for SamplingOptions {
    fn default() -> Self {
        SamplingOptions {
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            penalty_context: 20,
            logit_bias: Vec::new(),
            seed: None,
        }
    }
}

impl SamplingOptions {
    /// Checks every option's range.
    ///
    /// # Errors
    /// The first option that is out of its range.
    pub fn validate(&self) -> Result<()> {
        let check = |name: &str, value: f32, fits: bool, want: &str| {
            if fits { Ok(()) } else { Err(Error::Options(format!("{name} is {value}; want {want}"))) }
        };
        let (temperature, penalty) = (self.temperature, self.repetition_penalty);
        check("temperature", temperature, temperature.is_finite() && temperature >= 0.0, "0 (greedy) or more")?;
        let hint =
            "more than 0 and at most 1 (1 keeps every token; for the most probable token alone, set temperature to 0)";
        check("top_p", self.top_p, self.top_p > 0.0 && self.top_p <= 1.0, hint)?;
        check("min_p", self.min_p, (0.0..=1.0).contains(&self.min_p), "0 (off) to 1")?;
        check("repetition_penalty", penalty, penalty.is_finite() && penalty > 0.0, "more than 0 (1 is off)")?;
        for (name, value) in
            [("presence_penalty", self.presence_penalty), ("frequency_penalty", self.frequency_penalty)]
        {
            check(name, value, value.is_finite(), "a finite number (0 is off)")?;
        }
        for &(token, bias) in &self.logit_bias {
            let name = format!("logit_bias of token {token}");
            check(&name, bias, bias < f32::INFINITY, "a number below infinity")?;
        }
        Ok(())
    }
}

/// Chooses one token after another.
///
/// ```
/// # use silicide_lm::{Sampler, SamplingOptions};
/// let options = SamplingOptions { temperature: 0.7, top_p: 0.9, seed: Some(1), ..Default::default() };
/// let mut sampler = Sampler::new(options)?;
/// let token = sampler.sample(&mut [0.5, 2.0, -1.0], &[])?;
/// assert!(token < 2);
/// # Ok::<(), silicide_lm::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Sampler {
    options: SamplingOptions,
    random: Philox,
    /// Scratch, kept for its allocation: recent tokens, candidates' logits, and what a cut keeps, with weights.
    recent: Vec<u32>,
    candidates: Vec<f32>,
    kept: Vec<u32>,
    weights: Vec<f64>,
}

/// The tokens that stay: those above a logit, and the first `ties` of those at it.
#[derive(Clone, Copy, Debug)]
struct Cut {
    max: f32,
    logit: f32,
    ties: usize,
}

impl Sampler {
    /// A sampler with these options.
    ///
    /// # Errors
    /// Options out of range, see [`SamplingOptions::validate`].
    pub fn new(options: SamplingOptions) -> Result<Self> {
        options.validate()?;
        let fresh = || std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), ());
        let random = Philox { seed: options.seed.unwrap_or_else(fresh), counter: 0 };
        let (recent, candidates, kept, weights) = Default::default();
        Ok(Sampler { options, random, recent, candidates, kept, weights })
    }

    /// The seed in use, given or fresh.
    pub fn seed(&self) -> u64 {
        self.random.seed
    }

    /// The next token, given the logits of every token and the tokens so far (prompt and answer). The logits are changed by
    /// bias and penalties. The most probable token is the one of lowest index among equals.
    ///
    /// # Errors
    /// Logits that are NaN or positive infinity, or all negative infinity; token ids outside the logits.
    pub fn sample(&mut self, logits: &mut [f32], history: &[u32]) -> Result<u32> {
        self.penalize(logits, history)?;
        let (best, max) = best(logits)?;
        if self.options.temperature == 0.0 {
            return Ok(best as u32);
        }
        let cut = self.cut(logits, max);
        Ok(self.draw(logits, cut) as u32)
    }

    fn penalize(&mut self, logits: &mut [f32], history: &[u32]) -> Result<()> {
        let options = &self.options;
        let size = logits.len();
        let outside = |token: u32| Error::Options(format!("token {token} is outside the {size} logits"));
        for &(token, bias) in &options.logit_bias {
            *logits.get_mut(token as usize).ok_or_else(|| outside(token))? += bias;
        }
        let (repetition, presence, frequency) =
            (options.repetition_penalty, options.presence_penalty, options.frequency_penalty);
        if repetition == 1.0 && presence == 0.0 && frequency == 0.0 {
            return Ok(());
        }
        self.recent.clear();
        self.recent.extend_from_slice(&history[history.len().saturating_sub(options.penalty_context)..]);
        self.recent.sort_unstable();
        for same in self.recent.chunk_by(|a, b| a == b) {
            let logit = logits.get_mut(same[0] as usize).ok_or_else(|| outside(same[0]))?;
            *logit = if *logit < 0.0 { *logit * repetition } else { *logit / repetition };
            *logit -= presence + frequency * same.len() as f32;
        }
        Ok(())
    }

    /// Where top-p, min-p and top-k cut. Each keeps the head of the tokens in order of probability, so the shortest head counts.
    fn cut(&mut self, logits: &[f32], max: f32) -> Cut {
        let size = logits.len();
        let (top_p, min_p) = (f64::from(self.options.top_p), self.options.min_p);
        let top_k = if self.options.top_k == 0 { size } else { self.options.top_k.min(size) };
        let mut cut = Cut { max, logit: f32::MIN, ties: usize::MAX };
        if min_p > 0.0 {
            cut.logit = cut.logit.max(max + min_p.ln());
        }
        if top_p < 1.0 {
            let mass = top_p * mass(logits, max);
            self.gather(logits, max, |head| self::mass(head, max) >= mass);
            cut.logit = cut.logit.max(nucleus(&mut self.candidates, max, mass));
        }
        if top_k < size {
            self.gather(logits, max, |head| head.len() >= top_k);
            // Fewer are left where logits are negative infinity.
            let last = top_k.min(self.candidates.len()) - 1;
            let (above, kth, _) = self.candidates.select_nth_unstable_by(last, |a, b| b.total_cmp(a));
            if *kth >= cut.logit {
                let ties = top_k - above.iter().filter(|logit| **logit > *kth).count();
                cut = Cut { logit: *kth, ties, ..cut };
            }
        }
        cut
    }

    /// Collects the logits near the maximum, from a distance that grows until there are enough: few of a trained model's
    /// logits have to be ordered.
    fn gather(&mut self, logits: &[f32], max: f32, enough: impl Fn(&[f32]) -> bool) {
        let mut distance = 4.0f32;
        loop {
            let floor = (max - distance).max(f32::MIN);
            self.candidates.clear();
            self.candidates.extend(logits.iter().copied().filter(|&logit| logit >= floor));
            if floor == f32::MIN || enough(&self.candidates) {
                return;
            }
            distance *= 4.0;
        }
    }

    /// Draws a token from what a cut keeps, by one uniform number: the tokens are laid end to end in order of their ids.
    fn draw(&mut self, logits: &[f32], cut: Cut) -> usize {
        self.weigh(logits, cut);
        let mut left = self.random.uniform() * sum(&self.weights);
        let drawn = self.weights.iter().position(|weight| {
            left -= weight;
            left < 0.0
        });
        // Rounding may leave a little at the end.
        let drawn = drawn.unwrap_or(self.kept.len().saturating_sub(1));
        self.kept.get(drawn).map_or(0, |&token| token as usize)
    }

    /// Collects the tokens that a cut keeps, in order of their ids, with their weights at the temperature.
    fn weigh(&mut self, logits: &[f32], cut: Cut) {
        let (mut ties, max, scale) = (cut.ties, f64::from(cut.max), 1.0 / f64::from(self.options.temperature));
        self.kept.clear();
        self.weights.clear();
        for (&logit, token) in logits.iter().zip(0..) {
            let stays = logit > cut.logit || (logit == cut.logit && ties > 0);
            ties -= usize::from(stays && logit == cut.logit);
            if stays {
                self.kept.push(token);
                self.weights.push(f64::from(logit));
            }
        }
        // Apart from the choice, so that a vector of them is computed at once.
        for weight in &mut self.weights {
            *weight = exp((*weight - max) * scale);
        }
    }
}

/// The first of the largest logits.
fn best(logits: &[f32]) -> Result<(usize, f32)> {
    let mut best = (0, f32::NEG_INFINITY);
    for (token, &logit) in logits.iter().enumerate() {
        if logit.is_nan() || logit == f32::INFINITY {
            let hint = "the model's numbers overflowed, or its weights are damaged";
            return Err(Error::Options(format!("the logit of token {token} is {logit}; {hint}")));
        }
        if logit > best.1 {
            best = (token, logit);
        }
    }
    if best.1 == f32::NEG_INFINITY {
        return Err(Error::Options(format!("no token is possible: all {} logits are negative infinity", logits.len())));
    }
    Ok(best)
}

/// The sum of `exp(logit - max)`.
fn mass(logits: &[f32], max: f32) -> f64 {
    let mut powers = [0.0; 256];
    let blocks = logits.chunks(powers.len()).map(|block| {
        for (power, &logit) in powers.iter_mut().zip(block) {
            *power = exp(f64::from(logit) - f64::from(max));
        }
        sum(&powers[..block.len()])
    });
    blocks.sum()
}

/// In eight sums, so that additions need not wait for each other.
fn sum(numbers: &[f64]) -> f64 {
    let mut sums = [0.0f64; 8];
    let (eights, rest) = numbers.as_chunks::<8>();
    for eight in eights.iter().map(<[f64; 8]>::as_slice).chain([rest]) {
        for (sum, number) in sums.iter_mut().zip(eight) {
            *sum += number;
        }
    }
    sums.iter().sum()
}

/// The least logit of the shortest head, in descending order, that holds `target` of the mass. Linear, by halving.
fn nucleus(candidates: &mut [f32], max: f32, target: f64) -> f32 {
    let (mut head, mut rest) = (0.0, candidates);
    while rest.len() > 1 {
        let middle = rest.len() / 2;
        rest.select_nth_unstable_by(middle, |a, b| b.total_cmp(a));
        let (upper, lower) = rest.split_at_mut(middle);
        let with_upper = head + mass(upper, max);
        if with_upper >= target {
            rest = upper;
        } else {
            (head, rest) = (with_upper, lower);
        }
    }
    rest[0]
}

/// e^x for x at most 0, from basic operations alone: the libraries' `exp` differ in the last bit between platforms, which
/// would be enough to draw another token.
fn exp(x: f64) -> f64 {
    const LN2_HIGH: f64 = 0.693_147_180_369_123_8;
    const LN2_LOW: f64 = 1.908_214_929_270_587_7e-10;
    // Adding 1.5 * 2^52 rounds to an integer, which then stands in the low bits.
    const SHIFT: f64 = 6_755_399_441_055_744.0;
    let shifted = x * std::f64::consts::LOG2_E + SHIFT;
    let n = shifted - SHIFT;
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    // Taylor to r^13 / 13!, below 1e-17 for |r| <= ln(2) / 2.
    let series = COEFFICIENTS.iter().fold(0.0, |series, coefficient| series * r + coefficient);
    let power = f64::from_bits(shifted.to_bits().wrapping_add(1023) << 52);
    // Beyond this the result is no longer a normal number, and is nothing beside the maximum's 1.
    if x < -700.0 { 0.0 } else { series * power }
}

/// 1/13! to 1/0!.
const COEFFICIENTS: [f64; 14] = {
    let (mut coefficients, mut factorial, mut i) = ([1.0; 14], 1.0, 1);
    while i <= 13 {
        factorial *= i as f64;
        coefficients[13 - i] = 1.0 / factorial;
        i += 1;
    }
    coefficients
};

/// Philox4x32-10 (Salmon et al., 2011): the numbers are a function of seed and counter, so a device can make the same ones.
#[derive(Clone, Copy, Debug)]
struct Philox {
    seed: u64,
    counter: u64,
}

impl Philox {
    /// A number in [0, 1), with 53 random bits.
    fn uniform(&mut self) -> f64 {
        let (low, high) = (self.counter as u32, (self.counter >> 32) as u32);
        let [a, b, ..] = philox([low, high, 0, 0], [self.seed as u32, (self.seed >> 32) as u32]);
        self.counter += 1;
        ((u64::from(a) << 32 | u64::from(b)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let a = u64::from(counter[0]) * 0xD251_1F53;
        let b = u64::from(counter[2]) * 0xCD9E_8D57;
        counter = [(b >> 32) as u32 ^ counter[1] ^ key[0], b as u32, (a >> 32) as u32 ^ counter[3] ^ key[1], a as u32];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    counter
}

#[cfg(test)]
mod tests;
