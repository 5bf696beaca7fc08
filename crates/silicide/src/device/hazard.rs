//! Which launches must wait for which: read-after-write, write-after-read and write-after-write, by range of bytes.

use std::ops::Range;

use super::launch::Arg;

/// What the launches since the last barrier touch.
#[derive(Default)]
pub(super) struct Hazards {
    touched: Vec<Touch>,
}

struct Touch {
    storage: usize,
    bytes: Range<usize>,
    write: bool,
}

impl Hazards {
    /// Notes a launch's accesses; true where a barrier must come before it.
    pub(super) fn note(&mut self, args: &[Arg]) -> bool {
        let conflict = args.iter().any(|arg| {
            self.touched.iter().any(|t| {
                t.storage == arg.storage_id()
                    && (t.write || arg.access.writes())
                    && t.bytes.start < arg.bytes.end
                    && arg.bytes.start < t.bytes.end
            })
        });
        if conflict {
            self.touched.clear();
        }
        self.touched.extend(args.iter().map(|arg| Touch {
            storage: arg.storage_id(),
            bytes: arg.bytes.clone(),
            write: arg.access.writes(),
        }));
        conflict
    }

    /// Everything launched so far is done.
    pub(super) fn clear(&mut self) {
        self.touched.clear();
    }
}
