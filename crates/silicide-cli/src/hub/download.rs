//! One file: resumed, checked, renamed.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::thread;

use indicatif::ProgressBar;

use super::cache::{RepoCache, make_parent};
use super::error::Error;
use super::{Hub, RemoteFile, http};
use crate::digest::Digest;

/// A download that brings no byte this many times in a row is given up.
const MAX_IDLE_ATTEMPTS: u32 = 3;

impl Hub {
    /// Puts the file's contents in place, unless they are there, and returns the number of bytes downloaded.
    pub(super) fn fetch(&self, repo: &RepoCache, file: &RemoteFile<'_>, bar: &ProgressBar) -> Result<u64, Error> {
        let blob = repo.blob(&file.etag);
        let begun = bar.position();
        let _lock =
            repo.lock(&file.etag, || bar.set_message(format!("{} (another process downloads it)", file.name)))?;
        let mut downloaded = 0;
        if fs::metadata(&blob).is_ok_and(|blob| blob.len() == file.size) {
            bar.set_position(begun + file.size);
            return Ok(downloaded);
        }
        make_parent(&blob)?;
        let mut part = Part::open(repo.blob(&format!("{}.incomplete", file.etag)), file)?;
        let mut resumed = part.len > 0;
        let mut idle = 0;
        loop {
            bar.set_position(begun + part.len);
            if part.len == file.size {
                let got = part.digest.clone().finish();
                if got == file.etag {
                    break;
                }
                // The beginning that was found here may have been the damaged part.
                part.restart()?;
                if !std::mem::take(&mut resumed) {
                    fs::remove_file(&part.path).map_err(Error::io(&part.path))?;
                    return Err(Error::Damaged { file: file.name.to_owned(), got, want: file.etag.clone() });
                }
                continue;
            }
            let before = part.len;
            let outcome = self.attempt(&mut part, file, bar, begun);
            downloaded += part.len.saturating_sub(before);
            idle = if part.len > before { 0 } else { idle + 1 };
            match outcome {
                Ok(()) => {}
                Err(Stopped::Connection(reason)) if idle == MAX_IDLE_ATTEMPTS => {
                    return Err(Error::Broken { file: file.name.to_owned(), got: part.len, size: file.size, reason });
                }
                // Longer each time that brought nothing.
                Err(Stopped::Connection(_)) => thread::sleep(self.client.timeouts().retry * 2u32.pow(idle)),
                Err(Stopped::Fatal(error)) => return Err(error),
            }
        }
        part.persist(&blob)?;
        Ok(downloaded)
    }

    /// One request, as far as it goes.
    fn attempt(
        &self,
        part: &mut Part<'_>,
        file: &RemoteFile<'_>,
        bar: &ProgressBar,
        begun: u64,
    ) -> Result<(), Stopped> {
        let mut answer = self.client.get_from(&file.url, part.len).map_err(|error| match error {
            Error::Unreachable { endpoint, reason } if self.client.has_reached(&endpoint) => {
                Stopped::Connection(reason)
            }
            error => Stopped::Fatal(error),
        })?;
        match answer.status().as_u16() {
            206 if range_start(&answer) == Some(part.len) => {}
            // The server sends all of it, or does not accept the range.
            200 | 206 | 416 if part.len > 0 => {
                part.restart()?;
                bar.set_position(begun);
                if answer.status() != 200 {
                    return Err(Stopped::Connection(
                        "the server does not go on from where the download stopped".into(),
                    ));
                }
            }
            200 => {}
            status @ (408 | 429 | 500..) => return Err(Stopped::Connection(format!("the server answered {status}"))),
            status => return Err(Stopped::Fatal(Error::Status { status, url: file.url.clone() })),
        }
        let mut body = answer.body_mut().as_reader();
        let mut buffer = vec![0; 1 << 17];
        while part.len < file.size {
            let n = match body.read(&mut buffer) {
                Ok(0) => return Err(Stopped::Connection("the connection was closed".into())),
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(Stopped::Connection(http::reason(&ureq::Error::from(e)))),
            };
            let room = file.size - part.len;
            part.append(&buffer[..n.min(usize::try_from(room).unwrap_or(usize::MAX))])?;
            bar.set_position(begun + part.len);
        }
        Ok(())
    }
}

/// Why an attempt ended early.
enum Stopped {
    /// Worth another attempt.
    Connection(String),
    /// Not.
    Fatal(Error),
}

impl From<Error> for Stopped {
    fn from(error: Error) -> Self {
        Self::Fatal(error)
    }
}

/// The beginning of a file on disk, and the hash of it.
struct Part<'a> {
    path: PathBuf,
    file: File,
    len: u64,
    digest: Digest,
    remote: &'a RemoteFile<'a>,
}

impl<'a> Part<'a> {
    /// Opens what an earlier run left, or an empty file.
    fn open(path: PathBuf, remote: &'a RemoteFile<'a>) -> Result<Self, Error> {
        let mut file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .map_err(Error::io(&path))?;
        let mut digest = Digest::for_etag(&remote.etag, remote.size);
        let len = file.metadata().map_err(Error::io(&path))?.len();
        if len <= remote.size {
            digest.update_from(&mut file).map_err(Error::io(&path))?;
            return Ok(Self { path, file, len, digest, remote });
        }
        let mut part = Self { path, file, len, digest, remote };
        part.restart()?;
        Ok(part)
    }

    fn restart(&mut self) -> Result<(), Error> {
        self.file.set_len(0).and_then(|()| self.file.seek(SeekFrom::Start(0))).map_err(Error::io(&self.path))?;
        self.digest = Digest::for_etag(&self.remote.etag, self.remote.size);
        self.len = 0;
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.file.write_all(bytes).map_err(Error::io(&self.path))?;
        self.digest.update(bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }

    fn persist(self, blob: &Path) -> Result<(), Error> {
        self.file.sync_all().map_err(Error::io(&self.path))?;
        fs::rename(&self.path, blob).map_err(Error::io(blob))
    }
}

/// The first byte's position in `Content-Range: bytes 100-199/200`.
fn range_start(answer: &http::Answer) -> Option<u64> {
    http::text(answer.headers(), "content-range")?.strip_prefix("bytes ")?.split_once('-')?.0.trim().parse().ok()
}
