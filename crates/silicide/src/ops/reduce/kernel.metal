// reduce: one threadgroup a row or a chunk of one; of short rows, one simdgroup a row. The host says which FUNCTION, and in
// WHOLE that rows are whole packets, which lie aligned.

#include "silicide.h"
#include "packet.h"
#include "walk.h"

// The type whose arithmetic wraps.
template <typename A>
struct Wrapping {
  using type = A;
};
template <>
struct Wrapping<int> {
  using type = uint;
};

template <typename A>
inline A combine(Reduce op, A a, A b) {
  using W = typename Wrapping<A>::type;
  switch (op) {
    // Where the first is NaN the comparison is false, where the second is the choice is it.
    case Reduce::Max: return a > b || a != a ? a : b;
    case Reduce::Min: return a < b || a != a ? a : b;
    case Reduce::Prod: return A(W(a) * W(b));
    default: return A(W(a) + W(b));
  }
}

inline float least(float) { return -INFINITY; }
inline int least(int) { return metal::numeric_limits<int>::min(); }
inline uint least(uint) { return 0; }
inline float greatest(float) { return INFINITY; }
inline int greatest(int) { return metal::numeric_limits<int>::max(); }
inline uint greatest(uint) { return 0xffffffffu; }

// What changes nothing.
template <typename A>
inline A identity(Reduce op) {
  switch (op) {
    case Reduce::Max: return least(A(0));
    case Reduce::Min: return greatest(A(0));
    case Reduce::Prod: return A(1);
    default: return A(0);
  }
}

// Over a simdgroup, for all of its threads: the library's own extremes may drop a NaN.
template <typename A>
inline A simd_combine(Reduce op, A x) {
  for (ushort mask = 16; mask > 0; mask /= 2) {
    x = combine(op, x, simd_shuffle_xor(x, mask));
  }
  return x;
}

inline float finished(constant Params& p, float x) { return Reduce::FUNCTION == Reduce::Mean ? x / p.count : x; }
inline int finished(constant Params&, int x) { return x; }
inline uint finished(constant Params&, uint x) { return x; }

// Packets that a thread has on their way at a time.
constant constexpr uint LOADS = 4;

// A is float for floats, in which they are accumulated.
template <typename T, typename O, typename A>
kernel void reduce(
    device const T* x [[buffer(0)]],
    device O* out [[buffer(1)]],
    constant Params& p [[buffer(2)]],
    uint group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint threads [[threads_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]]) {
  threadgroup A scratch[32];
  constexpr uint N = WHOLE ? Wide<T>::COUNT : 1;
  constexpr Reduce op = Reduce::FUNCTION;
  // Which result this is; past the last there is nothing to read.
  uint result = p.narrow ? group * simdgroups + simdgroup : group;
  uint row = result / p.chunks;
  bool here = row < p.walk.rows;
  ulong start = ulong(result % p.chunks) * p.chunk;
  ulong end = here ? min(start + p.chunk, p.walk.len) : 0;
  x += here ? walk_start(p.walk, 0, row) : 0;
  ulong step = (p.narrow ? 32 : threads) * N;
  A all = identity<A>(op);
  for (ulong i = start + (p.narrow ? lane : thread_index) * N; i < end; i += step * LOADS) {
    Packet<T, N> in[LOADS];
    for (uint v = 0; v < LOADS; ++v) {
      if (i + v * step < end) {
        in[v] = Packet<T, N>::load(x + (i + v * step) * p.walk.inner[0]);
      }
    }
    for (uint v = 0; v < LOADS; ++v) {
      if (i + v * step < end) {
        for (uint j = 0; j < N; ++j) {
          all = combine(op, all, A(in[v].get(j)));
        }
      }
    }
  }
  all = simd_combine(op, all);
  if (!p.narrow) {
    if (lane == 0) {
      scratch[simdgroup] = all;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    all = identity<A>(op);
    for (uint i = 0; i < simdgroups; ++i) {
      all = combine(op, all, scratch[i]);
    }
  }
  if (here && (p.narrow ? lane : thread_index) == 0) {
    out[result] = O(finished(p, all));
  }
}

instantiate_kernel("reduce_f32_f32", reduce, float, float, float)
instantiate_kernel("reduce_f32_f16", reduce, float, half, float)
instantiate_kernel("reduce_f32_bf16", reduce, float, bfloat, float)
instantiate_kernel("reduce_f16_f32", reduce, half, float, float)
instantiate_kernel("reduce_f16_f16", reduce, half, half, float)
instantiate_kernel("reduce_bf16_f32", reduce, bfloat, float, float)
instantiate_kernel("reduce_bf16_bf16", reduce, bfloat, bfloat, float)
instantiate_kernel("reduce_i32_i32", reduce, int, int, int)
instantiate_kernel("reduce_u32_u32", reduce, uint, uint, uint)
