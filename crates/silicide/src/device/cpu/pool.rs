//! A thread pool for regions of a few microseconds: workers spin shortly for the next region, then park.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU32, AtomicUsize};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

/// How long a thread spins before it parks: longer than the gaps between the regions of one decode step, shorter than
/// what anyone would notice of a core kept busy.
const SPIN: Duration = Duration::from_micros(150);

/// Threads that share the tasks of one region at a time.
///
/// ```
/// use std::sync::atomic::{AtomicUsize, Ordering};
/// use silicide::device::cpu::Pool;
///
/// let pool = Pool::new(2);
/// let sum = AtomicUsize::new(0);
/// pool.parallel(10, &|task| {
///     sum.fetch_add(task, Ordering::Relaxed);
/// });
/// assert_eq!(sum.into_inner(), 45);
/// ```
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held for a region: the pool runs one at a time.
    region: Mutex<()>,
}

impl Pool {
    /// A pool of `threads` threads (at least one), of which the caller of [`parallel`](Pool::parallel) is one.
    ///
    /// # Panics
    /// Where the system refuses to start a thread.
    pub fn new(threads: usize) -> Pool {
        let threads = threads.max(1);
        let shared = Arc::new(Shared {
            slots: (0..threads).map(|_| Slot::default()).collect(),
            panic: Mutex::new(None),
            waiter: Mutex::new(None),
        });
        let workers = (1..threads)
            .map(|i| {
                let shared = shared.clone();
                let name = format!("silicide-{i}");
                thread::Builder::new().name(name).spawn(move || shared.serve(i)).expect("the system starts a thread")
            })
            .collect();
        Pool { shared, workers, region: Mutex::new(()) }
    }

    /// The number of threads, the caller's included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `task(0)` to `task(n - 1)`, each once, on the pool's threads and the caller's, and returns when all are done.
    ///
    /// Each thread has a share of tasks that follow each other, so that what they read may as well; a thread that is done
    /// with its own goes on with what is left of the others'. A call from inside a task runs its tasks on the calling thread.
    ///
    /// # Panics
    /// With the payload of the first task that panicked, after all running tasks have ended; tasks not yet begun are dropped.
    pub fn parallel(&self, n: usize, task: &(dyn Fn(usize) + Sync)) {
        if n <= 1 || self.workers.is_empty() || IN_TASK.get() {
            return (0..n).for_each(task);
        }
        // A panic in an earlier region poisons nothing that a later one relies on.
        let _region = self.region.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: `close` below returns only when no worker holds the job any more, so the task outlives every use.
        let task = unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static (dyn Fn(usize) + Sync)>(task) };
        let job = Job { task, n, threads: n.min(self.threads()) };
        self.shared.open(job, &self.workers);
        self.shared.work(job, 0);
        self.shared.close(job);
        let panic = self.shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(payload) = panic {
            resume_unwind(payload);
        }
    }

    /// Splits `0..len` into ranges of at least `grain` and runs `task` on each: for loops over many small elements.
    pub fn parallel_ranges(&self, len: usize, grain: usize, task: &(dyn Fn(std::ops::Range<usize>) + Sync)) {
        // A few ranges a thread even out what other programs take from the cores.
        let size = len.div_ceil(self.threads() * 4).max(grain).max(1);
        self.parallel(len.div_ceil(size), &|i| task(i * size..len.min((i + 1) * size)));
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        for (slot, worker) in self.shared.slots[1..].iter().zip(&self.workers) {
            slot.state.store(STOP, Relaxed);
            worker.thread().unpark();
        }
        for worker in self.workers.drain(..) {
            // A worker catches its tasks' panics, so there is no payload to pass on.
            let _ = worker.join();
        }
    }
}

thread_local! {
    /// Whether this thread is running a task of some pool.
    static IN_TASK: Cell<bool> = const { Cell::new(false) };
}

/// One region. Its caller waits for all that hold it, so `task` lives as long.
#[derive(Clone, Copy)]
struct Job {
    task: &'static (dyn Fn(usize) + Sync),
    n: usize,
    /// Among how many threads the tasks are shared out.
    threads: usize,
}

