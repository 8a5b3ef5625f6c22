//! The proof alone: passes that get no help from the ascents must find what brute force finds.
//!
//! Ascents and polish find the optimum of a small table before any bound is asked, so a search that is right says nothing
//! about its bounds. Here what they find is thrown away, and the incumbents are the optimum's closest rivals: the optimum
//! is found only if no bound gives up a set that holds it, with targets as tight as they ever get.

use std::sync::atomic::Ordering;

use ndarray::{Array1, Array2, Array3};

use super::*;
use crate::search::bound::Ranges;
use crate::search::compact::{GROUPS, RUNS};
use crate::search::evaluate::evaluate;
use crate::search::limits::Limits;
use crate::search::objective::{Metric, Scoring};
use crate::search::pieces::Pieces;
use crate::search::space::Space;
use crate::search::spread::{Start, widen};

/// Owner of a table's arrays.
struct Arrays {
    intersection: Array3<i64>,
    predicted: Array3<i64>,
    ground_truth: Array2<i64>,
    image_confidence: Array3<f64>,
    points: Array1<i64>,
    costs: [Array2<f64>; 3],
    image_weight: Option<Array1<i64>>,
}

/// SplitMix64 (Steele et al., Fast splittable pseudorandom number generators, 2014).
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % end
    }

    fn unit(&mut self) -> f64 {
        self.below(1 << 53) as f64 / (1u64 << 53) as f64
    }
}

impl Arrays {
    /// Deeper exits are better on most images, and more confident where they are right. Or, in every third table, each
    /// image is wrong before some point and right from there on, and confidence knows: what the bounds allow every image
    /// is then what it gets, so that they are as tight as they can be.
    fn new(seed: u64, points: usize, heads: usize, images: usize) -> Self {
        let mut random = Random(seed);
        let (classes, pixels, exits) = (1 + random.below(4) as usize, 1 + random.below(2) as usize, points * heads + 1);
        let point = |exit: usize| exit / heads;
        let size = [20, 400, 100_000][random.below(3) as usize];
        let mut ground_truth = Array2::from_shape_simple_fn((images, classes), || random.below(size) as i64);
        ground_truth[[0, 0]] += 1;
        let ease = Array1::from_shape_simple_fn(images, || random.unit());
        let mut intersection = Array3::zeros((exits, images, classes));
        let mut predicted = Array3::zeros((exits, images, classes));
        let mut image_confidence = Array3::zeros((exits, pixels, images));
        let levels = [4.0, 20.0, 1e6][random.below(3) as usize];
        let is_ideal = seed.is_multiple_of(3);
        let depth = Array1::from_shape_simple_fn(images, || random.below(points as u64 + 1) as usize);
        for exit in 0..exits {
            for image in 0..images {
                let skill = 0.3 + 0.5 * ease[image] + 0.2 * point(exit) as f64 / points as f64;
                let share = match is_ideal {
                    true => f64::from(u8::from(point(exit) >= depth[image])),
                    false => (skill * (0.8 + 0.4 * random.unit())).min(1.0),
                };
                for class in 0..classes {
                    let truth = ground_truth[[image, class]];
                    let right = (truth as f64 * share).round() as i64;
                    intersection[[exit, image, class]] = right;
                    predicted[[exit, image, class]] =
                        right + random.below(1 + (size as f64 * (1.0 - share)) as u64) as i64;
                }
                for pixel in 0..pixels {
                    let confidence = (share - 0.3 * random.unit() - 0.1 * pixel as f64).clamp(0.0, 1.0);
                    image_confidence[[exit, pixel, image]] = (confidence * levels).round() / levels;
                }
            }
        }
        let mut column = |of: &mut dyn FnMut(usize, &mut Random) -> f64| {
            Array2::from_shape_fn((1, exits), |(_, exit)| of(exit, &mut random))
        };
        let backbone = column(&mut |exit, _| 1.0 + 2.0 * point(exit) as f64);
        let head = column(&mut |exit, random| if exit + 1 < exits { random.unit() } else { 0.0 });
        let policy = column(&mut |exit, random| if exit + 1 < exits { 0.2 * random.unit() } else { 0.0 });
        let is_weighted = random.below(3) == 0;
        let image_weight = is_weighted.then(|| Array1::from_shape_simple_fn(images, || 1 + random.below(3) as i64));
        Self {
            intersection,
            predicted,
            ground_truth,
            image_confidence,
            points: (0..exits).map(|exit| point(exit) as i64).collect(),
            costs: [backbone, head, policy],
            image_weight,
        }
    }

