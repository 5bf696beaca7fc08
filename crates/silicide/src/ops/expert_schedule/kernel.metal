// expert_schedule: one simdgroup an expert, and one for pairs of no expert. Each looks at all pairs, which come from cache,
// so that nothing is shared and the order is the same each time.
//
// An expert whose pairs begin at place s has its tiles from s / rows + expert on. The next one's begin no earlier than
// these end: from s to s + n, the quotient rises by at least n / rows rounded down, and the expert by one.

#include "silicide.h"

kernel void expert_schedule(
    device const uint* ids [[buffer(0)]],
    device uint* order [[buffer(1)]],
    device uint* tiles [[buffer(2)]],
    constant Params& p [[buffer(3)]],
    uint group [[threadgroup_position_in_grid]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]]) {
  uint expert = group * simdgroups + simdgroup;
  if (expert > p.experts) {
    return;
  }
  uint before = 0;
  uint count = 0;
  for (uint i = lane; i < p.pairs; i += 32) {
    uint id = min(ids[i], p.experts);
    before += id < expert ? 1 : 0;
    count += id == expert ? 1 : 0;
  }
  before = simd_sum(before);
  count = simd_sum(count);

  uint first_tile = before / p.rows + expert;
  uint end_tile = expert == p.experts ? p.tiles : (before + count) / p.rows + expert + 1;
  for (uint tile = first_tile + lane; tile < end_tile; tile += 32) {
    uint done = min((tile - first_tile) * p.rows, count);
    tiles[tile * 3] = expert;
    tiles[tile * 3 + 1] = before + done;
    tiles[tile * 3 + 2] = min(p.rows, count - done);
  }

  uint place = before;
  uint end = before + count;
  for (uint first = 0; place < end; first += 32) {
    uint i = first + lane;
    bool mine = i < p.pairs && min(ids[i], p.experts) == expert;
    uint all = uint(ulong(simd_ballot(mine)));
    if (mine) {
      order[place + popcount(all & ((1u << lane) - 1))] = i;
    }
    place += popcount(all);
  }
}
