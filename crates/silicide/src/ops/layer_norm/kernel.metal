// layer_norm: a team of threads a row, of which each holds PACKETS; the host says in ONCE whether these are the row, and in AHEAD whether
// to ask for weights before the mean is known. The variance is taken about the mean, in a second pass over what the threads hold: the
// difference of two large sums would cancel.

#include "rows.h"

template <typename T, uint N>
inline void load_held(thread Packet<T, N> (&held)[PACKETS], device const T* row, uint start, uint span, uint dim) {
  for (uint v = 0; v < PACKETS; ++v) {
    held[v] = load_packet<N>(row, 1, start + v * span, dim);
  }
}

// What elements are multiplied by or what is added to them; `otherwise` where there is no such tensor.
template <typename W, uint N>
inline void load_factors(
    thread Packet<W, N> (&held)[PACKETS], device const W* factors, uint start, uint span, uint dim, bool has, float otherwise) {
  for (uint v = 0; v < PACKETS; ++v) {
    uint at = start + v * span;
    if (!has) {
      held[v] = Packet<W, N>::zeros();
      for (uint i = 0; i < N; ++i) {
        held[v].put(i, W(otherwise));
      }
    } else if (WHOLE) {
      // Past the end any will do.
      held[v] = Packet<W, N>::load(factors + min(at, dim - N));
    } else {
      held[v] = load_packet<N>(factors, 1, at, dim);
    }
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
  uint end = ONCE ? first + 1 : p.dim;

  Packet<T, N> held[PACKETS];
  Packet<W, N> weights[PACKETS];
  Packet<W, N> biases[PACKETS];
  float sum = 0;
  for (uint start = first; start < end; start += span * PACKETS) {
    load_held(held, x, start, span, dim);
    for (uint v = 0; v < PACKETS; ++v) {
      for (uint i = 0; i < N; ++i) {
        sum += float(held[v].get(i));
      }
    }
  }
  if (AHEAD) {
    load_factors(weights, weight, first, span, p.dim, p.has_weight, 1.0f);
    load_factors(biases, bias, first, span, p.dim, p.has_bias, 0.0f);
  }
  float mean = team_reduce<Sum>(sum, team.width, scratch, lane, simdgroup, simdgroups) / float(p.dim);
  float squares = 0;
  for (uint start = first; start < end; start += span * PACKETS) {
    if (!ONCE) {
      load_held(held, x, start, span, dim);
    }
    for (uint v = 0; v < PACKETS; ++v) {
      uint at = start + v * span;
      float of_packet = 0;
      for (uint i = 0; i < N; ++i) {
        float value = float(held[v].get(i)) - mean;
        of_packet += WHOLE || at + i < dim ? value * value : 0.0f;
      }
      squares += at < dim ? of_packet : 0.0f;
    }
  }
  squares = team_reduce<Sum>(squares, team.width, scratch, lane, simdgroup, simdgroups);
  float scale = metal::precise::rsqrt(squares / float(p.dim) + p.eps);

  // Each thread reads again what it read before, so writing over the input in place is safe.
  for (uint start = first; start < end; start += span * PACKETS) {
    if (!ONCE) {
      load_held(held, x, start, span, dim);
    }
    if (!ONCE || !AHEAD) {
      load_factors(weights, weight, start, span, p.dim, p.has_weight, 1.0f);
      load_factors(biases, bias, start, span, p.dim, p.has_bias, 0.0f);
    }
    for (uint v = 0; v < PACKETS; ++v) {
      Packet<T, N> normal = Packet<T, N>::zeros();
      for (uint i = 0; i < N; ++i) {
        normal.put(i, T((float(held[v].get(i)) - mean) * scale * float(weights[v].get(i)) + float(biases[v].get(i))));
      }
      store_packet(out, 1, start + v * span, dim, normal);
    }
  }
}

instantiate_kernel("layer_norm_f32_f32", layer_norm, float, float)
instantiate_kernel("layer_norm_f16_f16", layer_norm, half, half)
instantiate_kernel("layer_norm_f16_f32", layer_norm, half, float)
instantiate_kernel("layer_norm_bf16_bf16", layer_norm, bfloat, bfloat)
instantiate_kernel("layer_norm_bf16_f32", layer_norm, bfloat, float)
