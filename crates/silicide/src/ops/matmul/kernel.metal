// matmul: every row of x with every row of each weight, or of two weights in turn.

#include "product.h"
#include "products.h"

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
  ProductRows operands = {x, p.x_stride, product, PICK_ADDED(product)};
  Tokens tokens = {first_token, min(TOKENS, p.m - first_token)};
  Features features = {0, product.rows()};
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
  ProductRows operands = {x, p.x_stride, product, PICK_ADDED(product)};
  Tokens tokens = {first_token, min(TILE_M, p.m - first_token)};
  Features features = {0, product.rows()};
  product_tiled(operands, product.weight, tokens, features, product.block * TILE_N, staged, thread_index, simdgroup);
}
