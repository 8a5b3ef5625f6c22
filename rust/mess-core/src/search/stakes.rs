//! What is at stake at one or two gates of a region: bounds on all its parts in one pass over its free images.
//!
//! The range of a gate is cut into pieces. With its image threshold in one of them, an image stops there for certain, goes
//! on for certain, or may do either; with both gates in a piece each, what an image is worth at most follows. Sums over
//! images are put where they change with the piece, so that running sums give the bounds of all pairs of pieces: a few
//! additions for each image, one for each pair.

use super::bound::larger;
use super::compact::GateOrder;
use super::regions::GateRange;

/// Pieces that a gate may be cut into.
pub(crate) const MAX_PIECES: usize = 24;
const SIDE: usize = MAX_PIECES + 1;

/// Image thresholds number `low..=high` of a gate with a pixel threshold, cut into pieces of equal length.
pub(crate) struct Cut<'k> {
    pub gate: usize,
    pixel: usize,
    order: &'k GateOrder,
    low: u32,
    high: u32,
    width: u32,
    num: usize,
}

/// Neighbouring pieces of a gate, the first and the last.
pub(crate) type Pieces = (usize, usize);

/// Pieces of one gate, and of another one if there are two, with the greatest bound in them.
#[derive(Clone, Copy)]
pub(crate) struct Cells {
    /// By how much the bound exceeds what a target asks for.
    pub height: f64,
    pub pieces: [Pieces; 2],
}

/// What images are worth on either side of a gate, and of a second one behind it if there are two.
pub(crate) struct Stakes {
    /// Height of everything else, over what a target asks for.
    pub constant: f64,
    pub images: Vec<Staked>,
}

/// Heights of one image.
#[derive(Clone, Copy)]
pub(crate) struct Staked {
    pub image: u32,
    /// Whether it may stop at each gate, and whether it may pass it.
    pub may_stop: [bool; 2],
    pub may_pass: [bool; 2],
    /// When it may stop at the first gate; when it passes that and may stop at the second; when it passes both.
    pub first: f64,
    pub second: f64,
    pub behind: f64,
}

/// What is left of each piece: of the first gate, with the pieces of the second; of the second, with those of the first.
pub(crate) struct Grid([Vec<Option<(f64, Pieces)>>; 2]);

impl<'k> Cut<'k> {
    /// At most `count` pieces; `range` is (pixel threshold, first and last image threshold).
    pub fn new(gate: usize, order: &'k GateOrder, range: (usize, u32, u32), count: usize) -> Self {
        let (pixel, low, high) = range;
        let width = (high - low + 1).div_ceil(count.min(MAX_PIECES) as u32);
        Self { gate, pixel, order, low, high, width, num: (high - low + 1).div_ceil(width) as usize }
    }

    /// The gate, narrowed to some pieces.
    pub fn narrowed(&self, (first, last): Pieces) -> (usize, GateRange) {
        let from = |piece: usize| self.low + piece as u32 * self.width;
        let (low, high) = (from(first), (from(last + 1) - 1).min(self.high));
        (self.gate, GateRange::Within { pixel: self.pixel, low, high })
    }

    /// The first piece in which an image stops for certain, and whether it may in the one before.
    fn place(&self, image: u32, may_stop: bool, may_pass: bool) -> (usize, bool) {
        let level = self.order.levels[image as usize];
        if !may_pass || level <= self.low {
            (0, false)
        } else if !may_stop || level > self.high {
            (self.num, false)
        } else {
            let (piece, rest) = ((level - self.low) / self.width, (level - self.low) % self.width);
            (piece as usize + usize::from(rest != 0), rest != 0)
        }
    }
}

