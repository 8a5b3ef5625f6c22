//! What the nodes around a cell say of all its pixels, so that a decision computes few of them, from few classes.
//!
//! Contract: as [`super::decide`]; nothing here changes a decision or a label.
//!
//! Plain algorithm: compute every pixel. What is done instead, and why it is equal: a bilinear value is a convex
//! combination of the cell's four nodes. With k the class that leads at the cell's centre, g_j = y_j - y_k, and lowest_j
//! and highest_j the least and the largest g_j of the nodes,
//! - g_j lies between lowest_j and highest_j in every pixel. So no pixel has a class j whose highest_j < 0; if that is
//!   all of them, every pixel has class k;
//! - S = sum_j exp(g_j) is convex, so nowhere above the largest S of the nodes: where the four nodes pass with the same
//!   class, every pixel does;
//! - S >= sum_j exp(lowest_j). If that is too much, k passes nowhere; nor does another class m where
//!   exp(-highest_m) > 1/t - 1, since k alone adds that much to the sum of m;
//! - classes whose exp(highest_j) add up to less than a share of 1/t - 1 raise S - 1 by less than that share: a decision
//!   without them is certain outside a band that is wider by it.
//!
//! "Surely" leaves room for all float32 roundings of the pixels.

use super::blocks::{LANES, lanes, slack};
use super::decide::Bounds;
use super::exp::{ROUGH_HIGH, rough_exp};
use super::logits::{Dense, F32, TILE};
use super::scratch::Scratch;
use crate::isa::Kernel;

/// Stands for -infinity.
pub(crate) const IMPOSSIBLE: f32 = -1e37;

/// No class passes surely at a node.
pub(crate) const UNSURE: i32 = -1;

/// Share of 1/t - 1 that the classes left out of a decision may add up to.
const LEFT_OUT: f32 = 0.003;

/// How far a class may lie above the leader, and below what can be left out, in a cell that is decided by sums.
const STEEP: f32 = 20.0;

/// 1/t - 1 where labels alone are wanted: no pixel passes.
pub(crate) const NO_ODDS: f32 = -1.0;

/// What nodes are compared to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub odds: f32,
    /// Two classes of a pixel are surely in order if a node's difference, or a bound of it, is larger.
    gap: f32,
    /// S - 1 of a node: surely low enough for the pixels around it below `passes`, less `rounding` times S.
    passes: f32,
    /// Surely too high above `fails`, and `rounding` times S.
    fails: f32,
    pub rounding: f32,
    /// A class may be left out of the sums of a cell where its largest difference to the leader is below.
    pub left_out: f32,
    /// S - 1 by such sums: surely low enough below `low` of 1/t - 1, surely too high above `high` of it.
    pub low: f32,
    pub high: f32,
}

impl Limits {
    /// For decisions at 1/t - 1 = `odds`, of pixels between (C, h, w) nodes whose logits are off by `error` or less; none if
    /// that is too much to say anything.
    pub fn new(odds: f32, (num_classes, h, _): (usize, usize, usize), error: f32) -> Option<Self> {
        if error.is_nan() || error > 0.05 {
            return None;
        }
        // two logits a gap, both off: exp(2 error) < 1 + 4 error
        let bounds = Bounds::new(num_classes, 1.0 - 4.0 * error, ROUGH_HIGH / (1.0 - 4.0 * error));
        let gap = 4.0 * error;
        // what lies 30 below is less than the rounding of S
        let left_out = (LEFT_OUT * odds.max(0.0) / num_classes as f32).ln().clamp(-30.0, 0.0) - 0.01 - gap;
        // M is off as well
        let slack = gap + 2.0 * slack(h, 2.0 * STEEP - left_out);
        let sums = Bounds::new(num_classes, (1.0 - slack) * (1.0 - LEFT_OUT), 1.0 + slack);
        Some(Self {
            odds,
            gap,
            passes: odds * bounds.lower,
            fails: odds * bounds.upper,
            rounding: bounds.rounding,
            left_out,
            low: sums.lower,
            high: sums.upper,
        })
    }
}

/// Which nodes pass so surely that roundings of the pixels between them cannot matter.
pub(crate) struct SureNodes<'p, 'a> {
    pub nodes: &'p Dense<'a, F32>,
    pub limits: Limits,
    pub sure: &'p mut [i32],
    pub scratch: &'p mut Scratch,
}

