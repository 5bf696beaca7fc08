// l2_norm: a team of threads a row. Rows of up to 64 KiB are read once.

#include "rows.h"
#include "walk.h"

template <typename T>
kernel void l2_norm(
    device const T* x [[buffer(0)]],
    device T* out [[buffer(1)]],
    constant Params& p [[buffer(2)]],
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
  out += present ? walk_start(p.walk, 1, team.row) : 0;
  uint first = team.index * N;
  uint span = team.width * N;

  Packet<T, N> held[HELD];
  float squares = 0;
  for (uint start = first; start < dim; start += span * HELD) {
    for (uint v = 0; v < HELD; ++v) {
      held[v] = load_packet<N>(x, p.walk.inner[0], start + v * span, len);
    }
    for (uint v = 0; v < HELD; ++v) {
      squares = add_squares(held[v], squares);
    }
  }
  squares = team_reduce<Sum>(squares, team.width, scratch, lane, simdgroup, simdgroups);
  float scale = metal::precise::rsqrt(squares + p.eps);

  // Each thread reads again what it read before, so writing over the input in place is safe.
  for (uint start = first; start < len; start += span * HELD) {
    for (uint v = 0; v < HELD; ++v) {
      uint at = start + v * span;
      if (dim > span * HELD) {
        held[v] = load_packet<N>(x, p.walk.inner[0], at, len);
      }
      Packet<T, N> unit = Packet<T, N>::zeros();
      for (uint i = 0; i < N; ++i) {
        unit.put(i, T(float(held[v].get(i)) * scale));
      }
      store_packet(out, p.walk.inner[1], at, len, unit);
    }
  }
}

instantiate_floats("l2_norm", l2_norm)
