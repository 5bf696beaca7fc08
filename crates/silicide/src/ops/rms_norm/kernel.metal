// rms_norm: one threadgroup a row, four elements a thread at a time. Reads the row twice (the second time from cache),
// writes it once.

#include "silicide.h"

// Elements first to first + 3 of a row; those past its end as zeros.
template <typename T>
inline float4 load_four(device const T* row, uint first, constant Params& p) {
  if (p.aligned) {
    return float4(*(device const vec<T, 4>*)(row + first));
  }
  float4 four = float4(0.0f);
  for (uint i = 0; i < min(4u, p.dim - first); ++i) {
    four[i] = float(row[first + i]);
  }
  return four;
}

template <typename T>
inline void store_four(device T* row, uint first, float4 four, constant Params& p) {
  if (p.aligned) {
    *(device vec<T, 4>*)(row + first) = vec<T, 4>(four);
    return;
  }
  for (uint i = 0; i < min(4u, p.dim - first); ++i) {
    row[first + i] = T(four[i]);
  }
}

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
  for (uint i = thread_index * 4; i < p.dim; i += threads * 4) {
    float4 value = load_four(x, i, p);
    if (p.has_residual) {
      value = float4(vec<T, 4>(value + load_four(residual, i, p)));
    }
    squares += dot(value, value);
  }
  squares = threadgroup_reduce<Sum>(squares, scratch, lane, simdgroup, simdgroups);
  float scale = metal::precise::rsqrt(squares / float(p.dim) + p.eps);

  // Each thread reads again what it read before, so writing over an input in place is safe.
  for (uint i = thread_index * 4; i < p.dim; i += threads * 4) {
    float4 value = load_four(x, i, p);
    if (p.has_residual) {
      value = float4(vec<T, 4>(value + load_four(residual, i, p)));
    }
    float4 w = p.has_weight ? load_four(weight, i, p) + p.weight_offset : float4(1.0f);
    if (p.has_sum) {
      store_four(sum, i, value, p);
    }
    store_four(out, i, value * scale * w, p);
  }
}

instantiate_kernel("rms_norm_f32_f32", rms_norm, float, float)
instantiate_kernel("rms_norm_f16_f16", rms_norm, half, half)
instantiate_kernel("rms_norm_f16_f32", rms_norm, half, float)
instantiate_kernel("rms_norm_bf16_bf16", rms_norm, bfloat, bfloat)
instantiate_kernel("rms_norm_bf16_f32", rms_norm, bfloat, float)
