// expert_schedule: a threadgroup an expert, and one for pairs of no expert. Each looks at all pairs, which come from cache,
// so that the order is the same each time; its simdgroups share them by stretches.
//
// An expert whose pairs begin at place s has its tiles from s / rows + expert on. The next one's begin no earlier than
// these end: from s to s + n, the quotient rises by at least n / rows rounded down, and the expert by one.

#include "silicide.h"

kernel void expert_schedule(
    device const uint* ids [[buffer(0)]],
    device uint* order [[buffer(1)]],
    device uint* tiles [[buffer(2)]],
    constant Params& p [[buffer(3)]],
    uint expert [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]]) {
  threadgroup uint counts[32];
  threadgroup uint befores[32];
  uint stretch = (p.pairs + simdgroups - 1) / simdgroups;
  uint first = min(simdgroup * stretch, p.pairs);
  uint last = min(first + stretch, p.pairs);
  uint before = 0;
  uint count = 0;
  for (uint i = first + lane; i < last; i += 32) {
    uint id = min(ids[i], p.experts);
    before += id < expert ? 1 : 0;
    count += id == expert ? 1 : 0;
  }
  before = simd_sum(before);
  count = simd_sum(count);
  if (lane == 0) {
    counts[simdgroup] = count;
    befores[simdgroup] = before;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  before = 0;
  count = 0;
  uint place = 0;
  for (uint s = 0; s < simdgroups; ++s) {
    place += s < simdgroup ? counts[s] : 0;
    count += counts[s];
    before += befores[s];
  }
  place += before;

  uint first_tile = before / p.rows + expert;
  uint end_tile = expert == p.experts ? p.tiles : (before + count) / p.rows + expert + 1;
  for (uint tile = first_tile + thread_index; tile < end_tile; tile += simdgroups * 32) {
    uint done = min((tile - first_tile) * p.rows, count);
    tiles[tile * 3] = expert;
    tiles[tile * 3 + 1] = before + done;
    tiles[tile * 3 + 2] = min(p.rows, count - done);
  }

  uint end = place + counts[simdgroup];
  for (; place < end; first += 32) {
    uint i = first + lane;
    bool mine = i < last && min(ids[i], p.experts) == expert;
    uint all = uint(ulong(simd_ballot(mine)));
    if (mine) {
      order[place + popcount(all & ((1u << lane) - 1))] = i;
    }
    place += popcount(all);
  }
}
