//! What can go wrong.

use std::fmt;

/// What can go wrong when kernels are compiled or run.
#[non_exhaustive]
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// No usable clang was found.
    #[error("no clang of version 19 or later: {looked_for}. {hint}")]
    NoCompiler {
        /// What was looked for, and what was found.
        looked_for: String,
        /// How to get one.
        hint: String,
    },
    /// The source is not valid Metal Shading Language, or uses a part of it that is not supported.
    #[error("{message}")]
    Compile {
        /// The compiler's messages, with the lines of the source given.
        message: String,
    },
    /// A kernel broke a rule when it ran.
    #[error("{0}")]
    Fault(Box<Fault>),
    /// A call, or a launch, that cannot be: a buffer that is not bound, too many threads.
    #[error("{0}")]
    Usage(String),
    /// The operating system refused something that compiling or loading needs.
    #[error("{what}: {source}")]
    Io {
        /// What was attempted.
        what: String,
        /// The system's own error.
        source: std::sync::Arc<std::io::Error>,
    },
}

impl Error {
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Error::Usage(message.into())
    }

    pub(crate) fn io(what: impl Into<String>, source: std::io::Error) -> Self {
        Error::Io { what: what.into(), source: std::sync::Arc::new(source) }
    }
}

/// A rule that a kernel broke, with the place and the thread.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The kernel's name.
    pub kernel: String,
    /// Which rule.
    pub kind: FaultKind,
    /// The line of the source, where it is known.
    pub line: Option<u32>,
    /// `threadgroup_position_in_grid`.
    pub threadgroup: [u32; 3],
    /// `thread_position_in_threadgroup`.
    pub thread: [u32; 3],
    /// The seed of the schedule: with it, and with one worker, the same launch gives the same fault.
    pub seed: Option<u64>,
    /// What happened.
    pub message: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Fault { kernel, kind, line, threadgroup: g, thread: t, seed, message } = self;
        write!(f, "kernel {kernel}")?;
        if let Some(line) = line {
            write!(f, ", line {line}")?;
        }
        write!(
            f,
            ": {kind}: {message} (threadgroup [{}, {}, {}], thread [{}, {}, {}]",
            g[0], g[1], g[2], t[0], t[1], t[2]
        )?;
        match seed {
            Some(seed) => write!(f, ", seed {seed})"),
            None => write!(f, ")"),
        }
    }
}

/// The rules that the runner checks.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FaultKind {
    /// An access outside of every buffer, constant and threadgroup allocation of the launch.
    OutOfRange,
    /// An index outside of an array of known size.
    IndexOutOfBounds,
    /// A write through a binding that is only read.
    WriteToReadOnly,
    /// An address that is no multiple of the type's alignment.
    Misaligned,
    /// Two threads use the same memory, one of them writes, and nothing orders the two.
    Race,
    /// Threads that must all reach a barrier or simdgroup operation do not.
    Divergence,
    /// An integer division by zero, or one that overflows.
    Division,
    /// More steps than the launch allows.
    Endless,
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FaultKind::OutOfRange => "access out of range",
            FaultKind::IndexOutOfBounds => "index out of bounds",
            FaultKind::WriteToReadOnly => "write to read-only memory",
            FaultKind::Misaligned => "misaligned access",
            FaultKind::Race => "data race",
            FaultKind::Divergence => "divergence",
            FaultKind::Division => "invalid integer division",
            FaultKind::Endless => "step limit reached",
        })
    }
}
