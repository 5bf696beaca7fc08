// matmul on NVIDIA's tensor cores, for x in a type of 16 bits. The text is Metal's but for the instructions that only these
// GPUs have, and goes the same way; kernel.metal is its check.
//
// Many rows of x: a threadgroup of eight simdgroups computes TILE_M rows of x by 128 rows of the weight. Tiles of x come by asynchronous
// copies, three in flight; a thread dequantises one unit of the weight for the next step while products of this one run,
// rounded to the type of x. Sums are f32.

#include "matrix.h"
#include "nvidia.h"
#include "products.h"

constant constexpr uint TILE_N = 128;
constant constexpr uint TILE_K = 32;
constant constexpr uint STAGES = 3;

// The place of eight elements in a tile whose rows have TILE_K: so that eight rows at one column lie in different banks.
inline uint chunk_at(uint row, uint chunk) { return row * TILE_K + (chunk ^ (row >> 1 & 3)) * 8; }

template <uint TILE_M>
kernel void matmul_tensor(
    PRODUCTS,
    uint2 group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  constexpr uint ROWS = TILE_M / 2;  // of a simdgroup's part, whose columns are 32
  threadgroup uint4 staged_x[STAGES][TILE_M * TILE_K / 8];
  threadgroup uint4 staged_w[2][TILE_N * TILE_K / 8];

  Product product = PICK_PRODUCT(group.x);
  uint first_token = group.y * TILE_M;
  uint first_row = product.block * TILE_N;
  uint units = p.k / UNIT;
  uint steps = (p.k + TILE_K - 1) / TILE_K;

  // What is past the last row is computed from the last row, and not stored.
  uint w_row = thread_index / 2;
  uint w_unit = thread_index % 2;
#ifdef FUNCTION
  // Eight rows of each weight in turn, so that a thread has the sums of two elements that lie side by side.
  uint of_each = first_row / 2 + w_row / 16 * 8 + w_row % 8;
  Reader reader = Reader::at(w_row / 8 % 2 == 0 ? product.weight.first : product.weight.second, min(of_each, product.n - 1));
#else
  Reader reader = Reader::at(product.weight, min(first_row + w_row, product.n - 1));
#endif

  auto fetch_x = [&](uint step) {
    threadgroup SCALAR* tile = (threadgroup SCALAR*)staged_x[step % STAGES];
    for (uint i = thread_index; i < TILE_M * TILE_K / 8; i += 256) {
      uint row = i / 4;
      uint chunk = i % 4;
      uint column = step * TILE_K + chunk * 8;
      device const SCALAR* from = x + ulong(min(first_token + row, p.m - 1)) * p.x_stride;
      copy_sixteen(shared_address(tile + chunk_at(row, chunk)), from + (column < p.k ? column : 0), column < p.k);
    }
    end_copies();
  };
  // Past the last column x is zero and any weight will do.
  auto fetch_w = [&](uint step) { return reader.load(min(step * 2 + w_unit, units - 1)); };
  auto store_w = [&](uint step, Unit u) {
    float4 elements[4];
    dequantize(u, elements);
    threadgroup SCALAR* tile = (threadgroup SCALAR*)staged_w[step % 2];
    for (uint half_unit = 0; half_unit < 2; ++half_unit) {
      float4 low = elements[half_unit * 2];
      float4 high = elements[half_unit * 2 + 1];
      uint4 packed = uint4(pack_two(low.x, low.y), pack_two(low.z, low.w), pack_two(high.x, high.y), pack_two(high.z, high.w));
      *(threadgroup uint4*)(tile + chunk_at(w_row, w_unit * 2 + half_unit)) = packed;
    }
  };

  uint m = simdgroup / 4 * ROWS;
  uint n = simdgroup % 4 * 32;
  float sums[ROWS / 16][4][4];
  for (uint i = 0; i < ROWS / 16; ++i) {
    for (uint j = 0; j < 4; ++j) {
      for (uint e = 0; e < 4; ++e) {
        sums[i][j][e] = 0.0f;
      }
    }
  }

  for (uint step = 0; step + 1 < STAGES; ++step) {
    fetch_x(step);
  }
  store_w(0, fetch_w(0));
  for (uint step = 0; step < steps; ++step) {
    wait_for_copies<STAGES - 2>();
    threadgroup_barrier(mem_flags::mem_threadgroup);
    // Past the end it is an empty group, or a tile that nothing reads.
    fetch_x(step + STAGES - 1);
    Unit next = fetch_w(step + 1);

    threadgroup const SCALAR* tile_x = (threadgroup const SCALAR*)staged_x[step % STAGES];
    threadgroup const SCALAR* tile_w = (threadgroup const SCALAR*)staged_w[step % 2];
    for (uint k = 0; k < TILE_K / 8; k += 2) {
      uint a[ROWS / 16][4];
      uint b[4][2];
      for (uint i = 0; i < ROWS / 16; ++i) {
        load_matrices(a[i], shared_address(tile_x + chunk_at(m + i * 16 + lane % 16, k + lane / 16)));
      }
      for (uint j = 0; j < 4; j += 2) {
        load_matrices(b[j], shared_address(tile_w + chunk_at(n + j * 8 + lane / 16 * 8 + lane % 8, k + lane / 8 % 2)));
      }
      for (uint i = 0; i < ROWS / 16; ++i) {
        for (uint j = 0; j < 4; ++j) {
          multiply(sums[i][j], a[i], b[j]);
        }
      }
    }
    store_w(step + 1, next);
  }

  Added added = PICK_ADDED(product);
  bool pairs = product.out_stride % 2 == 0 && ulong(product.out) % 4 == 0;
#pragma unroll
  for (uint i = 0; i < ROWS / 16; ++i) {
#pragma unroll
    for (uint j = 0; j < 4; j += SUMS) {
      uint column = (first_row + n + j * 8) / SUMS + lane % 4 * 2;
#pragma unroll
      for (uint h = 0; h < 2; ++h) {
        uint token = first_token + m + i * 16 + h * 8 + lane / 4;
        if (token >= p.m || column >= product.n) {
          continue;
        }
        // The last of an odd number is computed twice, and stored once.
        float elements[2];
        for (uint e = 0; e < 2; ++e) {
          float of_one[2] = {sums[i][j][h * 2 + e], sums[i][j + SUMS - 1][h * 2 + e]};
          elements[e] = product.element(token, min(column + e, product.n - 1), of_one, added);
        }
        device SCALAR* to = product.out + ulong(token) * product.out_stride + column;
        if (pairs && column + 1 < product.n) {
          *(device uint*)to = pack_two(elements[0], elements[1]);
        } else {
          to[0] = SCALAR(elements[0]);
          if (column + 1 < product.n) {
            to[1] = SCALAR(elements[1]);
          }
        }
      }
    }
  }
}

