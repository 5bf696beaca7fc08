//! The command line's grammar: every subcommand, option, default and help text.

use std::path::PathBuf;

use clap::builder::{NonEmptyStringValueParser, Styles, styling::AnsiColor};
use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};

/// Run MLX, Hugging Face and GGUF language models on this machine.
#[derive(Debug, Parser)]
#[command(name = "silicide", version, after_help = EXIT_STATUS, after_long_help = LONG_AFTER_HELP)]
#[command(styles = STYLES, disable_help_subcommand = true, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Answer one prompt, streaming the text.
    Generate(GenerateArgs),
    /// Hold a conversation.
    Chat(ChatArgs),
    /// Say what is in a model: architecture, parameters, quantisation, tensors, memory needed.
    Inspect(InspectArgs),
    /// Download a model, or update the copy in the cache, and print where it is.
    Pull(PullArgs),
    /// List the devices: what is here, and what is missing and why.
    Devices(DevicesArgs),
    /// Show what a decode step and a 512-token prompt cost, launch by launch.
    Explain(ExplainArgs),
    /// Time operations against what the device does at best.
    #[command(subcommand)]
    Bench(BenchCommand),
}

/// The subcommands of `silicide bench`.
#[derive(Debug, Subcommand)]
#[command(disable_help_subcommand = true)]
pub enum BenchCommand {
    /// Time every operation at the shapes of real models.
    ///
    /// Prints a Markdown table. A row has the median and the best time of a call, the bytes that the operation has to move at
    /// least and the operations that it has to do, and the share that it reaches of what bounds it: the rate at which this
    /// device copies (on a CPU reads, where little is written), or the rate of its matrix or vector instructions, all
    /// measured first. Operands go round a pool of memory that no cache holds, so weights are as cold as those of a model.
    /// Small operations, whose operands the caches hold all the same, can reach more than 100 %.
    Ops(BenchOpsArgs),
    /// Time the kernels written for NVIDIA GPUs alone beside those that they share with Apple's.
    ///
    /// Prints a Markdown table of the shapes of `bench ops` at which such a kernel runs: which, the median time of a call, that
    /// of the shared kernels, and how many times as fast it is. The two are replayed in turn.
    Gains(BenchGainsArgs),
}

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold())
    .placeholder(AnsiColor::Cyan.on_default());

const EXIT_STATUS: &str = "Exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted.";

const LONG_AFTER_HELP: &str = "\
Exit status:
  0    done
  1    failed: one line on stderr says why
  2    wrong usage
  130  interrupted by Ctrl-C

Environment:
  HF_HOME, HF_HUB_CACHE  where the cache of the Hugging Face hub is; it is shared with the Python tools
  HF_TOKEN               a token for private and gated repositories
  HF_ENDPOINT            another hub than https://huggingface.co
  HF_HUB_OFFLINE         1: never ask the hub
  HTTPS_PROXY            a proxy for the hub
  SILICIDE_CACHE         where starter models from Python packages are kept";

const MODEL_HELP: &str = "A path, a starter model, or OWNER/NAME on the hub";

const MODEL_LONG_HELP: &str = "\
Where the model is. Tried in this order:
  - a path: an MLX or Hugging Face folder, or a GGUF file
  - a starter model: smollm2
  - OWNER/NAME[@REVISION] on the Hugging Face hub, or OWNER/NAME/FILE.gguf for one GGUF file; taken from the cache when it is there, downloaded otherwise (`silicide pull` updates it)
  - the NAME alone of a repository that is in the cache";

/// Options of `silicide pull`.
#[derive(Debug, Args)]
pub struct PullArgs {
    /// A starter model, or OWNER/NAME on the hub.
    ///
    /// `OWNER/NAME[@REVISION]` takes the configuration, the tokenizer and the safetensors files; `OWNER/NAME/FILE.gguf` takes one GGUF file
    /// (all its parts, where it is split). An interrupted download goes on where it stopped.
    #[arg(value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    pub name: String,

    /// Print one JSON object instead of the path.
    #[arg(long)]
    pub json: bool,
}

