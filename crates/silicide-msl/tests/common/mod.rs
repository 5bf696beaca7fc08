//! What the tests share.
#![allow(dead_code, reason = "each test file uses a part")]

use silicide_msl::{BufferArg, CompileOptions, Error, Fault, Launch, Library, Schedule};

/// True where there is a compiler. Without one tests are skipped, unless SILICIDE_REQUIRE_CLANG is set.
pub(crate) fn have_clang() -> bool {
    match Library::compile("", &CompileOptions::default()) {
        Err(Error::NoCompiler { .. }) if std::env::var_os("SILICIDE_REQUIRE_CLANG").is_none() => {
            println!("skipped: no clang 19");
            false
        }
        Err(error) => panic!("{error}"),
        Ok(_) => true,
    }
}

pub(crate) fn compile(source: &str) -> Library {
    Library::compile(source, &CompileOptions::default()).unwrap_or_else(|error| panic!("{error}"))
}

/// The words of a source that must not compile.
pub(crate) fn rejected(source: &str) -> String {
    match Library::compile(source, &CompileOptions::default()) {
        Ok(_) => panic!("compiled, and should not:\n{source}"),
        Err(error) => error.to_string(),
    }
}

/// Bytes of plain values.
pub(crate) fn bytes<T: Copy>(values: &[T]) -> Vec<u8> {
    let len = std::mem::size_of_val(values);
    // SAFETY: the tests use integers, floats and half-precision types, which have no padding.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast::<u8>(), len) }.to_vec()
}

/// Buffers by index, and the rest of a launch.
#[derive(Clone)]
pub(crate) struct Job<'a> {
    pub(crate) library: &'a Library,
    pub(crate) kernel: &'a str,
    pub(crate) threadgroups: [u32; 3],
    pub(crate) threads: [u32; 3],
    pub(crate) inline: Vec<(u32, Vec<u8>)>,
    pub(crate) threadgroup_memory: Vec<(u32, usize)>,
    pub(crate) schedule: Schedule,
    pub(crate) read_only: Vec<u32>,
}

impl<'a> Job<'a> {
    pub(crate) fn new(library: &'a Library, kernel: &'a str, threadgroups: u32, threads: u32) -> Self {
        Job {
            library,
            kernel,
            threadgroups: [threadgroups, 1, 1],
            threads: [threads, 1, 1],
            inline: vec![],
            threadgroup_memory: vec![],
            schedule: Schedule { seed: None, workers: 1, steps: None },
            read_only: vec![],
        }
    }

    pub(crate) fn seed(mut self, seed: u64) -> Self {
        self.schedule.seed = Some(seed);
        self
    }

    pub(crate) fn inline<T: Copy>(mut self, index: u32, value: T) -> Self {
        self.inline.push((index, bytes(&[value])));
        self
    }

    pub(crate) fn memory(mut self, index: u32, bytes: usize) -> Self {
        self.threadgroup_memory.push((index, bytes));
        self
    }

    /// Runs over buffers 0, 1, ... of bytes.
    pub(crate) fn run(&self, buffers: &mut [&mut Vec<u8>]) -> Result<(), Error> {
        let kernel = self.library.kernel(self.kernel)?;
        let views = buffers.iter_mut().enumerate().map(|(index, buffer)| {
            let index = index as u32;
            let writable = !self.read_only.contains(&index);
            (index, BufferArg { ptr: buffer.as_mut_ptr(), len: buffer.len(), writable })
        });
        let launch = Launch {
            kernel: &kernel,
            buffers: views.collect(),
            bytes: self.inline.iter().map(|(index, bytes)| (*index, bytes.as_slice())).collect(),
            threadgroup_memory: self.threadgroup_memory.clone(),
            threadgroups: self.threadgroups,
            threads: self.threads,
            schedule: self.schedule,
        };
        // SAFETY: the vectors are valid and borrowed for the call.
        unsafe { launch.run() }
    }

    /// Runs over typed buffers; the last is the output, `count` values that start as zeros.
    pub(crate) fn output<I: Copy, O: Copy>(&self, inputs: &[&[I]], count: usize) -> Vec<O> {
        let mut all: Vec<Vec<u8>> = inputs.iter().map(|input| bytes(input)).collect();
        all.push(vec![0; count * size_of::<O>()]);
        let mut views: Vec<&mut Vec<u8>> = all.iter_mut().collect();
        self.run(&mut views).unwrap_or_else(|error| panic!("{error}"));
        values(all.last().expect("an output"))
    }

    pub(crate) fn fault(&self, buffers: &mut [&mut Vec<u8>]) -> Fault {
        match self.run(buffers) {
            Err(Error::Fault(fault)) => *fault,
            Err(other) => panic!("another error: {other}"),
            Ok(()) => panic!("no fault"),
        }
    }
}

/// Plain values of bytes.
pub(crate) fn values<T: Copy>(bytes: &[u8]) -> Vec<T> {
    bytes
        .chunks_exact(size_of::<T>())
        // SAFETY: the chunk has the size of the type, and the tests use types that take any bits.
        .map(|chunk| unsafe { chunk.as_ptr().cast::<T>().read_unaligned() })
        .collect()
}
