//! The Hugging Face hub: models by name, downloaded into the cache that the Python tools use too.
//!
//! A file gets its final name only when its size and its hash are those that the hub gave. What is not finished is called
//! `*.incomplete` and taken up again by the next run, so the process may end at any moment.

mod cache;
mod download;
mod error;
mod http;
mod name;

use std::env;
use std::fs;
use std::path::PathBuf;

use serde::Deserialize;

pub use error::Error;
pub use http::Timeouts;
pub use name::RepoName;

use crate::paths::{self, NoHome, env_dir};
use crate::progress::Progress;
use crate::report::human_bytes;
use cache::{RepoCache, is_hex};
use http::{Answer, Client};

/// A client of the hub and its cache.
pub struct Hub {
    client: Client,
    cache: PathBuf,
    offline: bool,
}

/// What a [`Hub`] is made of.
#[derive(Debug, Clone)]
pub struct Config {
    /// The hub's address, without a path.
    pub endpoint: String,
    /// A token, for private and gated repositories.
    pub token: Option<String>,
    /// The cache's directory, the one that holds `models--*`.
    pub cache: PathBuf,
    /// Never ask the hub.
    pub offline: bool,
    /// How long the hub may take.
    pub timeouts: Timeouts,
}

impl Config {
    /// From the environment variables of the Python tools: `HF_ENDPOINT`, `HF_TOKEN`, `HF_HUB_CACHE`, `HF_HOME`, `HF_HUB_OFFLINE`.
    pub fn from_env() -> Result<Self, NoHome> {
        let home = match (env_dir("HF_HOME"), env_dir("XDG_CACHE_HOME")) {
            (Some(dir), _) => dir,
            (None, Some(dir)) => dir.join("huggingface"),
            (None, None) => paths::home()?.join(".cache/huggingface"),
        };
        let text = |name: &str| env::var(name).ok().map(|s| s.trim().to_owned()).filter(|s| !s.is_empty());
        let token_file = || fs::read_to_string(env_dir("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"))).ok();
        let token = text("HF_TOKEN").or_else(|| token_file().map(|s| s.trim().to_owned()).filter(|s| !s.is_empty()));
        Ok(Self {
            endpoint: text("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into()),
            token,
            cache: env_dir("HF_HUB_CACHE").unwrap_or_else(|| home.join("hub")),
            offline: text("HF_HUB_OFFLINE")
                .is_some_and(|s| ["1", "ON", "YES", "TRUE"].contains(&s.to_uppercase().as_str())),
            timeouts: Timeouts::default(),
        })
    }
}

/// A model in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The snapshot's directory, or the GGUF file in it.
    pub path: PathBuf,
    /// The commit.
    pub commit: String,
    /// Bytes that this call downloaded.
    pub downloaded: u64,
}

/// A file of a repository, as the hub describes it.
struct RemoteFile<'a> {
    name: &'a str,
    url: String,
    size: u64,
    etag: String,
}

/// The hub's description of one revision.
#[derive(Deserialize)]
struct Revision {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

impl Hub {
    /// A client; nothing is asked yet.
    pub fn new(config: Config) -> Self {
        let client = Client::new(&config.endpoint, config.token, config.timeouts);
        Self { client, cache: config.cache, offline: config.offline }
    }

    /// The model, if the cache holds it whole. Asks nobody.
    pub fn cached(&self, name: &RepoName) -> Option<PathBuf> {
        Some(located(self.repo(name).find(name)?, name))
    }

    /// The repositories of which the cache holds something, as `OWNER/NAME`.
    pub fn repositories(&self) -> Vec<String> {
        cache::repositories(&self.cache)
    }

    /// Brings the cache up to date with the hub, and says where the model is.
    ///
    /// Where the hub is offline by choice, the cached model is returned as it is.
    pub fn pull(&self, name: &RepoName, progress: Progress) -> Result<Snapshot, Error> {
        let repo = self.repo(name);
        if self.offline {
            let commit = repo.commit(&name.revision).unwrap_or_default();
            let path = self.cached(name).ok_or_else(|| Error::Offline { repo: name.to_string() })?;
            return Ok(Snapshot { path, commit, downloaded: 0 });
        }
        let revision = self.revision(name)?;
        let commit = revision.sha;
        let listed: Vec<String> = revision.siblings.into_iter().map(|sibling| sibling.rfilename).collect();
        let files = name.select(&listed);
        if !name::is_complete(&listed, name) {
            return Err(no_model(name, &listed));
        }

        // A commit never changes: what its snapshot has is right.
        let snapshot = repo.snapshot(&commit);
        let mut missing = Vec::new();
        for file in files {
            if !snapshot.join(file).exists() {
                missing.push(self.describe(name, &commit, file)?);
            }
        }
        let total = missing.iter().map(|file| file.size).fold(0, u64::saturating_add);
        if missing.is_empty() {
            progress.note(format_args!("{name} is up to date"));
        } else {
            progress.note(format_args!("downloading {name}: {} files, {}", missing.len(), human_bytes(total)));
        }
        let bar = progress.bar(total);
        let mut downloaded = 0;
        for file in &missing {
            bar.set_message(file.name.to_owned());
            downloaded += self.fetch(&repo, file, &bar)?;
            repo.link(&commit, file.name, &file.etag)?;
        }
        bar.finish_and_clear();
        repo.set_commit(&name.revision, &commit)?;
        Ok(Snapshot { path: located(snapshot, name), commit, downloaded })
    }

