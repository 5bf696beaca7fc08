// argmax: one threadgroup a row.

#include "silicide.h"
#include "order.h"
#include "walk.h"

template <typename T>
kernel void argmax(
    device const T* x [[buffer(0)]],
    device uint* out [[buffer(1)]],
    constant Params& p [[buffer(2)]],
    uint row [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint threads [[threads_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]]) {
  threadgroup uint scratch[32];
  x += walk_start(p.walk, 0, row);
  Best best = {0, 0xffffffffu};
  for (ulong i = thread_index; i < p.walk.len; i += threads) {
    uint key = order_key(float(x[i * p.walk.inner[0]]));
    if (key > best.key) {
      best.key = key;
      best.index = uint(i);
    }
  }
  best = threadgroup_best(best, scratch, lane, simdgroup, simdgroups);
  if (thread_index == 0) {
    out[row] = best.index;
  }
}

instantiate_floats("argmax", argmax)
