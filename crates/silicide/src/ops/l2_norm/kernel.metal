// l2_norm: one threadgroup a row. Reads the row twice (the second time from cache), writes it once.

#include "silicide.h"
#include "walk.h"

template <typename T>
kernel void l2_norm(
    device const T* x [[buffer(0)]],
    device T* out [[buffer(1)]],
    constant Params& p [[buffer(2)]],
    uint row [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint threads [[threads_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]]) {
  threadgroup float scratch[32];
  x += walk_start(p.walk, 0, row);
  out += walk_start(p.walk, 1, row);

  float squares = 0;
  for (ulong i = thread_index; i < p.walk.len; i += threads) {
    float value = float(x[i * p.walk.inner[0]]);
    squares += value * value;
  }
  squares = threadgroup_reduce<Sum>(squares, scratch, lane, simdgroup, simdgroups);
  float scale = metal::precise::rsqrt(squares + p.eps);

  // Each thread reads again what it read before, so writing over the input in place is safe.
  for (ulong i = thread_index; i < p.walk.len; i += threads) {
    out[i * p.walk.inner[1]] = T(float(x[i * p.walk.inner[0]]) * scale);
  }
}

instantiate_floats("l2_norm", l2_norm)
