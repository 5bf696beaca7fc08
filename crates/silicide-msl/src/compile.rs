//! Runs clang, and keeps what it made.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use crate::cache::digest;
use crate::rewrite::{Dialect, Entry, Parameter, ParameterKind, rewrite};
use crate::{CompileOptions, Error};

/// The shim in the order of its parts.
const SHIM: &str = concat!(
    include_str!("../shim/types.h"),
    include_str!("../shim/runtime.h"),
    include_str!("../shim/math.h"),
    include_str!("../shim/simd.h"),
    include_str!("../shim/matrix.h"),
    include_str!("../shim/nvidia.h"),
    include_str!("../shim/end.h"),
);

/// Object-like macros of the Metal headers. They must be there before the kernel text is preprocessed.
const MACROS: &str = include_str!("../shim/macros.h");

const HINT: &str = "Install it (Debian and Ubuntu: apt install clang-19; Fedora: dnf install clang; \
                    elsewhere see releases.llvm.org) so that it is on the PATH";

/// A compiled library on disk.
pub(crate) struct Compiled {
    pub(crate) path: PathBuf,
    pub(crate) entries: Vec<Entry>,
    /// Removes the file with the last library that uses it, where there is no cache.
    pub(crate) folder: Option<tempfile::TempDir>,
}

/// Compiles `source`, or finds it in the cache.
pub(crate) fn compile(source: &str, options: &CompileOptions) -> Result<Compiled, Error> {
    let clang = clang()?;
    let flags = flags(options);
    let (directory, folder) = match &options.cache_dir {
        Some(directory) => {
            fs::create_dir_all(directory).map_err(|e| Error::io(directory.display().to_string(), e))?;
            (directory.clone(), None)
        }
        None => {
            let folder = tempfile::tempdir().map_err(|e| Error::io("a temporary folder for a kernel library", e))?;
            (folder.path().to_owned(), Some(folder))
        }
    };
    let key = hash(&[&clang.version, &flags.join(" "), &format!("{options:?}"), SHIM, MACROS, source]);
    let path = directory.join(format!("{key:032x}.msl.so"));
    if let Some(entries) = cached(&path) {
        return Ok(Compiled { path, entries, folder });
    }

    let plain = preprocess(clang.program, source, options)?;
    let rewritten = rewrite(&plain, Dialect::OpenCl, &options.function_constants)
        .map_err(|(line, message)| Error::Compile { message: format!("{}:{line}: error: {message}", options.name) })?;
    let text = format!("# 1 \"<metal_stdlib>\"\n{SHIM}# 1 \"{}\"\n{}\n", options.name, rewritten.text);

    // A temporary name in the same folder, then a rename: other processes see a whole file or none.
    let temporary = tempfile::Builder::new().prefix(".building-").suffix(".so").tempfile_in(&directory);
    let temporary = temporary.map_err(|e| Error::io(directory.display().to_string(), e))?;
    let mut command = Command::new(clang.program);
    command.args(&flags).args(["-x", "cl", "-", "-o"]).arg(temporary.path()).arg("-lm");
    run(command, &text, options)?;
    seal(temporary.path(), &rewritten.kernels).map_err(|e| Error::io(path.display().to_string(), e))?;
    temporary.persist(&path).map_err(|e| Error::io(path.display().to_string(), e.error))?;
    Ok(Compiled { path, entries: rewritten.kernels, folder })
}

pub(crate) struct Clang {
    pub(crate) program: &'static str,
    version: String,
}

pub(crate) fn clang() -> Result<&'static Clang, Error> {
    static FOUND: OnceLock<Result<Clang, Error>> = OnceLock::new();
    FOUND.get_or_init(find_clang).as_ref().map_err(Clone::clone)
}