instantiate_kernel("matmul_tensor_64", matmul_tensor, 64)
instantiate_kernel("matmul_tensor_128", matmul_tensor, 128)

// Writes a weight as rows of SCALAR to out0. A thread has four units, asked for together, and exchanges halves with its neighbour: two
// threads store a whole unit, as memory takes 32 bytes at once.
kernel void matmul_dequantize(
    PRODUCTS,
    uint group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]]) {
  uint units = p.k / UNIT;
  uint end = p.n[0] * units;
  Stored weight = {codes0, scales0, biases0, p.code_stride, p.k, p.group_size};
  Unit loaded[4];
  for (uint i = 0; i < 4; ++i) {
    uint at = min(group * 1024 + i * 256 + thread_index, end - 1);
    Reader reader = Reader::at(weight, at / units);
    loaded[i] = reader.load(at % units);
  }
  uint odd = thread_index % 2;
  for (uint i = 0; i < 4; ++i) {
    float4 e[4];
    dequantize(loaded[i], e);
    uint4 halves[2];
    for (uint h = 0; h < 2; ++h) {
      float4 low = e[h * 2];
      float4 high = e[h * 2 + 1];
      halves[h] = uint4(pack_two(low.x, low.y), pack_two(low.z, low.w), pack_two(high.x, high.y), pack_two(high.z, high.w));
    }
    uint4 given = odd ? halves[0] : halves[1];
    uint4 taken;
    for (uint w = 0; w < 4; ++w) {
      taken[w] = simd_shuffle_xor(given[w], ushort(1));
    }
    uint first = group * 1024 + i * 256 + thread_index - odd;
    device uint4* to = (device uint4*)(out0 + ulong(first) * UNIT) + odd;
    if (first < end) {
      to[0] = odd ? taken : halves[0];
    }
    if (first + 1 < end) {
      to[2] = odd ? halves[1] : taken;
    }
  }
}
