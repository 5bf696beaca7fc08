//! How long a call takes.

use std::time::{Duration, Instant};

use silicide::device::Plan;
use silicide::{DeviceKind, Result, Stream, Tensor};

use super::case::Call;

/// Seconds of a call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    pub(super) median: f64,
    pub(super) best: f64,
}

impl Times {
    fn of(mut seconds: Vec<f64>) -> Times {
        seconds.sort_by(f64::total_cmp);
        Times { median: seconds[seconds.len() / 2], best: seconds[0] }
    }
}

/// Times calls that are alike but for their memory, in turn.
///
/// A GPU replays them as a plan, whose time is shared out among them: what a launch costs inside a plan counts, what the host
/// does before does not. On a CPU each call is timed alone.
pub(super) fn time(stream: &mut Stream, calls: &[Call], rounds: usize, budget: Duration) -> Result<Times> {
    match stream.device().kind() {
        DeviceKind::Cpu => direct(stream, calls, rounds, budget),
        _ => replayed(stream, calls, rounds, budget),
    }
}

/// What calls left, until their turn comes again: so that memory which an op takes for itself has left the caches by then.
type Kept = Vec<Vec<Tensor>>;

fn room(calls: &[Call]) -> Kept {
    calls.iter().map(|_| Vec::new()).collect()
}

/// The call whose turn it is.
fn run(stream: &mut Stream, calls: &[Call], turn: usize, kept: &mut Kept) -> Result<()> {
    let i = turn % calls.len();
    kept[i].clear();
    kept[i] = calls[i](stream)?;
    Ok(())
}

fn direct(stream: &mut Stream, calls: &[Call], rounds: usize, budget: Duration) -> Result<Times> {
    let mut kept = room(calls);
    let mut run = |i: usize| {
        let begun = Instant::now();
        run(stream, calls, i, &mut kept)?;
        Ok(begun.elapsed().as_secs_f64())
    };
    // Once round, so that the system has given all memory that will be written to.
    let mut next = 0;
    while next < calls.len() {
        run(next)?;
        next += 1;
    }
    let (begun, mut seconds) = (Instant::now(), Vec::new());
    while seconds.len() < rounds.min(3) || (begun.elapsed() < budget && seconds.len() < MOST_SAMPLES) {
        seconds.push(run(next)?);
        next += 1;
    }
    Ok(Times::of(seconds))
}

/// Enough for a median of the shortest calls.
const MOST_SAMPLES: usize = 10_000;

fn replayed(stream: &mut Stream, calls: &[Call], rounds: usize, budget: Duration) -> Result<Times> {
    let begun = Instant::now();
    let replay = Replay::record(stream, calls)?;
    let mut seconds = Vec::with_capacity(rounds);
    while seconds.len() < rounds.min(2) || (seconds.len() < rounds && begun.elapsed() < budget.max(REPLAY * 8)) {
        seconds.push(replay.run(stream)?);
    }
    Ok(Times::of(seconds))
}

/// Times the same calls on two GPUs' streams, replays of one between those of the other.
pub(super) fn beside(
    streams: [&mut Stream; 2],
    calls: [&[Call]; 2],
    rounds: usize,
    budget: Duration,
) -> Result<[Times; 2]> {
    let [one, other] = streams;
    let replays = [Replay::record(one, calls[0])?, Replay::record(other, calls[1])?];
    let (begun, mut seconds) = (Instant::now(), [const { Vec::new() }; 2]);
    while seconds[0].len() < rounds.min(2) || (seconds[0].len() < rounds && begun.elapsed() < budget) {
        seconds[0].push(replays[0].run(one)?);
        seconds[1].push(replays[1].run(other)?);
    }
    Ok(seconds.map(Times::of))
}

/// Long enough that starting a replay and waiting for it do not count.
const REPLAY: Duration = Duration::from_millis(4);

/// A plan of calls in turn, as often as makes it long enough.
struct Replay {
    plan: Plan,
    count: usize,
    /// What the calls left.
    _kept: Vec<Vec<Tensor>>,
}

impl Replay {
    fn record(stream: &mut Stream, calls: &[Call]) -> Result<Replay> {
        const MOST_CALLS: usize = 4096;
        let emulated = stream.device().kind().is_emulated();
        let mut times = 1;
        loop {
            let count = times * calls.len();
            let (plan, _kept) = stream
                .record(|stream| (0..count).map(|i| calls[i % calls.len()](stream)).collect::<Result<Vec<_>>>())?;
            let replay = Replay { plan, count, _kept };
            // The first compiles what has to be.
            replay.run(stream)?;
            let one = replay.run(stream)? * count as f64;
            if one >= REPLAY.as_secs_f64() || count >= MOST_CALLS || emulated {
                return Ok(replay);
            }
            let wanted = (REPLAY.as_secs_f64() / one.max(1e-9) * 1.2).ceil() as usize;
            times = (times * wanted.max(2)).min(MOST_CALLS.div_ceil(calls.len()).max(times + 1));
        }
    }

    /// Seconds of a call.
    fn run(&self, stream: &mut Stream) -> Result<f64> {
        let begun = Instant::now();
        stream.replay(&self.plan)?;
        stream.synchronize()?;
        Ok(begun.elapsed().as_secs_f64() / self.count as f64)
    }
}