    fn repo(&self, name: &RepoName) -> RepoCache {
        RepoCache::new(&self.cache, &name.repo)
    }

    /// The commit and the files of a revision.
    fn revision(&self, name: &RepoName) -> Result<Revision, Error> {
        let url =
            format!("{}/api/models/{}/revision/{}", self.client.endpoint(), name.repo, escape(&name.revision, ""));
        let (answer, text) = self.client.get_text(&url)?;
        self.check(&answer, name, &url)?;
        let revision: Revision =
            serde_json::from_str(&text).map_err(|e| protocol(&url, format!("{e} (is HF_ENDPOINT a hub?)")))?;
        if is_hex(&revision.sha, 40) {
            Ok(revision)
        } else {
            Err(protocol(&url, format!("`{}` is no commit", revision.sha)))
        }
    }

    /// Size and hash of a file.
    fn describe<'a>(&self, name: &RepoName, commit: &str, file: &'a str) -> Result<RemoteFile<'a>, Error> {
        let url = format!("{}/{}/resolve/{commit}/{}", self.client.endpoint(), name.repo, escape(file, "/"));
        let answer = self.client.head(&url)?;
        if !answer.status().is_redirection() {
            self.check(&answer, name, &url)?;
        }
        let first = |names: [&str; 2]| names.into_iter().find_map(|name| http::text(answer.headers(), name));
        if let Some(other) = http::text(answer.headers(), "x-repo-commit").filter(|it| *it != commit) {
            return Err(protocol(&url, format!("it is of commit {other}")));
        }
        let etag =
            first(["x-linked-etag", "etag"]).map(|etag| etag.trim_start_matches("W/").trim_matches('"').to_owned());
        let Some(etag) = etag.filter(|etag| is_hex(etag, 40) || is_hex(etag, 64)) else {
            return Err(protocol(&url, "it gives no hash to check the file with".into()));
        };
        let Some(size) = first(["x-linked-size", "content-length"]).and_then(|size| size.parse().ok()) else {
            return Err(protocol(&url, "it gives no size".into()));
        };
        Ok(RemoteFile { name: file, url, size, etag })
    }

    /// An error for every answer that is not the one wanted.
    fn check(&self, answer: &Answer, name: &RepoName, url: &str) -> Result<(), Error> {
        let code = http::text(answer.headers(), "x-error-code").unwrap_or_default();
        let repo = name.repo.clone();
        let with_token = self.client.has_token();
        Err(match (answer.status().as_u16(), code) {
            (200 | 206, _) => return Ok(()),
            (_, "GatedRepo") | (403, _) => Error::Forbidden { repo, endpoint: self.client.endpoint().to_owned() },
            (404, "RevisionNotFound") => Error::NoRevision { repo, revision: name.revision.clone() },
            (404, "EntryNotFound") => Error::Status { status: 404, url: url.to_owned() },
            (401 | 404, _) => Error::NoRepository { repo, with_token },
            (429, _) => Error::RateLimited {
                retry_after: http::text(answer.headers(), "retry-after").and_then(|s| s.parse().ok()),
                with_token,
            },
            (status, _) => Error::Status { status, url: url.to_owned() },
        })
    }
}

/// The path to load: the snapshot, or the one file that was asked for.
fn located(snapshot: PathBuf, name: &RepoName) -> PathBuf {
    match &name.file {
        Some(file) => snapshot.join(file),
        None => snapshot,
    }
}

/// Says what the repository holds instead of what was looked for.
fn no_model(name: &RepoName, files: &[String]) -> Error {
    let gguf: Vec<&str> = files.iter().map(String::as_str).filter(|file| file.ends_with(".gguf")).collect();
    let wanted = match &name.file {
        Some(file) => format!("whole {file}"),
        None => "config.json with safetensors weights".into(),
    };
    let hint = if gguf.is_empty() {
        String::new()
    } else {
        let shown = 12;
        let more = if gguf.len() > shown { ", ..." } else { "" };
        format!(
            ", but GGUF files; name one, as in {}/{} ({}{more})",
            name.repo,
            gguf[0],
            gguf[..gguf.len().min(shown)].join(", ")
        )
    };
    Error::NoModel { repo: name.repo.clone(), wanted, hint }
}

fn protocol(url: &str, reason: String) -> Error {
    Error::Protocol { url: url.to_owned(), reason }
}

/// Percent-encodes everything but the unreserved characters and `kept`.
fn escape(text: &str, kept: &str) -> String {
    let encode = |c: char| match c {
        c if c.is_ascii_alphanumeric() || "-._~".contains(c) || kept.contains(c) => c.to_string(),
        c => c.encode_utf8(&mut [0; 4]).bytes().map(|b| format!("%{b:02X}")).collect(),
    };
    text.chars().map(encode).collect()
}
