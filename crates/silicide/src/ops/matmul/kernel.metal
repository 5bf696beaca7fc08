// matmul: every row of x with every row of the weight.

#include "product.h"

struct Operands {
  device const SCALAR* x;
  device SCALAR* out;
  ulong x_stride;
  ulong out_stride;

  device const SCALAR* x_row(uint i) const { return x + i * x_stride; }
  void store(uint i, uint column, float sum) const { out[i * out_stride + column] = SCALAR(sum); }
};

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
  threadgroup float partial[SIMDGROUPS * TOKENS * ROWS];
  uint first_row = (group.x * (SIMDGROUPS / p.splits) + simdgroup / p.splits) * ROWS;
  uint first_token = group.y * TOKENS;
  Stored weight = {codes, scales, biases, p.code_stride, p.k, p.group_size};
  Operands operands = {x, out, p.x_stride, p.out_stride};
  Tokens tokens = {first_token, min(TOKENS, p.m - first_token)};
  Features features = {0, p.n};
  product_few<TOKENS>(operands, weight, tokens, features, first_row, p.splits, partial, lane, simdgroup);
}

instantiate_kernel("matmul_one", matmul_few, 1)
instantiate_kernel("matmul_few", matmul_few, 4)

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
  threadgroup float staged[STAGED];
  uint first_token = group.y * TILE_M;
  Stored weight = {codes, scales, biases, p.code_stride, p.k, p.group_size};
  Operands operands = {x, out, p.x_stride, p.out_stride};
  Tokens tokens = {first_token, min(TILE_M, p.m - first_token)};
  Features features = {0, p.n};
  product_tiled(operands, weight, tokens, features, group.x * TILE_N, staged, thread_index, simdgroup);
}
