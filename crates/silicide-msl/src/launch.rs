//! Launches: what a kernel is given, and how it is run over a grid.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::abi::Thread;
use crate::bindings::Bindings;
use crate::collective::LANES;
use crate::context::{Context, Divergence, Rule, Violation};
use crate::group::Group;
use crate::library::{BindingKind, Kernel};
use crate::memory::{Memory, Refusal, Region, What};
use crate::random::{Permutation, Random};
use crate::{Error, Fault, FaultKind};

/// Metal's limit for the threads of a threadgroup.
pub const MAX_THREADS: usize = 1024;
/// Metal's limit for the threadgroup memory of a threadgroup, in bytes.
pub const MAX_THREADGROUP_BYTES: usize = 32 << 10;
/// The same of an NVIDIA GPU of compute capability 9.0.
pub const MAX_NVIDIA_THREADGROUP_BYTES: usize = 227 << 10;
/// Metal's limit for one argument that is passed inline, in bytes.
pub const MAX_INLINE_BYTES: usize = 4096;
/// Buffer and threadgroup indices are below this.
pub const MAX_BINDINGS: u32 = 31;

/// One kernel over one grid.
#[derive(Clone, Debug)]
pub struct Launch<'a> {
    /// The kernel.
    pub kernel: &'a Kernel,
    /// Memory for `[[buffer(n)]]` arguments. The same memory may be bound several times.
    pub buffers: Vec<(u32, BufferArg)>,
    /// Values for `[[buffer(n)]]` arguments of `constant` or `device const` kind, of up to [`MAX_INLINE_BYTES`].
    pub bytes: Vec<(u32, &'a [u8])>,
    /// Bytes for `[[threadgroup(n)]]` arguments.
    pub threadgroup_memory: Vec<(u32, usize)>,
    /// Threadgroups in the grid.
    pub threadgroups: [u32; 3],
    /// Threads in a threadgroup.
    pub threads: [u32; 3],
    /// The order of things.
    pub schedule: Schedule,
}

/// A view of memory that a kernel may use: exactly these bytes.
#[derive(Clone, Copy, Debug)]
pub struct BufferArg {
    /// Its first byte.
    pub ptr: *mut u8,
    /// Its length in bytes.
    pub len: usize,
    /// Whether the kernel may write.
    pub writable: bool,
}

/// In which order threads and threadgroups run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Schedule {
    /// Shuffles threads and threadgroups; without, they run in order. With one worker the same seed gives the same run.
    pub seed: Option<u64>,
    /// Operating system threads that share the threadgroups, 0 for one a core.
    pub workers: usize,
    /// The most checked accesses, barriers and simdgroup operations of one worker, after which the kernel is taken to
    /// never end. Without checks accesses are not counted.
    pub steps: Option<u64>,
}

