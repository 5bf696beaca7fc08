//! Names of repositories, and which of their files a model needs.

use std::fmt;
use std::str::FromStr;

/// A repository, or one file of it: `OWNER/NAME[/FILE.gguf][@REVISION]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepoName {
    /// `OWNER/NAME`.
    pub repo: String,
    /// One GGUF file of a repository that holds several.
    pub file: Option<String>,
    /// A branch, a tag or a commit; `main` where none is given.
    pub revision: String,
}

impl RepoName {
    /// The files to fetch of those that the repository holds, small ones first and weights last, so that weights imply the rest.
    pub fn select<'a>(&self, files: &'a [String]) -> Vec<&'a str> {
        let wanted = |file: &str| match &self.file {
            Some(name) => is_part_of(file, name),
            None => is_model_file(file),
        };
        let mut chosen: Vec<&str> =
            files.iter().map(String::as_str).filter(|file| is_safe(file) && wanted(file)).collect();
        chosen.sort_unstable_by_key(|file| (is_weights(file), *file));
        chosen.dedup();
        chosen
    }
}

impl FromStr for RepoName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = |why: &str| {
            Err(format!(
                "`{text}` is no repository name: {why}; wanted OWNER/NAME, OWNER/NAME@REVISION or OWNER/NAME/FILE.gguf"
            ))
        };
        let (path, revision) = text.split_once('@').unwrap_or((text, "main"));
        let mut parts = path.splitn(3, '/');
        let (Some(owner), Some(name)) = (parts.next(), parts.next()) else {
            return bad("there is no owner");
        };
        let file = parts.next();
        if ![owner, name].into_iter().all(is_name) {
            return bad("owner and name are letters, digits, `-`, `_` and `.`");
        }
        if file.is_some_and(|file| !is_safe(file) || !file.ends_with(".gguf")) {
            return bad("a single file must be a GGUF file");
        }
        if !is_safe(revision) || revision.contains([' ', '?', '#', '%', ':', '~', '^']) {
            return bad("the revision is not one");
        }
        Ok(Self { repo: format!("{owner}/{name}"), file: file.map(Into::into), revision: revision.into() })
    }
}

impl fmt::Display for RepoName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repo)?;
        if let Some(file) = &self.file {
            write!(f, "/{file}")?;
        }
        if self.revision != "main" {
            write!(f, "@{}", self.revision)?;
        }
        Ok(())
    }
}

/// Whether all weights are among `files`: every part of a split model, if it is split.
pub(super) fn is_complete(files: &[String], name: &RepoName) -> bool {
    let weights: Vec<&str> = name.select(files).into_iter().filter(|file| is_weights(file)).collect();
    let whole = |file: &&str| match split_part(file) {
        None => true,
        Some((stem, _, count)) => {
            let mut parts: Vec<u32> = weights
                .iter()
                .filter_map(|f| split_part(f))
                .filter(|p| p.0 == stem && p.2 == count)
                .map(|p| p.1)
                .collect();
            parts.sort_unstable();
            parts.into_iter().eq(1..=count)
        }
    };
    let configured = name.file.is_some() || files.iter().any(|file| file == "config.json");
    configured && !weights.is_empty() && weights.iter().all(whole)
}

/// The files that mlx-lm takes as well; a `*` there crosses directories.
fn is_model_file(file: &str) -> bool {
    let ends = |suffixes: &[&str]| suffixes.iter().any(|suffix| file.ends_with(suffix));
    (file.starts_with("model") && file.ends_with(".safetensors"))
        || ends(&[".json", ".py", ".tiktoken", ".txt", ".jsonl", ".jinja"])
        || ["tokenizer.model", "tiktoken.model"].contains(&file)
}

fn is_weights(file: &str) -> bool {
    file.ends_with(".safetensors") || file.ends_with(".gguf")
}

/// Whether `file` is `name`, or another part of the same split file.
fn is_part_of(file: &str, name: &str) -> bool {
    let same_split = || match (split_part(file), split_part(name)) {
        (Some((a, _, n)), Some((b, _, m))) => a == b && n == m,
        _ => false,
    };
    file == name || same_split()
}

