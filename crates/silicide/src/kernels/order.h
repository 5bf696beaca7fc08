// The order of floats as integers, the same on every device, and the best of a row.

// Orders as `x` does among floats: -0 is 0, and NaN is above everything. Never 0.
inline uint order_key(float x) {
  uint bits = as_type<uint>(x);
  uint magnitude = bits & 0x7fffffffu;
  if (magnitude == 0) {
    return 0x80000000u;
  }
  if (magnitude > 0x7f800000u) {
    return 0xffffffffu;
  }
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}

struct MaxKey {
  using type = uint;
  static constant constexpr uint identity = 0;
  static uint combine(uint a, uint b) { return max(a, b); }
  static uint simd(uint x) { return simd_max(x); }
};

struct MinIndex {
  using type = uint;
  static constant constexpr uint identity = 0xffffffffu;
  static uint combine(uint a, uint b) { return min(a, b); }
  static uint simd(uint x) { return simd_min(x); }
};

// An element by the key of its value and its place; of equals the first is best.
struct Best {
  uint key;
  uint index;
};

inline Best threadgroup_best(Best mine, threadgroup uint* scratch, uint lane, uint simdgroup, uint simdgroups) {
  Best best;
  best.key = threadgroup_reduce<MaxKey>(mine.key, scratch, lane, simdgroup, simdgroups);
  uint index = mine.key == best.key ? mine.index : 0xffffffffu;
  best.index = threadgroup_reduce<MinIndex>(index, scratch, lane, simdgroup, simdgroups);
  return best;
}
