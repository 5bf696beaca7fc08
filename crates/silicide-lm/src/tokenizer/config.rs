//! The tokenizer files of a model folder.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use tokenizers::AddedToken;

use crate::error::{Error, Result, read_json, read_optional};

/// What `tokenizer_config.json` and its neighbours say beside the vocabulary.
#[derive(Debug, Default)]
pub(crate) struct TokenizerConfig {
    /// `bos_token`, `eos_token`, ... by name.
    pub(crate) special_tokens: BTreeMap<String, String>,
    /// Chat templates by name; the usual one is `default`.
    pub(crate) chat_templates: BTreeMap<String, String>,
    /// Tokens to add where `tokenizer.json` lacks them, by id.
    pub(super) added_tokens: BTreeMap<u32, AddedToken>,
}

impl TokenizerConfig {
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let mut config = TokenizerConfig::default();
        // The older file first: tokenizer_config.json overrides it.
        for name in ["special_tokens_map.json", "tokenizer_config.json"] {
            let path = folder.join(name);
            if let Some(Value::Object(fields)) = read_json(&path)? {
                config.take(&path, &fields)?;
            }
        }
        config.read_templates(folder)?;
        Ok(config)
    }

    fn take(&mut self, path: &Path, fields: &Map<String, Value>) -> Result<()> {
        for (name, value) in fields {
            let bad = |want: &str| Err(Error::file(path, name, format!("want {want}, got {}", brief(value))));
            match (name.as_str(), value) {
                ("added_tokens_decoder", Value::Object(tokens)) => {
                    for (id, token) in tokens {
                        let (id, token) = added_token(id, token)
                            .map_err(|message| Error::file(path, format!("added_tokens_decoder.{id}"), message))?;
                        self.added_tokens.insert(id, token);
                    }
                }
                ("added_tokens_decoder", _) => return bad("an object of tokens by id"),
                ("chat_template", Value::String(source)) => {
                    self.chat_templates.insert("default".into(), source.clone());
                }
                ("chat_template", Value::Array(list)) => {
                    for entry in list {
                        let (Some(name), Some(source)) = (entry["name"].as_str(), entry["template"].as_str()) else {
                            return bad("a string or a list of {name, template}");
                        };
                        self.chat_templates.insert(name.into(), source.into());
                    }
                }
                ("chat_template", Value::Null) => {}
                ("chat_template", _) => return bad("a string or a list of {name, template}"),
                (name, Value::String(token)) if name.ends_with("_token") => {
                    self.special_tokens.insert(name.into(), token.clone());
                }
                (name, Value::Object(token)) if name.ends_with("_token") => match token.get("content") {
                    Some(Value::String(content)) => {
                        self.special_tokens.insert(name.into(), content.clone());
                    }
                    _ => return bad("a string or an object with a string `content`"),
                },
                // An explicit null takes back what the older file says.
                (name, Value::Null) if name.ends_with("_token") => {
                    self.special_tokens.remove(name);
                }
                ("bos_token" | "eos_token", _) => return bad("a string or an object with a string `content`"),
                _ => {}
            }
        }
        Ok(())
    }

    /// Templates in files of their own override those in `tokenizer_config.json`.
    fn read_templates(&mut self, folder: &Path) -> Result<()> {
        if let Some(source) = read_optional(&folder.join("chat_template.jinja"))? {
            self.chat_templates.insert("default".into(), source);
        } else if !self.chat_templates.contains_key("default") {
            let path = folder.join("chat_template.json");
            if let Some(json) = read_json(&path)? {
                let source = json["chat_template"].as_str();
                let source = source.ok_or_else(|| Error::file(&path, "chat_template", "want a string"))?;
                self.chat_templates.insert("default".into(), source.into());
            }
        }
        let Ok(entries) = std::fs::read_dir(folder.join("additional_chat_templates")) else { return Ok(()) };
        for path in entries.filter_map(|entry| entry.ok().map(|entry| entry.path())) {
            if path.extension().is_some_and(|extension| extension == "jinja")
                && let (Some(name), Some(source)) = (path.file_stem(), read_optional(&path)?)
            {
                self.chat_templates.insert(name.to_string_lossy().into_owned(), source);
            }
        }
        Ok(())
    }
}

/// `tokenizer.json`, without the truncation and padding that training may have left in it.
pub(super) fn read_tokenizer(folder: &Path) -> Result<tokenizers::Tokenizer> {
    let path = folder.join("tokenizer.json");
    let Some(text) = read_optional(&path)? else {
        let hint = if folder.join("tokenizer.model").exists() {
            "missing, and tokenizer.model alone cannot be read: convert it (transformers' AutoTokenizer.save_pretrained writes it)"
        } else {
            "missing"
        };
        return Err(Error::file(path, "file", hint));
    };
    // Parsed for its sections alone at first: the library panics on some files that are not JSON, and its errors name no section.
    let sections =
        serde_json::from_str(&text).map_err(|e| Error::file(&path, "file", format!("not a JSON object: {e}")))?;
    let mut tokenizer: tokenizers::Tokenizer = text.parse().map_err(|e| explain(&path, &sections, &e))?;
    tokenizer.with_padding(None);
    tokenizer.with_truncation(None).map_err(|e| Error::file(&path, "truncation", e))?;
    Ok(tokenizer)
}

/// An entry of `added_tokens`.
#[derive(Deserialize)]
#[expect(dead_code, reason = "read to see whether it can be")]
struct NumberedToken {
    id: u32,
    #[serde(flatten)]
    token: AddedToken,
}

/// Finds the section of a `tokenizer.json` that does not parse.
fn explain(path: &Path, sections: &BTreeMap<String, &RawValue>, error: &tokenizers::Error) -> Error {
    fn failure<'a, T: Deserialize<'a>>(section: &'a RawValue) -> Option<String> {
        serde_json::from_str::<Option<T>>(section.get()).err().map(|e| e.to_string())
    }
    if !sections.contains_key("model") {
        return Error::file(path, "model", "missing");
    }
    for (name, section) in sections {
        let failure = match name.as_str() {
            "added_tokens" => failure::<Vec<NumberedToken>>(section),
            "decoder" => failure::<tokenizers::DecoderWrapper>(section),
            "model" => failure::<tokenizers::ModelWrapper>(section),
            "normalizer" => failure::<tokenizers::NormalizerWrapper>(section),
            "post_processor" => failure::<tokenizers::PostProcessorWrapper>(section),
            "pre_tokenizer" => failure::<tokenizers::PreTokenizerWrapper>(section),
            _ => None,
        };
        if let Some(message) = failure {
            return Error::file(path, name, message);
        }
    }
    Error::file(path, "file", error)
}

fn added_token(id: &str, token: &Value) -> Result<(u32, AddedToken), String> {
    let id = id.parse().map_err(|_| "the key is not a token id".to_string())?;
    let content = token["content"].as_str().filter(|content| !content.is_empty());
    let content = content.ok_or("`content`: want a string that is not empty")?;
    let flag = |name: &str| token[name].as_bool().unwrap_or(false);
    let added = AddedToken::from(content, flag("special"))
        .lstrip(flag("lstrip"))
        .rstrip(flag("rstrip"))
        .single_word(flag("single_word"))
        .normalized(token["normalized"].as_bool().unwrap_or(!flag("special")));
    Ok((id, added))
}

/// A value short enough for an error message.
fn brief(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}
