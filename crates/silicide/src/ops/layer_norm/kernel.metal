// layer_norm: one threadgroup a row. The variance is taken about the mean, for which the row is read again from cache:
// the difference of two large sums would cancel.

#include "silicide.h"

template <typename T, typename W>
kernel void layer_norm(
    device const T* x [[buffer(0)]],
    device const W* weight [[buffer(1)]],
    device const W* bias [[buffer(2)]],
    device T* out [[buffer(3)]],
    constant Params& p [[buffer(4)]],
    uint row [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint threads [[threads_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]]) {
  threadgroup float scratch[32];
  x += ulong(row) * p.x_stride;
  out += ulong(row) * p.out_stride;

  float sum = 0;
  for (uint i = thread_index; i < p.dim; i += threads) {
    sum += float(x[i]);
  }
  float mean = threadgroup_reduce<Sum>(sum, scratch, lane, simdgroup, simdgroups) / float(p.dim);
  float squares = 0;
  for (uint i = thread_index; i < p.dim; i += threads) {
    float value = float(x[i]) - mean;
    squares += value * value;
  }
  squares = threadgroup_reduce<Sum>(squares, scratch, lane, simdgroup, simdgroups);
  float scale = metal::precise::rsqrt(squares / float(p.dim) + p.eps);

  // Each thread reads again what it read before, so writing over the input in place is safe.
  for (uint i = thread_index; i < p.dim; i += threads) {
    float w = p.has_weight ? float(weight[i]) : 1.0f;
    float b = p.has_bias ? float(bias[i]) : 0.0f;
    out[i] = T((float(x[i]) - mean) * scale * w + b);
  }
}

instantiate_kernel("layer_norm_f32_f32", layer_norm, float, float)
instantiate_kernel("layer_norm_f16_f16", layer_norm, half, half)
instantiate_kernel("layer_norm_f16_f32", layer_norm, half, float)
instantiate_kernel("layer_norm_bf16_bf16", layer_norm, bfloat, bfloat)
instantiate_kernel("layer_norm_bf16_f32", layer_norm, bfloat, float)
