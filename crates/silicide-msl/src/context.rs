//! The calls that kernels make, and the state that they find.

use std::cell::{Cell, RefCell};

use corosensei::Yielder;

use crate::abi::{Request, Runtime};
use crate::copies::{Copies, Copy};
use crate::memory::{Access, Memory, READ, READ_ANYWHERE, Refusal, WRITE};

/// The functions that kernels call.
pub(crate) const RUNTIME: Runtime = Runtime { collective, access, fault, lane, copy, end_copies, wait_for_copies };

/// What suspends a thread of a kernel.
pub(crate) type Suspender = Yielder<(), ()>;

/// The state of one worker, as the calls of the running thread see it.
pub(crate) struct Context {
    pub(crate) memory: RefCell<Memory>,
    pub(crate) copies: RefCell<Copies>,
    /// The stack of the running thread, which is its own to use.
    pub(crate) stack: Cell<(u64, u64)>,
    pub(crate) thread: Cell<u16>,
    pub(crate) suspender: Cell<*const Suspender>,
    /// What the thread that was suspended last waits for.
    pub(crate) request: Cell<*mut Request>,
    pub(crate) violation: Cell<Option<Violation>>,
    /// Checked accesses and joint operations that are left.
    pub(crate) steps: Cell<u64>,
}

/// A broken rule, before the place in the source is known.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Violation {
    pub(crate) rule: Rule,
    /// The return address of the call that found it, or 0.
    pub(crate) pc: u64,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Rule {
    Access(Access, Refusal),
    /// With the line.
    Index(i64, u32),
    Division(i64, u32),
    /// What the other thread, the last number, does instead.
    Divergence(Divergence, u16),
    Endless,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Divergence {
    /// The other has finished.
    Finished,
    /// The other waits at the place with this return address.
    Elsewhere(u64),
    /// The simdgroup has fewer than 32 lanes, and the operation needs all.
    Partial,
}

thread_local! {
    static CURRENT: Cell<*const Context> = const { Cell::new(std::ptr::null()) };
}

impl Context {
    pub(crate) fn new(memory: Memory, steps: u64) -> Self {
        Context {
            memory: RefCell::new(memory),
            copies: RefCell::default(),
            stack: Cell::new((0, 0)),
            thread: Cell::new(0),
            suspender: Cell::new(std::ptr::null()),
            request: Cell::new(std::ptr::null_mut()),
            violation: Cell::new(None),
            steps: Cell::new(steps),
        }
    }

    /// Makes this the context of kernels that run on this thread while `work` does.
    pub(crate) fn enter<R>(&self, work: impl FnOnce() -> R) -> R {
        struct Leave(*const Context);
        impl Drop for Leave {
            fn drop(&mut self) {
                CURRENT.set(self.0);
            }
        }
        let _leave = Leave(CURRENT.replace(self));
        work()
    }

    fn suspend(&self) {
        // SAFETY: set by the running thread when it started or was resumed, and alive as long as its stack is.
        if let Some(suspender) = unsafe { self.suspender.get().as_ref() } {
            suspender.suspend(());
        }
    }

    /// Ends the running thread: the runner abandons it.
    fn refuse(&self, rule: Rule, pc: u64) {
        self.violation.set(Some(Violation { rule, pc }));
        self.suspend();
    }

    /// Refuses what breaks a rule, and says whether it may be done.
    fn check(&self, access: Access, pc: u64) -> bool {
        if !self.step() {
            self.refuse(Rule::Endless, pc);
            return false;
        }
        let checked = self.memory.borrow_mut().check(access, self.thread.get());
        if let Err(refusal) = checked {
            self.refuse(Rule::Access(access, refusal), pc);
        }
        checked.is_ok()
    }

    /// One step less. False where none was left.
    fn step(&self) -> bool {
        let left = self.steps.get();
        self.steps.set(left.saturating_sub(1));
        left > 0
    }
}

fn current<'a>() -> Option<&'a Context> {
    // SAFETY: set by `enter`, which outlives every call that a kernel makes.
    unsafe { CURRENT.get().as_ref() }
}

unsafe extern "C" fn collective(request: *mut Request) {
    let Some(context) = current() else { return };
    if !context.step() {
        return context.refuse(Rule::Endless, 0);
    }
    context.request.set(request);
    context.suspend();
}

unsafe extern "C" fn access(address: u64, size: u64, kind: u32, pc: u64) {
    let Some(context) = current() else { return };
    let (low, high) = context.stack.get();
    if address >= low && address < high && size <= high - address {
        return;
    }
    context.check(Access { address, size, kind }, pc);
}

unsafe extern "C" fn copy(to: u64, from: u64, bytes: u32, size: u32, pc: u64) {
    let Some(context) = current() else { return };
    if pc != 0 {
        let (wide, read) = (u64::from(size), u64::from(bytes.min(size)));
        if !from.is_multiple_of(wide) {
            let access = Access { address: from, size: wide, kind: READ };
            return context.refuse(Rule::Access(access, Refusal::Misaligned), pc);
        }
        // What is written is the copy's from here on.
        let write = Access { address: to, size: wide, kind: WRITE };
        let read = Access { address: from, size: read, kind: READ_ANYWHERE };
        if !context.check(write, pc) || read.size > 0 && !context.check(read, pc) {
            return;
        }
    }
    context.copies.borrow_mut().push(context.thread.get(), Copy { to, from, bytes, size, pc });
}

unsafe extern "C" fn end_copies() {
    let Some(context) = current() else { return };
    context.copies.borrow_mut().end_group(context.thread.get());
}

unsafe extern "C" fn wait_for_copies(more: u32) {
    let Some(context) = current() else { return };
    let next = || context.copies.borrow_mut().next(context.thread.get(), more);
    while let Some(copy) = next() {
        let write = Access { address: copy.to, size: u64::from(copy.size), kind: WRITE };
        if copy.pc == 0 || context.check(write, copy.pc) {
            // SAFETY: checked, or the launch's caller answers for what an unchecked kernel does.
            unsafe { copy.run() };
        }
    }
}

unsafe extern "C" fn fault(kind: u32, value: i64, line: u32) {
    let Some(context) = current() else { return };
    let rule = if kind == 0 { Rule::Index(value, line) } else { Rule::Division(value, line) };
    context.refuse(rule, 0);
}

unsafe extern "C" fn lane() -> u32 {
    current().map_or(0, |context| u32::from(context.thread.get()) % 32)
}
