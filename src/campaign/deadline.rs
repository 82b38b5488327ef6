//! The clock of a campaign: it is only ever asked whether to stop.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Stops a campaign besides its own budget.
pub struct StopSignal<'a> {
    /// Set by Ctrl-C.
    pub interrupted: &'a AtomicBool,
    /// When the program started: `max_time` counts from here.
    pub started: Instant,
}

/// A step gets half as much time again as the slowest of its kind took.
const ALLOWANCE: f64 = 1.5;

/// The time left, and the time that the next step may need, going by the slowest so far.
pub(super) struct Deadline<'a> {
    signal: &'a StopSignal<'a>,
    max_time: Option<Duration>,
    slowest_round: Duration,
    slowest_follow_up: Duration,
    slowest_explanation: Duration,
}

impl<'a> Deadline<'a> {
    pub fn new(signal: &'a StopSignal<'a>, max_time: Option<Duration>) -> Self {
        let zero = Duration::ZERO;
        Self {
            signal,
            max_time,
            slowest_round: zero,
            slowest_follow_up: zero,
            slowest_explanation: zero,
        }
    }

    pub fn interrupted(&self) -> bool {
        self.signal.interrupted.load(Ordering::Relaxed)
    }

    /// Returns whether another round would end after the deadline.
    pub fn leaves_no_round(&self) -> bool {
        self.passes(self.slowest_round)
    }

    /// Returns whether another follow-up would end after the deadline.
    pub fn leaves_no_follow_up(&self) -> bool {
        self.passes(self.slowest_follow_up.mul_f64(ALLOWANCE))
    }

    /// Returns whether a running reduction must end, so that its result can still be explained.
    pub fn ends_reduction(&self) -> bool {
        self.interrupted() || self.passes(self.slowest_explanation.mul_f64(ALLOWANCE))
    }

    /// Returns whether there is no time left for localization.
    pub fn ends_explanation(&self) -> bool {
        self.interrupted() || self.passes(Duration::ZERO)
    }

    pub fn round_took(&mut self, elapsed: Duration) {
        self.slowest_round = self.slowest_round.max(elapsed);
    }

    pub fn follow_up_took(&mut self, elapsed: Duration) {
        self.slowest_follow_up = self.slowest_follow_up.max(elapsed);
    }

    pub fn explanation_took(&mut self, elapsed: Duration) {
        self.slowest_explanation = self.slowest_explanation.max(elapsed);
    }

    /// Returns whether a step that takes `needed` would end after the deadline.
    fn passes(&self, needed: Duration) -> bool {
        self.max_time.is_some_and(|most| self.signal.started.elapsed() + needed >= most)
    }
}
