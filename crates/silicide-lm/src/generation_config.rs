//! `generation_config.json`: where a model ends, and how its makers sample it.

use std::path::Path;

use serde_json::Value;

use crate::error::{Error, Result, read_json};
use crate::sample::SamplingOptions;

/// The parts of `generation_config.json` that are used.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationConfig {
    /// The ids that end a text.
    pub eos_token_ids: Vec<u32>,
    /// Whether to sample at all; `false` is greedy decoding, whatever the rest says.
    pub do_sample: Option<bool>,
    /// The softmax temperature.
    pub temperature: Option<f32>,
    /// The probability mass to sample from.
    pub top_p: Option<f32>,
    /// The number of tokens to sample from; 0 for all.
    pub top_k: Option<usize>,
    /// The least probability, as a share of the best token's.
    pub min_p: Option<f32>,
    /// The factor against tokens that were seen.
    pub repetition_penalty: Option<f32>,
}

impl GenerationConfig {
    /// Reads a model folder's `generation_config.json`; `config.json` names the end tokens where the former does not.
    ///
    /// # Errors
    /// A malformed file, named with the field. Absent files are not an error.
    pub fn from_folder(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        let path = folder.join("generation_config.json");
        let mut config = match read_json(&path)? {
            Some(json) => Self::parse(&path, &json)?,
            None => Self::default(),
        };
        if config.eos_token_ids.is_empty() {
            let path = folder.join("config.json");
            if let Some(json) = read_json(&path)? {
                let field = if json["eos_token_id"].is_null() {
                    &json["text_config"]["eos_token_id"]
                } else {
                    &json["eos_token_id"]
                };
                config.eos_token_ids = ids(&path, field)?;
            }
        }
        Ok(config)
    }

    /// The sampling these defaults ask for: greedy where `do_sample` is false or absent, as in transformers, and else the
    /// values given, with transformers' temperature of 1 where there is none.
    pub fn sampling(&self) -> SamplingOptions {
        let defaults = SamplingOptions {
            repetition_penalty: self.repetition_penalty.unwrap_or(1.0),
            ..SamplingOptions::default()
        };
        if self.do_sample != Some(true) {
            return defaults;
        }
        SamplingOptions {
            temperature: self.temperature.unwrap_or(1.0),
            top_p: self.top_p.unwrap_or(1.0),
            top_k: self.top_k.unwrap_or(0),
            min_p: self.min_p.unwrap_or(0.0),
            ..defaults
        }
    }

    fn parse(path: &Path, json: &Value) -> Result<Self> {
        let number = |name: &str| match &json[name] {
            Value::Null => Ok(None),
            value => {
                let number = value.as_f64().map(|number| number as f32);
                number.map(Some).ok_or_else(|| Error::file(path, name, format!("want a number, got {value}")))
            }
        };
        let flag = |name: &str| match &json[name] {
            Value::Null => Ok(None),
            Value::Bool(flag) => Ok(Some(*flag)),
            value => Err(Error::file(path, name, format!("want true or false, got {value}"))),
        };
        let top_k = match &json["top_k"] {
            Value::Null => None,
            value => {
                let count = value.as_u64().and_then(|count| usize::try_from(count).ok());
                Some(count.ok_or_else(|| Error::file(path, "top_k", format!("want a count, got {value}")))?)
            }
        };
        Ok(GenerationConfig {
            eos_token_ids: ids(path, &json["eos_token_id"])?,
            do_sample: flag("do_sample")?,
            temperature: number("temperature")?,
            top_p: number("top_p")?,
            top_k,
            min_p: number("min_p")?,
            repetition_penalty: number("repetition_penalty")?,
        })
    }
}

/// An id, a list of ids, or null.
fn ids(path: &Path, value: &Value) -> Result<Vec<u32>> {
    let one = |value: &Value| {
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| Error::file(path, "eos_token_id", format!("want a token id or a list of them, got {value}")))
    };
    match value {
        Value::Null => Ok(Vec::new()),
        Value::Array(list) => list.iter().map(one).collect(),
        value => Ok(vec![one(value)?]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(files: &[(&str, &str)]) -> Result<GenerationConfig> {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).expect("a file");
        }
        GenerationConfig::from_folder(folder.path())
    }

    #[test]
    fn end_tokens_are_one_or_many_and_come_from_config_json_otherwise() {
        let config = ("config.json", r#"{"eos_token_id": 2}"#);
        assert_eq!(read(&[]).expect("nothing to read"), GenerationConfig::default());
        assert_eq!(read(&[config]).expect("a config").eos_token_ids, [2]);
        let nested = ("config.json", r#"{"text_config": {"eos_token_id": [3, 4]}}"#);
        assert_eq!(read(&[nested]).expect("a config").eos_token_ids, [3, 4]);
        let many = ("generation_config.json", r#"{"eos_token_id": [128001, 128009]}"#);
        assert_eq!(read(&[config, many]).expect("configs").eos_token_ids, [128001, 128009]);
    }

    #[test]
    fn sampling_defaults_count_where_the_model_samples() {
        let text = r#"{"do_sample": true, "temperature": 0.6, "top_p": 0.9, "top_k": 20, "repetition_penalty": 1.05}"#;
        let options = read(&[("generation_config.json", text)]).expect("a config").sampling();
        assert_eq!((options.temperature, options.top_p, options.top_k), (0.6, 0.9, 20));
        assert_eq!(options.repetition_penalty, 1.05);
        let greedy = read(&[("generation_config.json", r#"{"temperature": 0.6, "top_k": 20}"#)]).expect("a config");
        assert_eq!(greedy.sampling(), SamplingOptions::default());
    }

    #[test]
    fn wrong_fields_are_named() {
        for (text, field) in [
            (r#"{"eos_token_id": "</s>"}"#, "eos_token_id"),
            (r#"{"eos_token_id": [1, -1]}"#, "eos_token_id"),
            (r#"{"temperature": "hot"}"#, "temperature"),
            (r#"{"top_k": 0.5}"#, "top_k"),
            (r#"{"do_sample": 1}"#, "do_sample"),
            ("[]", "file"),
            ("{", "file"),
        ] {
            let message = read(&[("generation_config.json", text)]).expect_err(text).to_string();
            assert!(message.contains("generation_config.json") && message.contains(field), "{message}");
        }
    }
}
