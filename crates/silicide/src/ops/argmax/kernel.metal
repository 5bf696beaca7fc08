// argmax: one threadgroup a part of a row, and one more a row for the best of its parts.

#include "silicide.h"
#include "order.h"
#include "walk.h"

template <typename T>
kernel void argmax(
    device const T* x [[buffer(0)]],
    device ulong* bests [[buffer(1)]],
    device uint* out [[buffer(2)]],
    constant Params& p [[buffer(3)]],
    uint group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint threads [[threads_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]]) {
  threadgroup ulong scratch[32];
  x += walk_start(p.walk, 0, group / p.parts);
  ulong mine[part_each];
  load_part(x, p.walk.inner[0], p.walk.len, group % p.parts, thread_index, threads, mine);
  ulong best = threadgroup_best(best_of(mine), scratch, lane, simdgroup, simdgroups);
  if (thread_index == 0) {
    if (p.parts == 1) {
      out[group] = candidate_index(best);
    } else {
      bests[group] = best;
    }
  }
}

kernel void argmax_join(
    device const ulong* bests [[buffer(0)]],
    device uint* out [[buffer(1)]],
    constant Params& p [[buffer(2)]],
    uint row [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint threads [[threads_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]]) {
  threadgroup ulong scratch[32];
  bests += ulong(row) * p.parts;
  ulong best = 0;
  for (uint i = thread_index; i < p.parts; i += threads) {
    best = max(best, bests[i]);
  }
  best = threadgroup_best(best, scratch, lane, simdgroup, simdgroups);
  if (thread_index == 0) {
    out[row] = candidate_index(best);
  }
}

instantiate_floats("argmax", argmax)
