//! Rotary frequencies as configurations describe them.

use serde::Deserialize;
use serde_json::Value;
use silicide::ops::{Llama3Scaling, RopeFrequencies, YarnScaling};

use crate::error::{Error, Result};

/// A base, and how it is stretched for contexts longer than the model was first trained with.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RopeArgs {
    pub(crate) theta: f64,
    pub(crate) scaling: Scaling,
    /// The key of the configuration that says so, for messages.
    field: &'static str,
}

/// The kinds of `rope_scaling`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Scaling {
    None,
    Linear(f64),
    Llama3(Llama3Scaling),
    Yarn(YarnScaling),
    /// A divisor for every pair, as GGUF files of Llama 3 carry.
    Divisors(Vec<f64>),
}

/// The keys of `rope_parameters` and of the older `rope_scaling`.
#[derive(Deserialize)]
struct Json {
    rope_theta: Option<f64>,
    rope_type: Option<String>,
    /// Older files' name of `rope_type`; transformers writes both where it has read the older one.
    r#type: Option<String>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
    beta_fast: Option<f64>,
    beta_slow: Option<f64>,
    truncate: Option<bool>,
    attention_factor: Option<f64>,
    mscale: Option<f64>,
    mscale_all_dim: Option<f64>,
}

impl RopeArgs {
    /// Reads `rope_parameters`, or `rope_theta` and `rope_scaling` of older files. `kind` picks the entry of
    /// configurations that have one for each kind of layer.
    pub(crate) fn from_config(config: &Value, kind: Option<&str>, default_theta: f64) -> Result<RopeArgs> {
        const THETA: &str = "rope_theta";
        let theta = number(config, THETA)?;
        let parameters = ["rope_parameters", "rope_scaling"].into_iter().find_map(|key| {
            let value = config.get(key).filter(|v| !v.is_null())?;
            Some((key, kind.and_then(|kind| value.get(kind)).unwrap_or(value)))
        });
        let Some((key, value)) = parameters else {
            return Ok(RopeArgs { theta: theta.unwrap_or(default_theta), scaling: Scaling::None, field: THETA });
        };
        let wrong = |message: String| Error::Config { field: key.into(), message };
        let json = Json::deserialize(value).map_err(|e| wrong(e.to_string()))?;
        let wanted = |value: Option<f64>, name: &str| value.ok_or_else(|| wrong(format!("{name} is missing")));
        let scaling = match json.rope_type.or(json.r#type).as_deref().unwrap_or("default") {
            "default" | "mrope" => Scaling::None,
            "linear" => Scaling::Linear(wanted(json.factor, "factor")?),
            "llama3" => Scaling::Llama3(Llama3Scaling {
                factor: wanted(json.factor, "factor")?,
                low_freq_factor: json.low_freq_factor.unwrap_or(1.0),
                high_freq_factor: json.high_freq_factor.unwrap_or(4.0),
                original_max_positions: json.original_max_position_embeddings.unwrap_or(8192.0),
            }),
            "yarn" => {
                let original = wanted(json.original_max_position_embeddings, "original_max_position_embeddings")?;
                let usual = YarnScaling::new(wanted(json.factor, "factor")?, original);
                Scaling::Yarn(YarnScaling {
                    beta_fast: json.beta_fast.unwrap_or(usual.beta_fast),
                    beta_slow: json.beta_slow.unwrap_or(usual.beta_slow),
                    truncate: json.truncate.unwrap_or(usual.truncate),
                    attention_factor: json.attention_factor.or(usual.attention_factor),
                    mscale: json.mscale.unwrap_or(usual.mscale),
                    mscale_all_dim: json.mscale_all_dim.unwrap_or(usual.mscale_all_dim),
                    ..usual
                })
            }
            other => return Err(wrong(format!("got rope type {other:?}, wanted default, linear, llama3 or yarn"))),
        };
        Ok(RopeArgs { theta: json.rope_theta.or(theta).unwrap_or(default_theta), scaling, field: key })
    }

    /// The base alone, of layers whose positions are never stretched: `sliding_attention` of `rope_parameters`, or
    /// `rope_local_base_freq` of older files.
    pub(crate) fn local(config: &Value, default_theta: f64) -> Result<RopeArgs> {
        const LOCAL: &str = "rope_local_base_freq";
        let newer = config.get("rope_parameters").and_then(|p| p.get("sliding_attention"));
        let (theta, field) = match newer {
            Some(parameters) => (number(parameters, "rope_theta")?, "rope_parameters"),
            None => (number(config, LOCAL)?, LOCAL),
        };
        Ok(RopeArgs { theta: theta.unwrap_or(default_theta), scaling: Scaling::None, field })
    }

    /// The frequencies for heads of which `rope_dim` elements turn.
    pub(crate) fn frequencies(&self, rope_dim: usize) -> Result<RopeFrequencies> {
        let plain = RopeFrequencies::new(rope_dim, self.theta);
        let scaled = match &self.scaling {
            Scaling::None => plain,
            Scaling::Linear(factor) => plain.and_then(|plain| plain.linear(*factor)),
            Scaling::Llama3(scaling) => plain.and_then(|plain| plain.llama3(*scaling)),
            Scaling::Yarn(scaling) => RopeFrequencies::yarn(rope_dim, self.theta, *scaling),
            Scaling::Divisors(divisors) => plain.and_then(|plain| plain.divided_by(divisors)),
        };
        scaled.map_err(|e| Error::Config { field: self.field.into(), message: e.to_string() })
    }
}

/// A number that may be absent.
fn number(config: &Value, field: &str) -> Result<Option<f64>> {
    match config.get(field).filter(|value| !value.is_null()) {
        None => Ok(None),
        Some(value) => value.as_f64().map(Some).ok_or_else(|| {
            let message = format!("got {value}, wanted a number");
            Error::Config { field: field.into(), message }
        }),
    }
}
