// cumsum: one threadgroup a chunk of a row, 4 elements a thread at a time. Long rows are taken in three launches: the
// totals of their chunks, the running sums of those, and the chunks on top of them.

#include "silicide.h"
#include "walk.h"

// Where element `i` of a row stands, counted from the end that sums start from.
inline ulong place(constant Params& p, ulong i) { return p.reverse ? p.walk.len - 1 - i : i; }

// A is the type of sums: float, or uint for integers, which wrap.
template <typename T, typename A>
kernel void cumsum(
    device const T* x [[buffer(0)]],
    device const A* carries [[buffer(1)]],
    device T* out [[buffer(2)]],
    constant Params& p [[buffer(3)]],
    uint group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint threads [[threads_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]]) {
  threadgroup A scratch[32];
  uint row = group / p.chunks;
  x += walk_start(p.walk, 0, row);
  out += walk_start(p.walk, 1, row);
  ulong start = ulong(group % p.chunks) * p.chunk;
  ulong end = min(start + p.chunk, p.walk.len);
  A carry = p.has_carries ? carries[group] : A(0);
  for (ulong tile = start; tile < end; tile += 4 * threads) {
    ulong first = tile + 4 * thread_index;
    // sums[j] is of the j elements before.
    A sums[5];
    sums[0] = A(0);
    for (uint j = 0; j < 4; ++j) {
      A element = first + j < end ? A(x[place(p, first + j) * p.walk.inner[0]]) : A(0);
      sums[j + 1] = sums[j] + element;
    }
    // Not the inclusive sum less its last: the difference of infinities is none.
    A before = simd_prefix_exclusive_sum(sums[4]);
    if (lane == 31) {
      scratch[simdgroup] = before + sums[4];
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    A offset = carry;
    for (uint i = 0; i < simdgroups; ++i) {
      offset = i == simdgroup ? carry : offset;
      carry += scratch[i];
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    before += offset;
    for (uint j = 0; j < 4; ++j) {
      if (first + j < end) {
        out[place(p, first + j) * p.walk.inner[1]] = T(before + sums[p.exclusive ? j : j + 1]);
      }
    }
  }
}

template <typename A>
struct Total {
  using type = A;
  static constant constexpr A identity = A(0);
  static A combine(A a, A b) { return a + b; }
  static A simd(A x) { return simd_sum(x); }
};

template <typename T, typename A>
kernel void cumsum_totals(
    device const T* x [[buffer(0)]],
    device A* totals [[buffer(1)]],
    constant Params& p [[buffer(2)]],
    uint group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint threads [[threads_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]]) {
  threadgroup A scratch[32];
  x += walk_start(p.walk, 0, group / p.chunks);
  ulong start = ulong(group % p.chunks) * p.chunk;
  ulong end = min(start + p.chunk, p.walk.len);
  A sum = A(0);
  for (ulong i = start + thread_index; i < end; i += threads) {
    sum += A(x[place(p, i) * p.walk.inner[0]]);
  }
  sum = threadgroup_reduce<Total<A>>(sum, scratch, lane, simdgroup, simdgroups);
  if (thread_index == 0) {
    totals[group] = sum;
  }
}

#define instantiate_cumsum(name, T, A)                       \
  instantiate_kernel("cumsum_" name, cumsum, T, A)           \
  instantiate_kernel("cumsum_totals_" name, cumsum_totals, T, A)

instantiate_cumsum("f32", float, float)
instantiate_cumsum("f16", half, float)
instantiate_cumsum("bf16", bfloat, float)
instantiate_cumsum("i32", int, uint)
instantiate_cumsum("u32", uint, uint)
