// expert_matmul: tiles of pairs of one expert with the expert's rows of the stack. Pair i is slot i % slots of token
// i / slots.

#include "experts.h"
#include "product.h"

// Row i is the pair at place i of `order`, or where pairs are not grouped pair i itself.
struct Operands {
  static constant constexpr uint EACH = SUMS;

  device const SCALAR* x;
  device const uint* order;
  device const SCALAR* bias;  // the expert's
  device SCALAR* out;
  ulong x_stride;
  ulong out_stride;
  uint slots_of_x;
  bool is_grouped;
  bool has_bias;

  uint pair(uint i) const { return is_grouped ? order[i] : i; }
  device const SCALAR* x_row(uint i) const { return x + pair(i) / slots_of_x * x_stride; }
  void store(uint i, uint column, thread const float* sums) const {
    float element = element_of(sums);
    out[pair(i) * out_stride + column] = SCALAR(has_bias ? element + float(bias[column]) : element);
  }
};

// Zeros for pairs that have no expert, where others have what `rows` rows of the weight give.
inline void store_zeros(
    device const uint* order,
    device SCALAR* out,
    constant Params& p,
    Tokens tokens,
    uint first_row,
    uint rows,
    uint thread_index,
    uint threads) {
  uint first = first_row / SUMS;
  uint columns = min(rows / SUMS, p.n - first);
  for (uint i = thread_index; i < tokens.count * columns; i += threads) {
    uint place = tokens.first + i / columns;
    ulong pair = p.is_grouped ? order[place] : place;
    out[pair * p.out_stride + first + i % columns] = SCALAR(0);
  }
}

// The places of a tile that part `part` of it takes, each at most `most` of them.
inline Tokens part_of(device const uint* tile, uint part, uint most) {
  uint skipped = part * most;
  return {tile[1] + skipped, tile[2] > skipped ? min(tile[2] - skipped, most) : 0};
}

template <uint TOKENS>
kernel void expert_matmul_few(EXPERTS) {
  threadgroup float partial[SIMDGROUPS * TOKENS * ROWS];
  uint expert;
  Tokens tokens;
  if (p.is_grouped) {
    device const uint* tile = tiles + group.y * 3;
    expert = tile[0];
    tokens = part_of(tile, group.z, TOKENS);
  } else {
    expert = ids[group.y];
    tokens.first = group.y;
    tokens.count = 1;
  }
  uint rows = SIMDGROUPS / p.splits * ROWS;
  uint first_row = group.x * rows;
  if (tokens.count == 0) {
    return;
  }
  if (expert >= p.experts) {
    store_zeros(order, out, p, tokens, first_row, rows, thread_index, SIMDGROUPS * 32);
    return;
  }
  first_row += simdgroup / p.splits * ROWS;
  Weight weight = WEIGHT;
  Operands operands = {
      x, order, bias + ulong(expert) * p.n, out, p.x_stride, p.out_stride, p.slots_of_x, bool(p.is_grouped),
      bool(p.has_bias)};
  Features features = {expert * p.n * SUMS, p.n * SUMS};
  product_few<TOKENS>(operands, weight, tokens, features, first_row, p.splits, partial, lane, simdgroup);
}

instantiate_kernel("expert_matmul_one", expert_matmul_few, 1)
instantiate_kernel("expert_matmul_few", expert_matmul_few, 4)

kernel void expert_matmul_tiled(EXPERTS) {
  threadgroup float staged[STAGED];
  device const uint* tile = tiles + group.y * 3;
  uint expert = tile[0];
  Tokens tokens = part_of(tile, group.z, TILE_M);
  uint first_row = group.x * TILE_N;
  if (tokens.count == 0) {
    return;
  }
  if (expert >= p.experts) {
    store_zeros(order, out, p, tokens, first_row, TILE_N, thread_index, 128);
    return;
  }
  Weight weight = WEIGHT;
  Operands operands = {
      x, order, bias + ulong(expert) * p.n, out, p.x_stride, p.out_stride, p.slots_of_x, true, bool(p.has_bias)};
  Features features = {expert * p.n * SUMS, p.n * SUMS};
  product_tiled(operands, weight, tokens, features, first_row, staged, thread_index, simdgroup);
}