impl Stakes {
    /// Bounds of all parts with the first gate in a piece of `first` and the second one in a piece of `second`.
    ///
    /// *Admissible*: an image is given the best of what it may do in both pieces. ∎
    pub fn grid(&self, first: &Cut<'_>, second: Option<&Cut<'_>>) -> Grid {
        let num_second = second.map_or(1, |second| second.num);
        let mut constant = self.constant;
        let mut stopping = [0.0; SIDE];
        // [r][s]: what changes with piece s of the second gate, of images that pass the first one up to its piece r, and of
        // those that may do either there
        let (mut passing, mut either) = ([[0.0; SIDE]; SIDE], [[0.0; SIDE]; SIDE]);
        for at in &self.images {
            let ([may_stop, may_stop_behind], [may_pass, may_pass_behind]) = (at.may_stop, at.may_pass);
            if !may_stop && !may_pass {
                constant += at.first; // it stops before
                continue;
            }
            let (stops, is_free) = first.place(at.image, may_stop, may_pass);
            stopping[stops] += if stops < first.num { at.first } else { 0.0 };
            let passes = stops - usize::from(is_free);
            let (stops_behind, is_free_behind) =
                second.map_or((1, false), |second| second.place(at.image, may_stop_behind, may_pass_behind));
            // what it is worth that passes the first gate, or is worth `at_least`
            let add = |changes: &mut [f64; SIDE], at_least: f64| {
                let passes_behind = stops_behind - usize::from(is_free_behind);
                let mut before = 0.0;
                if passes_behind > 0 {
                    before = larger(at.behind, at_least);
                    changes[0] += before;
                }
                if is_free_behind {
                    let both = larger(larger(at.second, at.behind), at_least);
                    changes[passes_behind] += both - before;
                    before = both;
                }
                if stops_behind < num_second {
                    changes[stops_behind] += larger(at.second, at_least) - before;
                }
            };
            if passes > 0 {
                add(&mut passing[passes - 1], f64::NEG_INFINITY);
            }
            if is_free {
                add(&mut either[passes], at.first);
            }
        }
        let (mut of_first, mut of_second) = (vec![None; first.num], vec![None; num_second]);
        let mut stopped: f64 = stopping[..first.num].iter().sum();
        let mut passed = [0.0; SIDE];
        for r in (0..first.num).rev() {
            let mut height = constant + stopped;
            stopped -= stopping[r];
            for s in 0..num_second {
                passed[s] += passing[r][s];
                height += passed[s] + either[r][s];
                if height >= 0.0 {
                    for (line, at) in [(&mut of_first[r], s), (&mut of_second[s], r)] {
                        *line = Some(line.map_or((height, (at, at)), |(most, (from, until)): (f64, Pieces)| {
                            (larger(most, height), (from.min(at), until.max(at)))
                        }));
                    }
                }
            }
        }
        Grid([of_first, of_second])
    }
}