/// `model-00002-of-00003.gguf` is (`model`, 2, 3).
fn split_part(file: &str) -> Option<(&str, u32, u32)> {
    let (stem, _) = file.rsplit_once('.')?;
    let (rest, count) = stem.rsplit_once("-of-")?;
    let (stem, part) = rest.rsplit_once('-')?;
    let digits = |text: &str| if text.len() == 5 { text.parse().ok() } else { None };
    Some((stem, digits(part)?, digits(count)?))
}

/// Whether a path that somebody else named stays inside the directory it is put in.
fn is_safe(path: &str) -> bool {
    !path.contains(['\\', '\0', '\n']) && path.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
}

fn is_name(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    !text.is_empty()
        && text.len() <= 96
        && text.chars().all(allowed)
        && !text.starts_with(['-', '.'])
        && !text.contains("..")
        && !text.contains("--")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(list: &[&str]) -> Vec<String> {
        list.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn names_parse() {
        let plain: RepoName = "mlx-community/Qwen3-0.6B-4bit".parse().unwrap();
        assert_eq!(
            (plain.repo.as_str(), plain.revision.as_str(), plain.file.as_deref()),
            ("mlx-community/Qwen3-0.6B-4bit", "main", None)
        );
        let pinned: RepoName = "a/b@refs/pr/1".parse().unwrap();
        assert_eq!(pinned.revision, "refs/pr/1");
        let gguf: RepoName = "a/b/sub/x-Q4_0.gguf@v1".parse().unwrap();
        assert_eq!(gguf.file.as_deref(), Some("sub/x-Q4_0.gguf"));
        assert_eq!(gguf.to_string(), "a/b/sub/x-Q4_0.gguf@v1");
        for bad in [
            "",
            "a",
            "a/",
            "/b",
            "../b",
            "a/..",
            "a/b@",
            "a/b@../x",
            "a/b/c.txt",
            "a/b/../c.gguf",
            "a b/c",
            "a/b@x y",
            "a--b/c",
            "a/b//c.gguf",
        ] {
            assert!(bad.parse::<RepoName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn only_what_a_model_needs_is_fetched() {
        let name: RepoName = "a/b".parse().unwrap();
        let files = strings(&[
            ".gitattributes",
            "README.md",
            "model-00002-of-00002.safetensors",
            "config.json",
            "tokenizer.model",
            "chat_template.jinja",
            "pytorch_model.bin",
            "onnx/model.onnx",
            "1_Pooling/config.json",
            "../evil.json",
            "/etc/x.json",
            "a\\..\\b.json",
            "model-00001-of-00002.safetensors",
            "consolidated.safetensors",
        ]);
        let want = [
            "1_Pooling/config.json",
            "chat_template.jinja",
            "config.json",
            "tokenizer.model",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
        ];
        assert_eq!(name.select(&files), want);
    }

    #[test]
    fn one_gguf_brings_its_parts() {
        let files = strings(&[
            "q-00001-of-00002.gguf",
            "q-00002-of-00002.gguf",
            "r-00001-of-00002.gguf",
            "q.gguf",
            "config.json",
        ]);
        let split: RepoName = "a/b/q-00001-of-00002.gguf".parse().unwrap();
        assert_eq!(split.select(&files), ["q-00001-of-00002.gguf", "q-00002-of-00002.gguf"]);
        let whole: RepoName = "a/b/q.gguf".parse().unwrap();
        assert_eq!(whole.select(&files), ["q.gguf"]);
    }

    #[test]
    fn a_missing_part_shows() {
        let name: RepoName = "a/b".parse().unwrap();
        assert!(is_complete(&strings(&["config.json", "model.safetensors"]), &name));
        assert!(is_complete(
            &strings(&["config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]),
            &name
        ));
        assert!(!is_complete(&strings(&["config.json", "model-00002-of-00002.safetensors"]), &name));
        assert!(!is_complete(&strings(&["config.json"]), &name));
        assert!(!is_complete(&strings(&["model.safetensors"]), &name));
        // A huge count costs nothing.
        assert!(!is_complete(&strings(&["config.json", "model-00001-of-99999.safetensors"]), &name));
    }
}
