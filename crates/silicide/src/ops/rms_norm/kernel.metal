// rms_norm: one threadgroup a row. Reads the row twice (the second time from cache), writes it once.

#include "silicide.h"

template <typename T, typename W>
kernel void rms_norm(
    device const T* x [[buffer(0)]],
    device const W* weight [[buffer(1)]],
    device const T* residual [[buffer(2)]],
    device T* sum [[buffer(3)]],
    device T* out [[buffer(4)]],
    constant Params& p [[buffer(5)]],
    uint row [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint threads [[threads_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]]) {
  threadgroup float scratch[32];
  x += ulong(row) * p.x_stride;
  residual += ulong(row) * p.residual_stride;
  sum += ulong(row) * p.sum_stride;
  out += ulong(row) * p.out_stride;

  float squares = 0;
  for (uint i = thread_index; i < p.dim; i += threads) {
    float value = float(x[i]);
    if (p.has_residual) {
      value = float(T(value + float(residual[i])));
    }
    squares += value * value;
  }
  squares = threadgroup_reduce<Sum>(squares, scratch, lane, simdgroup, simdgroups);
  float scale = metal::precise::rsqrt(squares / float(p.dim) + p.eps);

  // Each thread reads again what it read before, so writing over an input in place is safe.
  for (uint i = thread_index; i < p.dim; i += threads) {
    float value = float(x[i]);
    if (p.has_residual) {
      value = float(T(value + float(residual[i])));
    }
    float w = p.has_weight ? float(weight[i]) + p.weight_offset : 1.0f;
    if (p.has_sum) {
      sum[i] = T(value);
    }
    out[i] = T(value * scale * w);
  }
}

instantiate_kernel("rms_norm_f32_f32", rms_norm, float, float)
instantiate_kernel("rms_norm_f16_f16", rms_norm, half, half)
instantiate_kernel("rms_norm_f16_f32", rms_norm, half, float)
instantiate_kernel("rms_norm_bf16_bf16", rms_norm, bfloat, bfloat)
instantiate_kernel("rms_norm_bf16_f32", rms_norm, bfloat, float)
