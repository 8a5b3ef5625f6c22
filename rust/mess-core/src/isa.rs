//! The instruction set as a value: every kernel has one body, compiled once per level, and the level is chosen per call.
//!
//! A kernel body is plain Rust over slices. Compiled with a level's features enabled, the compiler's vectoriser turns it
//! into that level's instructions; nothing else differs. No body calls `mul_add` and the compiler never contracts a
//! multiplication and an addition, so every level computes the same operations in the same order: the bits are equal by
//! construction, and tests check that they are.
//!
//! On aarch64 the portable level is NEON: it is part of the baseline, so the same bodies compile to it.
//!
//! All `unsafe` of this crate is here, and says one thing: the features were detected before the call.

use std::sync::OnceLock;

use crate::error::{Error, Result};

/// A level of vector instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Isa {
    /// What the target's baseline has: SSE2 on x86-64, NEON on aarch64.
    Portable,
    /// x86-64 with AVX2 (level v3).
    Avx2,
    /// x86-64 with AVX-512 F, BW, CD, DQ, VL (level v4).
    Avx512,
}

impl Isa {
    /// All levels, slowest first.
    pub const ALL: [Self; 3] = [Self::Portable, Self::Avx2, Self::Avx512];

    /// The level's name: `portable`, `avx2`, `avx512`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        }
    }

    /// The level called `name`, when this machine has it.
    ///
    /// # Errors
    /// [`Error::Value`] for an unknown name or a level that this machine lacks.
    pub fn from_name(name: &str) -> Result<Self> {
        let known: Vec<&str> = Self::available().map(Self::name).collect();
        Self::available()
            .find(|isa| isa.name() == name)
            .ok_or_else(|| Error::value("isa", format!("one of {} on this machine", known.join(", ")), name))
    }

    /// Levels that this machine can run, slowest first.
    pub fn available() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|isa| isa.is_available())
    }

    /// The fastest level of this machine. Detected once.
    pub fn best() -> Self {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| Self::available().last().unwrap_or(Self::Portable))
    }

    #[cfg(target_arch = "x86_64")]
    fn is_available(self) -> bool {
        let avx2 = || {
            is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("bmi1")
                && is_x86_feature_detected!("bmi2")
                && is_x86_feature_detected!("popcnt")
                && is_x86_feature_detected!("lzcnt")
        };
        match self {
            Self::Portable => true,
            Self::Avx2 => avx2(),
            Self::Avx512 => {
                avx2()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512cd")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn is_available(self) -> bool {
        self == Self::Portable
    }

    /// Run `kernel` compiled for this level; for the portable one where the machine lacks it.
    #[inline]
    #[allow(unsafe_code)]
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `best` is at least this level, so the machine has the features.
            Self::Avx2 if Self::best() >= self => unsafe { with_avx2(kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Self::Avx512 if Self::best() >= self => unsafe { with_avx512(kernel) },
            _ => kernel.run(),
        }
    }
}

/// A computation whose body is inlined into each level's instance. `run` and all that it calls must be
/// `#[inline(always)]`, or it is compiled for the baseline.
pub(crate) trait Kernel {
    /// What it returns.
    type Output;
    /// The body.
    fn run(self) -> Self::Output;
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,bmi1,bmi2,popcnt,lzcnt")]
fn with_avx2<K: Kernel>(kernel: K) -> K::Output {
    kernel.run()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx2,bmi1,bmi2,popcnt,lzcnt")]
fn with_avx512<K: Kernel>(kernel: K) -> K::Output {
    kernel.run()
}
