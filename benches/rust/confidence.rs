//! Kernels of the exit policy at every instruction set of this machine: `cargo bench`.
//!
//! Comparisons with what a user would write are in `benches/python`; these numbers are for those who change a kernel.

#![allow(clippy::expect_used, missing_docs)]

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use mess_core::Isa;
use mess_core::confidence::{
    ConfidenceKind, EdgeKind, Logits, Policy, Upsampling, Workspace, boundary_mask, confidence_map, image_confidence,
    label_edges, refine_confidence,
};
use ndarray::{Array3, Array4};

/// Regions of one class each, with noise: (C, H, W), H and W multiples of `cell`.
fn logits(num_classes: usize, height: usize, width: usize, cell: usize) -> Array3<f32> {
    let mut state = 1u32;
    let mut noise = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    let coarse = Array4::from_shape_fn((1, num_classes, height / cell, width / cell), |(_, c, y, x)| {
        2.0 * noise() + if (y / 8 + x / 8) % num_classes == c { 7.0 } else { 0.0 }
    });
    Array3::from_shape_fn((num_classes, height, width), |(c, y, x)| coarse[[0, c, y / cell, x / cell]])
}

fn benches(criterion: &mut Criterion) {
    let (full, low) = (logits(21, 520, 520, 8), logits(21, 65, 65, 1));
    let (policy, upsampling) = (Policy::default(), Upsampling { size: (520, 520), align_corners: false });
    let maps = confidence_map(&full.view().into(), ConfidenceKind::Top1, None, Isa::best()).expect("valid logits");
    let mask = boundary_mask(maps.labels.view(), 8, EdgeKind::Canny, Isa::best()).expect("valid labels");
    let mut workspace = Workspace::default();
    for isa in Isa::available() {
        let mut group = criterion.benchmark_group(isa.name());
        for (name, logits, upsampling) in [("full", &full, None), ("low", &low, Some(upsampling))] {
            let logits: Logits<'_> = logits.view().into();
            group.bench_function(BenchmarkId::new("image_confidence", name), |bencher| {
                bencher.iter(|| image_confidence(&logits, &[0.9], &policy, upsampling, &mut workspace, isa));
            });
            group.bench_function(BenchmarkId::new("confidence_map", name), |bencher| {
                bencher.iter(|| confidence_map(&logits, ConfidenceKind::Top1, upsampling, isa));
            });
        }
        group.bench_function("label_edges", |bencher| {
            bencher.iter(|| label_edges(maps.labels.view(), EdgeKind::Canny, isa));
        });
        for window in [5, 33] {
            group.bench_function(BenchmarkId::new("refine_confidence", window), |bencher| {
                bencher.iter(|| refine_confidence(maps.confidence.view(), mask.view(), window, isa));
            });
        }
        group.finish();
    }
}

criterion_group!(confidence, benches);
criterion_main!(confidence);