/// Options of `silicide generate`.
#[derive(Debug, Args)]
pub struct GenerateArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub model: ModelArgs,

    /// The prompt; without it, or as `-`, it is read from stdin, less one line end.
    #[arg(short, long, value_name = "TEXT", help_heading = "Prompt")]
    pub prompt: Option<String>,

    /// Token ids to feed as they are, past the tokenizer and the template.
    #[arg(long, value_name = "IDS", allow_negative_numbers = true, help_heading = "Prompt")]
    #[arg(value_delimiter = ',', value_parser = token_id)]
    #[arg(conflicts_with_all = ["prompt", "system", "no_template"])]
    pub prompt_tokens: Option<Vec<u32>>,

    /// A system message.
    #[arg(long, value_name = "TEXT", help_heading = "Prompt", conflicts_with = "no_template")]
    pub system: Option<String>,

    /// Feed the prompt as it is, without the model's chat template.
    #[arg(long, help_heading = "Prompt")]
    pub no_template: bool,

    /// Stop after this many tokens.
    #[arg(short = 'n', long, value_name = "N", allow_negative_numbers = true)]
    #[arg(default_value_t = 256, help_heading = "Generation")]
    pub max_tokens: usize,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub sampling: SamplingArgs,

    /// Go on past the model's end-of-text token.
    #[arg(long, help_heading = "Generation")]
    pub ignore_eos: bool,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub hardware: HardwareArgs,

    /// Write the f32 logits of every prompt and generated position, as `logits` [n, vocab].
    #[arg(long, value_name = "FILE.safetensors", help_heading = "Output")]
    pub save_logits: Option<PathBuf>,

    /// Print no text while generating, and one JSON object as the last line of stdout.
    #[arg(long, help_heading = "Output")]
    pub json: bool,
}

/// Options of `silicide chat`.
#[derive(Debug, Args)]
pub struct ChatArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub model: ModelArgs,

    /// The system message to begin with.
    #[arg(long, value_name = "TEXT", help_heading = "Prompt")]
    pub system: Option<String>,

    /// Stop an answer after this many tokens.
    #[arg(short = 'n', long, value_name = "N", allow_negative_numbers = true)]
    #[arg(default_value_t = 2048, help_heading = "Generation")]
    pub max_tokens: usize,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub sampling: SamplingArgs,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub hardware: HardwareArgs,
}

/// Options of `silicide inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    #[arg(value_name = "MODEL", help = MODEL_HELP, long_help = MODEL_LONG_HELP, value_parser = NonEmptyStringValueParser::new())]
    #[allow(missing_docs)]
    pub model: String,

    /// List every tensor.
    #[arg(short, long)]
    pub tensors: bool,

    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Options of `silicide devices`.
#[derive(Debug, Args)]
pub struct DevicesArgs {
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Options of `silicide explain`.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    #[arg(value_name = "MODEL", help = MODEL_HELP, long_help = MODEL_LONG_HELP, value_parser = NonEmptyStringValueParser::new())]
    #[allow(missing_docs)]
    pub model: String,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub hardware: HardwareArgs,

    /// List every launch in order; without it those of one kernel and one cost are a line.
    #[arg(short, long)]
    pub all: bool,

    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Options of `silicide bench ops`.
#[derive(Debug, Args)]
pub struct BenchOpsArgs {
    /// Only operations or shapes that contain this, such as attention, or "matmul 1 x".
    #[arg(short, long, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    pub filter: Option<String>,

    /// Only shapes of models whose name contains this, such as llama, 27B, 35B or gpt-oss.
    #[arg(short, long, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    pub model: Option<String>,

    /// How often a plan is replayed on a GPU; on a CPU, the least number of calls.
    #[arg(long, value_name = "N", default_value_t = 9, value_parser = rounds, allow_negative_numbers = true)]
    pub rounds: usize,

    /// Bytes that operands go round in, read and written apart [default: 512M, on a CPU 256M or more].
    #[arg(long, value_name = "SIZE", value_parser = memory_size, allow_negative_numbers = true)]
    pub pool: Option<usize>,

    /// The device's rate of bf16 products in TFLOP/s [default: measured].
    #[arg(long, value_name = "RATE", allow_negative_numbers = true)]
    #[arg(value_parser = |s: &str| number(s, f32::MIN_POSITIVE..=f32::MAX, "above 0"))]
    pub matrix_tflops: Option<f32>,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub device: DeviceArgs,

    /// Print one JSON object instead of the table.
    #[arg(long)]
    pub json: bool,
}

/// Options of `silicide bench gains`.
#[derive(Debug, Args)]
pub struct BenchGainsArgs {
    /// Only kernels of this folder of operations, such as matmul.
    #[arg(value_name = "FOLDER", value_parser = NonEmptyStringValueParser::new())]
    pub folder: Option<String>,

    /// Only operations or shapes that contain this, as in `bench ops`.
    #[arg(short, long, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    pub filter: Option<String>,

    /// How often each is replayed.
    #[arg(long, value_name = "N", default_value_t = 9, value_parser = rounds, allow_negative_numbers = true)]
    pub rounds: usize,

    /// Bytes that operands go round in, read and written apart [default: 512M].
    #[arg(long, value_name = "SIZE", value_parser = memory_size, allow_negative_numbers = true)]
    pub pool: Option<usize>,

