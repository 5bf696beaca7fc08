//! Ctrl-C.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use signal_hook::consts::SIGINT;
use signal_hook::{SigId, flag, low_level};

/// The process's exit status after Ctrl-C, as shells report a death by SIGINT.
pub const EXIT_STATUS: u8 = 130;

/// The error of a piece of work that was given up because of Ctrl-C.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

/// A flag that Ctrl-C raises.
///
/// Long work looks at it between two steps and gives up in order: nothing half-written stays behind. A second Ctrl-C ends
/// the process at once, unless [`Interrupt::never_exit`] was called.
#[derive(Debug, Clone, Default)]
pub struct Interrupt {
    pressed: Arc<AtomicBool>,
    at_once: Arc<AtomicBool>,
    impatience: Option<SigId>,
}

/// While this lives, the first Ctrl-C ends the process.
#[must_use]
pub struct ExitAtOnce<'a>(&'a AtomicBool);

impl Interrupt {
    /// Starts to listen to Ctrl-C.
    pub fn listen() -> io::Result<Self> {
        let mut this = Self::default();
        flag::register_conditional_shutdown(SIGINT, EXIT_STATUS.into(), this.at_once.clone())?;
        // Before the flag is raised, so that this sees it as the signal before left it.
        this.impatience = Some(flag::register_conditional_shutdown(SIGINT, EXIT_STATUS.into(), this.pressed.clone())?);
        flag::register(SIGINT, this.pressed.clone())?;
        Ok(this)
    }

    /// For work that may block for long and leaves good order behind wherever it is cut off.
    pub fn exit_at_once(&self) -> ExitAtOnce<'_> {
        self.at_once.store(true, SeqCst);
        ExitAtOnce(&self.at_once)
    }

    /// From now on a second Ctrl-C does no more than the first.
    pub fn never_exit(&mut self) {
        if let Some(id) = self.impatience.take() {
            low_level::unregister(id);
        }
    }

    /// An error once Ctrl-C was pressed.
    pub fn check(&self) -> Result<(), Interrupted> {
        if self.pressed.load(SeqCst) { Err(Interrupted) } else { Ok(()) }
    }

    /// The flag itself: true once Ctrl-C was pressed. Whoever goes on afterwards lowers it.
    pub fn flag(&self) -> &AtomicBool {
        &self.pressed
    }
}

impl Drop for ExitAtOnce<'_> {
    fn drop(&mut self) {
        self.0.store(false, SeqCst);
    }
}

/// Whether an error comes from Ctrl-C.
pub fn caused(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.is::<Interrupted>())
}
