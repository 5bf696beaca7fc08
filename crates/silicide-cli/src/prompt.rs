//! What `silicide generate` feeds to the model.

use std::io::{self, IsTerminal, Read};

use anyhow::{Context, bail, ensure};
use clap::CommandFactory;
use clap::error::ErrorKind;

use crate::args::{Cli, GenerateArgs};

/// The prompt of one run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prompt {
    /// Text, for the tokenizer.
    Text(String),
    /// Ids, as they are.
    Tokens(Vec<u32>),
}

impl Prompt {
    /// From the options, or from stdin where they leave it to that. Nothing to read is wrong usage.
    pub fn read(args: &GenerateArgs) -> anyhow::Result<Self> {
        let stdin = io::stdin();
        if stdin.is_terminal() && args.prompt.is_none() && args.prompt_tokens.is_none() {
            let message = "there is no prompt; give --prompt TEXT, or a text on stdin";
            return Err(Cli::command().error(ErrorKind::MissingRequiredArgument, message).into());
        }
        Self::read_from(args, stdin.lock())
    }

    fn read_from(args: &GenerateArgs, mut stdin: impl Read) -> anyhow::Result<Self> {
        if let Some(tokens) = &args.prompt_tokens {
            return Ok(Self::Tokens(tokens.clone()));
        }
        match args.prompt.as_deref() {
            None | Some("-") => {
                let mut text = String::new();
                stdin.read_to_string(&mut text).context("cannot read the prompt from stdin")?;
                // The line end that `echo` and editors add is no part of what was meant.
                if text.ends_with('\n') {
                    text.pop();
                    if text.ends_with('\r') {
                        text.pop();
                    }
                }
                ensure!(!text.is_empty(), "the prompt on stdin is empty; give a text there, or --prompt TEXT");
                Ok(Self::Text(text))
            }
            Some("") => bail!("the prompt is empty; wanted a text"),
            Some(text) => Ok(Self::Text(text.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        args: GenerateArgs,
    }

    fn read(options: &[&str], stdin: &[u8]) -> anyhow::Result<Prompt> {
        let line = [&["x", "--model=m"], options].concat();
        Prompt::read_from(&Only::parse_from(line).args, stdin)
    }

    #[test]
    fn options_come_before_stdin() {
        assert_eq!(read(&["--prompt=a\n"], b"b").unwrap(), Prompt::Text("a\n".into()));
        assert_eq!(read(&["--prompt-tokens=1,2"], b"b").unwrap(), Prompt::Tokens(vec![1, 2]));
        assert_eq!(read(&[], b"b\n\n").unwrap(), Prompt::Text("b\n".into()));
        assert_eq!(read(&["--prompt=-"], b"b\r\n").unwrap(), Prompt::Text("b".into()));
    }

    #[test]
    fn a_prompt_of_nothing_is_refused() {
        for (options, stdin) in [(vec![], ""), (vec![], "\n"), (vec!["--prompt="], "b"), (vec!["--prompt=-"], "")] {
            let error = read(&options, stdin.as_bytes()).unwrap_err().to_string();
            assert!(error.contains("empty"), "{error}");
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_refused() {
        let error = format!("{:#}", read(&[], b"\xff").unwrap_err());
        assert!(error.contains("stdin") && error.contains("UTF-8"), "{error}");
    }
}
