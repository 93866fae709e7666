//! Which instructions the processor has, found out once.

/// The instructions that kernels are compiled for, the best last. Other architectures have what their base has: on
/// aarch64 that is NEON.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Level {
    Base,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Level {
    #[cfg(target_arch = "x86_64")]
    #[inline]
    pub(super) fn best() -> Level {
        // The macros keep what they have found out, at the cost of one load. Both kernels are compiled for BMI as well.
        let avx2 = std::arch::is_x86_feature_detected!("avx2")
            && std::arch::is_x86_feature_detected!("bmi1")
            && std::arch::is_x86_feature_detected!("bmi2");
        if avx2
            && std::arch::is_x86_feature_detected!("avx512f")
            && std::arch::is_x86_feature_detected!("avx512bw")
            && std::arch::is_x86_feature_detected!("avx512dq")
            && std::arch::is_x86_feature_detected!("avx512vl")
        {
            Level::Avx512
        } else if avx2 && std::arch::is_x86_feature_detected!("f16c") {
            Level::Avx2
        } else {
            Level::Base
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    #[inline]
    pub(super) fn best() -> Level {
        Level::Base
    }

    /// All that this processor has.
    #[cfg(test)]
    pub(super) fn all() -> Vec<Level> {
        #[cfg(target_arch = "x86_64")]
        let levels = match Level::best() {
            Level::Avx512 => vec![Level::Base, Level::Avx2, Level::Avx512],
            Level::Avx2 => vec![Level::Base, Level::Avx2],
            Level::Base => vec![Level::Base],
        };
        #[cfg(not(target_arch = "x86_64"))]
        let levels = vec![Level::Base];
        levels
    }
}
