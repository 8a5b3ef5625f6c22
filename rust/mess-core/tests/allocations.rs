//! What the exit decision takes from the allocator: nothing once its buffers have grown, and a bounded peak.

#![allow(clippy::expect_used, unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use mess_core::Isa;
use mess_core::confidence::{
    ConfidenceKind, EdgeKind, Logits, Policy, Upsampling, Workspace, image_confidence, should_exit,
};
use ndarray::Array3;

/// The system's allocator, counting for each thread.
struct Counting;

thread_local! {
    static CALLS: Cell<usize> = const { Cell::new(0) };
    static HELD: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(calls: usize, bytes: isize) {
    CALLS.set(CALLS.get() + calls);
    HELD.set(HELD.get() + bytes);
    PEAK.set(PEAK.get().max(HELD.get()));
}

// SAFETY: every call goes on to the system's allocator as it came; the counters are plain cells of the thread.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(1, layout.size() as isize);
        // SAFETY: the caller's promise about `layout`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(1, layout.size() as isize);
        // SAFETY: the caller's promise about `layout`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(0, -(layout.size() as isize));
        // SAFETY: the caller's promise about `pointer` and `layout`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new: usize) -> *mut u8 {
        count(1, new as isize); // old and new may both be there for a moment
        count(0, -(layout.size() as isize));
        // SAFETY: the caller's promise about `pointer` and `layout`.
        unsafe { System.realloc(pointer, layout, new) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Regions of 8 x 8 pixels, a class each.
fn logits(classes: usize, height: usize, width: usize) -> Array3<f32> {
    Array3::from_shape_fn((classes, height, width), |(c, y, x)| {
        let noise = ((31 * y + 17 * x + 7 * c) % 64) as f32 / 32.0;
        noise + if (y / 8 + 3 * (x / 8)) % classes == c { 4.0 } else { 0.0 }
    })
}

#[test]
fn a_warm_call_allocates_nothing() {
    for classes in [2, 21, 300] {
        let (full, low) = (logits(classes, 64, 96), logits(classes, 16, 24));
        let upsampling = Upsampling { size: (64, 96), align_corners: false };
        for (logits, upsampling) in [(&full, None), (&low, Some(upsampling))] {
            let logits: Logits<'_> = logits.view().into();
            for isa in Isa::available() {
                for edges in [EdgeKind::Canny, EdgeKind::Labels] {
                    for output_stride in [1, 8, 80] {
                        let policy = Policy { output_stride, edges, ..Policy::default() };
                        let mut workspace = Workspace::default();
                        let mut decide = |threshold: f64| {
                            should_exit(&logits, 0.9, threshold, &policy, upsampling, &mut workspace, isa)
                                .expect("valid logits")
                        };
                        decide(0.5);
                        decide(1.0);
                        let before = CALLS.get();
                        for i in 0..20 {
                            decide(f64::from(i) / 20.0);
                        }
                        let calls = CALLS.get() - before;
                        assert_eq!(calls, 0, "{classes} classes, stride {output_stride}, {edges:?}, {isa:?}");
                        let mut measure = || {
                            image_confidence(&logits, &[0.9], &policy, upsampling, &mut workspace, isa)
                                .expect("valid logits")
                        };
                        measure();
                        let before = CALLS.get();
                        measure();
                        assert_eq!(CALLS.get() - before, 1, "the answer itself");
                    }
                }
            }
        }
    }
}

/// The most bytes that a fresh thread's first call holds at once, its arguments aside.
fn peak(logits: &Array3<f32>, policy: &Policy, upsampling: Option<Upsampling>, thresholds: &[f32]) -> isize {
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let logits: Logits<'_> = logits.view().into();
            let isa = Isa::best(); // what is detected once is no part of a call
            PEAK.set(HELD.get());
            let before = HELD.get();
            let mut workspace = Workspace::default();
            image_confidence(&logits, thresholds, policy, upsampling, &mut workspace, isa).expect("valid logits");
            PEAK.get() - before
        });
        worker.join().expect("no panic")
    })
}

#[test]
fn the_peak_is_as_documented() {
    let policy = Policy::default();
    for (height, width) in [(512, 512), (1024, 2048)] {
        let pixels = (height * width) as isize;
        for (classes, label) in [(21, 1), (300, 4)] {
            let low = logits(classes, height / 8, width / 8);
            let upsampling = Some(Upsampling { size: (height, width), align_corners: false });
            for (thresholds, kind, per_pixel) in [
                (&[0.9][..], ConfidenceKind::Top1, label + 3),
                (&[0.5, 0.9][..], ConfidenceKind::Top1, label + 3 + 4),
                (&[0.9][..], ConfidenceKind::Entropy, label + 3 + 4),
            ] {
                let policy = Policy { confidence: kind, ..policy };
                let found = peak(&low, &policy, upsampling, thresholds);
                let given = 4 * low.len() as isize;
                let most = per_pixel * pixels + given + 12 * ((classes + 20) * width) as isize + (384 << 10);
                println!("{classes} {height}x{width} {thresholds:?} {kind:?}: {found} {most}");
                assert!(found <= most, "{classes} classes, {height}x{width}, {kind:?}: {found} bytes, at most {most}");
                assert!(found >= per_pixel * pixels, "the bound says too much: {found} bytes");
            }
        }
    }
}
