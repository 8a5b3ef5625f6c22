//! Logits of any numbers, type, layout and size: no panic, every instruction set the same bits, the fast decision the
//! same as the maps, and `should_exit` the same as the comparison.
#![no_main]

use arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use mess_core::confidence::{
    ConfidenceKind, EdgeKind, Logits, Policy, Upsampling, Workspace, confidence_map, image_confidence,
    image_confidence_of_map, should_exit,
};
use mess_core::isa::Isa;
use mess_fuzz::{share, volume};
use ndarray::{Array3, s};

fuzz_target!(|data: &[u8]| {
    let _ = run(&mut Unstructured::new(data));
});

fn run(bytes: &mut Unstructured<'_>) -> Result<()> {
    let most_classes = if bytes.ratio(1, 16)? { 300 } else { 24 };
    let values = volume(bytes, (most_classes, 40, 80))?;
    let (doubles, halves): (Array3<f64>, Array3<u16>) =
        (values.mapv(f64::from), values.mapv(|value| (value.to_bits() >> 16) as u16));
    let mut view = values.view();
    if bytes.arbitrary()? {
        view = view.slice_move(s![.., ..;bytes.int_in_range(1..=3isize)?, ..;-1]);
    }
    let logits = match bytes.int_in_range(0..=4u8)? {
        0 => Logits::F64(doubles.view()),
        1 => Logits::F16(halves.view()),
        2 => Logits::Bf16(halves.view()),
        _ => Logits::F32(view),
    };
    let policy = Policy {
        output_stride: if bytes.ratio(1, 8)? { bytes.arbitrary::<u16>()?.into() } else { bytes.int_in_range(1..=9)? },
        refine: bytes.arbitrary()?,
        edges: *bytes.choose(&[EdgeKind::Canny, EdgeKind::Labels])?,
        confidence: *bytes.choose(&[ConfidenceKind::Top1, ConfidenceKind::Margin, ConfidenceKind::Entropy])?,
    };
    let upsampling = if bytes.arbitrary()? {
        let size = (bytes.int_in_range(0..=90)?, bytes.int_in_range(0..=150)?);
        Some(Upsampling { size, align_corners: bytes.arbitrary()? })
    } else {
        None
    };
    let (pixel, image) = (share(bytes)?, f64::from(share(bytes)?));
    let mut workspace = Workspace::default();
    let mut first = None;
    for isa in Isa::available() {
        let found = image_confidence(&logits, &[pixel], &policy, upsampling, &mut workspace, isa);
        let again = image_confidence(&logits, &[pixel], &policy, upsampling, &mut workspace, isa);
        assert_eq!(format!("{found:?}"), format!("{again:?}"), "a used workspace changes nothing");
        let exits = should_exit(&logits, pixel, image, &policy, upsampling, &mut workspace, isa);
        if let Ok(found) = &found {
            assert!((0.0..=1.0).contains(&found[0]));
            if !image.is_nan() {
                assert_eq!(exits.as_ref().ok(), Some(&(found[0] >= image)), "should_exit");
            }
            let map = confidence_map(&logits, policy.confidence, upsampling, isa);
            let map = map.expect("what has an image confidence has maps");
            let slow = image_confidence_of_map(
                map.confidence.view(),
                map.labels.view(),
                &[pixel],
                &policy,
                &mut Workspace::default(),
                isa,
            );
            assert_eq!(slow.expect("valid"), *found, "{logits:?} {pixel} {policy:?} {upsampling:?}");
        }
        let found = format!("{found:?} {exits:?}");
        assert_eq!(*first.get_or_insert(found.clone()), found, "{}", isa.name());
    }
    Ok(())
}