    /// Write the lines of each folder to its gains.md below this directory as well.
    #[arg(long, value_name = "DIRECTORY", conflicts_with = "filter")]
    pub into: Option<PathBuf>,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub device: DeviceArgs,
}

/// Which model.
#[derive(Debug, Args)]
pub struct ModelArgs {
    #[arg(short, long, value_name = "MODEL", help = MODEL_HELP, long_help = MODEL_LONG_HELP)]
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    #[allow(missing_docs)]
    pub model: String,
}

/// How the next token is chosen. What is not given comes from the model's `generation_config.json`.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Generation")]
pub struct SamplingArgs {
    /// Temperature; 0 always takes the likeliest token [default: the model's, else 0].
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    #[arg(value_parser = |s: &str| number(s, 0.0..=f32::MAX, "0 or more"))]
    pub temp: Option<f32>,

    /// Sample among the likeliest tokens that make up this probability [default: the model's, else 1].
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    #[arg(value_parser = |s: &str| number(s, f32::MIN_POSITIVE..=1.0, "above 0, 1 at most"))]
    pub top_p: Option<f32>,

    /// Sample among this many likeliest tokens; 0 for all [default: the model's, else 0].
    #[arg(long, value_name = "K", allow_negative_numbers = true)]
    pub top_k: Option<usize>,

    /// Leave out tokens below this share of the likeliest one's probability [default: the model's, else 0].
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    #[arg(value_parser = |s: &str| number(s, 0.0..=1.0, "from 0 to 1"))]
    pub min_p: Option<f32>,

    /// Divide the logits of tokens already there; 1 for none [default: the model's, else 1].
    #[arg(long, value_name = "R", allow_negative_numbers = true)]
    #[arg(value_parser = |s: &str| number(s, f32::MIN_POSITIVE..=f32::MAX, "above 0"))]
    pub repetition_penalty: Option<f32>,

    /// Seed of the random numbers [default: a new one each run].
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub seed: Option<u64>,

    /// Stop before this text; may be given several times.
    #[arg(long, value_name = "TEXT", action = ArgAction::Append, value_parser = NonEmptyStringValueParser::new())]
    pub stop: Vec<String>,
}

/// Where and in which precision the model runs.
#[derive(Debug, Args)]
#[command(next_help_heading = "Hardware")]
pub struct HardwareArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub device: DeviceArgs,

    /// Element type of activations, keys and values.
    #[arg(long, value_enum, default_value_t, value_name = "TYPE")]
    pub dtype: ActivationType,
}

/// Where to run.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Hardware")]
pub struct DeviceArgs {
    /// Where to run.
    #[arg(long, value_enum, default_value_t, value_name = "DEVICE")]
    pub device: DeviceChoice,

    /// CPU threads [default: one a core].
    #[arg(long, value_name = "N", value_parser = threads, allow_negative_numbers = true)]
    pub threads: Option<usize>,

    /// The most memory to take of a GPU that has its own, such as 8G or 500M [default: all].
    #[arg(long, value_name = "SIZE", value_parser = memory_size, allow_negative_numbers = true)]
    pub memory_limit: Option<usize>,
}

/// Values of `--device`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum DeviceChoice {
    /// The fastest device that is here.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// Apple's GPU.
    Metal,
    /// NVIDIA's GPU; needs its driver and NVRTC.
    Cuda,
    /// NVIDIA's GPU with the kernels that it shares with Apple's alone, to measure and check its own beside them.
    CudaShared,
    /// The Metal kernels, run on the CPU and checked; slow, needs clang 19.
    EmulatedMetal,
    /// The kernels of NVIDIA GPUs, likewise.
    EmulatedCuda,
}

/// Values of `--dtype`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum ActivationType {
    /// The model's own on a GPU; on the CPU f32 that products may round, and f16 keys and values.
    #[default]
    Auto,
    /// f32, with scales and dense weights widened to it: for comparisons.
    F32,
    /// bf16.
    Bf16,
    /// f16.
    F16,
}

/// A finite number of a range; `wanted` says the range in words.
fn number(text: &str, range: std::ops::RangeInclusive<f32>, wanted: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(x) if range.contains(&x) => Ok(x),
        _ => Err(format!("wanted a number {wanted}")),
    }
}

/// One of several ids with commas between, and spaces where people put them.
fn token_id(text: &str) -> Result<u32, String> {
    text.trim().parse().map_err(|_| "wanted token ids with commas between, such as 1,2,3".into())
}