    fn table(&self) -> Table<'_> {
        Table {
            intersection: self.intersection.view(),
            predicted: self.predicted.view(),
            ground_truth: self.ground_truth.view(),
            image_confidence: self.image_confidence.view(),
            points: self.points.view(),
            backbone_cost: self.costs[0].view(),
            head_cost: self.costs[1].view(),
            policy_cost: self.costs[2].view(),
            image_weight: self.image_weight.as_ref().map(|weight| weight.view()),
        }
    }
}

/// Every configuration in which each exit gets an image, with its exact value.
fn everything(table: &Table<'_>, query: &Query, compact: &Compact) -> Vec<Found> {
    let mut found = Vec::new();
    let mut open: Vec<(Vec<usize>, Vec<Gate>)> = (0..table.num_exits()).map(|exit| (vec![exit], vec![])).collect();
    while let Some((exits, gates)) = open.pop() {
        let last = exits[exits.len() - 1];
        if exits.len() < query.space.max_exits {
            for next in (0..table.num_exits()).filter(|next| table.points[*next] > table.points[last]) {
                for pixel_threshold in 0..compact.num_pixels {
                    for &image_threshold in &compact.gate(last, pixel_threshold).thresholds {
                        let gate = Gate { pixel_threshold, image_threshold };
                        open.push(([&exits[..], &[next]].concat(), [&gates[..], &[gate]].concat()));
                    }
                }
            }
        }
        let of = evaluate(table, query.scoring, &Configuration { exits, gates }).expect("valid").found;
        if of.stopped.iter().all(|images| *images > 0) {
            found.push(of);
        }
    }
    found
}

/// What the passes alone find, beginning with these; with gaps first, if the proof is said to take long.
fn proven(table: &Table<'_>, query: &Query, prepared: &Prepared, known: &[&Found], is_long: bool) -> Vec<Found> {
    let control = Control::default();
    if is_long {
        control.in_time.store(2, Ordering::Relaxed);
    }
    let forgotten = Incumbents::new(query.objective, prepared.ceiling);
    let fields = {
        let shared = prepared.shared(table, query, &control, &forgotten);
        (0..table.num_exits()).for_each(|exit| shared.static_exit(exit));
        shared.fields(ascend(&shared))
    };
    let incumbents = Incumbents::new(query.objective, prepared.ceiling);
    let shared = prepared.shared(table, query, &control, &incumbents);
    for found in known {
        incumbents.offer(found.cost, found.accuracy, || (*found).clone());
    }
    (0..table.num_exits()).for_each(|exit| shared.static_exit(exit));
    let mut gap = f64::INFINITY;
    shared.prove(&fields, &mut gap, None);
    assert_eq!(gap, 0.0);
    incumbents.found()
}

