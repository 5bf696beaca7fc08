//! `silicide generate`: one prompt, one answer.

use std::io::Write;
use std::path::Path;
use std::time::Instant;

use anyhow::ensure;
use silicide::DType;
use silicide::formats::safetensors::{self, TensorData};
use silicide_lm::{GenerateOptions, Generator, Message, Model};

use crate::args::GenerateArgs;
use crate::engine;
use crate::model::Library;
use crate::prompt::Prompt;
use crate::report::{FinishReason, GenerationReport, Timings};

/// Runs the subcommand: text goes to `out` as it comes, the figures to `notes`.
pub fn generate(
    args: &GenerateArgs,
    library: &Library,
    out: &mut dyn Write,
    notes: &mut dyn Write,
) -> anyhow::Result<()> {
    let prompt = Prompt::read(args)?;
    if let Some(path) = &args.save_logits {
        check_output(path)?;
    }
    let path = library.locate(&args.model.model)?;
    let (model, load) = engine::load(&path, &args.hardware, notes)?;
    let options = GenerateOptions {
        max_tokens: args.max_tokens,
        sampling: Some(engine::sampling(&model, &args.sampling)),
        stop: args.sampling.stop.clone(),
        ignore_eos: args.ignore_eos,
        keep_logits: args.save_logits.is_some(),
        ..GenerateOptions::default()
    };

    let begun = Instant::now();
    let mut generator = model.generate(feed(args, &model, prompt), options)?;
    let (mut text, mut first, mut interrupted) = (String::new(), None, false);
    for token in generator.by_ref() {
        let token = token?;
        first.get_or_insert_with(|| begun.elapsed());
        text += &token.text;
        if !args.json {
            out.write_all(token.text.as_bytes())?;
            out.flush()?;
        }
        if library.stop.check().is_err() {
            interrupted = true;
            break;
        }
    }
    if !args.json && !text.ends_with('\n') {
        writeln!(out)?;
    }
    let timings = Timings::new(load, first, begun.elapsed(), generator.prompt_tokens().len(), generator.tokens().len());
    if let Some(path) = &args.save_logits {
        save_logits(path, &generator, model.vocabulary())?;
    }

    let (prompt_tokens, tokens) = (generator.prompt_tokens().to_vec(), generator.tokens().to_vec());
    if args.json {
        let finish_reason = match generator.finish_reason() {
            _ if interrupted => FinishReason::Interrupted,
            Some(silicide_lm::FinishReason::Stop) => FinishReason::Stop,
            Some(silicide_lm::FinishReason::Length) | None => FinishReason::Length,
        };
        let device = model.device().kind().name().to_owned();
        let report = GenerationReport { prompt_tokens, tokens, text, finish_reason, device, timings };
        serde_json::to_writer(&mut *out, &report)?;
        writeln!(out)?;
    } else {
        writeln!(notes, "{}", timings.line(prompt_tokens.len(), tokens.len()))?;
    }
    if interrupted { Ok(library.stop.check()?) } else { Ok(()) }
}

/// The prompt as the model is to see it.
fn feed(args: &GenerateArgs, model: &Model, prompt: Prompt) -> silicide_lm::Prompt {
    match prompt {
        Prompt::Tokens(ids) => ids.into(),
        Prompt::Text(text) if args.no_template || (model.chat_template().is_none() && args.system.is_none()) => {
            text.into()
        }
        Prompt::Text(text) => {
            let system = args.system.as_ref().map(|system| Message::new("system", system.clone()));
            system.into_iter().chain([Message::new("user", text)]).collect::<Vec<_>>().into()
        }
    }
}

/// Says before the work what would keep its result from being written.
fn check_output(path: &Path) -> anyhow::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    ensure!(folder.is_dir(), "--save-logits {}: there is no folder {}", path.display(), folder.display());
    ensure!(!path.is_dir(), "--save-logits {}: that is a folder, wanted a file to write", path.display());
    Ok(())
}

fn save_logits(path: &Path, generator: &Generator, vocabulary: usize) -> silicide::Result<()> {
    let shape = [generator.logits().len() / vocabulary.max(1), vocabulary];
    let tensor = TensorData {
        name: "logits",
        dtype: DType::F32,
        shape: shape.into(),
        bytes: bytemuck::cast_slice(generator.logits()),
    };
    safetensors::write(path, &[tensor], &[])
}
