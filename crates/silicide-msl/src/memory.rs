//! Which addresses a kernel may use, and who used them since the last barrier.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};
use std::ops::Range;

/// Memory that a launch may use.
#[derive(Clone, Debug)]
pub(crate) struct Region {
    pub(crate) bytes: Range<u64>,
    pub(crate) what: What,
    pub(crate) writable: bool,
}

/// What a region is, for messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// `[[buffer(n)]]`, inline bytes included.
    Buffer(u32),
    /// `[[threadgroup(n)]]`.
    Threadgroup(u32),
    /// A `threadgroup` variable of the kernel.
    Variable,
    /// The runner's tables and the kernel's constants.
    Internal,
}

impl What {
    fn is_threadgroup(self) -> bool {
        matches!(self, What::Threadgroup(_) | What::Variable)
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            What::Buffer(index) => write!(f, "buffer({index})"),
            What::Threadgroup(index) => write!(f, "threadgroup({index})"),
            What::Variable => f.write_str("a threadgroup variable"),
            What::Internal => f.write_str("a constant"),
        }
    }
}

/// How an access is made; the numbers are those of `shim/runtime.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Access {
    pub(crate) address: u64,
    pub(crate) size: u64,
    pub(crate) kind: u32,
}

/// Kinds of accesses.
pub(crate) const READ: u32 = 0;
pub(crate) const WRITE: u32 = 1;
/// Whose size says nothing about the alignment.
pub(crate) const READ_ANYWHERE: u32 = 4;

impl Access {
    pub(crate) fn writes(self) -> bool {
        self.kind & 1 == 1
    }

    fn atomic(self) -> bool {
        matches!(self.kind, 2 | 3)
    }

    /// The size is that of the type, so it tells the alignment.
    fn aligned(self) -> bool {
        self.kind >= 4 || self.address.is_multiple_of(self.size)
    }
}

/// Why an access is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    OutOfRange,
    ReadOnly(What),
    Misaligned,
    /// With the other thread, if it is of the same threadgroup, and whether that one wrote.
    Race {
        what: What,
        offset: u64,
        other: Option<u16>,
        wrote: bool,
    },
}

/// The checks of one worker, which runs one threadgroup at a time.
#[derive(Debug)]
pub(crate) struct Memory {
    pub(crate) regions: Vec<Region>,
    /// The region of the last access, as the next is often in it.
    last: usize,
    shadow: Shadow,
}

impl Memory {
    pub(crate) fn new(regions: Vec<Region>) -> Self {
        Memory { regions, last: 0, shadow: Shadow::default() }
    }

    /// Checks an access of a thread, and notes it.
    pub(crate) fn check(&mut self, access: Access, thread: u16) -> Result<(), Refusal> {
        let Access { address, size, .. } = access;
        let inside = |region: &Region| {
            region.bytes.start <= address && address < region.bytes.end && size <= region.bytes.end - address
        };
        let allowed = |region: &Region| inside(region) && (region.writable || !access.writes());
        if !self.regions.get(self.last).is_some_and(allowed) {
            match self.regions.iter().position(allowed) {
                Some(found) => self.last = found,
                None => {
                    let refusal = self.regions.iter().find(|region| inside(region));
                    return Err(refusal.map_or(Refusal::OutOfRange, |region| Refusal::ReadOnly(region.what)));
                }
            }
        }
        if !access.aligned() {
            return Err(Refusal::Misaligned);
        }
        let region = &self.regions[self.last];
        // What nobody writes has no races. A read-only view of memory that is also bound for writing has.
        let shared = region.writable || self.regions.iter().any(|other| other.writable && inside(other));
        if region.what == What::Internal || size == 0 || !shared {
            return Ok(());
        }
        let (what, start) = (region.what, region.bytes.start);
        self.shadow.note(access, thread, what.is_threadgroup()).map_err(|(at, other, wrote)| Refusal::Race {
            what,
            offset: at - start,
            other,
            wrote,
        })
    }

    /// The region that an address is in or closest to.
    pub(crate) fn nearest(&self, address: u64) -> Option<&Region> {
        let distance =
            |region: &&Region| region.bytes.start.saturating_sub(address).max(address.saturating_sub(region.bytes.end));
        self.regions.iter().filter(|region| region.what != What::Internal).min_by_key(distance)
    }

    /// A new threadgroup begins.
    pub(crate) fn begin_group(&mut self) {
        for clock in &mut self.shadow.clocks {
            clock.now += 1;
            clock.group = clock.now;
            clock.simdgroups = [0; 32];
        }
    }

    /// All threads of the threadgroup have met; what of memory is ordered by that.
    pub(crate) fn barrier(&mut self, device: bool, threadgroup: bool) {
        for (clock, ordered) in self.shadow.clocks.iter_mut().zip([device, threadgroup]) {
            if ordered {
                clock.now += 1;
                clock.simdgroups = [0; 32];
            }
        }
    }

    /// All lanes of a simdgroup have met.
    pub(crate) fn simdgroup_barrier(&mut self, simdgroup: usize, device: bool, threadgroup: bool) {
        for (clock, ordered) in self.shadow.clocks.iter_mut().zip([device, threadgroup]) {
            if ordered {
                clock.simdgroups[simdgroup] = clock.simdgroups[simdgroup].saturating_add(1);
            }
        }
    }

    /// An address that threadgroups of two workers used in ways that conflict.
    pub(crate) fn conflict(&self, other: &Memory) -> Option<(What, u64)> {
        let address = self.shadow.conflict(&other.shadow)?;
        let region = self.regions.iter().find(|region| region.bytes.contains(&address))?;
        Some((region.what, address - region.bytes.start))
    }
}