/// Check all objectives on one table.
fn check(seed: u64, max_exits: usize, points: usize, heads: usize, images: usize, thresholds: Option<usize>) {
    let arrays = Arrays::new(seed, points, heads, images);
    let table = arrays.table();
    let mut random = Random(seed ^ 0xABCD);
    let metrics = [Metric::MeanIou, Metric::PixelAccuracy, Metric::MeanClassAccuracy, Metric::FrequencyWeightedIou];
    let metric = metrics[[0, 0, 0, 1, 2, 3][random.below(6) as usize]];
    let mut query = Query {
        scoring: Scoring { setting: Setting::InputDependent, metric, column: 0 },
        objective: Objective::ParetoFront { resolution: 0.0 },
        space: Space { max_exits, image_thresholds: thresholds, ..Space::default() },
        limits: Limits::default(),
    };
    let prepared = Prepared::new(&table, &query);
    let all = everything(&table, &query, &prepared.compact);
    let mut sorted: Vec<&Found> = all.iter().collect();
    sorted.sort_by(|a, b| a.cost.total_cmp(&b.cost).then_with(|| query.objective.compare(a, b)));
    let mut front: Vec<&Found> = Vec::new();
    for found in sorted {
        if front.last().is_none_or(|last| found.accuracy > last.accuracy) {
            front.push(found);
        }
    }
    for number in 0..6 {
        let anchor = match number % 2 {
            0 => &all[random.below(all.len() as u64) as usize],
            _ => front[random.below(front.len() as u64) as usize],
        };
        for objective in [
            Objective::MinimizeCost { min_accuracy: anchor.accuracy },
            Objective::MaximizeAccuracy { max_cost: anchor.cost },
        ] {
            query.objective = objective;
            let value = |found: &Found| match objective {
                Objective::MinimizeCost { .. } => found.cost,
                _ => -found.accuracy,
            };
            let mut allowed: Vec<&Found> = all.iter().filter(|f| objective.allows(f.cost, f.accuracy)).collect();
            allowed.sort_by(|a, b| objective.compare(a, b));
            let best = allowed[0];
            let rival = allowed.iter().find(|f| value(f) > value(best) + 1e-7);
            let known: Vec<&Found> = rival.into_iter().copied().collect();
            let found = proven(&table, &query, &prepared, &known, seed % 2 == 1);
            assert_eq!(found, std::slice::from_ref(best), "seed {seed}, {objective:?}, rival {rival:?}");
        }
    }
    query.objective = Objective::ParetoFront { resolution: 0.0 };
    let known: Vec<&Found> = front.iter().copied().filter(|_| random.below(4) > 0).collect();
    let found = proven(&table, &query, &prepared, &known, seed % 2 == 1);
    // costs one rounding apart are one place or two by the order of summation, so the values are compared
    let curve = |found: &[&Found]| found.iter().map(|f| (f.cost, f.accuracy)).collect::<Vec<_>>();
    assert_eq!(curve(&found.iter().collect::<Vec<_>>()), curve(&front), "seed {seed}");
}

#[test]
fn passes_alone_find_the_optimum_of_two_exits_and_many_images() {
    (0..12).for_each(|seed| check(seed, 2, 3, 2, 20 + 15 * seed as usize, None));
}

#[test]
fn passes_alone_find_the_optimum_of_three_exits() {
    (0..16).for_each(|seed| check(100 + seed, 3, 3, 2, 10 + seed as usize, None));
    (0..8).for_each(|seed| check(200 + seed, 3, 3, 2, 100, Some(12)));
}

#[test]
fn passes_alone_find_the_optimum_of_four_exits() {
    (0..64).for_each(|seed| check(300 + seed, 4, 4, 1, 8, None));
    (0..48).for_each(|seed| check(400 + seed, 4, 4, 1, 90, Some(7)));
}

#[test]
fn passes_alone_find_the_optimum_of_five_exits() {
    (0..64).for_each(|seed| check(500 + seed, 5, 4, 1, 70, Some(4)));
}