fn find_clang() -> Result<Clang, Error> {
    if !cfg!(target_os = "linux") {
        return Err(Error::NoCompiler { looked_for: "kernels are emulated on Linux only".into(), hint: String::new() });
    }
    let mut looked_for = String::from("looked for");
    for program in ["clang-19", "clang", "clang-20", "clang-21", "clang-22"] {
        let _ = write!(looked_for, " `{program}`");
        let Ok(output) = Command::new(program).arg("--version").stdin(Stdio::null()).output() else {
            looked_for.push_str(" (not there),");
            continue;
        };
        let version = String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or("").to_owned();
        let major = version.split("version ").nth(1).and_then(|v| v.split('.').next()?.parse::<u32>().ok());
        if major.is_some_and(|major| major >= 19) && !version.starts_with("Apple") {
            return Ok(Clang { program, version });
        }
        let _ = write!(looked_for, " (got \"{version}\"),");
    }
    looked_for.pop();
    Err(Error::NoCompiler { looked_for, hint: HINT.into() })
}

/// The compiler's arguments but for input and output.
fn flags(options: &CompileOptions) -> Vec<&'static str> {
    let mut flags = vec![
        "-cl-std=clc++2021",
        "-cl-no-stdinc",
        "-Xclang",
        "-cl-ext=+all,-__opencl_c_pipes,-__opencl_c_device_enqueue",
        // Metal's floating literals are float.
        "-cl-single-precision-constant",
        // The same results whatever the CPU.
        "-ffp-contract=off",
        // Warnings of the rewritten text tell the author nothing.
        "-w",
        "-O2",
        "-gline-tables-only",
        "-fPIC",
        "-shared",
        "-nostdlib",
        "-fvisibility=hidden",
        // A division by zero is no signal, and what follows it is not run.
        "-fsanitize=integer-divide-by-zero",
        "-fno-sanitize-recover=integer-divide-by-zero",
        "-fno-math-errno",
    ];
    #[cfg(target_arch = "x86_64")]
    {
        flags.push("--target=x86_64-linux-gnu");
        // The half conversions are what matters.
        if is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
            && is_x86_feature_detected!("bmi1")
            && is_x86_feature_detected!("bmi2")
            && is_x86_feature_detected!("lzcnt")
            && is_x86_feature_detected!("movbe")
        {
            flags.push("-march=x86-64-v3");
        }
    }
    #[cfg(target_arch = "aarch64")]
    flags.extend(["--target=aarch64-linux-gnu", "-mno-outline-atomics"]);
    if options.nvidia {
        flags.push("-D__msl_nvidia");
    }
    if options.checks {
        flags.extend([
            "-D__msl_checks",
            "-fsanitize=kernel-address,array-bounds",
            "-fno-sanitize-recover=array-bounds",
            // Each access is a call, and none is left out because another at the same address came before.
            "-mllvm",
            "-asan-instrumentation-with-call-threshold=0",
            "-mllvm",
            "-asan-opt-same-temp=0",
            "-mllvm",
            "-asan-stack=0",
            "-mllvm",
            "-asan-globals=0",
            "-mllvm",
            "-asan-kernel-mem-intrinsic-prefix=1",
            // Accesses keep their size, hence their alignment.
            "-fno-vectorize",
            "-fno-slp-vectorize",
        ]);
    }
    flags
}

/// Expands macros. The Metal headers are the shim, so their includes go; lines stay where they are.
pub(crate) fn preprocess(program: &str, source: &str, options: &CompileOptions) -> Result<String, Error> {
    let mut text = format!("# 1 \"<metal_stdlib>\"\n{MACROS}");
    if options.nvidia {
        text.push_str("#define EMULATED_NVIDIA\n");
    }
    for (name, value) in &options.defines {
        let _ = writeln!(text, "#define {name} {value}");
    }
    let _ = writeln!(text, "# 1 \"{}\"", options.name);
    for line in source.lines() {
        let words: String = line.split_whitespace().collect();
        let metal = words.starts_with("#include<metal_") || words.starts_with("#include<simd/");
        text.push_str(if metal { "" } else { line });
        text.push('\n');
    }
    let mut command = Command::new(program);
    command.args(["-E", "-undef", "-nostdinc", "-w", "-x", "c++", "-"]);
    run(command, &text, options)
}

