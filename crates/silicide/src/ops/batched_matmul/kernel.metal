// batched_matmul: every row of a with every row of b, for each entry of a batch. OTHER is the type of b.

#include "product.h"
#include "walk.h"

// The entry of the batch that a threadgroup works on, and which rows of b.
struct Entry {
  PlainRows operands;
  Stored b;
  uint block;
};

inline Entry entry_of(
    device const SCALAR* a, device const OTHER* b, device SCALAR* out, constant Params& p, uint group) {
  uint entry = group / p.blocks;
  uint row = entry / uint(p.walk.len);
  ulong i = entry % uint(p.walk.len);
  ulong at_a = walk_start(p.walk, 0, row) + i * p.walk.inner[0];
  ulong at_b = walk_start(p.walk, 1, row) + i * p.walk.inner[1];
  ulong at_out = walk_start(p.walk, 2, row) + i * p.walk.inner[2];
  device const uchar* rows = (device const uchar*)(b + at_b);
  return {
      {a + at_a, out + at_out, p.strides[0], p.strides[2]},
      {rows, rows, rows, p.strides[1] * uint(sizeof(OTHER)), p.k, 0},
      group % p.blocks};
}

template <uint TOKENS>
kernel void batched_matmul_few(
    device const SCALAR* a [[buffer(0)]],
    device const OTHER* b [[buffer(1)]],
    device SCALAR* out [[buffer(2)]],
    constant Params& p [[buffer(3)]],
    uint2 group [[threadgroup_position_in_grid]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup float partial[SIMDGROUPS * TOKENS * ROWS];
  Entry entry = entry_of(a, b, out, p, group.x);
  uint first_row = (entry.block * (SIMDGROUPS / p.splits) + simdgroup / p.splits) * ROWS;
  uint first_token = group.y * TOKENS;
  Tokens tokens = {first_token, min(TOKENS, p.m - first_token)};
  Features features = {0, p.n};
  product_few<TOKENS>(entry.operands, entry.b, tokens, features, first_row, p.splits, partial, lane, simdgroup);
}

instantiate_kernel("batched_matmul_one", batched_matmul_few, 1)
instantiate_kernel("batched_matmul_few", batched_matmul_few, 4)

kernel void batched_matmul_tiled(
    device const SCALAR* a [[buffer(0)]],
    device const OTHER* b [[buffer(1)]],
    device SCALAR* out [[buffer(2)]],
    constant Params& p [[buffer(3)]],
    uint2 group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup float staged[STAGED];
  Entry entry = entry_of(a, b, out, p, group.x);
  uint first_token = group.y * TILE_M;
  Tokens tokens = {first_token, min(TILE_M, p.m - first_token)};
  Features features = {0, p.n};
  product_tiled(entry.operands, entry.b, tokens, features, entry.block * TILE_N, staged, thread_index, simdgroup);
}
