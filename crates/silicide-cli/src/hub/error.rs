use std::io;
use std::path::PathBuf;

/// Why a model could not be fetched from the hub.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// `HF_HUB_OFFLINE` is set and the cache does not hold the model whole.
    #[error("{repo} is not in the cache, and HF_HUB_OFFLINE is set; unset it to download")]
    Offline {
        /// What was asked for.
        repo: String,
    },

    /// No answer: no network, no such host, nothing listening, or silence.
    #[error("cannot reach {endpoint}: {reason}; check the network, or set HTTPS_PROXY or HF_ENDPOINT")]
    Unreachable {
        /// The address of the hub, or of the host where it keeps its files.
        endpoint: String,
        /// What happened.
        reason: String,
    },

    /// 401, or 404 of a repository: the hub does not tell the two apart without a token.
    #[error("the hub has no repository {repo}, or it is private{}", if *.with_token { " and not open to your token" } else { "; check the name, or set HF_TOKEN" })]
    NoRepository {
        /// What was asked for.
        repo: String,
        /// Whether a token was sent.
        with_token: bool,
    },

    /// 403, or a gated repository.
    #[error(
        "the hub does not let you read {repo}: accept its terms at {endpoint}/{repo}, and set HF_TOKEN to a token of the same account"
    )]
    Forbidden {
        /// What was asked for.
        repo: String,
        /// The hub's address.
        endpoint: String,
    },

    /// The repository is there, the revision is not.
    #[error("{repo} has no revision `{revision}`; leave `@{revision}` away for its main branch")]
    NoRevision {
        /// The repository.
        repo: String,
        /// What was asked for.
        revision: String,
    },

    /// The repository holds no file that this program can run.
    #[error("{repo} holds no {wanted}{hint}")]
    NoModel {
        /// The repository.
        repo: String,
        /// What was looked for.
        wanted: String,
        /// What is there instead.
        hint: String,
    },

    /// 429.
    #[error("the hub answered 429, too many requests; wait {}{}", match .retry_after { Some(s) => format!("{s} seconds"), None => "a few minutes".into() }, if *.with_token { "" } else { ", or set HF_TOKEN for a higher limit" })]
    RateLimited {
        /// What the hub said, in seconds.
        retry_after: Option<u64>,
        /// Whether a token was sent.
        with_token: bool,
    },

    /// Any other answer than the one that was wanted.
    #[error("the hub answered {status} for {url}{}", if *.status >= 500 { ": the fault is on its side; try again later" } else { "" })]
    Status {
        /// The HTTP status.
        status: u16,
        /// What was asked for.
        url: String,
    },

    /// An answer that makes no sense.
    #[error("the hub's answer for {url} is not understood: {reason}")]
    Protocol {
        /// What was asked for.
        url: String,
        /// What is wrong with it.
        reason: String,
    },

    /// A download that stopped and could not be taken up again.
    #[error(
        "the download of {file} stopped at {got} of {size} bytes: {reason}; run the same command again to go on from there"
    )]
    Broken {
        /// The file in the repository.
        file: String,
        /// Bytes on disk.
        got: u64,
        /// Bytes wanted.
        size: u64,
        /// What happened.
        reason: String,
    },

    /// A whole file whose hash is wrong.
    #[error(
        "{file} arrived damaged: its hash is {got}, the hub says {want}; the file was removed, run the same command again"
    )]
    Damaged {
        /// The file in the repository.
        file: String,
        /// The hash of what arrived.
        got: String,
        /// The hash that the hub gave.
        want: String,
    },

    /// The cache could not be read or written.
    #[error("{}: {error}{}", path.display(), io_hint(error))]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}

impl Error {
    /// An error of the file system, for `map_err`.
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |error| Self::Io { path, error }
    }
}

fn io_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "; make room, or set HF_HOME to another disk; what was downloaded is kept and taken up again"
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "; set HF_HOME to a directory that you may write to"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_said_once_with_a_way_out() {
        let full = Error::io("/cache/x.incomplete")(io::ErrorKind::StorageFull.into());
        let text = format!("{:#}", anyhow::Error::from(full));
        assert_eq!(text.matches("no storage space").count(), 1, "{text}");
        assert!(text.starts_with("/cache/x.incomplete: ") && text.contains("make room"), "{text}");
    }
}
