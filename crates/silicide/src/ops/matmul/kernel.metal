// matmul: a form for few rows of x, in which lanes share the columns, and one for many, in which tiles are shared through
// threadgroup memory. Sums are f32; a row of the result does not depend on the rows beside it.

#include "matrix.h"

constant constexpr uint ROWS = 2;        // of the weight, a simdgroup
constant constexpr uint SIMDGROUPS = 8;  // a threadgroup

// Adds the products of one unit of ROWS rows of the weight with TOKENS rows of x.
template <uint TOKENS>
inline void add_unit(
    uint unit,
    uint columns,
    thread const Reader (&rows)[ROWS],
    device const SCALAR* thread (&tokens)[TOKENS],
    thread float (&sums)[TOKENS][ROWS]) {
  float4 activations[TOKENS][4];
  float totals[TOKENS];
  for (uint t = 0; t < TOKENS; ++t) {
    float4 total = float4(0.0f);
    for (uint i = 0; i < 4; ++i) {
      activations[t][i] = load_four(tokens[t], unit * UNIT + i * 4, columns);
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

// ROWS rows of the weight are computed by `p.splits` simdgroups, whose lanes take every so manieth unit; TOKENS rows of x
// share what is read.
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
  threadgroup float partial[SIMDGROUPS][TOKENS][ROWS];
  Stored weight = {codes, scales, biases, p.code_stride, p.k, p.group_size};
  uint split = simdgroup % p.splits;
  uint first_row = (group.x * (SIMDGROUPS / p.splits) + simdgroup / p.splits) * ROWS;
  uint first_token = group.y * TOKENS;
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

  // Two at once, so that more is under way.
  uint units = (p.k + UNIT - 1) / UNIT;
  uint step = 32 * p.splits;
  uint unit = split * 32 + lane;
  for (; unit + step < units; unit += 2 * step) {
    add_unit(unit, p.k, rows, tokens, sums);
    add_unit(unit + step, p.k, rows, tokens, sums);
  }
  if (unit < units) {
    add_unit(unit, p.k, rows, tokens, sums);
  }

  for (uint t = 0; t < TOKENS; ++t) {
    for (uint r = 0; r < ROWS; ++r) {
      float sum = simd_sum(sums[t][r]);
      if (lane == 0) {
        partial[simdgroup][t][r] = sum;
      }
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (split == 0 && lane < TOKENS * ROWS) {
    uint t = lane / ROWS;
    uint r = lane % ROWS;
    float sum = 0.0f;
    for (uint s = 0; s < p.splits; ++s) {
      sum += partial[simdgroup + s][t][r];
    }
    if (first_token + t < p.m && first_row + r < p.n) {
      out[ulong(first_token + t) * p.out_stride + first_row + r] = SCALAR(sum);
    }
  }
}

instantiate_kernel("matmul_one", matmul_few, 1)
instantiate_kernel("matmul_few", matmul_few, 4)

constant constexpr uint TILE_M = 32;  // rows of x, a threadgroup
constant constexpr uint TILE_N = 64;  // rows of the weight
constant constexpr uint TILE_K = 2 * UNIT;
constant constexpr uint STRIDE = TILE_K + 4;  // of a staged row; the gap keeps rows in different banks

// Four simdgroups compute a tile of the result, 16 by 32 each. Tiles of x and of the dequantised weight are staged as
// floats, so that nothing is rounded further than x itself.
kernel void matmul_tiled(
    device const SCALAR* x [[buffer(0)]],
    device const uchar* codes [[buffer(1)]],
    device const uchar* scales [[buffer(2)]],
    device const uchar* biases [[buffer(3)]],
    device SCALAR* out [[buffer(4)]],
    constant Params& p [[buffer(5)]],
    uint2 group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  // The rows of x, then those of the weight; in the end the tile of the result.
  threadgroup float staged[(TILE_M + TILE_N) * STRIDE];
  static_assert(TILE_M * TILE_N <= (TILE_M + TILE_N) * STRIDE, "the result fits where the tiles were");
  threadgroup float* staged_x = staged;
  threadgroup float* staged_w = staged + TILE_M * STRIDE;

  Stored weight = {codes, scales, biases, p.code_stride, p.k, p.group_size};
  uint first_token = group.y * TILE_M;
  uint first_row = group.x * TILE_N;

  // A thread stages eight elements of a row of x and one unit of a row of the weight, at the same place in each tile.
  uint x_row = thread_index / 4;
  uint x_column = thread_index % 4 * 8;
  uint w_row = thread_index / 2;
  uint w_unit = thread_index % 2;
  // What is past the last row is computed from the last row, and not stored.
  device const SCALAR* x_from = x + ulong(min(first_token + x_row, p.m - 1)) * p.x_stride;
  Reader w_from = Reader::at(weight, min(first_row + w_row, p.n - 1));
  threadgroup float4* x_to = (threadgroup float4*)(staged_x + x_row * STRIDE + x_column);
  threadgroup float4* w_to = (threadgroup float4*)(staged_w + w_row * STRIDE + w_unit * UNIT);

  uint m = simdgroup / 2 * 16;
  uint n = simdgroup % 2 * 32;
  simdgroup_float8x8 sums[2][4];
  for (uint i = 0; i < 2; ++i) {
    for (uint j = 0; j < 4; ++j) {
      sums[i][j] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
    }
  }

  for (uint k = 0; k < p.k; k += TILE_K) {
    for (uint i = 0; i < 2; ++i) {
      x_to[i] = load_four(x_from, k + x_column + i * 4, p.k);
    }
    float4 elements[4] = {float4(0.0f), float4(0.0f), float4(0.0f), float4(0.0f)};
    if (k + w_unit * UNIT < p.k) {
      dequantize(w_from.load(k / UNIT + w_unit), elements);
    }
    for (uint i = 0; i < 4; ++i) {
      w_to[i] = elements[i];
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint step = 0; step < TILE_K; step += 8) {
      simdgroup_float8x8 a[2];
      simdgroup_float8x8 b[4];
      for (uint i = 0; i < 2; ++i) {
        simdgroup_load(a[i], staged_x + (m + 8 * i) * STRIDE + step, STRIDE);
      }
      for (uint j = 0; j < 4; ++j) {
        simdgroup_load(b[j], staged_w + (n + 8 * j) * STRIDE + step, STRIDE, ulong2(0, 0), true);
      }
      for (uint i = 0; i < 2; ++i) {
        for (uint j = 0; j < 4; ++j) {
          simdgroup_multiply_accumulate(sums[i][j], a[i], b[j], sums[i][j]);
        }
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }

  // Through threadgroup memory, as the edge of the result need not be one of an 8x8 matrix.
  for (uint i = 0; i < 2; ++i) {
    for (uint j = 0; j < 4; ++j) {
      simdgroup_store(sums[i][j], staged + (m + 8 * i) * TILE_N + n + 8 * j, TILE_N);
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  uint rows = min(TILE_M, p.m - first_token);
  uint columns = min(TILE_N, p.n - first_row);
  for (uint i = thread_index; i < rows * TILE_N; i += 128) {
    uint row = i / TILE_N;
    uint column = i % TILE_N;
    if (column < columns) {
      out[ulong(first_token + row) * p.out_stride + first_row + column] = SCALAR(staged[i]);
    }
  }
}