impl Job {
    /// The tasks that a thread begins with.
    fn share(&self, thread: usize) -> Range<usize> {
        self.n * thread / self.threads..self.n * (thread + 1) / self.threads
    }
}

/// A thread's part in a region, on a cache line (and its neighbour, which processors fetch as well) of its own: a worker
/// learns all that it must with one transfer between cores.
#[derive(Default)]
#[repr(align(128))]
struct Slot {
    /// One of the states below.
    state: AtomicU32,
    /// The next task of the thread's share.
    next: AtomicUsize,
    /// The caller writes it while the worker holds no job, and the worker reads it while it does.
    job: UnsafeCell<Option<Job>>,
}

// SAFETY: `state` says whose `job` is.
unsafe impl Sync for Slot {}

/// The worker spins.
const IDLE: u32 = 0;
/// The worker parks: who changes this unparks it.
const SLEEPING: u32 = 1;
/// The worker may take the job.
const OFFERED: u32 = 2;
/// The worker holds the job.
const TAKEN: u32 = 3;
/// So it does, and the caller parks until it leaves it.
const AWAITED: u32 = 4;
/// The pool ends.
const STOP: u32 = 5;

struct Shared {
    /// Of each thread, the caller's first.
    slots: Vec<Slot>,
    /// What the first task that panicked said.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    /// The caller, where it parks.
    waiter: Mutex<Option<Thread>>,
}

impl Shared {
    /// Offers a job to the workers and wakes those that park.
    fn open(&self, job: Job, workers: &[JoinHandle<()>]) {
        // All shares before the first offer: who is done with its own looks at the others'.
        for (thread, slot) in self.slots[..job.threads].iter().enumerate() {
            slot.next.store(job.share(thread).start, Relaxed);
        }
        for (slot, worker) in self.slots[1..job.threads].iter().zip(workers) {
            // SAFETY: between regions no worker holds a job, as `close` sees to.
            unsafe { *slot.job.get() = Some(job) };
            if slot.state.swap(OFFERED, AcqRel) == SLEEPING {
                worker.thread().unpark();
            }
        }
    }

    /// Runs the tasks of a thread's share, then what is left of the others'.
    fn work(&self, job: Job, thread: usize) {
        IN_TASK.set(true);
        let result = catch_unwind(AssertUnwindSafe(|| {
            for thread in (thread..job.threads).chain(0..thread) {
                let (next, end) = (&self.slots[thread].next, job.share(thread).end);
                // The look before the claim leaves the line with its owner where nothing is left.
                while next.load(Relaxed) < end {
                    let i = next.fetch_add(1, Relaxed);
                    if i < end {
                        (job.task)(i);
                    }
                }
            }
        }));
        IN_TASK.set(false);
        if let Err(payload) = result {
            self.slots.iter().for_each(|slot| slot.next.store(job.n, Relaxed));
            self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(payload);
        }
    }

    /// Takes back what no worker took, and waits for those that hold the job.
    fn close(&self, job: Job) {
        for slot in &self.slots[1..job.threads] {
            let state = &slot.state;
            let left = || !matches!(state.load(Acquire), TAKEN | AWAITED);
            if state.load(Relaxed) == OFFERED && state.compare_exchange(OFFERED, IDLE, Acquire, Relaxed).is_ok() {
                continue;
            }
            if spin_until(left) {
                continue;
            }
            *self.waiter.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread::current());
            // Where this fails the worker has just left.
            let _ = state.compare_exchange(TAKEN, AWAITED, Release, Relaxed);
            while !left() {
                thread::park();
            }
        }
    }

    /// The life of worker `i`.
    fn serve(&self, i: usize) {
        let state = &self.slots[i].state;
        loop {
            if !spin_until(|| state.load(Relaxed) != IDLE) {
                // Where this fails there is news.
                let _ = state.compare_exchange(IDLE, SLEEPING, Relaxed, Relaxed);
                while state.load(Relaxed) == SLEEPING {
                    thread::park();
                }
            }
            if let Err(state) = state.compare_exchange(OFFERED, TAKEN, AcqRel, Relaxed) {
                if state == STOP {
                    return;
                }
                // Taken back meanwhile.
                continue;
            }
            // SAFETY: the worker holds the job now, so its caller waits and writes nothing.
            let job = unsafe { *self.slots[i].job.get() };
            self.work(job.expect("an offer comes with a job"), i);
            if state.swap(IDLE, AcqRel) == AWAITED {
                let waiter = self.waiter.lock().unwrap_or_else(PoisonError::into_inner).clone();
                waiter.expect("a caller that parks leaves its name").unpark();
            }
        }
    }
}

