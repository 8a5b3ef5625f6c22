//! Tables of any numbers, questions of any kind: no panic, and an answer that is what it says: within the limits, with
//! the value that `evaluate` gives, and for small spaces the best that there is.
#![no_main]

use arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use mess_core::search::{
    Configuration, Control, Gate, Limits, Metric, Objective, Query, Scoring, Setting, Space, Status, Table, evaluate,
    search,
};
use mess_fuzz::{float, pick};
use ndarray::{Array1, Array2, Array3};

fuzz_target!(|data: &[u8]| {
    let _ = run(&mut Unstructured::new(data));
});

fn run(bytes: &mut Unstructured<'_>) -> Result<()> {
    let (points, heads) = (bytes.int_in_range(0..=3usize)?, bytes.int_in_range(1..=2usize)?);
    let (images, classes, pixels) =
        (bytes.int_in_range(0..=7usize)?, bytes.int_in_range(0..=3usize)?, bytes.int_in_range(0..=2usize)?);
    let exits = points * heads + 1;
    let mut state: u64 = bytes.arbitrary()?;
    let most = *bytes.choose(&[1, 3, 50, 1 << 31, i64::MAX - 1])?;
    let is_honest = !bytes.ratio(1, 8)?;
    let mut count = |most: i64| match is_honest {
        true => pick(&mut state, most as usize + 1) as i64,
        false => pick(&mut state, 7) as i64 - 2,
    };
    let ground_truth = Array2::from_shape_simple_fn((images, classes), || count(most));
    let mut intersection = Array3::zeros((exits, images, classes));
    let mut predicted = Array3::zeros((exits, images, classes));
    for ((e, i, c), both) in intersection.indexed_iter_mut() {
        *both = count(ground_truth[[i, c]].max(0));
        predicted[[e, i, c]] = *both + if is_honest { count((most - *both).clamp(0, 1000)) } else { count(1) };
    }
    let levels = bytes.int_in_range(1..=20u8)?;
    let mut confidence = Array3::zeros((exits, pixels, images));
    for value in &mut confidence {
        *value = f64::from(pick(&mut state, usize::from(levels) + 1) as u8) / f64::from(levels);
    }
    if bytes.ratio(1, 16)? && !confidence.is_empty() {
        let at = bytes.choose_index(confidence.len())?;
        if let Some(value) = confidence.iter_mut().nth(at) {
            *value = f64::from(float(bytes)?);
        }
    }
    let scale = if bytes.ratio(1, 8)? { f64::from(float(bytes)?) } else { 1.0 };
    let cost = |of: &mut dyn FnMut(usize) -> f64| Array2::from_shape_fn((1, exits), |(_, e)| of(e) * scale);
    let backbone = cost(&mut |e| (e / heads) as f64);
    let head = cost(&mut |_| pick(&mut state, 5) as f64 / 4.0);
    let policy = cost(&mut |_| pick(&mut state, 3) as f64 / 8.0);
    let weight = match bytes.arbitrary()? {
        true => Some(Array1::from_shape_simple_fn(images, || 1 + pick(&mut state, 3) as i64)),
        false => None,
    };
    let points_of = Array1::from_shape_fn(exits, |e| (e / heads) as i64);
    let table = Table {
        intersection: intersection.view(),
        predicted: predicted.view(),
        ground_truth: ground_truth.view(),
        image_confidence: confidence.view(),
        points: points_of.view(),
        backbone_cost: backbone.view(),
        head_cost: head.view(),
        policy_cost: policy.view(),
        image_weight: weight.as_ref().map(|w| w.view()),
    };
    let number = |bytes: &mut Unstructured<'_>| -> Result<f64> {
        Ok(if bytes.ratio(1, 8)? { f64::from(float(bytes)?) } else { f64::from(bytes.arbitrary::<u8>()?) / 200.0 })
    };
    let setting = match bytes.int_in_range(0..=4u8)? {
        0 => Setting::Budgeted,
        1 => Setting::Anytime { horizon: 4.0 * number(bytes)?, min_final_accuracy: number(bytes)? },
        _ => Setting::InputDependent,
    };
    let metrics = [Metric::MeanIou, Metric::PixelAccuracy, Metric::MeanClassAccuracy, Metric::FrequencyWeightedIou];
    let query = Query {
        scoring: Scoring { setting, metric: *bytes.choose(&metrics)?, column: usize::from(bytes.ratio(1, 32)?) },
        objective: match bytes.int_in_range(0..=2u8)? {
            0 => Objective::MinimizeCost { min_accuracy: number(bytes)? },
            1 => Objective::MaximizeAccuracy { max_cost: 4.0 * number(bytes)? },
            _ => Objective::ParetoFront { resolution: if bytes.arbitrary()? { 0.0 } else { number(bytes)? } },
        },
        space: Space {
            max_exits: bytes.int_in_range(0..=3)?,
            image_thresholds: if bytes.arbitrary()? { None } else { Some(bytes.int_in_range(0..=4)?) },
            required: if bytes.ratio(1, 6)? { vec![bytes.int_in_range(0..=exits)?] } else { vec![] },
            forbidden: if bytes.ratio(1, 6)? { vec![bytes.int_in_range(0..=exits)?] } else { vec![] },
            min_share: if bytes.ratio(1, 4)? { number(bytes)? } else { 0.0 },
        },
        limits: Limits {
            class_iou: if bytes.ratio(1, 4)? {
                vec![(bytes.int_in_range(0..=classes)?, number(bytes)?)]
            } else {
                vec![]
            },
            costs: vec![],
        },
    };
    let Ok(outcome) = search(&table, &query, &Control::default(), &[], None) else { return Ok(()) };
    assert_ne!(outcome.status, Status::Stopped);
    assert_eq!(outcome.status == Status::Infeasible, outcome.found.is_empty());
    for found in &outcome.found {
        let again = evaluate(&table, query.scoring, &found.configuration).expect("a configuration of the table");
        assert_eq!(again.found, *found);
        assert!(found.configuration.exits.len() <= query.space.max_exits);
        assert!(found.configuration.exits.iter().all(|e| !query.space.forbidden.contains(e)));
        assert!(query.space.required.iter().all(|e| found.configuration.exits.contains(e)));
        match query.objective {
            Objective::MinimizeCost { min_accuracy } => assert!(found.accuracy >= min_accuracy),
            Objective::MaximizeAccuracy { max_cost } => assert!(found.cost <= max_cost),
            Objective::ParetoFront { .. } => {}
        }
    }
    // with no limit but the target, nothing that can be built from two exits is better
    let is_free = query.limits.class_iou.is_empty() && query.space.min_share == 0.0 && query.space.required.is_empty();
    if query.scoring.setting == Setting::InputDependent && is_free && query.space.image_thresholds.is_none() {
        rivals(&table, &query, &outcome.found);
    }
    Ok(())
}