impl Launch<'_> {
    /// Runs the kernel and waits for its end.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] where the arguments do not fit the kernel or Metal's limits; nothing has run then.
    /// [`Error::Fault`] where the kernel broke a rule; what it wrote before is undefined.
    ///
    /// # Safety
    ///
    /// Every buffer must be valid for reads of its length, and for writes where it is writable, and nothing else may use
    /// that memory in a conflicting way before this returns. A kernel of a library that was compiled without checks must
    /// stay within its buffers.
    pub unsafe fn run(&self) -> Result<(), Error> {
        self.validate()?;
        let checks = self.kernel.inner().checks;
        // SAFETY: the caller's promise.
        let mut bindings = unsafe { Bindings::new(self, checks) };
        let total = self.threadgroups.iter().map(|&n| u64::from(n)).product::<u64>();
        let workers = match self.schedule.workers {
            0 => std::thread::available_parallelism().map_or(1, |n| n.get()).min(16),
            n => n,
        };
        let workers = (workers as u64).min(total) as usize;
        let shared = Shared {
            launch: self,
            bindings: &bindings,
            order: Permutation::new(total, self.schedule.seed),
            total,
            next: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            failure: Mutex::new(None),
        };
        let memories: Vec<Memory> = if workers == 1 {
            shared.work(0).into_iter().collect()
        } else {
            std::thread::scope(|scope| {
                let shared = &shared;
                let others: Vec<_> = (1..workers).map(|n| scope.spawn(move || shared.work(n))).collect();
                let mut all: Vec<_> = shared.work(0).into_iter().collect();
                all.extend(others.into_iter().filter_map(|other| other.join().ok().flatten()));
                all
            })
        };
        let failure = shared.failure.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(error) = failure {
            return Err(error);
        }
        self.races_between(&memories)?;
        bindings.write_back();
        Ok(())
    }

    fn validate(&self) -> Result<(), Error> {
        let info = self.kernel.info();
        let name = &info.name;
        let fail = |message: String| Err(Error::Usage(format!("kernel {name}: {message}")));
        let threads = self.threads.iter().map(|&n| n as u64).product::<u64>();
        if threads == 0 || self.threads.iter().any(|&n| n as usize > MAX_THREADS) || threads > MAX_THREADS as u64 {
            return fail(format!("{:?} threads in a threadgroup: Metal allows 1 to {MAX_THREADS}", self.threads));
        }
        let groups = self.threadgroups.iter().try_fold(1u64, |n, &axis| n.checked_mul(u64::from(axis)));
        if groups.is_none_or(|n| n == 0) {
            return fail(format!("a grid of {:?} threadgroups", self.threadgroups));
        }
        let given = self.buffers.iter().map(|(index, _)| *index).chain(self.bytes.iter().map(|(index, _)| *index));
        let mut seen = [false; MAX_BINDINGS as usize];
        for index in given {
            match seen.get_mut(index as usize) {
                None => return fail(format!("buffer({index}): indices are 0 to {}", MAX_BINDINGS - 1)),
                Some(true) => return fail(format!("buffer({index}) is bound twice")),
                Some(slot) => *slot = true,
            }
        }
        if let Some((index, bytes)) = self.bytes.iter().find(|(_, bytes)| bytes.len() > MAX_INLINE_BYTES) {
            let hint = "pass a buffer instead";
            return fail(format!(
                "buffer({index}): {} inline bytes, Metal allows {MAX_INLINE_BYTES}: {hint}",
                bytes.len()
            ));
        }
        let mut bytes = info.static_threadgroup_bytes;
        for (i, (index, size)) in self.threadgroup_memory.iter().enumerate() {
            if *index >= MAX_BINDINGS || self.threadgroup_memory[..i].iter().any(|(other, _)| other == index) {
                return fail(format!("threadgroup({index}): indices are 0 to {}, each once", MAX_BINDINGS - 1));
            }
            if !size.is_multiple_of(16) {
                return fail(format!("threadgroup({index}): {size} bytes; Metal wants a multiple of 16"));
            }
            bytes = bytes.saturating_add(*size);
        }
        let (most, whose) = match self.kernel.inner().nvidia {
            true => (MAX_NVIDIA_THREADGROUP_BYTES, "an NVIDIA GPU"),
            false => (MAX_THREADGROUP_BYTES, "Metal"),
        };
        if bytes > most {
            return fail(format!(
                "{bytes} bytes of threadgroup memory, {} of them declared in the kernel: {whose} allows {most}",
                info.static_threadgroup_bytes
            ));
        }
        for binding in &info.bindings {
            let index = binding.index;
            let what = &binding.name;
            if binding.kind == BindingKind::Threadgroup {
                if self.threadgroup_memory.iter().all(|(other, _)| *other != index) {
                    return fail(format!("threadgroup({index}) `{what}` has no memory"));
                }
                continue;
            }
            let buffer = self.buffers.iter().find(|(other, _)| *other == index).map(|(_, buffer)| buffer.len);
            let inline = self.bytes.iter().find(|(other, _)| *other == index).map(|(_, bytes)| bytes.len());
            let Some(length) = buffer.or(inline) else { return fail(format!("buffer({index}) `{what}` is not bound")) };
            match binding.kind {
                BindingKind::Device { writable: true } if inline.is_some() => {
                    return fail(format!(
                        "buffer({index}) `{what}` is device memory to write, and bound to inline bytes"
                    ));
                }
                BindingKind::Constant { bytes } if length < bytes => {
                    return fail(format!("buffer({index}) `{what}` takes {bytes} bytes, and {length} are bound"));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Workers cannot see each other's accesses while they run; threadgroups of two may have raced.
    fn races_between(&self, memories: &[Memory]) -> Result<(), Error> {
        for (i, a) in memories.iter().enumerate() {
            for b in &memories[..i] {
                let Some((what, offset)) = a.conflict(b) else { continue };
                let message = format!(
                    "two threadgroups use {what} at byte {offset}, one of them writes; with `workers: 1` the line is known"
                );
                return Err(Error::Fault(Box::new(Fault {
                    kernel: self.kernel.info().name.clone(),
                    kind: FaultKind::Race,
                    line: None,
                    threadgroup: [0; 3],
                    thread: [0; 3],
                    seed: self.schedule.seed,
                    message,
                })));
            }
        }
        Ok(())
    }

    fn thread_position(&self, thread: u16) -> [u32; 3] {
        let [x, y, _] = self.threads;
        let index = u32::from(thread);
        [index % x, index / x % y, index / (x * y)]
    }

    /// Puts a broken rule into words.
    fn explain(&self, violation: Violation, thread: u16, threadgroup: [u32; 3], memory: &Memory) -> Error {
        let mut places = vec![violation.pc];
        if let Rule::Divergence(Divergence::Elsewhere(pc), _) = violation.rule {
            places.push(pc);
        }
        let lines = self.kernel.inner().lines(&places);
        let mut line = lines.get(&violation.pc).copied();
        let position = |thread: u16| {
            let [x, y, z] = self.thread_position(thread);
            format!("[{x}, {y}, {z}]")
        };
        let (kind, message) = match violation.rule {
            Rule::Access(access, refusal) => {
                let verb = if access.writes() { "write" } else { "read" };
                let (name, place) = self.place(access.address, memory);
                let size = access.size;
                match refusal {
                    Refusal::OutOfRange => (FaultKind::OutOfRange, format!("{verb} of {size} byte(s) at byte {place}")),
                    Refusal::ReadOnly(What::Internal) => {
                        (FaultKind::WriteToReadOnly, format!("write of {size} byte(s) to a constant of the program"))
                    }
                    Refusal::ReadOnly(_) => (
                        FaultKind::WriteToReadOnly,
                        format!("write of {size} byte(s) at byte {place}, which is bound for reading"),
                    ),
                    Refusal::Misaligned => (
                        FaultKind::Misaligned,
                        format!("{verb} of {size} bytes at byte {place}: the address is no multiple of {size}"),
                    ),
                    Refusal::Race { offset, other, wrote, .. } => {
                        let other = match other {
                            Some(other) => format!("thread {}", position(other)),
                            None => "a thread of another threadgroup".to_owned(),
                        };
                        let earlier = if wrote { "wrote" } else { "read" };
                        let message = format!(
                            "{verb} of byte {offset} of {name}, which {other} {earlier}, and no barrier is between the two"
                        );
                        (FaultKind::Race, message)
                    }
                }
            }
            Rule::Index(index, at) => {
                line = Some(at);
                (FaultKind::IndexOutOfBounds, format!("index {index}"))
            }
            Rule::Division(by, at) => {
                line = Some(at);
                (
                    FaultKind::Division,
                    if by == 0 { "division by zero".into() } else { format!("the quotient by {by} has no value") },
                )
            }
            Rule::Divergence(divergence, other) => {
                let other = position(other);
                let message = match divergence {
                    Divergence::Finished => format!("the thread waits here for thread {other}, which has finished"),
                    Divergence::Elsewhere(pc) => match lines.get(&pc) {
                        Some(at) => format!("the thread waits here for thread {other}, which waits at line {at}"),
                        None => format!("the thread waits here for thread {other}, which waits elsewhere"),
                    },
                    Divergence::Partial => {
                        format!("a matrix operation needs all {LANES} lanes, and the last simdgroup has fewer")
                    }
                };
                (FaultKind::Divergence, message)
            }
            Rule::Endless => {
                let steps = self.schedule.steps.unwrap_or(u64::MAX);
                (FaultKind::Endless, format!("more than {steps} accesses and joint operations"))
            }
        };
        Error::Fault(Box::new(Fault {
            kernel: self.kernel.info().name.clone(),
            kind,
            line,
            threadgroup,
            thread: self.thread_position(thread),
            seed: self.schedule.seed,
            message,
        }))
    }

    /// An address as a name, and as a byte of that name.
    fn place(&self, address: u64, memory: &Memory) -> (String, String) {
        let Some(Region { bytes, what, .. }) = memory.nearest(address) else {
            return (String::new(), format!("0x{address:x} (nothing is bound)"));
        };
        let bindings = &self.kernel.info().bindings;
        let parameter = bindings.iter().find(|binding| match what {
            What::Buffer(index) => binding.index == *index && binding.kind != BindingKind::Threadgroup,
            What::Threadgroup(index) => binding.index == *index && binding.kind == BindingKind::Threadgroup,
            _ => false,
        });
        let name = match parameter {
            Some(binding) => format!("{what} `{}`", binding.name),
            None => what.to_string(),
        };
        let offset = i128::from(address) - i128::from(bytes.start);
        let place = format!("{offset} of {name}, which has {}", bytes.end - bytes.start);
        (name, place)
    }
}

/// What the workers of a launch share.
struct Shared<'a> {
    launch: &'a Launch<'a>,
    bindings: &'a Bindings,
    order: Permutation,
    total: u64,
    next: AtomicU64,
    stop: AtomicBool,
    failure: Mutex<Option<Error>>,
}

// SAFETY: the raw pointers within are only handed on to kernels, whose concurrent use of them is the launch's purpose and
// covered by the promise of its caller.
unsafe impl Sync for Shared<'_> {}

impl Shared<'_> {
    /// Runs threadgroups until there is none left. Gives what was noted of memory, if all went well.
    fn work(&self, number: usize) -> Option<Memory> {
        match self.groups(number) {
            Ok(memory) => Some(memory),
            Err(error) => {
                self.stop.store(true, Ordering::Relaxed);
                let mut failure = self.failure.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                failure.get_or_insert(error);
                None
            }
        }
    }

    fn groups(&self, number: usize) -> Result<Memory, Error> {
        let Launch { kernel, threadgroups, threads, schedule, .. } = self.launch;
        let loaded = kernel.loaded();
        let mut local = self.bindings.local(loaded);
        let context =
            Context::new(Memory::new(self.bindings.regions(&local, kernel)), schedule.steps.unwrap_or(u64::MAX));
        let count = threads.iter().product::<u32>();
        let simdgroups = count.div_ceil(LANES as u32);
        let all = (0..count).map(|index| Thread {
            buffers: self.bindings.table(),
            shared: local.table(),
            statics: local.statics(),
            query: std::ptr::null_mut(),
            thread_position_in_grid: [0; 3],
            thread_position_in_threadgroup: self.launch.thread_position(index as u16),
            threadgroup_position_in_grid: [0; 3],
            threads_per_threadgroup: *threads,
            threadgroups_per_grid: *threadgroups,
            threads_per_grid: std::array::from_fn(|axis| threadgroups[axis].wrapping_mul(threads[axis])),
            thread_index_in_threadgroup: index,
            thread_index_in_simdgroup: index % LANES as u32,
            simdgroup_index_in_threadgroup: index / LANES as u32,
            simdgroups_per_threadgroup: simdgroups,
            threads_per_simdgroup: LANES as u32,
        });
        let random = schedule.seed.map(|seed| Random(seed ^ (number as u64) << 32 ^ 0x51d1));
        let mut group = Group::new(&context, loaded.entry, all.collect(), random)?;
        while !self.stop.load(Ordering::Relaxed) {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            if index >= self.total {
                break;
            }
            let place = self.order.at(index);
            let (x, y) = (u64::from(threadgroups[0]), u64::from(threadgroups[1]));
            let position = [(place % x) as u32, (place / x % y) as u32, (place / (x * y)) as u32];
            local.poison();
            context.memory.borrow_mut().begin_group();
            if let Err((violation, thread)) = group.run(position) {
                return Err(self.launch.explain(violation, thread, position, &context.memory.borrow()));
            }
        }
        drop(group);
        Ok(context.memory.into_inner())
    }
}
