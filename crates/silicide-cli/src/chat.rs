//! A conversation at the terminal: a line editor, commands, and answers that can be stopped.

use std::fs;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use rustyline::error::ReadlineError;
use rustyline::history::FileHistory;
use rustyline::{Behavior, Cmd, Config, Editor, KeyCode, KeyEvent, Modifiers};

use crate::interrupt::Interrupt;

/// Who said something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Instructions for the whole conversation.
    System,
    /// The person at the terminal.
    User,
    /// The model.
    Assistant,
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Who said it.
    pub role: Role,
    /// What was said.
    pub content: String,
}

/// What the person at the terminal did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Entered a line, or several that were pasted.
    Line(String),
    /// Pressed Ctrl-C at the prompt.
    Interrupted,
    /// Pressed Ctrl-D, or the input is at its end.
    End,
}

const HELP: &str = "\
/system TEXT   set the system message and begin anew; without TEXT, remove it
/reset         begin anew
/help          this text
/exit          leave; Ctrl-D does too
Alt-Enter begins a new line, a paste may have several. Ctrl-C stops an answer.";

/// Holds a conversation until the input ends or `/exit`.
///
/// `read` gives the next input, `answer` gets the conversation, a flag that is raised when it is to stop, and a place to
/// send its text to, piece by piece. Answers go to `out`, everything else to `notes`. An answer that was stopped stays in
/// the conversation as far as it got; one that failed is taken back with the question. The flag is lowered before each input.
pub fn converse(
    system: Option<String>,
    stop: &AtomicBool,
    mut read: impl FnMut() -> anyhow::Result<Input>,
    mut answer: impl FnMut(&[Message], &AtomicBool, &mut dyn FnMut(&str)) -> anyhow::Result<()>,
    out: &mut dyn Write,
    notes: &mut dyn Write,
) -> anyhow::Result<()> {
    let opening = |system: Option<String>| system.map(|content| Message { role: Role::System, content });
    let mut messages: Vec<Message> = opening(system).into_iter().collect();
    loop {
        // Not after the input: Ctrl-C may come as soon as it is there.
        stop.store(false, SeqCst);
        let line = match read()? {
            Input::Line(line) => line,
            Input::Interrupted => {
                writeln!(notes, "(/exit or Ctrl-D leaves)")?;
                continue;
            }
            Input::End => return Ok(()),
        };
        let text = line.trim();
        if let Some(command) = text.strip_prefix('/') {
            let (name, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
            match name {
                "system" => {
                    let rest = rest.trim();
                    messages = opening((!rest.is_empty()).then(|| rest.to_owned())).into_iter().collect();
                    writeln!(
                        notes,
                        "(a new conversation, {} system message)",
                        if rest.is_empty() { "no" } else { "a new" }
                    )?;
                }
                "reset" => {
                    messages.retain(|message| message.role == Role::System);
                    writeln!(notes, "(a new conversation)")?;
                }
                "help" => writeln!(notes, "{HELP}")?,
                "exit" | "quit" => return Ok(()),
                _ => writeln!(notes, "there is no command /{name}; /help lists them")?,
            }
            continue;
        }
        if text.is_empty() {
            continue;
        }

        messages.push(Message { role: Role::User, content: text.to_owned() });
        let (mut said, mut written) = (String::new(), Ok(()));
        let result = answer(&messages, stop, &mut |piece| {
            said += piece;
            if written.is_ok() {
                written = out.write_all(piece.as_bytes()).and_then(|()| out.flush());
            }
            if written.is_err() {
                stop.store(true, SeqCst);
            }
        });
        written?;
        writeln!(out)?;
        match result {
            Ok(()) => {
                if stop.swap(false, SeqCst) {
                    writeln!(notes, "(stopped)")?;
                }
                messages.push(Message { role: Role::Assistant, content: said });
            }
            Err(error) => {
                messages.pop();
                // It may be that the conversation has outgrown the model's context.
                let way_out =
                    if messages.iter().any(|m| m.role == Role::Assistant) { "; /reset begins anew" } else { "" };
                writeln!(notes, "error: {}{way_out}", crate::explain_failure(&error))?;
            }
        }
    }
}

/// Lines from the terminal with editing and a history, or from a pipe.
pub struct Lines {
    editor: Editor<(), FileHistory>,
    history: Option<PathBuf>,
}

impl Lines {
    /// Reads stdin. At a terminal, `history` is where earlier lines are kept, and Ctrl-C no longer ends the process.
    pub fn new(history: Option<PathBuf>, stop: &mut Interrupt) -> anyhow::Result<Self> {
        let terminal = io::stdin().is_terminal();
        let history = history.filter(|_| terminal);
        if terminal {
            stop.never_exit();
        }
        // The prompt goes to the terminal even where stdout goes to a file.
        let behavior = if terminal { Behavior::PreferTerm } else { Behavior::Stdio };
        let config = Config::builder().behavior(behavior).history_ignore_space(true).max_history_size(1000)?.build();
        let mut editor = Editor::with_config(config)?;
        editor.bind_sequence(KeyEvent(KeyCode::Enter, Modifiers::ALT), Cmd::Newline);
        if let Some(path) = &history {
            // The first time there is none.
            let _ = editor.load_history(path);
        }
        Ok(Self { editor, history })
    }

    /// The next input.
    pub fn read(&mut self) -> anyhow::Result<Input> {
        match self.editor.readline("> ") {
            Ok(line) => {
                if !line.trim().is_empty() && self.editor.add_history_entry(line.as_str())? {
                    self.remember();
                }
                Ok(Input::Line(line))
            }
            Err(ReadlineError::Interrupted) => Ok(Input::Interrupted),
            Err(ReadlineError::Eof) => Ok(Input::End),
            Err(error) => Err(error.into()),
        }
    }

    /// Keeps the history at once, so that it survives whatever happens next. A disk that does not take it ends no conversation.
    fn remember(&mut self) {
        let Some(path) = &self.history else { return };
        let saved = path
            .parent()
            .map_or(Ok(()), fs::create_dir_all)
            .map_err(ReadlineError::from)
            .and_then(|()| self.editor.append_history(path));
        if let Err(error) = saved {
            let _ = writeln!(io::stderr(), "(no history is kept: {}: {error})", path.display());
            self.history = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::anyhow;

    /// What a scripted conversation brought: the messages of each question, stdout, stderr.
    struct Outcome {
        asked: Vec<Vec<(Role, String)>>,
        out: String,
        notes: String,
    }

    /// Feeds the script; each answer is "<number of messages> <question>", in two pieces.
    fn run(system: Option<&str>, script: &[Input]) -> Outcome {
        let mut script = script.iter().cloned();
        let stop = AtomicBool::new(true);
        let (mut asked, mut out, mut notes) = (Vec::new(), Vec::new(), Vec::new());
        let answer = |messages: &[Message], stop: &AtomicBool, say: &mut dyn FnMut(&str)| {
            assert!(!stop.load(SeqCst), "the flag of an earlier Ctrl-C is still up");
            asked.push(messages.iter().map(|m| (m.role, m.content.clone())).collect());
            let question = &messages.last().unwrap().content;
            say(&format!("{} ", messages.len()));
            match question.as_str() {
                "fail" => return Err(anyhow!("no such luck")),
                "stop" => stop.store(true, SeqCst),
                _ => say(question),
            }
            Ok(())
        };
        converse(
            system.map(Into::into),
            &stop,
            || Ok(script.next().unwrap_or(Input::End)),
            answer,
            &mut out,
            &mut notes,
        )
        .unwrap();
        Outcome { asked, out: String::from_utf8(out).unwrap(), notes: String::from_utf8(notes).unwrap() }
    }

    fn line(text: &str) -> Input {
        Input::Line(text.into())
    }

    #[test]
    fn turns_add_up() {
        let it = run(Some("be brief"), &[line("a"), line("  b\nc "), line("  "), Input::End, line("never")]);
        assert_eq!(it.out, "2 a\n4 b\nc\n");
        let want: Vec<(Role, String)> = vec![
            (Role::System, "be brief".into()),
            (Role::User, "a".into()),
            (Role::Assistant, "2 a".into()),
            (Role::User, "b\nc".into()),
        ];
        assert_eq!(it.asked[1], want);
        assert_eq!(it.notes, "");
    }

    #[test]
    fn commands_do_what_help_says() {
        let it = run(
            None,
            &[
                line("/help"),
                line("/system  be kind "),
                line("a"),
                line("/reset"),
                line("b"),
                line("/system"),
                line("c"),
                line("/nope x"),
                line("/exit"),
                line("never"),
            ],
        );
        assert_eq!(it.out, "2 a\n2 b\n1 c\n");
        assert_eq!(it.asked[1][0], (Role::System, "be kind".into()));
        assert!(it.notes.contains("/reset") && it.notes.contains("there is no command /nope"), "{}", it.notes);
    }

    #[test]
    fn a_stopped_answer_stays_and_a_failed_one_goes() {
        let it = run(None, &[line("stop"), Input::Interrupted, line("fail"), line("a")]);
        assert_eq!(it.out, "1 \n3 \n3 a\n");
        assert!(
            it.notes.contains("(stopped)")
                && it.notes.contains("error: no such luck; /reset begins anew")
                && it.notes.contains("Ctrl-D"),
            "{}",
            it.notes
        );
        assert_eq!(it.asked[2].iter().map(|m| m.1.as_str()).collect::<Vec<_>>(), ["stop", "1 ", "a"]);
    }

    #[test]
    fn a_closed_output_ends_it() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let stop = AtomicBool::new(false);
        let mut pieces = 0;
        let answer = |_: &[Message], stop: &AtomicBool, say: &mut dyn FnMut(&str)| {
            while !stop.load(SeqCst) {
                say("x");
                pieces += 1;
            }
            Ok(())
        };
        let error = converse(None, &stop, || Ok(line("a")), answer, &mut Closed, &mut Vec::new()).unwrap_err();
        assert_eq!(error.downcast_ref::<io::Error>().unwrap().kind(), io::ErrorKind::BrokenPipe);
        assert_eq!(pieces, 1);
    }
}