/// Regions of many images and few thresholds, of which a bound may leave a single one.
#[test]
fn regions_alone_find_the_optimum_of_a_few_thresholds() {
    for seed in 0..120 {
        let arrays = Arrays::new(600 + seed, 2, 1, 1500);
        let table = arrays.table();
        let mut random = Random(seed);
        let mut query = Query {
            scoring: Scoring { setting: Setting::InputDependent, metric: Metric::MeanIou, column: 0 },
            objective: Objective::ParetoFront { resolution: 0.0 },
            space: Space { max_exits: 3, ..Space::default() },
            limits: Limits::default(),
        };
        let prepared = Prepared::new(&table, &query);
        let exits = [0, 1, 2];
        let order = |exit: usize| prepared.compact.gate(exit, 0);
        let ranges = [0, 1].map(|exit| {
            let last = order(exit).thresholds.len() as u32 - 1;
            let low = random.below(u64::from(last) + 1) as u32;
            (low, (low + 6 + random.below(17) as u32).min(last))
        });
        let gate = |exit: usize, number: u32| Gate {
            pixel_threshold: 0,
            image_threshold: order(exit).thresholds[number as usize],
        };
        let of_pair = |(first, second): (u32, u32)| {
            let configuration = Configuration { exits: exits.to_vec(), gates: vec![gate(0, first), gate(1, second)] };
            evaluate(&table, query.scoring, &configuration).expect("valid").found
        };
        let pairs = (ranges[0].0..=ranges[0].1).flat_map(|r| (ranges[1].0..=ranges[1].1).map(move |s| (r, s)));
        let all: Vec<Found> = pairs.map(of_pair).filter(|f| f.stopped.iter().all(|images| *images > 0)).collect();
        // on the convex hull, where bounds are tightest
        let multiplier = 0.2 * 2f64.powf(-8.0 * random.unit());
        let height = |found: &&Found| found.accuracy - multiplier * found.cost;
        let Some(anchor) = all.iter().max_by(|a, b| height(a).total_cmp(&height(b))) else { continue };
        for objective in [
            Objective::MinimizeCost { min_accuracy: anchor.accuracy },
            Objective::MaximizeAccuracy { max_cost: anchor.cost },
        ] {
            query.objective = objective;
            let mut allowed: Vec<&Found> = all.iter().filter(|f| objective.allows(f.cost, f.accuracy)).collect();
            allowed.sort_by(|a, b| objective.compare(a, b));
            let (control, incumbents) = (Control::default(), Incumbents::new(objective, prepared.ceiling));
            let shared = prepared.shared(&table, &query, &control, &incumbents);
            if let Some(rival) = allowed.get(1) {
                incumbents.offer(rival.cost, rival.accuracy, || (*rival).clone());
            }
            let chain = Chain::new(&shared, &exits).expect("no limit");
            let mut regions = Regions::new(&shared, &chain, (f64::NEG_INFINITY, f64::INFINITY));
            let within = |(low, high): (u32, u32)| GateRange::Within { pixel: 0, low, high };
            regions.search(ranges.map(within).to_vec(), None, multiplier);
            assert_eq!(incumbents.found(), std::slice::from_ref(allowed[0]), "seed {seed}, {objective:?}");
        }
    }
}

/// Also where 32 bits hold the sum of a few counts only, of weights that change, and exits in any order.
#[test]
fn steps_are_the_sums_of_what_rises_and_what_falls() {
    for seed in 0..12 {
        let mut arrays = Arrays::new(seed, 3, 10, 70);
        if seed % 2 == 1 {
            let factor = i64::from(u32::MAX) / arrays.predicted.iter().max().expect("counts");
            [&mut arrays.intersection, &mut arrays.predicted].into_iter().for_each(|counts| *counts *= factor);
        }
        if seed % 4 > 1 {
            arrays.points.invert_axis(ndarray::Axis(0));
        }
        let table = arrays.table();
        let compact = Compact::new(&table, None, true);
        assert_eq!(compact.summable < 8, seed % 2 == 1);
        let allowed: Vec<bool> = (0..compact.num_exits).map(|exit| exit % 5 != 3).collect();
        let steps = Steps::new(&compact, &allowed);
        for (a, b) in (0..compact.num_exits).flat_map(|a| (0..compact.num_exits).map(move |b| (a, b))) {
            if !(allowed[a] && allowed[b] && compact.points[a] < compact.points[b]) {
                continue;
            }
            let mut expected = Vec::new();
            for (is_wrong, is_fall) in [(false, false), (false, true), (true, false), (true, true)] {
                for class in 0..compact.padded() {
                    let count = |exit: usize, image: usize| {
                        let (both, wrong) = compact.counts(exit, image);
                        f64::from(if is_wrong { wrong[class] } else { both[class] })
                    };
                    let step = |image: usize| {
                        let rise = count(b, image) - count(a, image);
                        compact.weight[image] * (if is_fall { -rise } else { rise }).max(0.0)
                    };
                    expected.push((0..compact.num_images).map(step).sum::<f64>());
                }
            }
            assert_eq!(steps.along(&[a, b]), expected, "seed {seed}, exits {a} and {b}");
        }
    }
}

