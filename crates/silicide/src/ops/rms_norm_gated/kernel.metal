// rms_norm_gated: one threadgroup a row. Reads the row twice (the second time from cache), the gate once.

#include "silicide.h"
#include "math.h"
#include "walk.h"

template <typename T, typename W>
kernel void rms_norm_gated(
    device const T* x [[buffer(0)]],
    device const T* gate [[buffer(1)]],
    device const W* weight [[buffer(2)]],
    device T* out [[buffer(3)]],
    constant Params& p [[buffer(4)]],
    uint row [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint threads [[threads_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]]) {
  threadgroup float scratch[32];
  x += walk_start(p.walk, 0, row);
  gate += walk_start(p.walk, 1, row);
  out += walk_start(p.walk, 2, row);

  float squares = 0;
  for (ulong i = thread_index; i < p.walk.len; i += threads) {
    float value = float(x[i * p.walk.inner[0]]);
    squares += value * value;
  }
  squares = threadgroup_reduce<Sum>(squares, scratch, lane, simdgroup, simdgroups);
  float scale = metal::precise::rsqrt(squares / float(p.walk.len) + p.eps);

  // Each thread reads again what it read before, so writing over an input in place is safe.
  for (ulong i = thread_index; i < p.walk.len; i += threads) {
    float value = float(x[i * p.walk.inner[0]]) * scale * float(weight[i]);
    out[i * p.walk.inner[2]] = T(value * silu(float(gate[i * p.walk.inner[1]])));
  }
}

instantiate_kernel("rms_norm_gated_f32_f32", rms_norm_gated, float, float)
instantiate_kernel("rms_norm_gated_f16_f16", rms_norm_gated, half, half)
instantiate_kernel("rms_norm_gated_f16_f32", rms_norm_gated, half, float)
instantiate_kernel("rms_norm_gated_bf16_bf16", rms_norm_gated, bfloat, bfloat)
instantiate_kernel("rms_norm_gated_bf16_f32", rms_norm_gated, bfloat, float)
