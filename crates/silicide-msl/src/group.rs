//! Runs the threads of one threadgroup, each on a stack of its own.

use std::sync::Mutex;

use corosensei::stack::{DefaultStack, Stack};
use corosensei::{Coroutine, CoroutineResult};

use crate::Error;
use crate::abi::{
    BARRIER, EntryPoint, MEM_DEVICE, MEM_THREADGROUP, MULTIPLY, MULTIPLY_16, Request, SIMDGROUP_BARRIER, Thread,
};
use crate::collective::{LANES, answer};
use crate::context::{Context, Divergence, Rule, Suspender, Violation};
use crate::random::Random;

/// Bytes of a thread's stack. Pages are only taken when they are touched.
const STACK: usize = 256 << 10;

/// The most stacks kept for later launches.
const KEPT: usize = 4096;

/// The threads of a threadgroup, used for one threadgroup after the other.
pub(crate) struct Group<'a> {
    context: &'a Context,
    entry: EntryPoint,
    random: Option<Random>,
    lanes: Vec<Lane>,
    simdgroups: Vec<Simdgroup>,
    /// Threads that can go on. The last goes next, or any with a seed.
    ready: Vec<u16>,
    stacks: Vec<DefaultStack>,
}

struct Lane {
    thread: Thread,
    fiber: Option<Coroutine<(), (), (), DefaultStack>>,
    /// Where the thread's yielder is, for the time that it runs.
    suspender: *const Suspender,
    /// The addresses of its stack.
    stack: (u64, u64),
    state: State,
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    Ready,
    /// With the request on the thread's stack, which stays as long as the thread is suspended.
    Waiting(*mut Request),
    Finished,
}

#[derive(Clone, Copy, Default)]
struct Simdgroup {
    /// Lanes that are ready or running.
    busy: u32,
}

/// A broken rule and the thread that broke it.
pub(crate) type Broken = (Violation, u16);

impl<'a> Group<'a> {
    /// Takes the positions of all threads but for what differs between threadgroups.
    pub(crate) fn new(
        context: &'a Context,
        entry: EntryPoint,
        threads: Vec<Thread>,
        random: Option<Random>,
    ) -> Result<Self, Error> {
        let simdgroups = vec![Simdgroup::default(); threads.len().div_ceil(LANES)];
        let mut stacks = pool()
            .lock()
            .map(|mut pool| {
                let keep = pool.len().saturating_sub(threads.len());
                pool.split_off(keep)
            })
            .unwrap_or_default();
        while stacks.len() < threads.len() {
            stacks.push(DefaultStack::new(STACK).map_err(|e| Error::io("stacks for a threadgroup", e))?);
        }
        let lanes = threads.into_iter().map(|thread| Lane {
            thread,
            fiber: None,
            suspender: std::ptr::null(),
            stack: (0, 0),
            state: State::Finished,
        });
        Ok(Group { context, entry, random, lanes: lanes.collect(), simdgroups, ready: Vec::new(), stacks })
    }

    /// Runs the threadgroup at a position, all of it or up to the first broken rule.
    pub(crate) fn run(&mut self, position: [u32; 3]) -> Result<(), Broken> {
        let count = self.lanes.len();
        for (index, lane) in self.lanes.iter_mut().enumerate() {
            let thread = &mut lane.thread;
            thread.threadgroup_position_in_grid = position;
            let local = thread.thread_position_in_threadgroup;
            thread.thread_position_in_grid = std::array::from_fn(|axis| {
                position[axis].wrapping_mul(thread.threads_per_threadgroup[axis]).wrapping_add(local[axis])
            });
            lane.state = State::Ready;
            self.simdgroups[index / LANES].busy = LANES.min(count - index / LANES * LANES) as u32;
        }
        self.context.copies.borrow_mut().begin_group();
        self.ready.clear();
        self.ready.extend((0..count as u16).rev());
        let result = self.context.enter(|| self.schedule());
        if result.is_err() {
            self.abandon();
        }
        result
    }

    fn schedule(&mut self) -> Result<(), Broken> {
        loop {
            while let Some(thread) = self.next() {
                self.resume(thread)?;
                let simdgroup = usize::from(thread) / LANES;
                self.simdgroups[simdgroup].busy -= 1;
                if self.simdgroups[simdgroup].busy == 0 {
                    self.settle(simdgroup)?;
                }
            }
            if self.lanes.iter().all(|lane| lane.state == State::Finished) {
                return Ok(());
            }
            self.release()?;
        }
    }

    fn next(&mut self) -> Option<u16> {
        match &mut self.random {
            Some(random) if !self.ready.is_empty() => {
                let at = random.below(self.ready.len() as u64) as usize;
                Some(self.ready.swap_remove(at))
            }
            _ => self.ready.pop(),
        }
    }

