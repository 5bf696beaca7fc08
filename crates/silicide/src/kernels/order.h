// The order of floats as integers, the same on every device, and the best of a row, which many threadgroups look for.

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

// The number that a key is of; 0 for both zeros.
inline float key_value(uint key) { return as_type<float>(key >> 31 ? key & 0x7fffffffu : ~key); }

// An element by the key of its value and its place, greater where it is better: of equals the first is. No two are the
// same, and none is 0.
inline ulong candidate(uint key, uint index) { return ulong(key) << 32 | ~index; }
inline uint candidate_key(ulong candidate) { return uint(candidate >> 32); }
inline uint candidate_index(ulong candidate) { return ~uint(candidate); }

// The best that a lane of the simdgroup has; 0 where none has any.
inline ulong simd_best(ulong mine) {
  uint key = simd_max(candidate_key(mine));
  bool best = candidate_key(mine) == key;
  uint lanes = uint(ulong(simd_ballot(best)));
  // Metal reduces 32 bits at most; most often there are no equals to choose from.
  uint place = uint(mine);
  if (popcount(lanes) == 1) {
    place = simd_shuffle(place, ctz(lanes));
  } else {
    place = simd_max(best ? place : 0);
  }
  return ulong(key) << 32 | place;
}

// The best that a thread has. `scratch` holds 32; ends with a barrier.
inline ulong threadgroup_best(
    ulong mine, threadgroup ulong* scratch, uint lane, uint simdgroup, uint simdgroups) {
  mine = simd_best(mine);
  if (lane == 0) {
    scratch[simdgroup] = mine;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  mine = simd_best(lane < simdgroups ? scratch[lane] : 0);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  return mine;
}

// Threads that take a part of a row, and elements that each takes at most; `ops/parts.rs` has the same.
constant constexpr uint part_threads = 256;
constant constexpr uint part_each = 8;

// What a thread takes of a part, as candidates, 0 beyond the row's end; all at once, so that no load waits for another.
template <typename T>
inline void load_part(
    device const T* x, ulong stride, ulong len, uint part, uint thread_index, uint threads,
    thread ulong (&mine)[part_each]) {
  ulong start = ulong(part) * (part_threads * part_each) + thread_index;
  for (uint j = 0; j < part_each; ++j) {
    ulong i = start + ulong(j) * threads;
    mine[j] = i < len ? candidate(order_key(float(x[i * stride])), uint(i)) : 0;
  }
}

inline ulong best_of(thread ulong (&mine)[part_each]) {
  ulong best[part_each / 2];
  for (uint j = 0; j < part_each / 2; ++j) {
    best[j] = max(mine[j], mine[j + part_each / 2]);
  }
  return max(max(best[0], best[1]), max(best[2], best[3]));
}