/// Feeds `input` to the compiler and gives what it prints.
fn run(mut command: Command, input: &str, options: &CompileOptions) -> Result<String, Error> {
    let failed = |e| Error::io("running clang", e);
    // Messages in English, and nothing from the user's settings.
    command.env("LC_ALL", "C").arg("-fno-color-diagnostics");
    let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = spawned.map_err(failed)?;
    let stdin = child.stdin.take();
    let output = std::thread::scope(|scope| {
        // A thread writes, as the compiler may print before it has read everything. A broken pipe shows in its status.
        scope.spawn(move || stdin.map(|mut stdin| stdin.write_all(input.as_bytes())));
        child.wait_with_output()
    });
    let output = output.map_err(failed)?;
    if output.status.success() {
        return String::from_utf8(output.stdout)
            .map_err(|_| Error::Compile { message: format!("{}: the source is not UTF-8", options.name) });
    }
    let mut message = String::from_utf8_lossy(&output.stderr).into_owned();
    // The words of the kernel's author for those of the compiler.
    for (theirs, ours) in [
        ("const __global_device ", "device const "),
        ("__global_device ", "device "),
        ("const __global ", "constant "),
        ("__local ", "threadgroup "),
        ("*__private", "*"),
        ("&__private", "&"),
        ("__private ", ""),
    ] {
        message = message.replace(theirs, ours);
    }
    if message.trim().is_empty() {
        message = format!("{}: clang failed without a message ({})", options.name, output.status);
    }
    Err(Error::Compile { message })
}

/// Appends the list of entries and a check sum to the library; loaders ignore what follows an ELF file.
fn seal(path: &Path, entries: &[Entry]) -> std::io::Result<()> {
    let code = fs::read(path)?;
    let mut list = String::new();
    for entry in entries {
        let _ = writeln!(list, "K\t{}\t{}", entry.line, entry.name);
        for parameter in &entry.parameters {
            let kind = char::from(parameter.kind as u8);
            let _ = writeln!(list, "P\t{}\t{kind}\t{}", parameter.index, parameter.name);
        }
    }
    let mut tail = list.into_bytes();
    let length = tail.len() as u64;
    let sum = digest(&[&code, &tail]);
    tail.extend(length.to_le_bytes());
    tail.extend(sum.to_le_bytes());
    fs::OpenOptions::new().append(true).open(path)?.write_all(&tail)
}

/// The entries of a sealed library, if it is whole.
fn cached(path: &Path) -> Option<Vec<Entry>> {
    let bytes = fs::read(path).ok()?;
    let (rest, sum) = bytes.split_last_chunk::<16>()?;
    let (rest, length) = rest.split_last_chunk::<8>()?;
    let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
    let (code, list) = rest.split_at_checked(rest.len().checked_sub(length)?)?;
    if digest(&[code, list]) != u128::from_le_bytes(*sum) {
        return None;
    }
    let mut entries: Vec<Entry> = Vec::new();
    for line in std::str::from_utf8(list).ok()?.lines() {
        let mut fields = line.split('\t');
        match fields.next()? {
            "K" => {
                let line = fields.next()?.parse().ok()?;
                entries.push(Entry { name: fields.next()?.to_owned(), line, parameters: Vec::new() });
            }
            _ => {
                let index = fields.next()?.parse().ok()?;
                let kind = match fields.next()? {
                    "d" => ParameterKind::Device,
                    "r" => ParameterKind::DeviceConst,
                    "c" => ParameterKind::Constant,
                    _ => ParameterKind::Threadgroup,
                };
                let parameter = Parameter { name: fields.next()?.to_owned(), index, kind, base: None };
                entries.last_mut()?.parameters.push(parameter);
            }
        }
    }
    Some(entries)
}

fn hash(parts: &[&str]) -> u128 {
    let parts: Vec<&[u8]> = parts.iter().map(|part| part.as_bytes()).collect();
    digest(&parts)
}
