//! How another thread watches a search and stops it.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long a proof may take before something is certified on the way to it; half of the time there is, at most.
const UNHURRIED: Duration = Duration::from_secs(120);

/// Lets another thread watch and stop a search.
#[derive(Debug)]
pub struct Control {
    /// Set to stop as soon as possible.
    pub cancel: AtomicBool,
    /// When to stop by itself.
    pub deadline: Option<Instant>,
    /// Only every `count`-th task of each pass, from number `index` on; the rest is for others.
    pub part: (usize, usize),
    /// How often `stopped` says no, for tests that stop a search at every place where it asks.
    #[cfg(test)]
    pub(crate) patience: AtomicU64,
    /// How many tasks may begin before `is_late` says yes, for tests of what comes then.
    #[cfg(test)]
    pub(crate) in_time: AtomicU64,
    /// The target is out of reach, and what is looked for is not what was asked for: its gap is not told.
    is_for_nearest: AtomicBool,
    progress: Mutex<Progress>,
    explored: AtomicU64,
    evaluated: AtomicU64,
}

/// How far a search is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress {
    /// Tasks of this pass, finished and in all.
    pub tasks: (usize, usize),
    /// Gap that this pass will certify, and that the one before certified (infinite before the first).
    pub gaps: (f64, f64),
    /// Configurations that this pass examined or excluded.
    pub covered: f64,
    /// Cost and accuracy of the best configuration, of the most accurate one of a front.
    pub best: Option<(f64, f64)>,
    /// Sets of configurations whose bound was computed.
    pub explored: u64,
    /// Configurations whose exact value was computed.
    pub evaluated: u64,
}

impl Default for Control {
    fn default() -> Self {
        let gaps = (f64::INFINITY, f64::INFINITY);
        let progress = Progress { tasks: (0, 0), gaps, covered: 0.0, best: None, explored: 0, evaluated: 0 };
        Self {
            cancel: AtomicBool::new(false),
            deadline: None,
            part: (0, 1),
            #[cfg(test)]
            patience: AtomicU64::new(u64::MAX),
            #[cfg(test)]
            in_time: AtomicU64::new(u64::MAX),
            is_for_nearest: AtomicBool::new(false),
            progress: Mutex::new(progress),
            explored: AtomicU64::new(0),
            evaluated: AtomicU64::new(0),
        }
    }
}

impl Control {
    /// How far the search is.
    pub fn progress(&self) -> Progress {
        Progress {
            explored: self.explored.load(Ordering::Relaxed),
            evaluated: self.evaluated.load(Ordering::Relaxed),
            ..*self.lock()
        }
    }

    /// Whether to stop.
    pub(crate) fn stopped(&self) -> bool {
        #[cfg(test)]
        if self.patience.fetch_sub(1, Ordering::Relaxed) == 0 {
            self.cancel();
        }
        if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            self.cancel();
        }
        self.cancel.load(Ordering::Relaxed)
    }

    /// When a proof that begins now has taken long.
    pub(crate) fn half_time(&self, now: Instant) -> Instant {
        let left = self.deadline.map(|deadline| deadline.saturating_duration_since(now) / 2);
        now + left.map_or(UNHURRIED, |left| left.min(UNHURRIED))
    }

    /// Whether it is `until`, or later.
    pub(crate) fn is_late(&self, until: Instant) -> bool {
        #[cfg(test)]
        if self.in_time.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_err() {
            return true;
        }
        Instant::now() >= until
    }

    /// From now on what comes nearest to the target is looked for.
    pub(crate) fn look_for_nearest(&self) {
        self.is_for_nearest.store(true, Ordering::Relaxed);
        let mut progress = self.lock();
        (progress.gaps.1, progress.best) = (f64::INFINITY, None);
    }

    /// Stop as soon as possible.
    pub(crate) fn cancel(&self) {
        self.cancel.store(true, Ordering::Relaxed);
    }

    /// Begin a pass; `covered` of its configurations are known already.
    pub(crate) fn begin(&self, tasks: usize, gap: f64, covered: f64) {
        let mut progress = self.lock();
        (progress.tasks, progress.gaps.0, progress.covered) = ((0, tasks), gap, covered);
    }

    /// What is known before a task is finished.
    pub(crate) fn tell(&self, best: Option<(f64, f64)>) {
        self.lock().best = best;
    }

    pub(crate) fn finish_task(&self, covered: f64, best: Option<(f64, f64)>) {
        let mut progress = self.lock();
        progress.tasks.0 += 1;
        progress.covered += covered;
        progress.best = best;
    }

    pub(crate) fn certify(&self, gap: f64) {
        if !self.is_for_nearest.load(Ordering::Relaxed) {
            self.lock().gaps.1 = gap;
        }
    }

    pub(crate) fn count(&self, explored: u64, evaluated: u64) {
        self.explored.fetch_add(explored, Ordering::Relaxed);
        self.evaluated.fetch_add(evaluated, Ordering::Relaxed);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
