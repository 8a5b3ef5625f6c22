//! Edges, morphology, median: no panic, every instruction set the same bits, and what follows from the definitions.
#![no_main]

use arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use mess_core::confidence::{
    CannySettings, EdgeKind, boundary_mask, canny, dilate, erode, fraction_confident, label_edges, refine_confidence,
};
use mess_core::isa::Isa;
use mess_fuzz::{float, labels, share, volume};
use ndarray::Axis;

fuzz_target!(|data: &[u8]| {
    let _ = run(&mut Unstructured::new(data));
});

fn run(bytes: &mut Unstructured<'_>) -> Result<()> {
    let image = labels(bytes, (50, 90))?;
    let view = if bytes.arbitrary()? { image.view() } else { image.t() };
    let wide = view.mapv(i32::from);
    let settings = CannySettings {
        low: f64::from(float(bytes)?) * 40.0,
        high: f64::from(float(bytes)?) * 40.0,
        aperture: bytes.int_in_range(0..=8)?,
        l2: bytes.arbitrary()?,
    };
    let size = if bytes.ratio(1, 8)? { bytes.arbitrary::<u16>()?.into() } else { bytes.int_in_range(0..=20)? };
    let kind = *bytes.choose(&[EdgeKind::Canny, EdgeKind::Labels])?;
    let confidence = volume(bytes, (1, 40, 60))?;
    let threshold = share(bytes)?;
    let mut first = None;
    for isa in Isa::available() {
        let (wider, narrower) = (dilate(view, size, isa), erode(view, size, isa));
        if let (Ok(wider), Ok(narrower)) = (&wider, &narrower) {
            assert!(wider.iter().zip(narrower).all(|(d, e)| *d <= 1 && e <= d));
            let holes = dilate(view.mapv(|v| u8::from(v == 0)).view(), size, isa).expect("valid");
            assert!(size.is_multiple_of(2) || holes.iter().zip(narrower).all(|(h, e)| h + e == 1), "duality");
        }
        let edges = label_edges(view, kind, isa).expect("valid");
        assert_eq!(edges, label_edges(wide.view(), kind, isa).expect("valid"), "narrow and wide labels");
        let mask = boundary_mask(view, size, kind, isa);
        if let Ok(mask) = &mask {
            assert_eq!(*mask, dilate(edges.view(), size, isa).expect("valid"));
        }
        let refined = confidence.axis_iter(Axis(0)).next().map(|map| {
            let mask = map.mapv(|v| u8::from(v > 0.3));
            let refined = refine_confidence(map, mask.view(), size, isa);
            if let Ok(refined) = &refined {
                let same = |a: f32, b: f32| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
                let kept = refined.iter().zip(&map).zip(&mask).all(|((r, c), m)| *m == 1 || same(*r, *c));
                assert!(kept, "pixels outside the mask stay");
            }
            (format!("{refined:?}"), format!("{:?}", fraction_confident(map, threshold)))
        });
        let found = format!("{:?}", (wider, narrower, canny(view, &settings, isa), edges, mask, refined));
        assert_eq!(*first.get_or_insert(found.clone()), found, "{}", isa.name());
    }
    Ok(())
}
