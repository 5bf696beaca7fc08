// rms_norm_gated: a team of threads a row. Rows of up to 64 KiB are read once.

#include "rows.h"
#include "math.h"
#include "walk.h"

template <typename T, typename W>
kernel void rms_norm_gated(
    device const T* x [[buffer(0)]],
    device const T* gate [[buffer(1)]],
    device const W* weight [[buffer(2)]],
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
  bool present = team.row < p.walk.rows;
  uint dim = uint(p.walk.len);
  uint len = present ? dim : 0;
  x += present ? walk_start(p.walk, 0, team.row) : 0;
  gate += present ? walk_start(p.walk, 1, team.row) : 0;
  out += present ? walk_start(p.walk, 2, team.row) : 0;
  uint first = team.index * N;
  uint span = team.width * N;

  Packet<T, N> held[HELD];
  Packet<T, N> gates[HELD];
  float squares = 0;
  for (uint start = first; start < dim; start += span * HELD) {
    for (uint v = 0; v < HELD; ++v) {
      held[v] = load_packet<N>(x, p.walk.inner[0], start + v * span, len);
      gates[v] = load_packet<N>(gate, p.walk.inner[1], start + v * span, len);
    }
    for (uint v = 0; v < HELD; ++v) {
      squares = add_squares(held[v], squares);
    }
  }
  squares = team_reduce<Sum>(squares, team.width, scratch, lane, simdgroup, simdgroups);
  float scale = metal::precise::rsqrt(squares / float(dim) + p.eps);

  // Each thread reads again what it read before, so writing over an input in place is safe.
  for (uint start = first; start < len; start += span * HELD) {
    for (uint v = 0; v < HELD; ++v) {
      uint at = start + v * span;
      if (dim > span * HELD) {
        held[v] = load_packet<N>(x, p.walk.inner[0], at, len);
        gates[v] = load_packet<N>(gate, p.walk.inner[1], at, len);
      }
      Packet<W, N> w = load_packet<N>(weight, 1, at, len);
      Packet<T, N> gated = Packet<T, N>::zeros();
      for (uint i = 0; i < N; ++i) {
        float value = float(held[v].get(i)) * scale * float(w.get(i));
        gated.put(i, T(value * silu(float(gates[v].get(i)))));
      }
      store_packet(out, p.walk.inner[2], at, len, gated);
    }
  }
}

instantiate_kernel("rms_norm_gated_f32_f32", rms_norm_gated, float, float)
instantiate_kernel("rms_norm_gated_f16_f16", rms_norm_gated, half, half)
instantiate_kernel("rms_norm_gated_f16_f32", rms_norm_gated, half, float)
instantiate_kernel("rms_norm_gated_bf16_bf16", rms_norm_gated, bfloat, bfloat)
instantiate_kernel("rms_norm_gated_bf16_f32", rms_norm_gated, bfloat, float)
