// rms_norm: a team of threads a row. Rows of up to 64 KiB are read once.

#include "rows.h"

// Packets of x, or of the sum with the residual.
template <typename T, uint N>
inline void load_rows(
    thread Packet<T, N> (&held)[HELD],
    device const T* x,
    device const T* residual,
    uint start,
    uint span,
    uint dim,
    constant Params& p) {
  for (uint v = 0; v < HELD; ++v) {
    held[v] = load_packet<N>(x, 1, start + v * span, dim);
  }
  if (p.has_residual) {
    Packet<T, N> more[HELD];
    for (uint v = 0; v < HELD; ++v) {
      more[v] = load_packet<N>(residual, 1, start + v * span, dim);
    }
    for (uint v = 0; v < HELD; ++v) {
      Packet<T, N> total = Packet<T, N>::zeros();
      for (uint i = 0; i < N; ++i) {
        total.put(i, T(float(held[v].get(i)) + float(more[v].get(i))));
      }
      held[v] = total;
    }
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
  residual += ulong(team.row) * p.residual_stride;
  sum += ulong(team.row) * p.sum_stride;
  out += ulong(team.row) * p.out_stride;
  uint first = team.index * N;
  uint span = team.width * N;

  Packet<T, N> held[HELD];
  float squares = 0;
  for (uint start = first; start < p.dim; start += span * HELD) {
    load_rows(held, x, residual, start, span, dim, p);
    for (uint v = 0; v < HELD; ++v) {
      squares = add_squares(held[v], squares);
    }
  }
  squares = team_reduce<Sum>(squares, team.width, scratch, lane, simdgroup, simdgroups);
  float scale = metal::precise::rsqrt(squares / float(p.dim) + p.eps);

  // Each thread reads again what it read before, so writing over an input in place is safe.
  for (uint start = first; start < dim; start += span * HELD) {
    if (dim > span * HELD) {
      load_rows(held, x, residual, start, span, dim, p);
    }
    for (uint v = 0; v < HELD; ++v) {
      uint at = start + v * span;
      if (p.has_sum) {
        store_packet(sum, 1, at, dim, held[v]);
      }
      Packet<W, N> w = Packet<W, N>::zeros();
      if (p.has_weight) {
        w = load_packet<N>(weight, 1, at, dim);
      }
      Packet<T, N> normal = Packet<T, N>::zeros();
      for (uint i = 0; i < N; ++i) {
        float by = p.has_weight ? float(w.get(i)) + p.weight_offset : 1.0f;
        normal.put(i, T(float(held[v].get(i)) * scale * by));
      }
      store_packet(out, 1, at, dim, normal);
    }
  }
}

instantiate_kernel("rms_norm_f32_f32", rms_norm, float, float)
instantiate_kernel("rms_norm_f16_f16", rms_norm, half, half)
instantiate_kernel("rms_norm_f16_f32", rms_norm, half, float)
instantiate_kernel("rms_norm_bf16_bf16", rms_norm, bfloat, bfloat)
instantiate_kernel("rms_norm_bf16_f32", rms_norm, bfloat, float)
