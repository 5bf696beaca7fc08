// matmul: every row of x with every row of each weight.

#include "product.h"
#include "products.h"

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
    PRODUCTS,
    uint2 group [[threadgroup_position_in_grid]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup float partial[SIMDGROUPS * TOKENS * ROWS];
  Product product = PICK_PRODUCT(group.x);
  uint first_row = (product.block * (SIMDGROUPS / p.splits) + simdgroup / p.splits) * ROWS;
  uint first_token = group.y * TOKENS;
  Operands operands = {x, product.out, p.x_stride, product.out_stride};
  Tokens tokens = {first_token, min(TOKENS, p.m - first_token)};
  Features features = {0, product.n};
  product_few<TOKENS>(operands, product.weight, tokens, features, first_row, p.splits, partial, lane, simdgroup);
}

instantiate_kernel("matmul_one", matmul_few, 1)
instantiate_kernel("matmul_few", matmul_few, 4)

kernel void matmul_tiled(
    PRODUCTS,
    uint2 group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup float staged[STAGED];
  Product product = PICK_PRODUCT(group.x);
  uint first_token = group.y * TILE_M;
  Operands operands = {x, product.out, p.x_stride, product.out_stride};
  Tokens tokens = {first_token, min(TILE_M, p.m - first_token)};
  Features features = {0, product.n};
  product_tiled(operands, product.weight, tokens, features, product.block * TILE_N, staged, thread_index, simdgroup);
}