/// Most confident first, ties by place; -0 is 0.
#[test]
fn orders_of_a_gate_are_those_of_a_stable_sort() {
    let mut arrays = Arrays::new(2, 2, 1, 90);
    arrays.image_confidence.mapv_inplace(|confidence| (confidence * 8.0).round() / 8.0);
    (0..90).step_by(7).for_each(|image| arrays.image_confidence[[0, 0, image]] = [0.0, -0.0][image % 2]);
    let table = arrays.table();
    for count in [None, Some(4)] {
        let compact = Compact::new(&table, count, true);
        for exit in 0..compact.num_exits {
            let of_table = |image: u32| compact.order[image as usize];
            let (order, confidence) =
                (compact.gate(exit, 0), |image: u32| table.image_confidence[[exit, 0, of_table(image)]]);
            let mut expected: Vec<u32> = (0..90).collect();
            expected.sort_by(|a, b| confidence(*b).partial_cmp(&confidence(*a)).expect("numbers"));
            assert_eq!(order.images, expected);
            assert!(order.thresholds.is_sorted_by(|a, b| a > b));
            assert!(order.thresholds.iter().all(|threshold| threshold.is_sign_positive()));
            for (threshold, leaving) in order.thresholds.iter().zip(&order.leaving) {
                assert_eq!((0..90).filter(|image| confidence(*image) >= *threshold).count(), *leaving as usize);
            }
        }
    }
}

#[test]
fn boxes_hold_every_assignment_of_a_chain() {
    for seed in 0..24 {
        let arrays = Arrays::new(seed, 4, 1, 45);
        let table = arrays.table();
        let compact = Compact::new(&table, None, true);
        let steps = Steps::new(&compact, &[true; 5]);
        let num_rows = compact.num_images.div_ceil(RUNS);
        let group_of: Vec<u8> = (compact.gate(0, 0).runs.iter()).map(|run| run / (RUNS / GROUPS) as u8).collect();
        assert!(num_rows > 1 && group_of.iter().max() > Some(&2));
        let start = Start::new(&compact, 0, 1, &group_of);
        for (exits, behind) in [(vec![0, 1], vec![1]), (vec![0, 1, 2, 4], vec![1, 2, 4])] {
            for group in 0..GROUPS {
                let mut ranges = Ranges::new(compact.padded());
                widen(start.of(group), &steps.along(&exits[1..]), &compact.truth, &mut ranges);
                let reach = |image: usize| match usize::from(group_of[image]).cmp(&group) {
                    std::cmp::Ordering::Less => &exits[..1],
                    std::cmp::Ordering::Equal => &exits[..],
                    std::cmp::Ordering::Greater => &behind[..],
                };
                for class in 0..compact.classes.len() {
                    let sum = |of: fn(f64, f64) -> f64, begin: f64, is_wrong: bool| -> f64 {
                        let of_image = |image: usize| {
                            let count = |exit: &usize| {
                                let (both, wrong) = compact.counts(*exit, image);
                                f64::from(if is_wrong { wrong[class] } else { both[class] })
                            };
                            compact.weight[image] * reach(image).iter().map(count).fold(begin, of)
                        };
                        (0..compact.num_images).map(of_image).sum()
                    };
                    let (least, most) =
                        (|is_wrong| sum(f64::min, 1e300, is_wrong), |is_wrong| sum(f64::max, 0.0, is_wrong));
                    let truth = compact.truth[class];
                    assert!(ranges.t_low[class] <= least(false) && most(false) <= ranges.t_high[class]);
                    assert!(ranges.u_low[class] <= truth + least(true) && truth + most(true) <= ranges.u_high[class]);
                    // and not by much: the box of two exits is exact but for rounding
                    if exits.len() == 2 {
                        let size = 1e-4 * (truth + most(true));
                        assert!(
                            ranges.t_high[class] - most(false) <= size && least(false) - ranges.t_low[class] <= size
                        );
                        assert!(ranges.u_high[class] - truth - most(true) <= size);
                    }
                }
            }
        }
    }
}

