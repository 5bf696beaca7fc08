// expert_matmul: tiles of pairs of one expert with the expert's rows of the stack. Pair i is slot i % slots of token
// i / slots.

#include "product.h"

// Row i is the pair at place i of `order`, or where pairs are not grouped pair i itself.
struct Operands {
  static constant constexpr uint EACH = 1;

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
    out[pair(i) * out_stride + column] = SCALAR(has_bias ? sums[0] + float(bias[column]) : sums[0]);
  }
};

// Zeros for `rows` output features of pairs that have no expert.
inline void store_zeros(
    device const uint* order,
    device SCALAR* out,
    constant Params& p,
    Tokens tokens,
    uint first_row,
    uint rows,
    uint thread_index,
    uint threads) {
  rows = min(rows, p.n - first_row);
  for (uint i = thread_index; i < tokens.count * rows; i += threads) {
    uint place = tokens.first + i / rows;
    ulong pair = p.is_grouped ? order[place] : place;
    out[pair * p.out_stride + first_row + i % rows] = SCALAR(0);
  }
}

// The places of a tile that part `part` of it takes, each at most `most` of them.
inline Tokens part_of(device const uint* tile, uint part, uint most) {
  uint skipped = part * most;
  return {tile[1] + skipped, tile[2] > skipped ? min(tile[2] - skipped, most) : 0};
}

template <uint TOKENS>
kernel void expert_matmul_few(
    device const SCALAR* x [[buffer(0)]],
    device const uint* ids [[buffer(1)]],
    device const uint* order [[buffer(2)]],
    device const uint* tiles [[buffer(3)]],
    device const uchar* codes [[buffer(4)]],
    device const uchar* scales [[buffer(5)]],
    device const uchar* biases [[buffer(6)]],
    device const SCALAR* bias [[buffer(7)]],
    device SCALAR* out [[buffer(8)]],
    constant Params& p [[buffer(9)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]]) {
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
  Stored weight = {codes, scales, biases, p.code_stride, p.k, p.group_size};
  Operands operands = {
      x, order, bias + ulong(expert) * p.n, out, p.x_stride, p.out_stride, p.slots_of_x, bool(p.is_grouped),
      bool(p.has_bias)};
  Features features = {expert * p.n, p.n};
  product_few<TOKENS>(operands, weight, tokens, features, first_row, p.splits, partial, lane, simdgroup);
}

instantiate_kernel("expert_matmul_one", expert_matmul_few, 1)
instantiate_kernel("expert_matmul_few", expert_matmul_few, 4)

kernel void expert_matmul_tiled(
    device const SCALAR* x [[buffer(0)]],
    device const uint* ids [[buffer(1)]],
    device const uint* order [[buffer(2)]],
    device const uint* tiles [[buffer(3)]],
    device const uchar* codes [[buffer(4)]],
    device const uchar* scales [[buffer(5)]],
    device const uchar* biases [[buffer(6)]],
    device const SCALAR* bias [[buffer(7)]],
    device SCALAR* out [[buffer(8)]],
    constant Params& p [[buffer(9)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]]) {
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
  Stored weight = {codes, scales, biases, p.code_stride, p.k, p.group_size};
  Operands operands = {
      x, order, bias + ulong(expert) * p.n, out, p.x_stride, p.out_stride, p.slots_of_x, true, bool(p.has_bias)};
  Features features = {expert * p.n, p.n};
  product_tiled(operands, weight, tokens, features, first_row, staged, thread_index, simdgroup);
}
