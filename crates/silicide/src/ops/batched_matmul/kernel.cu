// batched_matmul on NVIDIA's tensor cores, of one type of 16 bits, whose rows are whole chunks of sixteen bytes and lie aligned;
// kernel.metal is its check.
//
// A threadgroup of eight simdgroups computes 128 rows of a by 128 rows of b. Tiles of both come by asynchronous copies, two in
// flight. Sums are f32. The result leaves by way of threadgroup memory, in whole lines.

#include "nvidia.h"
#include "walk.h"

constant constexpr uint TILE = 128;
constant constexpr uint THREADS = 256;
constant constexpr uint CHUNKS = 4;  // of eight elements, in a row of a tile
constant constexpr uint STAGES = 3;

// The number of a chunk in a tile: eight rows at one chunk lie in different banks.
inline uint tile_chunk(uint row, uint chunk) { return chunk_at<8>(row / 2, row % 2 * CHUNKS + chunk) / 16; }

kernel void batched_matmul_tensor(
    device const SCALAR* a [[buffer(0)]],
    device const SCALAR* b [[buffer(1)]],
    device SCALAR* out [[buffer(2)]],
    constant Params& p [[buffer(3)]],
    uint2 group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  // A tile of a and one of b for each stage; in the end the result's.
  threadgroup uint4 staged[STAGES][2][TILE * CHUNKS];
  uint entry = group.x / p.blocks;
  uint row_of_entries = entry / uint(p.walk.len);
  ulong in_row = entry % uint(p.walk.len);
  a += walk_start(p.walk, 0, row_of_entries) + in_row * p.walk.inner[0];
  b += walk_start(p.walk, 1, row_of_entries) + in_row * p.walk.inner[1];
  out += walk_start(p.walk, 2, row_of_entries) + in_row * p.walk.inner[2];
  uint first_m = group.y * TILE;
  uint first_n = group.x % p.blocks * TILE;

  auto fetch = [&](uint step) {
    for (uint i = thread_index; i < TILE * CHUNKS; i += THREADS) {
      uint row = i / CHUNKS;
      uint chunk = i % CHUNKS;
      uint column = (step * CHUNKS + chunk) * 8;
      bool there = column < p.k;
      // What is past the last row is computed from the last row, and not stored.
      device const SCALAR* of_a = a + ulong(min(first_m + row, p.m - 1)) * p.strides[0];
      device const SCALAR* of_b = b + ulong(min(first_n + row, p.n - 1)) * p.strides[1];
      uint to = tile_chunk(row, chunk);
      copy_sixteen(shared_address(staged[step % STAGES][0] + to), of_a + (there ? column : 0), there);
      copy_sixteen(shared_address(staged[step % STAGES][1] + to), of_b + (there ? column : 0), there);
    }
    end_copies();
  };

  uint m = simdgroup / 4 * 64;
  uint n = simdgroup % 4 * 32;
  float sums[4][4][4];
  for (uint i = 0; i < 4; ++i) {
    for (uint j = 0; j < 4; ++j) {
      for (uint e = 0; e < 4; ++e) {
        sums[i][j][e] = 0.0f;
      }
    }
  }

  uint steps = (p.k + CHUNKS * 8 - 1) / (CHUNKS * 8);
  for (uint step = 0; step + 1 < STAGES; ++step) {
    fetch(step);
  }
  for (uint step = 0; step < steps; ++step) {
    wait_for_copies<STAGES - 2>();
    threadgroup_barrier(mem_flags::mem_threadgroup);
    // Past the end it is a tile that nothing reads.
    fetch(step + STAGES - 1);
    threadgroup const uint4* tile_a = staged[step % STAGES][0];
    threadgroup const uint4* tile_b = staged[step % STAGES][1];
    for (uint k = 0; k < CHUNKS; k += 2) {
      uint of_a[4][4];
      uint of_b[4][2];
      for (uint i = 0; i < 4; ++i) {
        load_matrices(of_a[i], shared_address(tile_a + tile_chunk(m + i * 16 + lane % 16, k + lane / 16)));
      }
      for (uint j = 0; j < 4; j += 2) {
        load_matrices(of_b[j], shared_address(tile_b + tile_chunk(n + j * 8 + lane / 16 * 8 + lane % 8, k + lane / 8 % 2)));
      }
      for (uint i = 0; i < 4; ++i) {
        for (uint j = 0; j < 4; ++j) {
          multiply(sums[i][j], of_a[i], of_b[j]);
        }
      }
    }
  }

  wait_for_copies<0>();
  threadgroup_barrier(mem_flags::mem_threadgroup);
  threadgroup uchar* result = (threadgroup uchar*)staged;
  for (uint i = 0; i < 4; ++i) {
    for (uint j = 0; j < 4; ++j) {
      for (uint h = 0; h < 2; ++h) {
        uint at = chunk_at<TILE / 8>(m + i * 16 + h * 8 + lane / 4, n / 8 + j) + lane % 4 * 4;
        *(threadgroup uint*)(result + at) = pack_two(sums[i][j][h * 2], sums[i][j][h * 2 + 1]);
      }
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  bool aligned = (ulong(out) / sizeof(SCALAR) | p.strides[2]) % 8 == 0;
  for (uint i = thread_index; i < TILE * TILE / 8; i += THREADS) {
    uint row = first_m + i / (TILE / 8);
    uint column = first_n + i % (TILE / 8) * 8;
    if (row >= p.m || column >= p.n) {
      continue;
    }
    threadgroup const uchar* from = result + chunk_at<TILE / 8>(i / (TILE / 8), i % (TILE / 8));
    device SCALAR* to = out + ulong(row) * p.strides[2] + column;
    if (aligned && column + 8 <= p.n) {
      *(device uint4*)to = *(threadgroup const uint4*)from;
    } else {
      for (uint e = 0; e < min(8u, p.n - column); ++e) {
        to[e] = ((threadgroup const SCALAR*)from)[e];
      }
    }
  }
}