/// A search that stops where it asks whether to, at one such place after the other, certifies nothing that is not so.
#[test]
fn stopped_anywhere() {
    let arrays = Arrays::new(3, 3, 2, 12);
    let table = arrays.table();
    let one_thread = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread");
    let run = |query: &Query, in_time: u64, patience: u64| {
        let control = Control::default();
        control.in_time.store(in_time, Ordering::Relaxed);
        control.patience.store(patience, Ordering::Relaxed);
        one_thread.install(|| search(&table, query, &control, &[], None)).expect("valid")
    };
    let anytime = Setting::Anytime { horizon: 3.0, min_final_accuracy: 0.0 };
    // in one pass, and with gaps for all tasks or all but some
    let input_dependent = [u64::MAX, 0, 5].map(|in_time| (Setting::InputDependent, in_time));
    for (setting, in_time) in input_dependent.into_iter().chain([(anytime, u64::MAX)]) {
        let run = |query: &Query, patience: u64| run(query, in_time, patience);
        let of = |objective: Objective| Query {
            scoring: Scoring { setting, metric: Metric::MeanIou, column: 0 },
            objective,
            space: Space { max_exits: 3, ..Space::default() },
            limits: Limits::default(),
        };
        let front = run(&of(Objective::ParetoFront { resolution: 0.0 }), u64::MAX).found;
        let middle = &front[front.len() / 2];
        for objective in [
            Objective::MinimizeCost { min_accuracy: middle.accuracy },
            Objective::MaximizeAccuracy { max_cost: middle.cost },
            Objective::ParetoFront { resolution: 0.0 },
        ] {
            let query = of(objective);
            let whole = run(&query, u64::MAX);
            assert_eq!(whole.status, Status::Optimal);
            let is_no_better = |outcome: &Outcome| match objective {
                Objective::MinimizeCost { .. } => outcome.bound <= whole.found[0].cost,
                Objective::MaximizeAccuracy { .. } => outcome.bound >= whole.found[0].accuracy,
                Objective::ParetoFront { .. } => whole.found.iter().all(|point| {
                    let below = outcome.found.iter().filter(|found| found.cost <= point.cost);
                    below.map(|found| found.accuracy).fold(0.0, f64::max) + outcome.bound >= point.accuracy
                }),
            };
            let (mut stops, mut certified, mut patience) = (0, 0, 0);
            loop {
                let outcome = run(&query, patience);
                if outcome.status != Status::Stopped {
                    assert_eq!(outcome.found, whole.found);
                    break;
                }
                assert!(is_no_better(&outcome), "{setting:?} {objective:?} after {patience}: {outcome:?}");
                stops += 1;
                certified += usize::from(outcome.gap < 0.2);
                patience += 1 + patience / 50; // each place at first
            }
            assert!(stops > 10, "{setting:?} {objective:?}: asked {stops} times only");
            assert!(in_time > 5 || certified > 0, "{objective:?}: no gap was certified on the way");
        }
    }
}

/// A pass that found nothing bounds the cost of what there may be, and there is no gap to speak of.
#[test]
fn nothing_found_has_no_gap() {
    let arrays = Arrays::new(1, 3, 2, 12);
    let table = arrays.table();
    let scoring = Scoring { setting: Setting::InputDependent, metric: Metric::MeanIou, column: 0 };
    let space = Space { max_exits: 3, ..Space::default() };
    let of = |objective: Objective| Query { scoring, objective, space: space.clone(), limits: Limits::default() };
    for (objective, bounds) in [
        (Objective::MinimizeCost { min_accuracy: 1.0 }, [0.0, 0.9, f64::INFINITY]),
        (Objective::MaximizeAccuracy { max_cost: 0.0 }, [1.0, 1.0, 0.0]),
    ] {
        let query = of(objective);
        let prepared = Prepared::new(&table, &query);
        let (control, incumbents) = (Control::default(), Incumbents::new(objective, prepared.ceiling));
        let shared = prepared.shared(&table, &query, &control, &incumbents);
        for (gap, expected) in [f64::INFINITY, 0.1, 0.0].into_iter().zip(bounds) {
            let (bound, told) = shared.certificate(&[], gap);
            let is_cost = matches!(objective, Objective::MinimizeCost { .. });
            assert!(if is_cost { bound >= expected * prepared.ceiling } else { bound == expected });
            assert_eq!(told, if gap == 0.0 { 0.0 } else { f64::INFINITY });
        }
        assert_eq!(shared.outcome(0.0).status, Status::Infeasible);
    }
}

