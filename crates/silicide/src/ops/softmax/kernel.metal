// softmax: one threadgroup a row. Each thread keeps the greatest score it has seen and the sum relative to it, so that
// the row is read twice, the second time from cache.

#include "silicide.h"
#include "walk.h"

template <typename T, typename M>
kernel void softmax(
    device const T* x [[buffer(0)]],
    device const M* mask [[buffer(1)]],
    device T* out [[buffer(2)]],
    constant Params& p [[buffer(3)]],
    uint row [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint threads [[threads_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]]) {
  threadgroup float scratch[32];
  x += walk_start(p.walk, 0, row);
  mask += walk_start(p.walk, 1, row);
  out += walk_start(p.walk, 2, row);

  float most = -INFINITY;
  float sum = 0;
  for (ulong i = thread_index; i < p.walk.len; i += threads) {
    float score = float(x[i * p.walk.inner[0]]) * p.scale;
    if (p.has_mask) {
      score += float(mask[i * p.walk.inner[1]]);
    }
    if (score > most) {
      sum *= metal::precise::exp(most - score);
      most = score;
    }
    // Leaves out the masked, for which the difference may be that of two infinities; keeps NaN.
    if (score != -INFINITY) {
      sum += metal::precise::exp(score - most);
    }
  }
  float row_most = threadgroup_reduce<Max>(most, scratch, lane, simdgroup, simdgroups);
  if (most != -INFINITY) {
    sum *= metal::precise::exp(most - row_most);
  }
  sum = threadgroup_reduce<Sum>(sum, scratch, lane, simdgroup, simdgroups);

  // A fully masked row has no sum and gives zeros; NaN stays.
  bool masked = sum == 0.0f;
  float factor = 1.0f / sum;
  for (ulong i = thread_index; i < p.walk.len; i += threads) {
    float score = float(x[i * p.walk.inner[0]]) * p.scale;
    if (p.has_mask) {
      score += float(mask[i * p.walk.inner[1]]);
    }
    out[i * p.walk.inner[2]] = T(masked ? 0.0f : metal::precise::exp(score - row_most) * factor);
  }
}

instantiate_kernel("softmax_f32_f32", softmax, float, float)
instantiate_kernel("softmax_f16_f16", softmax, half, half)
instantiate_kernel("softmax_f16_f32", softmax, half, float)
instantiate_kernel("softmax_bf16_bf16", softmax, bfloat, bfloat)
instantiate_kernel("softmax_bf16_f32", softmax, bfloat, float)