const PAGE: u64 = 4096;

/// The last uses of each piece of memory.
#[derive(Debug, Default)]
struct Shadow {
    pages: HashMap<u64, Page, BuildHasherDefault<PageHasher>>,
    /// Of device and of threadgroup memory.
    clocks: [Clock; 2],
}

/// Counts barriers. Two uses in the same count are not ordered.
#[derive(Debug, Default)]
struct Clock {
    now: u32,
    /// The count at which the present threadgroup began.
    group: u32,
    /// Barriers of single simdgroups since the last one of all.
    simdgroups: [u16; 32],
}

#[derive(Debug)]
struct Page {
    /// Log2 of the bytes of one cell. It starts as a word and shrinks with the accesses seen.
    shift: u32,
    cells: Vec<Cell>,
}

/// The last write, and the last two reads by different threads: enough to find one that a writer conflicts with.
#[derive(Clone, Copy, Debug, Default)]
struct Cell {
    write: Use,
    reads: [Use; 2],
}

#[derive(Clone, Copy, Debug, Default)]
struct Use {
    /// The clock, 0 for never.
    time: u32,
    /// The thread in its threadgroup; bit 15 marks atomic uses.
    thread: u16,
    simdgroup_time: u16,
}

const ATOMIC: u16 = 1 << 15;

impl Use {
    /// This use and a later one are neither ordered, nor of one thread, nor both atomic.
    fn conflicts(self, now: Use, clock: &Clock, threadgroup: bool) -> bool {
        if self.time == 0 || self.thread & now.thread & ATOMIC != 0 {
            return false;
        }
        if self.time < clock.group {
            // Another threadgroup: it had its own threadgroup memory, and nothing orders device memory.
            return !threadgroup;
        }
        let (before, after) = (self.thread & !ATOMIC, now.thread & !ATOMIC);
        let simdgroup_ordered = before / 32 == after / 32 && self.simdgroup_time < now.simdgroup_time;
        self.time == now.time && before != after && !simdgroup_ordered
    }
}

impl Shadow {
    /// Notes an access; on a conflict gives its address, the other thread if of this group, and whether that one wrote.
    fn note(&mut self, access: Access, thread: u16, threadgroup: bool) -> Result<(), (u64, Option<u16>, bool)> {
        let clock = &self.clocks[usize::from(threadgroup)];
        let simdgroup_time = clock.simdgroups[usize::from(thread / 32) & 31];
        let mark = if access.atomic() { ATOMIC } else { 0 };
        let now = Use { time: clock.now, thread: thread | mark, simdgroup_time };
        let end = access.address + access.size;
        let mut at = access.address;
        while at < end {
            let page = self.pages.entry(at / PAGE).or_insert_with(Page::new);
            page.refine(at | (end - at));
            let cell_size = 1u64 << page.shift;
            let page_end = (at / PAGE + 1) * PAGE;
            while at < end.min(page_end) {
                let cell = &mut page.cells[((at % PAGE) >> page.shift) as usize];
                let found = |other: Use, wrote| {
                    let same_group = other.time >= clock.group;
                    Err((at, same_group.then_some(other.thread & !ATOMIC), wrote))
                };
                if cell.write.conflicts(now, clock, threadgroup) {
                    return found(cell.write, true);
                }
                if access.writes() {
                    for read in cell.reads {
                        if read.conflicts(now, clock, threadgroup) {
                            return found(read, false);
                        }
                    }
                    cell.write = now;
                } else {
                    if cell.reads[0].thread != now.thread {
                        cell.reads[1] = cell.reads[0];
                    }
                    cell.reads[0] = now;
                }
                at += cell_size;
            }
        }
        Ok(())
    }

    /// The first address that both used, one of them writing, not both atomically.
    fn conflict(&self, other: &Shadow) -> Option<u64> {
        let mut pages: Vec<_> = self.pages.keys().filter(|page| other.pages.contains_key(page)).copied().collect();
        pages.sort_unstable();
        for number in pages {
            let (a, b) = (&self.pages[&number], &other.pages[&number]);
            for offset in (0..PAGE).step_by(1 << a.shift.min(b.shift)) {
                let (x, y) = (&a.cells[(offset >> a.shift) as usize], &b.cells[(offset >> b.shift) as usize]);
                let clash = |write: Use, uses: [Use; 3]| {
                    write.time != 0 && uses.iter().any(|u| u.time != 0 && u.thread & write.thread & ATOMIC == 0)
                };
                let uses = |cell: &Cell| [cell.write, cell.reads[0], cell.reads[1]];
                if clash(x.write, uses(y)) || clash(y.write, uses(x)) {
                    return Some(number * PAGE + offset);
                }
            }
        }
        None
    }
}

impl Page {
    fn new() -> Self {
        Page { shift: 2, cells: vec![Cell::default(); (PAGE >> 2) as usize] }
    }

    /// Makes the cells as small as an access at and of multiples of `granule` bytes needs.
    fn refine(&mut self, granule: u64) {
        let shift = granule.trailing_zeros().min(2);
        if shift < self.shift {
            let copies = 1 << (self.shift - shift);
            self.cells = self.cells.iter().flat_map(|cell| std::iter::repeat_n(*cell, copies)).collect();
            self.shift = shift;
        }
    }
}

/// Page numbers are spread enough by one multiplication.
#[derive(Default)]
struct PageHasher(u64);

impl Hasher for PageHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}
