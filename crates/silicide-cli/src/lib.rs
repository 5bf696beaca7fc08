//! The `silicide` command line, as a library so that its parts can be tested one by one.
//!
//! [`main`] reads the arguments, runs a subcommand and decides the exit status; each module below does one thing:
//!
//! - [`args`]: the grammar of the command line
//! - [`model`]: from the text after `--model` to a path, and `silicide pull`
//! - [`hub`]: the Hugging Face hub's client and cache; [`starter`]: models that Python packages carry too
//! - [`generate`], [`talk`], [`inspect`], [`devices`], [`explain`], [`bench`](mod@bench): a subcommand each; [`engine`]: from options to a model
//! - [`prompt`]: what is fed to the model; [`chat`]: a conversation at the terminal
//! - [`report`]: what is printed after a run, tables, sizes
//!
//! Results go to stdout, everything else to stderr.

pub mod args;
pub mod bench;
pub mod chat;
pub mod devices;
mod digest;
pub mod engine;
pub mod explain;
pub mod generate;
pub mod hub;
pub mod inspect;
pub mod interrupt;
pub mod model;
pub mod paths;
pub mod progress;
pub mod prompt;
pub mod rates;
pub mod report;
pub mod starter;
pub mod talk;

use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;

use clap::Parser;

use args::{BenchCommand, Cli, Command};
use interrupt::Interrupt;
use model::Library;

/// Runs the command line that this process was started with.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(usage) => return explain_usage(&usage),
    };
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if interrupt::caused(&error) => ExitCode::from(interrupt::EXIT_STATUS),
        // `silicide ... | head` is no failure either: whoever closed the pipe has what they wanted.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => match error.downcast_ref::<clap::Error>() {
            Some(usage) => explain_usage(usage),
            None => {
                let _ = writeln!(io::stderr(), "error: {}", explain_failure(&error));
                ExitCode::FAILURE
            }
        },
    }
}

/// An error with its causes in one line, less those that a message repeats from its cause.
fn explain_failure(error: &anyhow::Error) -> String {
    error
        .chain()
        .skip(1)
        .map(ToString::to_string)
        .fold(error.to_string(), |line, cause| if line.ends_with(&cause) { line } else { format!("{line}: {cause}") })
}

/// Help goes to stdout with status 0, a mistake to stderr with status 2. A reader that left early is no failure.
fn explain_usage(usage: &clap::Error) -> ExitCode {
    let _ = usage.print();
    ExitCode::from(u8::try_from(usage.exit_code()).unwrap_or(2))
}

fn run(command: Command) -> anyhow::Result<()> {
    let mut library = Library::from_env(Interrupt::listen()?)?;
    let (out, notes) = (&mut io::stdout().lock(), &mut io::stderr());
    match command {
        Command::Generate(args) => generate::generate(&args, &library, out, notes),
        Command::Chat(args) => talk::talk(&args, &mut library, out, notes),
        Command::Inspect(args) => inspect::inspect(&args, &library, out),
        Command::Pull(args) => model::pull(&args, &library, out),
        Command::Devices(args) => devices::devices(&args, out),
        Command::Explain(args) => explain::explain(&args, &library, out, notes),
        Command::Bench(BenchCommand::Ops(args)) => bench::ops(&args, out, notes),
        Command::Bench(BenchCommand::Gains(args)) => bench::gains(&args, out),
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let kind = |cause: &(dyn std::error::Error + 'static)| match cause.downcast_ref::<io::Error>() {
        Some(e) => Some(e.kind()),
        None => cause.downcast_ref::<serde_json::Error>().and_then(serde_json::Error::io_error_kind),
    };
    error.chain().any(|cause| kind(cause) == Some(ErrorKind::BrokenPipe))
}