impl Grid {
    /// For each piece of one of the gates (0 or 1) that holds something, what is left of it.
    pub fn of_gate(&self, gate: usize) -> impl Iterator<Item = Cells> + '_ {
        let cells = move |(at, line): (usize, &Option<(f64, Pieces)>)| {
            line.map(|(height, others)| Cells {
                height,
                pieces: if gate == 0 { [(at, at), others] } else { [others, (at, at)] },
            })
        };
        self.0[gate].iter().enumerate().filter_map(cells)
    }

    /// From the first pieces that hold something to the last.
    pub fn hull(&self) -> Option<Cells> {
        self.of_gate(0).reduce(|a, b| {
            let hull = |gate: usize| {
                let ((a, b), (c, d)) = (a.pieces[gate], b.pieces[gate]);
                (a.min(c), b.max(d))
            };
            Cells { height: larger(a.height, b.height), pieces: [hull(0), hull(1)] }
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const IMAGES: usize = 12;

    /// Thresholds number `low..=high` and the levels of images.
    fn gate() -> impl Strategy<Value = (u32, u32, Vec<u32>)> {
        let range = (0u32..20, 0u32..20).prop_map(|(a, b)| (a.min(b), a.max(b)));
        (range, proptest::collection::vec(0u32..24, IMAGES)).prop_map(|((low, high), levels)| (low, high, levels))
    }

    fn order((_, _, levels): &(u32, u32, Vec<u32>)) -> GateOrder {
        GateOrder { levels: levels.clone(), ..GateOrder::default() }
    }

    proptest! {
        /// Against the best of what each image may do, for every pair of pieces.
        #[test]
        fn a_grid_holds_the_bounds_of_all_pairs_of_pieces(
            first in gate(),
            second in gate(),
            counts in (1usize..9, 1usize..9),
            has_second in any::<bool>(),
            constant in -2.0..2.0f64,
            heights in proptest::collection::vec((-1.0..1.0f64, -1.0..1.0f64, -1.0..1.0f64), IMAGES),
        ) {
            let orders = [order(&first), order(&second)];
            let cut = |gate: usize, of: &(u32, u32, Vec<u32>), count| Cut::new(gate, &orders[gate], (0, of.0, of.1), count);
            let cuts = [cut(0, &first, counts.0), cut(1, &second, counts.1)];
            // what the region itself says of an image: with all thresholds of a gate it stops, or goes on
            let may = |of: &(u32, u32, Vec<u32>), image: usize| (of.2[image] <= of.1, of.2[image] > of.0);
            let staked = |(image, &(first_height, second_height, behind)): (usize, &(f64, f64, f64))| {
                let (may_stop, may_pass) = may(&first, image);
                let (may_stop_behind, may_pass_behind) = if has_second { may(&second, image) } else { (false, true) };
                Staked {
                    image: image as u32,
                    may_stop: [may_stop, may_stop_behind],
                    may_pass: [may_pass, may_pass_behind],
                    first: if may_stop { first_height } else { f64::NEG_INFINITY },
                    second: if may_pass && may_stop_behind { second_height } else { f64::NEG_INFINITY },
                    behind: if may_pass && may_pass_behind { behind } else { f64::NEG_INFINITY },
                }
            };
            let stakes = Stakes { constant, images: heights.iter().enumerate().map(staked).collect() };
            let grid = stakes.grid(&cuts[0], has_second.then_some(&cuts[1]));
            let found: Vec<Cells> = grid.of_gate(0).collect();
            for r in 0..cuts[0].num {
                let mut alive: Vec<(f64, usize)> = Vec::new();
                for s in 0..if has_second { cuts[1].num } else { 1 } {
                    let within = |gate: usize, piece: usize| match cuts[gate].narrowed((piece, piece)).1 {
                        GateRange::Within { low, high, .. } => low..=high,
                        GateRange::Runs { .. } => unreachable!("a cut has a pixel threshold"),
                    };
                    let best = |image: usize| {
                        let at = &stakes.images[image];
                        let mut best = f64::NEG_INFINITY;
                        for threshold in within(0, r) {
                            for threshold_behind in if has_second { within(1, s) } else { 0..=0 } {
                                best = best.max(if first.2[image] <= threshold {
                                    at.first
                                } else if has_second && second.2[image] <= threshold_behind {
                                    at.second
                                } else {
                                    at.behind
                                });
                            }
                        }
                        best
                    };
                    let height = constant + (0..IMAGES).map(best).sum::<f64>();
                    prop_assume!(height.abs() > 1e-9);
                    if height > 0.0 {
                        alive.push((height, s));
                    }
                }
                let left = found.iter().find(|cells| cells.pieces[0] == (r, r));
                prop_assert_eq!(left.is_some(), !alive.is_empty());
                if let Some(Cells { height, pieces }) = left {
                    let most = alive.iter().fold(f64::NEG_INFINITY, |most, (height, _)| most.max(*height));
                    prop_assert!((height - most).abs() < 1e-9);
                    prop_assert_eq!(pieces[1], (alive[0].1, alive[alive.len() - 1].1));
                }
            }
            let all = found.iter().map(|cells| cells.height).fold(f64::NEG_INFINITY, f64::max);
            prop_assert_eq!(grid.hull().map_or(f64::NEG_INFINITY, |hull| hull.height), all);
            prop_assert_eq!(grid.of_gate(1).map(|cells| cells.height).fold(f64::NEG_INFINITY, f64::max), all);
        }
    }
}