/// Every configuration of at most two exits, each with an image, against what was found.
fn rivals(table: &Table<'_>, query: &Query, best: &[mess_core::search::Found]) {
    let exits = || (0..table.num_exits()).filter(|e| !query.space.forbidden.contains(e));
    let mut all: Vec<Configuration> = exits().map(Configuration::single).collect();
    if query.space.max_exits >= 2 {
        for a in exits() {
            for b in exits().filter(|b| table.points[*b] > table.points[a]) {
                for pixel_threshold in 0..table.num_pixel_thresholds() {
                    for image in 0..table.num_images() {
                        let image_threshold = table.image_confidence[[a, pixel_threshold, image]];
                        let gates = vec![Gate { pixel_threshold, image_threshold }];
                        all.push(Configuration { exits: vec![a, b], gates });
                    }
                }
            }
        }
    }
    for configuration in all {
        let rival = evaluate(table, query.scoring, &configuration).expect("valid").found;
        if rival.stopped.contains(&0) {
            continue;
        }
        let is_beaten = |by: &dyn Fn(&mess_core::search::Found) -> bool| best.iter().any(by);
        match query.objective {
            Objective::MinimizeCost { min_accuracy } => {
                assert!(rival.accuracy < min_accuracy || is_beaten(&|f| f.cost <= rival.cost), "{rival:?} {best:?}");
            }
            Objective::MaximizeAccuracy { max_cost } => {
                assert!(rival.cost > max_cost || is_beaten(&|f| f.accuracy >= rival.accuracy), "{rival:?} {best:?}");
            }
            Objective::ParetoFront { resolution } => {
                let near = |f: &mess_core::search::Found| {
                    f.accuracy >= rival.accuracy && f.cost <= rival.cost + resolution * (1.0 + 1e-9)
                };
                assert!(is_beaten(&near), "{rival:?} {best:?} {query:?} {table:?}");
            }
        }
    }
}