/// Spins until `done`, for at most [`SPIN`]; whether it came.
fn spin_until(done: impl Fn() -> bool) -> bool {
    let mut start = None;
    loop {
        for _ in 0..32 {
            if done() {
                return true;
            }
            std::hint::spin_loop();
        }
        if start.get_or_insert_with(Instant::now).elapsed() > SPIN {
            return false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once() {
        for threads in [1, 2, 3, 8] {
            let pool = Pool::new(threads);
            assert_eq!(pool.threads(), threads);
            for n in (0..40).chain([1000]) {
                let counts: Vec<_> = (0..n).map(|_| AtomicUsize::new(0)).collect();
                pool.parallel(n, &|i| {
                    counts[i].fetch_add(1, Relaxed);
                });
                assert!(counts.iter().all(|c| c.load(Relaxed) == 1), "{threads} threads, {n} tasks");
            }
        }
    }

    #[test]
    fn ranges_cover_exactly() {
        let pool = Pool::new(3);
        for (len, grain) in [(0, 1), (1, 1), (7, 3), (100, 1), (1000, 64)] {
            let sum = AtomicUsize::new(0);
            pool.parallel_ranges(len, grain, &|r| {
                assert!(!r.is_empty());
                sum.fetch_add(r.sum::<usize>(), Relaxed);
            });
            assert_eq!(sum.into_inner(), (0..len).sum::<usize>());
        }
    }

    #[test]
    fn regions_survive_parking_and_oversubscription() {
        let pool = Pool::new(6);
        for round in 0..3000 {
            let sum = AtomicUsize::new(0);
            pool.parallel(1 + round % 9, &|i| {
                sum.fetch_add(i + 1, Relaxed);
            });
            let n = 1 + round % 9;
            assert_eq!(sum.into_inner(), n * (n + 1) / 2);
            if round % 500 == 0 {
                thread::sleep(SPIN * 20);
            }
        }
    }

    #[test]
    fn callers_on_several_threads_take_turns() {
        let pool = Pool::new(3);
        thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| {
                    for _ in 0..300 {
                        let sum = AtomicUsize::new(0);
                        pool.parallel(10, &|i| {
                            sum.fetch_add(i, Relaxed);
                        });
                        assert_eq!(sum.into_inner(), 45);
                    }
                });
            }
        });
    }

    #[test]
    fn nested_regions_run_inline() {
        let pool = Pool::new(4);
        let count = AtomicUsize::new(0);
        pool.parallel(8, &|_| {
            let outer = thread::current().id();
            pool.parallel(8, &|_| {
                assert_eq!(thread::current().id(), outer);
                count.fetch_add(1, Relaxed);
            });
        });
        assert_eq!(count.into_inner(), 64);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_goes_on() {
        let pool = Pool::new(4);
        for round in 0..50 {
            let result = catch_unwind(AssertUnwindSafe(|| {
                pool.parallel(20, &|i| assert_ne!(i, round % 20, "task {i} gives up"));
            }));
            let payload = result.expect_err("one task panics");
            assert!(payload.downcast_ref::<String>().is_some_and(|m| m.contains("gives up")));
            let sum = AtomicUsize::new(0);
            pool.parallel(10, &|i| {
                sum.fetch_add(i, Relaxed);
            });
            assert_eq!(sum.into_inner(), 45);
        }
    }
}
