//! What can go wrong between a checkpoint and its text.

use std::path::{Path, PathBuf};

use crate::gguf;

/// The result of this crate's calls.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong. Every message says what was got, what was wanted and, where there is one, a hint.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A tokenizer's data is wrong, or a text or an id does not fit it.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// A tokenizer, template or configuration file is not what its format says.
    #[error("{}: {field}: {message}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The key at fault, or `file` where it is the whole of it.
        field: String,
        /// What was got and what was wanted.
        message: String,
    },
    /// A model's configuration is not one that can be run.
    #[error("configuration: {field}: {message}")]
    Config {
        /// The key at fault.
        field: String,
        /// What was got and what was wanted.
        message: String,
    },
    /// A chat template does not parse, or does not render these messages.
    #[error("chat template: {0}")]
    Template(String),
    /// Options out of their range.
    #[error("options: {0}")]
    Options(String),
    /// An error of the compute library.
    #[error(transparent)]
    Silicide(#[from] silicide::Error),
}

impl Error {
    /// Names the file that a configuration came from, and what was odd about the checkpoint's files from the start.
    pub(crate) fn within(self, checkpoint: &silicide::formats::Checkpoint) -> Self {
        let odd = || checkpoint.warnings().first().map(|w| format!(" ({w})")).unwrap_or_default();
        match self {
            Error::Config { field, message } => {
                let path = checkpoint.path();
                match checkpoint.gguf() {
                    Some(metadata) => Error::File { path: path.into(), field: gguf::key(metadata, &field), message },
                    None => Error::File { path: path.join("config.json"), field, message },
                }
            }
            Error::Silicide(silicide::Error::Format { path, field, message }) => {
                silicide::Error::format(path, field, message + &odd()).into()
            }
            other => other,
        }
    }

    /// An [`Error::File`].
    pub(crate) fn file(path: impl Into<PathBuf>, field: impl Into<String>, message: impl ToString) -> Self {
        Error::File { path: path.into(), field: field.into(), message: message.to_string() }
    }
}

/// The text of a file that may be absent.
pub(crate) fn read_optional(path: &Path) -> Result<Option<String>> {
    match std::fs::read(path) {
        Ok(bytes) => String::from_utf8(bytes).map(Some).map_err(|e| Error::file(path, "file", e)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(silicide::Error::io(path, e).into()),
    }
}

/// A JSON file that may be absent.
pub(crate) fn read_json(path: &Path) -> Result<Option<serde_json::Value>> {
    let Some(text) = read_optional(path)? else { return Ok(None) };
    match serde_json::from_str(&text) {
        Ok(serde_json::Value::Object(map)) => Ok(Some(serde_json::Value::Object(map))),
        Ok(_) => Err(Error::file(path, "file", "want a JSON object")),
        Err(e) => Err(Error::file(path, "file", format!("not valid JSON: {e}"))),
    }
}