impl Kernel for SureNodes<'_, '_> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let Limits { gap, passes, rounding, .. } = self.limits;
        let tile = &mut *self.scratch.tile;
        for (index, sure) in self.sure.chunks_mut(TILE).enumerate() {
            let len = sure.len();
            tile.work.softmax::<_, true, false>(&self.nodes.tile(index * TILE, len), &mut tile.label[..len]);
            let super::tile::Work { sum, largest, second, .. } = &tile.work;
            for i in 0..len {
                let passes = (sum[i] - 1.0 <= passes - sum[i] * rounding) & (largest[i] - second[i] > gap);
                let possible = largest[i] > IMPOSSIBLE;
                sure[i] = if passes & possible { tile.label[i] } else { UNSURE };
            }
        }
    }
}

/// What is known of a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Known {
    /// All pixels have this class.
    Class {
        class: i32,
        /// Whether it is known which pixels pass; unless the nodes do, none.
        decided: bool,
    },
    /// As many listed classes have the pixels among them.
    Among {
        count: u32,
        /// Whether it is known which pixels pass; unless the nodes do, none.
        decided: bool,
    },
    /// Every class of every pixel has to be looked at.
    Nothing,
}

impl Known {
    /// Whether it is known which pixels pass.
    #[inline(always)]
    pub fn decided(self) -> bool {
        matches!(self, Self::Class { decided: true, .. } | Self::Among { decided: true, .. })
    }
}

/// Values that may be read beyond the last node.
pub(crate) const PADDING: usize = LANES;

/// Bounds of 16 cells side by side.
#[derive(Clone, Copy)]
struct Bound {
    /// The class that leads at the centre.
    leader: [i32; LANES],
    /// Its logit at the four nodes.
    lead: [[f32; LANES]; 4],
    /// Sum of exp(lowest), roughly.
    sum: [f32; LANES],
    /// The largest `highest` of another class.
    top: [f32; LANES],
    /// The least difference to the leader of a class that cannot be left out.
    least: [f32; LANES],
    /// Number of classes that cannot be left out, the leader among them.
    kept: [i32; LANES],
    /// NaN where a logit is.
    probe: [f32; LANES],
}

/// Bounds of the cells between two rows of nodes, from left to right.
#[derive(Default)]
pub(crate) struct CellBounds {
    /// Number of cells.
    count: usize,
    bounds: Vec<Bound>,
    /// The most by which a class lies above the leader: for each 16 cells, for each class.
    highest: Vec<[f32; LANES]>,
}

impl CellBounds {
    /// Bound the cells between rows `low` and `high` of nodes (C, h, w), with [`PADDING`] behind them.
    ///
    /// There is one between each two neighbours; the bounds hold for what is beyond the first and last node as well, since
    /// that repeats nodes.
    #[inline(always)]
    pub fn find(
        &mut self,
        nodes: &[f32],
        (num_classes, h, w): (usize, usize, usize),
        (low, high): (u32, u32),
        left_out: f32,
    ) {
        self.count = w.saturating_sub(1).max(1);
        let corners = NodeRows { nodes, shape: (num_classes, h, w), low: low as usize, high: high as usize };
        self.bounds.clear();
        self.highest.clear();
        for start in (0..self.count).step_by(LANES) {
            let (mut leader, mut lead, mut centre) = ([0; LANES], corners.of(0, start), [f32::NAN; LANES]);
            for class in 0..num_classes {
                let [a, b, c, d] = corners.of(class, start);
                let here: [f32; LANES] = lanes(|i| (a[i] + b[i]) + (c[i] + d[i]));
                // class 0 leads whatever it is
                let higher: [bool; LANES] = lanes(|i| (here[i] > centre[i]) | (class == 0));
                centre = lanes(|i| if higher[i] { here[i] } else { centre[i] });
                leader = lanes(|i| if higher[i] { class as i32 } else { leader[i] });
                for (lead, corner) in lead.iter_mut().zip([a, b, c, d]) {
                    *lead = lanes(|i| if higher[i] { corner[i] } else { lead[i] });
                }
            }
            let (mut sum, mut probe, mut least_kept) = ([0f32; LANES], [0f32; LANES], [0f32; LANES]);
            let (mut top, mut kept) = ([f32::NEG_INFINITY; LANES], [0; LANES]);
            for class in 0..num_classes {
                let [mut a, mut b, mut c, mut d] = corners.of(class, start);
                for (corner, lead) in [&mut a, &mut b, &mut c, &mut d].into_iter().zip(&lead) {
                    *corner = lanes(|i| corner[i] - lead[i]);
                }
                let most: [f32; LANES] = lanes(|i| larger(larger(a[i], b[i]), larger(c[i], d[i])));
                let least: [f32; LANES] = lanes(|i| smaller(smaller(a[i], b[i]), smaller(c[i], d[i])));
                probe = lanes(|i| probe[i] + ((a[i] + b[i]) + (c[i] + d[i])));
                sum = lanes(|i| sum[i] + rough_exp(least[i]));
                least_kept = lanes(|i| smaller(if most[i] >= left_out { least[i] } else { 0.0 }, least_kept[i]));
                kept = lanes(|i| kept[i] + i32::from(most[i] >= left_out));
                top = lanes(|i| if leader[i] == class as i32 { top[i] } else { larger(top[i], most[i]) });
                self.highest.push(most);
            }
            self.bounds.push(Bound { leader, lead, sum, top, least: least_kept, kept, probe });
        }
    }

