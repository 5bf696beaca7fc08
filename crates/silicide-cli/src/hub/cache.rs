//! The hub's cache on disk, in the layout of the Python tools, so that either finds what the other downloaded.
//!
//! ```text
//! models--OWNER--NAME/blobs/ETAG               contents, by hash
//! models--OWNER--NAME/blobs/ETAG.incomplete    the beginning of one
//! models--OWNER--NAME/refs/REVISION            the commit that a branch or tag stands for
//! models--OWNER--NAME/snapshots/COMMIT/FILE    links to blobs
//! .locks/models--OWNER--NAME/ETAG.lock         held while a blob is downloaded
//! ```

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::error::Error;
use super::name::{RepoName, is_complete};

/// The part of the cache that belongs to one repository.
pub(super) struct RepoCache {
    folder: PathBuf,
    locks: PathBuf,
}

impl RepoCache {
    pub(super) fn new(root: &Path, repo: &str) -> Self {
        let name = format!("models--{}", repo.replace('/', "--"));
        Self { folder: root.join(&name), locks: root.join(".locks").join(name) }
    }

    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(etag)
    }

    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// The commit of a revision, as of the last time that the hub was asked.
    pub(super) fn commit(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_owned());
        }
        let commit = fs::read_to_string(self.folder.join("refs").join(revision)).ok()?.trim().to_owned();
        is_commit(&commit).then_some(commit)
    }

    /// Remembers the commit of a branch or tag.
    pub(super) fn set_commit(&self, revision: &str, commit: &str) -> Result<(), Error> {
        if revision == commit {
            return Ok(());
        }
        let path = self.folder.join("refs").join(revision);
        let folder = make_parent(&path)?;
        let mut file = tempfile::NamedTempFile::new_in(folder).map_err(Error::io(folder))?;
        file.write_all(commit.as_bytes()).map_err(Error::io(&path))?;
        file.persist(&path).map_err(|e| Error::io(&path)(e.error))?;
        Ok(())
    }

    /// The snapshot of the revision, where all its weights are here.
    pub(super) fn find(&self, name: &RepoName) -> Option<PathBuf> {
        let snapshot = self.snapshot(&self.commit(&name.revision)?);
        is_complete(&files_below(&snapshot), name).then_some(snapshot)
    }

    /// Makes `snapshots/COMMIT/FILE` stand for a blob.
    pub(super) fn link(&self, commit: &str, file: &str, etag: &str) -> Result<(), Error> {
        let path = self.snapshot(commit).join(file);
        make_parent(&path)?;
        if path.is_symlink() || path.exists() {
            fs::remove_file(&path).map_err(Error::io(&path))?;
        }
        match link(&self.blob(etag), etag, file.split('/').count(), &path) {
            // Another process was quicker; it links to the same contents.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            done => done.map_err(Error::io(&path)),
        }
    }

    /// Takes the lock of a blob; `wait` is called if somebody else has it.
    pub(super) fn lock(&self, etag: &str, wait: impl FnOnce()) -> Result<File, Error> {
        let path = self.locks.join(format!("{etag}.lock"));
        make_parent(&path)?;
        let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(Error::io(&path))?;
        let locked = match file.try_lock() {
            Err(TryLockError::WouldBlock) => {
                wait();
                file.lock()
            }
            Err(TryLockError::Error(source)) => Err(source),
            Ok(()) => Ok(()),
        };
        locked.map_err(Error::io(path))?;
        Ok(file)
    }
}

/// The repositories of which the cache holds something, as `OWNER/NAME`.
pub(super) fn repositories(root: &Path) -> Vec<String> {
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    let name = |entry: fs::DirEntry| {
        let (owner, name) = entry
            .file_name()
            .to_str()?
            .strip_prefix("models--")?
            .split_once("--")
            .map(|(a, b)| (a.to_owned(), b.to_owned()))?;
        Some(format!("{owner}/{name}"))
    };
    let mut names: Vec<String> = entries.filter_map(name).collect();
    names.sort_unstable();
    names
}

/// Makes the directory that `path` is in.
pub(super) fn make_parent(path: &Path) -> Result<&Path, Error> {
    let parent = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(Error::io(parent))?;
    Ok(parent)
}

pub(super) fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

fn is_commit(text: &str) -> bool {
    is_hex(text, 40)
}

/// The files below a directory as relative paths with `/`; links that lead nowhere are left out.
fn files_below(root: &Path) -> Vec<String> {
    fn walk(dir: &Path, prefix: &str, depth: usize, files: &mut Vec<String>) {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let Ok(name) = entry.file_name().into_string() else { continue };
            let path = entry.path();
            if path.is_file() {
                files.push(format!("{prefix}{name}"));
            } else if depth > 0 && path.is_dir() {
                walk(&path, &format!("{prefix}{name}/"), depth - 1, files);
            }
        }
    }
    let mut files = Vec::new();
    walk(root, "", 4, &mut files);
    files
}

/// A relative link, so that the cache may be moved; `depth` counts the parts of the file's path in the repository.
#[cfg(unix)]
fn link(_blob: &Path, etag: &str, depth: usize, path: &Path) -> io::Result<()> {
    let up: PathBuf = std::iter::repeat_n("..", depth + 1).collect();
    std::os::unix::fs::symlink(up.join("blobs").join(etag), path)
}

/// Symbolic links need a privilege here: a hard link, or a copy between two file systems.
#[cfg(not(unix))]
fn link(blob: &Path, _etag: &str, _depth: usize, path: &Path) -> io::Result<()> {
    fs::hard_link(blob, path).or_else(|_| fs::copy(blob, path).map(|_| ()))
}
