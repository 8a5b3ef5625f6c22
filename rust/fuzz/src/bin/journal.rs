//! Journals of a search: anything for a file, and real ones that were cut off, shuffled or changed. No panic, what is
//! found is what it says, and what a real journal lost changes nothing.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use mess_core::search::{
    Control, Limits, Metric, Objective, Outcome, Query, Scoring, Setting, Space, Table, evaluate, search,
};
use mess_fuzz::pick;
use ndarray::{Array1, Array2, Array3};

const POINTS: usize = 2;
const IMAGES: usize = 4;

/// What every run searches, a journal of it, and the answer.
struct Whole {
    intersection: Array3<i64>,
    predicted: Array3<i64>,
    ground_truth: Array2<i64>,
    confidence: Array3<f64>,
    points: Array1<i64>,
    costs: Array2<f64>,
    query: Query,
    journal: Vec<u8>,
    answer: Option<Outcome>,
}

static WHOLE: LazyLock<Whole> = LazyLock::new(|| {
    let mut state = 7;
    let mut count = |end: usize| pick(&mut state, end) as i64;
    let exits = POINTS + 1;
    let ground_truth = Array2::from_shape_simple_fn((IMAGES, 2), || 10 + count(20));
    let intersection =
        Array3::from_shape_fn((exits, IMAGES, 2), |(e, i, c)| (count(6) + e as i64).min(ground_truth[[i, c]]));
    let mut whole = Whole {
        predicted: Array3::from_shape_fn(intersection.dim(), |at| intersection[at] + count(9)),
        confidence: Array3::from_shape_simple_fn((exits, 2, IMAGES), || count(9) as f64 / 8.0),
        points: Array1::from_shape_fn(exits, |e| e as i64),
        costs: Array2::from_shape_fn((1, exits), |(_, e)| e as f64),
        query: Query {
            scoring: Scoring { setting: Setting::InputDependent, metric: Metric::MeanIou, column: 0 },
            objective: Objective::ParetoFront { resolution: 0.0 },
            space: Space { max_exits: 3, ..Space::default() },
            limits: Limits::default(),
        },
        intersection,
        ground_truth,
        journal: Vec::new(),
        answer: None,
    };
    let (answer, journal) = whole.go_on(&[]);
    (whole.answer, whole.journal) = (Some(answer.expect("a new journal")), journal);
    assert!(whole.journal.windows(5).filter(|word| word == b"\ndone").count() > 3);
    whole
});

impl Whole {
    fn table(&self) -> Table<'_> {
        Table {
            intersection: self.intersection.view(),
            predicted: self.predicted.view(),
            ground_truth: self.ground_truth.view(),
            image_confidence: self.confidence.view(),
            points: self.points.view(),
            backbone_cost: self.costs.view(),
            head_cost: self.costs.view(),
            policy_cost: self.costs.view(),
            image_weight: None,
        }
    }

    /// Search with this journal: the answer, and the journal afterwards.
    fn go_on(&self, journal: &[u8]) -> (mess_core::Result<Outcome>, Vec<u8>) {
        static PATH: LazyLock<PathBuf> =
            LazyLock::new(|| std::env::temp_dir().join(format!("mess-fuzz-{}.journal", std::process::id())));
        std::fs::write(&*PATH, journal).expect("room for a journal");
        let answer = search(&self.table(), &self.query, &Control::default(), &[], Some(&PATH));
        let after = std::fs::read(&*PATH).expect("a journal");
        std::fs::remove_file(&*PATH).expect("a journal");
        (answer, after)
    }
}

fuzz_target!(|data: &[u8]| {
    let _ = run(&mut Unstructured::new(data));
});

fn run(bytes: &mut Unstructured<'_>) -> Result<()> {
    let whole = &*WHOLE;
    let how = bytes.int_in_range(0..=3u8)?;
    let mut journal = whole.journal.clone();
    let mut is_only_less = how == 2; // what is put in may be a forged line with the right hash: a fuzzer learns it
    let header = journal.iter().position(|byte| *byte == b'\n').expect("a line") + 1;
    match how {
        0 => journal = bytes.bytes(bytes.len())?.to_vec(),
        1 => {
            journal.truncate(header);
            journal.extend_from_slice(bytes.bytes(bytes.len())?);
        }
        2 => journal.truncate(bytes.int_in_range(0..=journal.len())?),
        _ => {
            is_only_less = bytes.arbitrary()?;
            for _ in 0..bytes.int_in_range(1..=8u8)? {
                let at = bytes.int_in_range(header..=journal.len())?;
                let until = (at + bytes.int_in_range(0..=12usize)?).min(journal.len());
                let most = if is_only_less { 0 } else { 12 };
                let put: Vec<u8> =
                    (0..bytes.int_in_range(0..=most)?).map(|_| bytes.arbitrary()).collect::<Result<_>>()?;
                journal.splice(at..until, put);
            }
        }
    }
    let (answer, after) = whole.go_on(&journal);
    let Ok(answer) = answer else {
        assert!(how != 2, "a journal without its end was refused");
        // nothing of a file that is not understood is lost, but for a last line that has no end
        let kept = journal.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        assert!(after == journal || after == journal[..kept]);
        return Ok(());
    };
    for found in &answer.found {
        assert_eq!(evaluate(&whole.table(), whole.query.scoring, &found.configuration).expect("valid").found, *found);
    }
    if is_only_less {
        let full = whole.answer.as_ref().expect("searched");
        assert_eq!((answer.status, &answer.found), (full.status, &full.found));
    }
    Ok(())
}