/// Bytes, with K, M or G for powers of 1024.
fn memory_size(text: &str) -> Result<usize, String> {
    let (digits, shift) = match text.char_indices().last() {
        Some((at, 'K' | 'k')) => (&text[..at], 10),
        Some((at, 'M' | 'm')) => (&text[..at], 20),
        Some((at, 'G' | 'g')) => (&text[..at], 30),
        _ => (text, 0),
    };
    let bytes = digits.parse().ok().and_then(|n: usize| n.checked_mul(1 << shift));
    bytes.filter(|&bytes| bytes > 0).ok_or_else(|| "wanted a size such as 8G, 500M or 1000000".into())
}

fn threads(text: &str) -> Result<usize, String> {
    count(text, 1024)
}

fn rounds(text: &str) -> Result<usize, String> {
    count(text, 10_000)
}

fn count(text: &str, most: usize) -> Result<usize, String> {
    match text.parse() {
        Ok(n) if (1..=most).contains(&n) => Ok(n),
        _ => Err(format!("wanted a number from 1 to {most}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn sizes_of_memory() {
        for (text, bytes) in [("8G", 8 << 30), ("500m", 500 << 20), ("3K", 3072), ("17", 17)] {
            assert_eq!(memory_size(text), Ok(bytes));
        }
        for text in ["", "G", "0", "-1G", "1.5G", "8GB", "99999999999999G", "8é"] {
            assert!(memory_size(text).is_err(), "{text}");
        }
    }

    /// A command line of one subcommand's options.
    #[derive(Debug, Parser)]
    struct Only<A: Args> {
        #[command(flatten)]
        args: A,
    }

    fn parse<A: Args>(line: &[&str]) -> Result<A, clap::Error> {
        Only::try_parse_from([&["x"], line].concat()).map(|only| only.args)
    }

    #[test]
    fn the_grammar_is_consistent() {
        Cli::command().debug_assert();
        Only::<GenerateArgs>::command().debug_assert();
        Only::<ChatArgs>::command().debug_assert();
        Only::<InspectArgs>::command().debug_assert();
        Only::<DevicesArgs>::command().debug_assert();
        Only::<ExplainArgs>::command().debug_assert();
        Only::<BenchOpsArgs>::command().debug_assert();
    }

    #[test]
    fn every_option_is_explained() {
        fn check<A: Args>() {
            for arg in Only::<A>::command().get_arguments() {
                assert!(arg.get_help().is_some(), "--{} has no help", arg.get_id());
            }
        }
        check::<PullArgs>();
        check::<GenerateArgs>();
        check::<ChatArgs>();
        check::<InspectArgs>();
        check::<DevicesArgs>();
        check::<ExplainArgs>();
        check::<BenchOpsArgs>();
    }

    #[test]
    fn generate_reads_its_options() {
        let args: GenerateArgs = parse(&[
            "--model=m",
            "--prompt-tokens=1, 2,3",
            "--max-tokens=32",
            "--temp=0",
            "--top-p=0.9",
            "--top-k=40",
            "--min-p=0.05",
            "--repetition-penalty=1.1",
            "--seed=7",
            "--stop=a",
            "--stop=b,c",
            "--device=emulated-metal",
            "--dtype=f32",
            "--threads=2",
            "--ignore-eos",
            "--save-logits=l.safetensors",
            "--json",
        ])
        .unwrap();
        assert_eq!(args.prompt_tokens, Some(vec![1, 2, 3]));
        assert_eq!(args.sampling.stop, ["a", "b,c"]);
        assert_eq!(args.sampling.temp, Some(0.0));
        assert_eq!(args.hardware.device.device, DeviceChoice::EmulatedMetal);
        assert_eq!(args.hardware.dtype, ActivationType::F32);
        assert_eq!(args.max_tokens, 32);
    }

    #[test]
    fn values_out_of_range_are_refused() {
        for bad in [
            "--temp=-1",
            "--temp=nan",
            "--temp=inf",
            "--top-p=0",
            "--top-p=1.5",
            "--min-p=2",
            "--repetition-penalty=0",
            "--threads=0",
            "--threads=1000000",
            "--prompt-tokens=1,x",
            "--prompt-tokens=-1",
            "--max-tokens=-1",
            "--device=gpu",
            "--stop=",
            "--model=",
        ] {
            let line: &[&str] = if bad == "--model=" { &[bad] } else { &["--model=m", bad] };
            let error = parse::<GenerateArgs>(line).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{bad}");
            // Apart, a negative number is a value and no option.
            let apart: Vec<&str> = line.iter().flat_map(|word| word.split('=')).collect();
            let error = parse::<GenerateArgs>(&apart).unwrap_err();
            assert!(!error.to_string().contains("unexpected argument"), "{error}");
        }
        for pair in [["--prompt=a", "--prompt-tokens=1"], ["--system=a", "--no-template"]] {
            assert!(parse::<GenerateArgs>(&["--model=m", pair[0], pair[1]]).is_err(), "{pair:?}");
        }
    }
}
