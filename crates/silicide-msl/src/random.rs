//! The numbers that shuffle schedules.

/// SplitMix64.
#[derive(Clone, Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// A number below `limit`, which is not 0.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(limit)) >> 64) as u64
    }
}

/// A permutation of `0..count`: each number once, in an order that the seed gives.
#[derive(Clone, Debug)]
pub(crate) struct Permutation {
    count: u64,
    stride: u64,
    offset: u64,
}

impl Permutation {
    pub(crate) fn new(count: u64, seed: Option<u64>) -> Self {
        let Some(seed) = seed.filter(|_| count > 1) else { return Permutation { count, stride: 1, offset: 0 } };
        let mut random = Random(seed);
        let coprime = |mut a: u64| {
            let mut b = count;
            while b > 0 {
                (a, b) = (b, a % b);
            }
            a == 1
        };
        // Numbers that are coprime to `count` are dense, so this ends soon.
        let stride = std::iter::repeat_with(|| 1 + random.below(count)).find(|&stride| coprime(stride)).unwrap_or(1);
        Permutation { count, stride, offset: random.below(count) }
    }

    pub(crate) fn at(&self, index: u64) -> u64 {
        let place = u128::from(index) * u128::from(self.stride) + u128::from(self.offset);
        (place % u128::from(self.count.max(1))) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_permutation_has_each_number_once() {
        for count in [1, 2, 3, 12, 97] {
            for seed in [None, Some(0), Some(1), Some(u64::MAX)] {
                let permutation = Permutation::new(count, seed);
                let mut seen: Vec<_> = (0..count).map(|i| permutation.at(i)).collect();
                seen.sort_unstable();
                assert_eq!(seen, (0..count).collect::<Vec<_>>());
            }
        }
    }
}
