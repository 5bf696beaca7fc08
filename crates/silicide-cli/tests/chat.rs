//! `silicide chat` as a person at a terminal meets it: a pseudo-terminal stands for the real one.
#![cfg(unix)]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

/// The program behind a terminal.
struct Terminal {
    child: Child,
    keys: File,
    screen: Receiver<Vec<u8>>,
    /// What was shown and not yet waited for.
    shown: String,
}

impl Terminal {
    fn start(model: &Path, home: &Path) -> Terminal {
        let (mut ours, mut theirs) = (0, 0);
        let null = std::ptr::null_mut();
        // SAFETY: the two pointers are to integers; the optional arguments may be null.
        let made = unsafe { libc::openpty(&mut ours, &mut theirs, null, null.cast(), null.cast()) };
        assert_eq!(made, 0, "no pseudo-terminal: {}", std::io::Error::last_os_error());
        // SAFETY: both were opened just now, and nothing else owns them.
        let (ours, theirs) = unsafe { (OwnedFd::from_raw_fd(ours), OwnedFd::from_raw_fd(theirs)) };

        let mut command = Command::new(env!("CARGO_BIN_EXE_silicide"));
        command.args(["chat", "--device=cpu", "--threads=1", "--temp=0", "--max-tokens=90000", "--model"]).arg(model);
        command.env_clear().env("HOME", home).env("TERM", "xterm");
        command.stdin(theirs.try_clone().unwrap()).stdout(theirs.try_clone().unwrap()).stderr(theirs);
        // SAFETY: both calls are async-signal-safe. Ctrl-C goes to the group whose terminal it is.
        unsafe {
            command.pre_exec(|| {
                libc::setsid();
                libc::ioctl(0, libc::TIOCSCTTY as _, 0);
                Ok(())
            });
        }
        let child = command.spawn().unwrap();
        drop(command);

        let mut output = File::from(ours.try_clone().unwrap());
        let (send, screen) = mpsc::channel();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            // The end is an error on Linux.
            while let Ok(n @ 1..) = output.read(&mut buffer) {
                if send.send(buffer[..n].to_vec()).is_err() {
                    break;
                }
            }
        });
        Terminal { child, keys: File::from(ours), screen, shown: String::new() }
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits until something is shown, and forgets what was shown up to there.
    #[track_caller]
    fn wait_for(&mut self, text: &str) {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(at) = self.shown.find(text) {
                self.shown.drain(..at + text.len());
                return;
            }
            match self.screen.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(bytes) => self.shown += &String::from_utf8_lossy(&bytes),
                Err(_) => {
                    panic!("{text:?} was never shown; there is {:?}", self.shown.chars().take(500).collect::<String>())
                }
            }
        }
    }

    fn wait_for_prompt(&mut self) {
        self.wait_for("> ");
    }

    /// The exit status.
    fn leave(mut self) -> Option<i32> {
        self.press("\x04");
        self.child.wait().unwrap().code()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Where a test failed it still runs.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A checkpoint whose answers do not end: no token ends a text, and the context is long.
fn endless(folder: &Path) {
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../oracle/tiny/llama-mlx-4bit-gs64-bf16");
    for name in ["model.safetensors", "tokenizer.json"] {
        fs::copy(tiny.join(name), folder.join(name)).unwrap();
    }
    let mut config: serde_json::Value = serde_json::from_slice(&fs::read(tiny.join("config.json")).unwrap()).unwrap();
    config["max_position_embeddings"] = 100_000.into();
    config["eos_token_id"] = serde_json::Value::Null;
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
}

#[test]
fn ctrl_c_stops_the_answer_and_not_the_program() {
    let (model, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    endless(model.path());
    let mut it = Terminal::start(model.path(), home.path());
    it.wait_for("on cpu; /help lists the commands");
    it.wait_for_prompt();
    for question in ["first question", "second question"] {
        it.press(&format!("{question}\r"));
        // The line is taken, and Ctrl-C is a signal again.
        it.wait_for("\n");
        it.press("\x03");
        it.wait_for("(stopped)");
        it.wait_for_prompt();
    }
    // At the prompt it ends nothing either.
    it.press("\x03");
    it.wait_for("Ctrl-D leaves)");
    it.wait_for_prompt();
    assert_eq!(it.leave(), Some(0));
}

#[test]
fn lines_are_edited_and_remembered() {
    let (model, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    endless(model.path());
    let mut it = Terminal::start(model.path(), home.path());
    it.wait_for_prompt();
    // Left, backspace: /helxp becomes /help.
    it.press("/helxp\x1b[D\x7f\r");
    it.wait_for("/system TEXT");
    it.wait_for_prompt();
    it.press("/system Be brief.\r");
    it.wait_for("a new system message");
    it.wait_for_prompt();
    assert_eq!(it.leave(), Some(0));

    let mut later = Terminal::start(model.path(), home.path());
    later.wait_for_prompt();
    later.press("\x1b[A\x1b[A");
    later.wait_for("/help");
    later.press("\r");
    later.wait_for("/system TEXT");
    later.wait_for_prompt();
    assert_eq!(later.leave(), Some(0));
}
