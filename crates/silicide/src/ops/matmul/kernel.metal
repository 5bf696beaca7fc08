// matmul: a form for few rows of x, in which lanes share the columns, and one for many, in which tiles are shared through
// threadgroup memory. Sums are f32; a row of the result does not depend on the rows beside it.

#include "matrix.h"

constant constexpr uint ROWS = 4;        // of the weight, a simdgroup
constant constexpr uint SIMDGROUPS = 2;  // a threadgroup

// Lanes take every 32nd unit of ROWS rows of the weight; TOKENS rows of x share what is read.
template <uint TOKENS>
kernel void matmul_few(
    device const SCALAR* x [[buffer(0)]],
    device const uchar* codes [[buffer(1)]],
    device const uchar* scales [[buffer(2)]],
    device const uchar* biases [[buffer(3)]],
    device SCALAR* out [[buffer(4)]],
    constant Params& p [[buffer(5)]],
    uint2 group [[threadgroup_position_in_grid]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  Stored weight = {codes, scales, biases, p.code_stride, p.k, p.group_size};
  uint first_row = (group.x * SIMDGROUPS + simdgroup) * ROWS;
  uint first_token = group.y * TOKENS;
  if (first_row >= p.n) {
    return;
  }
  // What is past the last row is computed from the last row, and not stored.
  Reader rows[ROWS];
  for (uint r = 0; r < ROWS; ++r) {
    rows[r] = Reader::at(weight, min(first_row + r, p.n - 1));
  }
  device const SCALAR* tokens[TOKENS];
  float sums[TOKENS][ROWS];
  for (uint t = 0; t < TOKENS; ++t) {
    tokens[t] = x + ulong(min(first_token + t, p.m - 1)) * p.x_stride;
    for (uint r = 0; r < ROWS; ++r) {
      sums[t][r] = 0.0f;
    }
  }

  uint units = (p.k + UNIT - 1) / UNIT;
  for (uint unit = lane; unit < units; unit += 32) {
    float4 activations[TOKENS][4];
    float totals[TOKENS];
    for (uint t = 0; t < TOKENS; ++t) {
      float4 total = float4(0.0f);
      for (uint i = 0; i < 4; ++i) {
        activations[t][i] = load_four(tokens[t], unit * UNIT + i * 4, p.k, p.x_aligned);
        total += activations[t][i];
      }
      totals[t] = (total.x + total.y) + (total.z + total.w);
    }
    for (uint r = 0; r < ROWS; ++r) {
      Unit w = rows[r].load(unit);
      for (uint t = 0; t < TOKENS; ++t) {
        float4 dot = activations[t][0] * w.values[0];
        dot = fma(activations[t][1], w.values[1], dot);
        dot = fma(activations[t][2], w.values[2], dot);
        dot = fma(activations[t][3], w.values[3], dot);
        sums[t][r] = fma(w.scale, (dot.x + dot.y) + (dot.z + dot.w), sums[t][r]);
        if (Reader::HAS_MINIMUM) {
          sums[t][r] = fma(w.minimum, totals[t], sums[t][r]);
        }
      }
    }
  }

  for (uint t = 0; t < TOKENS; ++t) {
    for (uint r = 0; r < ROWS; ++r) {
      float sum = simd_sum(sums[t][r]);
      if (lane == 0 && first_token + t < p.m && first_row + r < p.n) {
        out[ulong(first_token + t) * p.out_stride + first_row + r] = SCALAR(sum);
      }
    }
  }
}

instantiate_kernel("matmul_one", matmul_few, 1)
instantiate_kernel("matmul_few", matmul_few, 4)
