// Products of rows of x with rows of a stored matrix, for kernels that differ in which rows these are: a form for few rows
// of x, in which lanes share the columns, and one for many, in which tiles are shared through threadgroup memory. Sums are
// f32; a row of the result does not depend on the rows beside it.
//
// Operands say where row i of x is, `x_row(i)`, and take the EACH neighbouring sums that make an element of the result,
// `store(i, column, sums)`. The weight is Stored, or InTurn for two sums an element.

#include "matrix.h"

// Operands whose rows stand one stride apart.
struct PlainRows {
  static constant constexpr uint EACH = 1;

  device const SCALAR* x;
  device SCALAR* out;
  ulong x_stride;
  ulong out_stride;

  device const SCALAR* x_row(uint i) const { return x + i * x_stride; }
  void store(uint i, uint column, thread const float* sums) const { out[i * out_stride + column] = SCALAR(sums[0]); }
};

// Rows `first` to `first + count - 1` of x.
struct Tokens {
  uint first;
  uint count;
};

// Rows `base` to `base + count - 1` of the weight, of which the columns of the result are the sums.
struct Features {
  uint base;
  uint count;
};

constant constexpr uint ROWS = 2;        // of the weight, a simdgroup
constant constexpr uint SIMDGROUPS = 8;  // a threadgroup of the form for few rows

// Adds the products of one unit of ROWS rows of the weight with TOKENS rows of x.
template <uint TOKENS>
inline void add_unit(
    uint unit,
    uint columns,
    thread const Reader (&rows)[ROWS],
    device const SCALAR* thread (&x)[TOKENS],
    thread float (&sums)[TOKENS][ROWS]) {
  float4 activations[TOKENS][4];
  float totals[TOKENS];
  for (uint t = 0; t < TOKENS; ++t) {
    float4 total = float4(0.0f);
    for (uint i = 0; i < 4; ++i) {
      activations[t][i] = load_four(x[t], unit * UNIT + i * 4, columns);
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

// `splits` neighbouring simdgroups compute ROWS rows of the weight, from `first_row` on: their lanes take every so manieth
// unit, and `partial`, SIMDGROUPS * TOKENS * ROWS floats, joins them. TOKENS rows of x share what is read. All simdgroups of
// a threadgroup come here.
template <uint TOKENS, typename Operands, typename Weight>
inline void product_few(
    Operands operands,
    Weight weight,
    Tokens tokens,
    Features features,
    uint first_row,
    uint splits,
    threadgroup float* partial,
    uint lane,
    uint simdgroup) {
  // What is past the last row is computed from the last row, and not stored.
  Reader rows[ROWS];
  for (uint r = 0; r < ROWS; ++r) {
    rows[r] = reader_of(weight, features.base + min(first_row + r, features.count - 1));
  }
  device const SCALAR* x[TOKENS];
  float sums[TOKENS][ROWS];
  for (uint t = 0; t < TOKENS; ++t) {
    x[t] = operands.x_row(tokens.first + min(t, tokens.count - 1));
    for (uint r = 0; r < ROWS; ++r) {
      sums[t][r] = 0.0f;
    }
  }

  // Two at once, so that more is under way.
  uint units = (weight.columns + UNIT - 1) / UNIT;
  uint step = 32 * splits;
  uint unit = simdgroup % splits * 32 + lane;
  for (; unit + step < units; unit += 2 * step) {
    add_unit(unit, weight.columns, rows, x, sums);
    add_unit(unit + step, weight.columns, rows, x, sums);
  }
  if (unit < units) {
    add_unit(unit, weight.columns, rows, x, sums);
  }

  for (uint t = 0; t < TOKENS; ++t) {
    for (uint r = 0; r < ROWS; ++r) {
      float sum = simd_sum(sums[t][r]);
      if (lane == 0) {
        partial[(simdgroup * TOKENS + t) * ROWS + r] = sum;
      }
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  uint t = lane / ROWS;
  uint r = lane % ROWS;
  constexpr uint EACH = Operands::EACH;
  bool first = r % EACH == 0;  // of an element's
  if (simdgroup % splits == 0 && t < tokens.count && t < TOKENS && first && first_row + r < features.count) {
    float joined[EACH];
    for (uint i = 0; i < EACH; ++i) {
      joined[i] = 0.0f;
      for (uint s = simdgroup; s < simdgroup + splits; ++s) {
        joined[i] += partial[s * TOKENS * ROWS + lane + i];
      }
    }
    operands.store(tokens.first + t, (first_row + r) / EACH, joined);
  }
}

constant constexpr uint TILE_M = 32;  // rows of x, a threadgroup
constant constexpr uint TILE_N = 64;  // rows of the weight
constant constexpr uint TILE_K = 2 * UNIT;
constant constexpr uint STRIDE = TILE_K + 4;  // of a staged row; the gap keeps rows in different banks
constant constexpr uint STAGED = (TILE_M + TILE_N) * STRIDE;
static_assert(TILE_M * TILE_N <= STAGED, "the result fits where the tiles were");

// Four simdgroups compute a tile of the result, 16 by 32 each. Tiles of x and of the dequantised weight are staged as
// floats, so that nothing is rounded further than x itself. `staged` holds STAGED floats: the rows of x, then those of the
// weight; in the end the tile of the result. The rows of x are TILE_M at most.
template <typename Operands, typename Weight>
inline void product_tiled(
    Operands operands,
    Weight weight,
    Tokens tokens,
    Features features,
    uint first_row,
    threadgroup float* staged,
    uint thread_index,
    uint simdgroup) {
  threadgroup float* staged_x = staged;
  threadgroup float* staged_w = staged + TILE_M * STRIDE;

  // A thread stages eight elements of a row of x and one unit of a row of the weight, at the same place in each tile.
  uint x_row = thread_index / 4;
  uint x_column = thread_index % 4 * 8;
  uint w_row = thread_index / 2;
  uint w_unit = thread_index % 2;
  // What is past the last row is computed from the last row, and not stored.
  device const SCALAR* x_from = operands.x_row(tokens.first + min(x_row, tokens.count - 1));
  Reader w_from = reader_of(weight, features.base + min(first_row + w_row, features.count - 1));
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

  for (uint k = 0; k < weight.columns; k += TILE_K) {
    // A row that is whole units may end within a tile.
    bool inside = k + x_column < weight.columns;
    for (uint i = 0; i < 2; ++i) {
      x_to[i] = inside ? load_four(x_from, k + x_column + i * 4, weight.columns) : float4(0.0f);
    }
    float4 elements[4] = {float4(0.0f), float4(0.0f), float4(0.0f), float4(0.0f)};
    if (k + w_unit * UNIT < weight.columns) {
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
  constexpr uint EACH = Operands::EACH;
  for (uint i = thread_index * EACH; i < tokens.count * TILE_N; i += 128 * EACH) {
    uint row = first_row + i % TILE_N;
    if (row < features.count) {
      float finished[EACH];
      for (uint j = 0; j < EACH; ++j) {
        finished[j] = staged[i + j];
      }
      operands.store(tokens.first + i / TILE_N, row / EACH, finished);
    }
  }
}
