//! A thread pool for regions of a few microseconds: workers spin shortly for the next region, then park.

use std::any::Any;
use std::cell::Cell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize};
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
        let workers = threads.max(1) - 1;
        let shared = Arc::new(Shared {
            state: Padded(AtomicU64::new(0)),
            job: AtomicPtr::new(std::ptr::null_mut()),
            sleeping: (0..workers).map(|_| Padded(AtomicBool::new(false))).collect(),
            next: (0..=workers).map(|_| Padded(AtomicUsize::new(0))).collect(),
        });
        let workers = (0..workers)
            .map(|i| {
                let shared = shared.clone();
                let name = format!("silicide-{}", i + 1);
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
        let job = Job { task, n, panic: Mutex::new(None), caller: thread::current() };
        self.shared.open(&job, &self.workers);
        self.shared.work(&job, 0);
        self.shared.close();
        if let Some(payload) = job.panic.into_inner().unwrap_or_else(PoisonError::into_inner) {
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
        self.shared.state.fetch_or(STOP, SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker catches its tasks' panics, so there is no payload to pass on.
            let _ = worker.join();
        }
    }
}

thread_local! {
    /// Whether this thread is running a task of some pool.
    static IN_TASK: Cell<bool> = const { Cell::new(false) };
}

/// Keeps values that different threads write off each other's cache lines.
#[repr(align(128))]
struct Padded<T>(T);

impl<T> std::ops::Deref for Padded<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0
    }
}

/// One region; it lives on its caller's stack.
struct Job {
    task: &'static (dyn Fn(usize) + Sync),
    n: usize,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    caller: Thread,
}

/// In `Shared::state`: how many workers hold the job, whether more may take it, whether the pool ends, and above these
/// the number of the region.
const HOLDERS: u64 = 0xffff;
const OPEN: u64 = 1 << 16;
const STOP: u64 = 1 << 17;
const REGION: u64 = 1 << 18;

struct Shared {
    state: Padded<AtomicU64>,
    job: AtomicPtr<Job>,
    sleeping: Vec<Padded<AtomicBool>>,
    /// The next task of each thread's share, the caller's first.
    next: Vec<Padded<AtomicUsize>>,
}

impl Shared {
    /// Offers a job to the workers and wakes those that park.
    fn open(&self, job: &Job, workers: &[JoinHandle<()>]) {
        self.job.store(std::ptr::from_ref(job).cast_mut(), Relaxed);
        // No worker holds a job now and only `Drop` sets STOP, so nothing else changes the word meanwhile.
        for (thread, next) in self.next.iter().enumerate() {
            next.store(self.share(job.n, thread).start, Relaxed);
        }
        let region = self.state.load(Relaxed) / REGION + 1;
        self.state.store((region * REGION) | OPEN, SeqCst);
        for (worker, sleeping) in workers.iter().zip(&self.sleeping).take(job.n - 1) {
            if sleeping.load(SeqCst) && sleeping.swap(false, SeqCst) {
                worker.thread().unpark();
            }
        }
    }

    /// The tasks that a thread begins with.
    fn share(&self, n: usize, thread: usize) -> Range<usize> {
        let threads = self.next.len();
        n * thread / threads..n * (thread + 1) / threads
    }

    /// Runs the tasks of a thread's share, then what is left of the others'.
    fn work(&self, job: &Job, thread: usize) {
        let threads = self.next.len();
        IN_TASK.set(true);
        let result = catch_unwind(AssertUnwindSafe(|| {
            for thread in (thread..threads).chain(0..thread) {
                let (next, end) = (&self.next[thread], self.share(job.n, thread).end);
                // The look before the claim leaves the counter's line with its owner where nothing is left.
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
            self.next.iter().for_each(|next| next.store(job.n, Relaxed));
            job.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(payload);
        }
    }

    /// Lets no further worker take the job, and waits for those that hold it.
    fn close(&self) {
        self.state.fetch_and(!OPEN, AcqRel);
        let done = || self.state.load(Acquire) & HOLDERS == 0;
        // The last holder unparks the caller.
        while !spin_until(done) {
            if !done() {
                thread::park();
            }
        }
    }

    /// The life of worker `i`.
    fn serve(&self, i: usize) {
        let mut last = 0;
        let news = |last: u64| {
            let state = self.state.load(SeqCst);
            state & STOP != 0 || (state & OPEN != 0 && state / REGION != last)
        };
        loop {
            if !spin_until(|| news(last)) {
                // Either this thread sees the new state here, or the caller sees that it sleeps.
                self.sleeping[i].store(true, SeqCst);
                while self.sleeping[i].load(SeqCst) && !news(last) {
                    thread::park();
                }
                self.sleeping[i].store(false, SeqCst);
            }
            let state = self.state.load(Acquire);
            if state & STOP != 0 {
                return;
            }
            // Closed meanwhile, or another worker came first: look again.
            if state & OPEN == 0
                || state / REGION == last
                || self.state.compare_exchange(state, state + 1, AcqRel, Relaxed).is_err()
            {
                continue;
            }
            last = state / REGION;
            // SAFETY: the exchange succeeded while the region was open, so its caller waits for this holder to leave.
            let job = unsafe { &*self.job.load(Relaxed) };
            self.work(job, i + 1);
            let caller = job.caller.clone();
            let left = self.state.fetch_sub(1, AcqRel) - 1;
            if left & (HOLDERS | OPEN) == 0 {
                caller.unpark();
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