/// Found by fuzzing: exits of which the earliest costs nothing, one class, ground truth in one image of three.
#[test]
fn a_table_of_one_labelled_image() {
    let of = |numbers: &[i64]| Array3::from_shape_vec((7, 3, 1), numbers.to_vec()).expect("7 x 3");
    let eighths = [
        8, 5, 5, 7, 4, 7, 2, 3, 2, 3, 6, 7, 4, 5, 5, 2, 7, 3, 3, 5, 6, 7, 8, 8, 7, 8, 1, 7, 1, 5, 7, 0, 6, 3, 2, 0, 3,
        3, 5, 4, 7, 7,
    ];
    let row = |costs: [f64; 7]| Array2::from_shape_vec((1, 7), costs.to_vec()).expect("7");
    let arrays = Arrays {
        intersection: of(&[0, 1, 0, 0, 1, 0, 0, 2, 0, 0, 1, 0, 0, 3, 0, 0, 1, 0, 0, 3, 0]),
        predicted: of(&[2, 2, 1, 0, 2, 0, 2, 3, 2, 1, 2, 2, 1, 3, 1, 3, 2, 0, 3, 3, 0]),
        ground_truth: Array2::from_shape_vec((3, 1), vec![0, 3, 0]).expect("3"),
        image_confidence: Array3::from_shape_vec((7, 2, 3), eighths.map(|e| f64::from(e) / 8.0).to_vec()).expect("42"),
        points: Array1::from_vec(vec![0, 0, 1, 1, 2, 2, 3]),
        costs: [
            row([0.0, 0.0, 1.0, 1.0, 2.0, 2.0, 3.0]),
            row([1.0, 0.0, 0.25, 0.5, 0.0, 0.75, 0.75]),
            row([0.0, 0.0, 0.125, 0.125, 0.125, 0.0, 0.0]),
        ],
        image_weight: None,
    };
    let table = arrays.table();
    let query = Query {
        scoring: Scoring { setting: Setting::InputDependent, metric: Metric::PixelAccuracy, column: 0 },
        objective: Objective::MinimizeCost { min_accuracy: 0.9 },
        space: Space { max_exits: 2, ..Space::default() },
        limits: Limits::default(),
    };
    let found = search(&table, &query, &Control::default(), &[], None).expect("valid").found;
    assert_eq!(found[0].configuration.exits, [1, 4], "{found:?}");
}

/// Pieces whose preparations are stopped at every place where they ask: they have all tasks or none, and what is finished
/// of them proves no more than is so.
#[test]
fn pieces_that_are_cut_short_prove_nothing() {
    let arrays = Arrays::new(3, 3, 2, 12);
    let table = arrays.table();
    let one_thread = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread");
    let query = Query {
        scoring: Scoring { setting: Setting::InputDependent, metric: Metric::MeanIou, column: 0 },
        objective: Objective::MaximizeAccuracy { max_cost: 2.5 },
        space: Space { max_exits: 3, ..Space::default() },
        limits: Limits::default(),
    };
    let whole = search(&table, &query, &Control::default(), &[], None).expect("valid");
    let (mut cut, mut patience) = (0, 0);
    loop {
        let control = Control::default();
        control.patience.store(patience, Ordering::Relaxed);
        let pieces = one_thread.install(|| Pieces::new(&table, &query, &control, &[])).expect("valid");
        let all = Pieces::new(&table, &query, &Control::default(), &[]).expect("valid");
        let names: Vec<String> = all.tasks().into_iter().map(String::from).collect();
        let mut gap = f64::INFINITY;
        for wanted in pieces.gaps(&table).expect("its table") {
            let done = pieces.run(&table, &Control::default(), wanted, &names, &[]).expect("its tasks");
            assert_eq!(done.finished.len(), names.len());
            gap = wanted;
        }
        let outcome = pieces.outcome(&table, gap, &[]).expect("its table");
        if outcome.status != Status::Stopped {
            assert_eq!((outcome.status, outcome.found), (whole.status, whole.found));
            break;
        }
        assert!(pieces.tasks().is_empty());
        assert!(pieces.run(&table, &Control::default(), 0.0, &names, &[]).expect("none").finished.is_empty());
        (cut, patience) = (cut + 1, patience + 1);
    }
    assert!(cut > 5, "asked {cut} times only");
}
