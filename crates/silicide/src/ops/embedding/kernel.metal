// embedding: one threadgroup a token; threads take units of its row.

#include "matrix.h"
#include "packet.h"

kernel void embedding(
    device const uint* ids [[buffer(0)]],
    device const uchar* codes [[buffer(1)]],
    device const uchar* scales [[buffer(2)]],
    device const uchar* biases [[buffer(3)]],
    device SCALAR* out [[buffer(4)]],
    constant Params& p [[buffer(5)]],
    uint token [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint threads [[threads_per_threadgroup]]) {
  Stored table = {codes, scales, biases, p.code_stride, p.columns, p.group_size};
  uint id = ids[token];
  out += ulong(token) * p.columns;
  if (id >= p.rows) {
    for (uint i = thread_index; i < p.columns; i += threads) {
      out[i] = SCALAR(0);
    }
    return;
  }
  Reader row = Reader::at(table, id);
  for (uint first = thread_index * UNIT; first < p.columns; first += threads * UNIT) {
    float4 elements[4];
    dequantize(row.load(first / UNIT), elements);
    if (WHOLE) {
      constexpr uint N = Wide<SCALAR>::COUNT;
      for (uint at = 0; at < UNIT; at += N) {
        Packet<SCALAR, N> packet = Packet<SCALAR, N>::zeros();
        for (uint i = 0; i < N; ++i) {
          packet.put(i, SCALAR(elements[(at + i) / 4][i % 4] * p.scale));
        }
        packet.store(out + first + at);
      }
    } else {
      for (uint i = 0; i < min(UNIT, p.columns - first); ++i) {
        out[first + i] = SCALAR(elements[i / 4][i % 4] * p.scale);
      }
    }
  }
}
