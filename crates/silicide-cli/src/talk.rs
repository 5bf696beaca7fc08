//! `silicide chat`: the conversation of [`chat`] with a model.

use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use silicide_lm::{GenerateOptions, Message};

use crate::args::ChatArgs;
use crate::chat::{self, Lines, Role};
use crate::model::Library;
use crate::{engine, paths};

/// Runs the subcommand.
pub fn talk(args: &ChatArgs, library: &mut Library, out: &mut dyn Write, notes: &mut dyn Write) -> anyhow::Result<()> {
    let path = library.locate(&args.model.model)?;
    let (model, _) = engine::load(&path, &args.hardware, notes)?;
    let options = GenerateOptions {
        max_tokens: args.max_tokens,
        sampling: Some(engine::sampling(&model, &args.sampling)),
        stop: args.sampling.stop.clone(),
        ..GenerateOptions::default()
    };
    let history = paths::state_dir().ok().map(|dir| dir.join("chat_history"));
    let mut lines = Lines::new(history, &mut library.stop)?;
    if io::stdin().is_terminal() {
        let device = model.device().kind().name();
        writeln!(notes, "{} on {device}; /help lists the commands, Ctrl-D leaves", args.model.model)?;
    }
    // One session for the whole conversation, so that earlier turns are not computed again.
    let mut session = model.session();
    let answer = |turns: &[chat::Message], stop: &AtomicBool, say: &mut dyn FnMut(&str)| -> anyhow::Result<()> {
        let role = |role| match role {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
        };
        let messages: Vec<_> = turns.iter().map(|turn| Message::new(role(turn.role), turn.content.clone())).collect();
        for token in session.generate(messages, options.clone())? {
            say(&token?.text);
            if stop.load(SeqCst) {
                break;
            }
        }
        Ok(())
    };
    let stop = library.stop.clone();
    chat::converse(args.system.clone(), stop.flag(), || lines.read(), answer, out, notes)
}
