//! Which instructions this machine has.

use std::fmt;

/// The instruction set that kernels are chosen by. A value is only ever one that this machine can run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Features(Level);

/// A set of instructions for which there are kernels of their own. Within an architecture a later level contains the earlier ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Level {
    /// What the compiler makes of portable code.
    Portable,
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, VL and DQ, with VNNI.
    Avx512,
    /// And AVX512-BF16.
    Avx512Bf16,
    /// And AMX tiles of bf16.
    Amx,
    /// NEON, as every AArch64 has it.
    Neon,
    /// And the dot product of unsigned with signed bytes (I8MM).
    NeonI8mm,
}

impl Features {
    /// The best level that this machine and its operating system offer.
    pub fn detect() -> Features {
        *Features::all().last().expect("there is always the portable level")
    }

    /// Every level this machine can run, ascending: for tests and comparisons.
    pub fn all() -> &'static [Features] {
        static ALL: std::sync::OnceLock<Vec<Features>> = std::sync::OnceLock::new();
        ALL.get_or_init(|| std::iter::once(Level::Portable).chain(arch::levels()).map(Features).collect())
    }

    /// The level.
    pub fn level(self) -> Level {
        self.0
    }
}

impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Level::Portable => "portable",
            Level::Avx2 => "AVX2",
            Level::Avx512 => "AVX-512 VNNI",
            Level::Avx512Bf16 => "AVX-512 VNNI BF16",
            Level::Amx => "AVX-512 VNNI BF16, AMX BF16",
            Level::Neon => "NEON",
            Level::NeonI8mm => "NEON I8MM",
        })
    }
}

#[cfg(target_arch = "x86_64")]
mod arch {
    use super::Level;

    pub(super) fn levels() -> Vec<Level> {
        let avx2 =
            is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
        let avx512 = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vnni");
        let bf16 = is_x86_feature_detected!("avx512bf16");
        let chain =
            [(Level::Avx2, avx2), (Level::Avx512, avx512), (Level::Avx512Bf16, bf16), (Level::Amx, bf16 && amx())];
        chain.into_iter().take_while(|&(_, there)| there).map(|(level, _)| level).collect()
    }

    /// Whether there are AMX tiles of bf16 and the operating system lets this process use them.
    ///
    /// The standard library's detection is not stable yet.
    fn amx() -> bool {
        use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
        const AMX_BF16: u32 = 1 << 22;
        const AMX_TILE: u32 = 1 << 24;
        const TILE_STATE: u64 = 0b11 << 17;

        #[target_feature(enable = "xsave")]
        fn enabled_state() -> u64 {
            // SAFETY: callers have seen that the system enabled XSAVE.
            unsafe { _xgetbv(0) }
        }

        if __cpuid(0).eax < 7 || !is_x86_feature_detected!("xsave") {
            return false;
        }
        let there = __cpuid_count(7, 0).edx;
        // SAFETY: XSAVE was detected above.
        let state = unsafe { enabled_state() };
        there & AMX_BF16 != 0 && there & AMX_TILE != 0 && state & TILE_STATE == TILE_STATE && permission()
    }

    /// Asks Linux for the tiles' state, which it gives a process only on request.
    #[cfg(target_os = "linux")]
    fn permission() -> bool {
        const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
        const XFEATURE_XTILEDATA: libc::c_long = 18;
        // SAFETY: this request takes a number and touches no memory of ours.
        unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
    }

    #[cfg(not(target_os = "linux"))]
    fn permission() -> bool {
        false
    }
}

#[cfg(target_arch = "aarch64")]
mod arch {
    use super::Level;

    pub(super) fn levels() -> Vec<Level> {
        let chain = [
            (Level::Neon, std::arch::is_aarch64_feature_detected!("neon")),
            (Level::NeonI8mm, std::arch::is_aarch64_feature_detected!("i8mm")),
        ];
        chain.into_iter().take_while(|&(_, there)| there).map(|(level, _)| level).collect()
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
mod arch {
    pub(super) fn levels() -> Vec<super::Level> {
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_ascend_from_portable() {
        let all = Features::all();
        assert_eq!(all[0].level(), Level::Portable);
        assert!(all.is_sorted_by(|a, b| a.level() < b.level()));
        assert_eq!(Features::detect(), all[all.len() - 1]);
    }
}