    /// Runs a thread until it ends or waits.
    fn resume(&mut self, index: u16) -> Result<(), Broken> {
        let context = self.context;
        let lane = &mut self.lanes[usize::from(index)];
        let fiber = match &mut lane.fiber {
            Some(fiber) => fiber,
            None => {
                // One stack a lane was made.
                let Some(stack) = self.stacks.pop() else { return Ok(()) };
                lane.stack = (stack.limit().get() as u64, stack.base().get() as u64);
                // On the fiber's own stack, which the checks let it read.
                let thread = lane.thread.clone();
                let (entry, context): (_, *const Context) = (self.entry, context);
                let suspender: *mut _ = &raw mut lane.suspender;
                lane.fiber.insert(Coroutine::with_stack(stack, move |yielder, ()| {
                    // SAFETY: the lane and the context outlive the fiber; the lane is not otherwise used while the
                    // fiber runs. The entry was compiled with this signature, and the launch's caller
                    // answers for the addresses in the tables.
                    unsafe {
                        suspender.write(yielder);
                        (*context).suspender.set(yielder);
                        entry(&thread);
                    }
                }))
            }
        };
        context.thread.set(index);
        context.suspender.set(lane.suspender);
        context.stack.set(lane.stack);
        match fiber.resume(()) {
            CoroutineResult::Yield(()) => {
                if let Some(violation) = context.violation.take() {
                    return Err((violation, index));
                }
                lane.state = State::Waiting(context.request.get());
            }
            CoroutineResult::Return(()) => {
                lane.state = State::Finished;
                if let Some(fiber) = lane.fiber.take() {
                    self.stacks.push(fiber.into_stack());
                }
            }
        }
        Ok(())
    }

    fn waiting(&self, index: usize) -> Option<Request> {
        match self.lanes[index].state {
            // SAFETY: the request lies on the stack of a suspended thread.
            State::Waiting(request) => Some(unsafe { *request }),
            _ => None,
        }
    }

    /// No lane of the simdgroup can go on by itself: answers the operation that its lanes wait in, if there is one.
    fn settle(&mut self, simdgroup: usize) -> Result<(), Broken> {
        let start = simdgroup * LANES;
        let count = LANES.min(self.lanes.len() - start);
        let mut requests: [Option<Request>; LANES] = [None; LANES];
        for (lane, request) in requests.iter_mut().enumerate().take(count) {
            *request = self.waiting(start + lane).filter(|request| request.op != BARRIER);
        }
        let Some(first) = requests.iter().position(Option::is_some) else { return Ok(()) };
        let Some(request) = requests[first] else { return Ok(()) };
        let broken = |divergence, other: usize| {
            let rule = Rule::Divergence(divergence, (start + other) as u16);
            Err((Violation { rule, pc: request.pc }, (start + first) as u16))
        };
        for (lane, other) in requests.iter().enumerate() {
            if let Some(other) = other.filter(|other| other.pc != request.pc) {
                return broken(Divergence::Elsewhere(other.pc), lane);
            }
        }
        if matches!(request.op, SIMDGROUP_BARRIER | MULTIPLY | MULTIPLY_16) {
            for (lane, request) in requests.iter().enumerate().take(count) {
                match self.lanes[start + lane].state {
                    State::Finished => return broken(Divergence::Finished, lane),
                    State::Waiting(_) if request.is_none() => {
                        let pc = self.waiting(start + lane).map_or(0, |other| other.pc);
                        return broken(Divergence::Elsewhere(pc), lane);
                    }
                    _ => {}
                }
            }
            if request.op != SIMDGROUP_BARRIER && count < LANES {
                return broken(Divergence::Partial, first);
            }
        }
        if request.op == SIMDGROUP_BARRIER {
            let (device, threadgroup) = spaces(request.arg);
            self.context.memory.borrow_mut().simdgroup_barrier(simdgroup, device, threadgroup);
        } else {
            answer(&mut requests);
        }
        for lane in (0..count).rev() {
            if let (Some(answered), State::Waiting(place)) = (requests[lane], self.lanes[start + lane].state) {
                // SAFETY: as in `waiting`.
                unsafe { place.write(answered) };
                self.wake(start + lane);
            }
        }
        Ok(())
    }

    fn wake(&mut self, index: usize) {
        self.lanes[index].state = State::Ready;
        self.simdgroups[index / LANES].busy += 1;
        self.ready.push(index as u16);
    }

    /// No thread can go on: all wait at one barrier, or the kernel is wrong.
    fn release(&mut self) -> Result<(), Broken> {
        let first = (0..self.lanes.len()).find_map(|index| Some((index, self.waiting(index)?)));
        let Some((first, request)) = first else { return Ok(()) };
        for other in 0..self.lanes.len() {
            let divergence = match self.waiting(other) {
                None => Divergence::Finished,
                Some(waiting) if waiting.pc != request.pc => Divergence::Elsewhere(waiting.pc),
                Some(_) => continue,
            };
            let rule = Rule::Divergence(divergence, other as u16);
            return Err((Violation { rule, pc: request.pc }, first as u16));
        }
        let (device, threadgroup) = spaces(request.arg);
        self.context.memory.borrow_mut().barrier(device, threadgroup);
        for index in (0..self.lanes.len()).rev() {
            self.wake(index);
        }
        Ok(())
    }

    /// Drops all threads where they are.
    fn abandon(&mut self) {
        for lane in &mut self.lanes {
            lane.state = State::Finished;
            if let Some(mut fiber) = lane.fiber.take() {
                // SAFETY: a thread's stack holds the frames of a kernel, which has nothing to drop, and of the calls
                // of `context`, which hold nothing when they suspend.
                unsafe { fiber.force_reset() };
                self.stacks.push(fiber.into_stack());
            }
        }
    }
}

impl Drop for Group<'_> {
    fn drop(&mut self) {
        self.abandon();
        if let Ok(mut pool) = pool().lock() {
            let room = KEPT.saturating_sub(pool.len());
            pool.extend(self.stacks.drain(..).take(room));
        }
    }
}

fn spaces(flags: u32) -> (bool, bool) {
    (flags & MEM_DEVICE != 0, flags & MEM_THREADGROUP != 0)
}

/// Stacks that no launch uses.
fn pool() -> &'static Mutex<Vec<DefaultStack>> {
    static POOL: Mutex<Vec<DefaultStack>> = Mutex::new(Vec::new());
    &POOL
}
