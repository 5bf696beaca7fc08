// top_k: one threadgroup a row, one pass over the row for each of the k, looking for the best after the last.

#include "silicide.h"
#include "order.h"
#include "walk.h"

template <typename T>
kernel void top_k(
    device const T* x [[buffer(0)]],
    device T* values [[buffer(1)]],
    device uint* indices [[buffer(2)]],
    constant Params& p [[buffer(3)]],
    uint row [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint threads [[threads_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]]) {
  threadgroup uint scratch[32];
  x += walk_start(p.walk, 0, row);
  values += ulong(row) * p.k;
  indices += ulong(row) * p.k;
  Best last = {0xffffffffu, 0};
  for (uint j = 0; j < p.k; ++j) {
    Best best = {0, 0xffffffffu};
    for (ulong i = thread_index; i < p.walk.len; i += threads) {
      uint key = order_key(float(x[i * p.walk.inner[0]]));
      bool after = j == 0 || key < last.key || (key == last.key && i > last.index);
      if (after && key > best.key) {
        best.key = key;
        best.index = uint(i);
      }
    }
    last = threadgroup_best(best, scratch, lane, simdgroup, simdgroups);
    if (thread_index == 0) {
      values[j] = x[last.index * p.walk.inner[0]];
      indices[j] = last.index;
    }
  }
}

instantiate_floats("top_k", top_k)
