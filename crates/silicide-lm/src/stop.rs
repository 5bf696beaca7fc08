//! Stop strings across token boundaries.

use crate::error::{Error, Result};

/// The texts at which generation stops.
///
/// ```
/// # use silicide_lm::StopSequences;
/// let stop = StopSequences::new(["\nUser:"])?;
/// let mut stream = stop.stream();
/// let mut text = String::new();
/// for piece in ["Hi", ".\nUs", "er: more"] {
///     if stream.push(piece, &mut text) {
///         break;
///     }
/// }
/// assert_eq!(text, "Hi.");
/// # Ok::<(), silicide_lm::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct StopSequences {
    stops: Vec<String>,
}

impl StopSequences {
    /// Takes the texts to stop at.
    ///
    /// # Errors
    /// An empty text, at which everything would stop.
    pub fn new(stops: impl IntoIterator<Item = impl Into<String>>) -> Result<Self> {
        let stops: Vec<String> = stops.into_iter().map(Into::into).collect();
        if stops.iter().any(String::is_empty) {
            return Err(Error::Options("a stop string is empty; leave it out to generate without one".into()));
        }
        Ok(StopSequences { stops })
    }

    /// A filter for one generated text.
    pub fn stream(&self) -> StopStream {
        StopStream { stops: self.stops.clone(), held: String::new(), stopped: false }
    }
}

/// Passes text on, save the stop string and what comes after it.
///
/// What may be the beginning of a stop string is held back until it is known not to be, so no part of one is ever given.
/// Where several match, the one that begins first counts, whatever their order.
#[derive(Clone, Debug)]
pub struct StopStream {
    stops: Vec<String>,
    held: String,
    stopped: bool,
}

impl StopStream {
    /// Takes a piece and appends to `out` what can be given. True once a stop string was met, and ever after.
    pub fn push(&mut self, piece: &str, out: &mut String) -> bool {
        if self.stopped {
            return true;
        }
        self.held.push_str(piece);
        // Where another stop string may still complete before the one met, it would end the text earlier: wait for it.
        let partial = self.partial_start();
        match self.first_stop() {
            Some(at) if at <= partial => self.stop(at, out),
            _ => out.extend(self.held.drain(..partial)),
        }
        self.stopped
    }

    /// Ends the text: appends what was held back, up to a stop string. True if one was met, now or before.
    pub fn finish(&mut self, out: &mut String) -> bool {
        match self.first_stop() {
            Some(at) => self.stop(at, out),
            None => out.push_str(&std::mem::take(&mut self.held)),
        }
        self.stopped
    }

    fn stop(&mut self, at: usize, out: &mut String) {
        out.push_str(&self.held[..at]);
        self.held.clear();
        self.stopped = true;
    }

    fn first_stop(&self) -> Option<usize> {
        self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min()
    }

    /// Where the longest held suffix that begins a stop string starts; the end if there is none.
    fn partial_start(&self) -> usize {
        let end = self.held.len();
        let longest = self.stops.iter().map(|stop| stop.len() - 1).max().unwrap_or(0);
        let starts = end.saturating_sub(longest)..end;
        let begins = |at: &usize| {
            self.held.is_char_boundary(*at)
                && self.stops.iter().any(|stop| stop.len() > end - at && stop.starts_with(&self.held[*at..]))
        };
        starts.into_iter().find(begins).unwrap_or(end)
    }
}