    /// Where the bounds of the cell to the right of node `left` are.
    #[inline(always)]
    pub fn at(&self, left: u32) -> usize {
        (left as usize).min(self.count - 1)
    }

    #[inline(always)]
    fn highest(&self, class: usize, i: usize, num_classes: usize) -> f32 {
        self.highest[i / LANES * num_classes + class][i % LANES]
    }

    /// The classes of the cell at `i` that cannot be left out of its sums, and the leader not among them: `take` each.
    #[inline(always)]
    pub fn for_each_kept(&self, i: usize, num_classes: usize, left_out: f32, mut take: impl FnMut(usize)) {
        for class in (0..num_classes).filter(|class| *class != self.leader(i)) {
            if self.highest(class, i, num_classes) >= left_out {
                take(class);
            }
        }
    }

    /// Number of classes of the cell at `i` that cannot be left out of its sums, the leader among them.
    #[inline(always)]
    pub fn num_kept(&self, i: usize) -> usize {
        self.bounds[i / LANES].kept[i % LANES] as usize
    }

    /// The class that leads at the centre of the cell at `i`.
    #[inline(always)]
    pub fn leader(&self, i: usize) -> usize {
        self.bounds[i / LANES].leader[i % LANES] as usize
    }

    /// What is known of the cell at `i`; the classes that may be labels are put into `list`, which has a place for each.
    #[inline(always)]
    pub fn known(&self, i: usize, limits: &Limits, list: &mut [u32]) -> Known {
        let (bound, lane) = (&self.bounds[i / LANES], i % LANES);
        // an impossible leader is rounded to multiples of 2^99
        let usable = !bound.probe[lane].is_nan()
            & (bound.lead[0][lane] > IMPOSSIBLE)
            & (bound.lead[1][lane] > IMPOSSIBLE)
            & (bound.lead[2][lane] > IMPOSSIBLE)
            & (bound.lead[3][lane] > IMPOSSIBLE);
        let (top, sum) = (bound.top[lane], bound.sum[lane]);
        let leaders_share = rough_exp(if top > -80.0 { -top } else { 80.0 });
        let fails = (sum - 1.0 >= limits.fails + limits.rounding * sum)
            & (leaders_share >= limits.fails + limits.rounding * (1.0 + leaders_share));
        let steep = (top > STEEP) | (bound.least[lane] < limits.left_out - STEEP) | (limits.low <= 0.0);
        if !usable || (steep && !fails) {
            return Known::Nothing;
        }
        if top < -limits.gap {
            return Known::Class { class: bound.leader[lane], decided: fails };
        }
        let (mut found, num_classes) = (0, list.len());
        for class in 0..num_classes {
            list[found] = class as u32;
            found += usize::from(self.highest(class, i, num_classes) >= -limits.gap);
        }
        Known::Among { count: found as u32, decided: fails }
    }
}

/// Two rows of nodes, class by class.
struct NodeRows<'p> {
    nodes: &'p [f32],
    shape: (usize, usize, usize),
    low: usize,
    high: usize,
}

impl NodeRows<'_> {
    /// Logits of a class at the four nodes of the cells from `start` on.
    #[inline(always)]
    fn of(&self, class: usize, start: usize) -> [[f32; LANES]; 4] {
        let (_, h, w) = self.shape;
        let (top, bottom) = ((class * h + self.low) * w + start, (class * h + self.high) * w + start);
        let right = usize::from(w > 1);
        [self.lanes(top), self.lanes(top + right), self.lanes(bottom), self.lanes(bottom + right)]
    }

    #[inline(always)]
    fn lanes(&self, start: usize) -> [f32; LANES] {
        let values = &self.nodes[start..start + LANES];
        lanes(|i| values[i])
    }
}

/// The smaller of two numbers; any of them where one is NaN.
#[inline(always)]
fn smaller(a: f32, b: f32) -> f32 {
    if a < b { a } else { b }
}

/// The larger of two numbers; any of them where one is NaN.
#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}
