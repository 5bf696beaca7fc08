// layer_norm: a team of threads a row. The variance is taken about the mean, in a second pass over what the threads hold:
// the difference of two large sums would cancel. Rows of up to 64 KiB are read once.

#include "rows.h"

template <typename T, uint N>
inline void load_held(thread Packet<T, N> (&held)[HELD], device const T* row, uint start, uint span, uint dim) {
  for (uint v = 0; v < HELD; ++v) {
    held[v] = load_packet<N>(row, 1, start + v * span, dim);
  }
}

template <typename T, typename W>
kernel void layer_norm(
    device const T* x [[buffer(0)]],
    device const W* weight [[buffer(1)]],
    device const W* bias [[buffer(2)]],
    device T* out [[buffer(3)]],
    constant Params& p [[buffer(4)]],
    uint group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]]) {
  threadgroup float scratch[32];
  constexpr uint N = Wide<T>::COUNT;
  Team team(p.width, group, thread_index, simdgroups);
  // Lanes past the last row have nothing to read, but a part in the reductions.
  uint dim = team.row < p.rows ? p.dim : 0;
  x += ulong(team.row) * p.x_stride;
  out += ulong(team.row) * p.out_stride;
  uint first = team.index * N;
  uint span = team.width * N;
  bool again = p.dim > span * HELD;

  // What comes after the mean is asked for before it is known.
  Packet<T, N> held[HELD];
  Packet<W, N> weights[HELD];
  Packet<W, N> biases[HELD];
  float sum = 0;
  for (uint start = first; start < p.dim; start += span * HELD) {
    load_held(held, x, start, span, dim);
    for (uint v = 0; v < HELD; ++v) {
      for (uint i = 0; i < N; ++i) {
        sum += float(held[v].get(i));
      }
    }
  }
  load_held(weights, weight, first, span, p.has_weight ? dim : 0);
  load_held(biases, bias, first, span, p.has_bias ? dim : 0);
  float mean = team_reduce<Sum>(sum, team.width, scratch, lane, simdgroup, simdgroups) / float(p.dim);
  float squares = 0;
  for (uint start = first; start < dim; start += span * HELD) {
    for (uint v = 0; v < HELD; ++v) {
      uint at = start + v * span;
      if (again) {
        held[v] = load_packet<N>(x, 1, at, dim);
      }
      for (uint i = 0; i < N; ++i) {
        float value = float(held[v].get(i)) - mean;
        squares += at + i < dim ? value * value : 0.0f;
      }
    }
  }
  squares = team_reduce<Sum>(squares, team.width, scratch, lane, simdgroup, simdgroups);
  float scale = metal::precise::rsqrt(squares / float(p.dim) + p.eps);

  // Each thread reads again what it read before, so writing over the input in place is safe.
  for (uint start = first; start < dim; start += span * HELD) {
    if (start > first) {
      load_held(weights, weight, start, span, p.has_weight ? dim : 0);
      load_held(biases, bias, start, span, p.has_bias ? dim : 0);
    }
    for (uint v = 0; v < HELD; ++v) {
      uint at = start + v * span;
      if (again) {
        held[v] = load_packet<N>(x, 1, at, dim);
      }
      Packet<T, N> normal = Packet<T, N>::zeros();
      for (uint i = 0; i < N; ++i) {
        float by = p.has_weight ? float(weights[v].get(i)) : 1.0f;
        normal.put(i, T((float(held[v].get(i)) - mean) * scale * by + float(biases[v].get(i))));
      }
      store_packet(out, 1, at, dim, normal);
    }
  }
}

instantiate_kernel("layer_norm_f32_f32", layer_norm, float, float)
instantiate_kernel("layer_norm_f16_f16", layer_norm, half, half)
instantiate_kernel("layer_norm_f16_f32", layer_norm, half, float)
instantiate_kernel("layer_norm_bf16_bf16", layer_norm, bfloat, bfloat)
instantiate_kernel("layer_norm_bf16_f32", layer_norm, bfloat, float)
