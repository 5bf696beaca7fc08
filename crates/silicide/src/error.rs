//! What can go wrong, said so that it can be mended.

use std::path::PathBuf;

/// The result of this crate's calls.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong. Every message says what was got, what was wanted and, where there is one, a hint.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An operation was called with arguments that do not fit.
    #[error("{op}: {message}")]
    Argument {
        /// The operation, by its public name.
        op: &'static str,
        /// What was got and what was wanted.
        message: String,
    },
    /// A device is missing, lost, or cannot do what was asked.
    #[error("{device}: {message}")]
    Device {
        /// The device's name.
        device: String,
        /// What happened, with a hint.
        message: String,
    },
    /// A kernel did not compile, or broke a rule when it ran.
    #[error("kernel {kernel}: {message}")]
    Kernel {
        /// The kernel's name.
        kernel: String,
        /// The compiler's or the checker's words.
        message: String,
    },
    /// A file's contents are not what its format says.
    #[error("{}: {field}: {message}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// The field, tensor or key at fault.
        field: String,
        /// What was got and what was wanted.
        message: String,
    },
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's own error.
        source: std::io::Error,
    },
    /// There is not enough memory.
    #[error("{device}: out of memory: {wanted} bytes wanted")]
    OutOfMemory {
        /// The device's name.
        device: String,
        /// Bytes asked for.
        wanted: usize,
    },
}

impl Error {
    /// An [`Error::Argument`].
    pub fn argument(op: &'static str, message: impl Into<String>) -> Self {
        Error::Argument { op, message: message.into() }
    }

    /// An [`Error::Format`].
    pub fn format(path: impl Into<PathBuf>, field: impl Into<String>, message: impl Into<String>) -> Self {
        Error::Format { path: path.into(), field: field.into(), message: message.into() }
    }

    /// An [`Error::Io`].
    pub fn io(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Error::Io { path: path.into(), source }
    }
}
