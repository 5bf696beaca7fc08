// matmul for many rows of x on the tensor cores of NVIDIA's Hopper GPUs, for x and a weight of one type of 16 bits; a quantised weight
// is dequantised first, to memory. kernel.metal is its check.
//
// A threadgroup of two groups of four simdgroups computes 128 rows of x by TILE_N rows of the weight, each group half of the
// rows of x. Tiles of 64 columns come by asynchronous copies, two ahead of the products, which read threadgroup memory on their own and
// are asynchronous too: those of one tile run while the copies of a later one are asked for. Sums are f32.

#define QUICK
#include "matrix.h"
#include "nvidia.h"
#include "products.h"

constant constexpr uint TILE_M = 128;
constant constexpr uint TILE_K = 64;
constant constexpr uint STAGES = 4;
// A stage is filled while the products with the one before and the one before that may still run.
constant constexpr uint AHEAD = STAGES - 2;
constant constexpr uint THREADS = 256;

#ifdef HALF
#define TYPES "f32.f16.f16"
#else
#define TYPES "f32.bf16.bf16"
#endif

#define D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define D16(i) D4(i), D4(i + 4), D4(i + 8), D4(i + 12)
#define D64(i) D16(i), D16(i + 16), D16(i + 32), D16(i + 48)

// d += a b for a of [64, 16] and b of [16, N], both in threadgroup memory with their columns together; the first product of all
// replaces d.
inline void multiply_tiles(thread float (&d)[64], ulong a, ulong b, uint more) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16." TYPES " {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
      "}, %64, %65, p, 1, 1, 0, 0;\n}"
      : D64(0)
      : "l"(a), "l"(b), "r"(more));
}

inline void multiply_tiles(thread float (&d)[128], ulong a, ulong b, uint more) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %130, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n256k16." TYPES " {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
      "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
      "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
      "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
      "}, %128, %129, p, 1, 1, 0, 0;\n}"
      : D64(0), D64(64)
      : "l"(a), "l"(b), "r"(more));
}

// How the tensor cores find a tile: rows of 128 bytes, in every eight of which the sixteen-byte chunks of row r lie at their place
// exclusive-or r.
inline ulong describe(uint shared) { return (shared & 0x3ffff) >> 4 | 1ul << 16 | 64ul << 32 | 1ul << 62; }

// Copies of a tile of ROWS rows: a thread has one chunk of every 32nd row.
template <uint ROWS>
struct TileCopies {
  device const SCALAR* from;  // the chunk in the thread's first row
  ulong stride;               // of 32 rows
  uint rows;                  // that there are, from the thread's first
  uint column;
  uint to;

  void ask(uint tile, uint first_column, uint columns) const {
    bool inside = first_column + column < columns;
    for (uint i = 0; i < ROWS / 32; ++i) {
      bool there = inside && i * 32 < rows;
      copy_sixteen(tile + to + i * 4096, there ? from + i * stride + first_column : from, there);
    }
  }
};

template <uint ROWS>
inline TileCopies<ROWS> tile_copies(device const SCALAR* from, ulong stride, uint first, uint rows, uint thread_index) {
  uint row = thread_index / 8;
  uint chunk = thread_index % 8;
  bool any = first + row < rows;
  return {from + (any ? (first + row) * stride + chunk * 8 : 0), 32 * stride, any ? rows - first - row : 0, chunk * 8,
          row * 128 + (chunk ^ (row % 8)) * 16};
}

template <uint TILE_N>
kernel void matmul_wgmma(
    PRODUCTS,
    uint2 group [[threadgroup_position_in_grid]],
    uint2 groups [[threadgroups_per_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  constexpr uint X_BYTES = TILE_M * TILE_K * 2;
  constexpr uint STAGE = X_BYTES + TILE_N * TILE_K * 2;
  extern __shared__ uint4 dynamic[];
  uint staged = (shared_address(dynamic) + 1023) / 1024 * 1024;

  // Threadgroups that follow each other share rows of the weight, and bands of x that the second cache holds.
  constexpr uint BAND = 8;
  uint linear = group.y * groups.x + group.x;
  uint band = linear / (BAND * groups.x);
  uint height = min(BAND, groups.y - band * BAND);
  uint inside = linear % (BAND * groups.x);
  uint first_token = (band * BAND + inside % height) * TILE_M;
  Product product = PICK_PRODUCT(inside / height);
  uint first_column = product.block * (TILE_N / SUMS);

  auto copies_x = tile_copies<TILE_M>(x, p.x_stride, first_token, p.m, thread_index);
  // Of two weights a tile has first the rows of one and then as many of the other.
  constexpr uint OF_EACH = TILE_N / SUMS;
  auto copies_of = [&](Stored weight) {
    return tile_copies<OF_EACH>((device const SCALAR*)weight.codes, p.code_stride / 2, first_column, product.n, thread_index);
  };
  auto copies_w = copies_of(holder_of(product.weight, 0));
  auto copies_up = copies_of(holder_of(product.weight, SUMS - 1));
  uint steps = (p.k + TILE_K - 1) / TILE_K;
  auto ask = [&](uint step) {
    if (step < steps) {
      uint stage = staged + step % STAGES * STAGE;
      copies_x.ask(stage, step * TILE_K, p.k);
      copies_w.ask(stage + X_BYTES, step * TILE_K, p.k);
      if (SUMS == 2) {
        copies_up.ask(stage + X_BYTES + OF_EACH * TILE_K * 2, step * TILE_K, p.k);
      }
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
  };

  float d[TILE_N / 2];
  uint half_rows = simdgroup / 4;
  for (uint step = 0; step < AHEAD; ++step) {
    ask(step);
  }
  for (uint step = 0; step < steps; ++step) {
    asm volatile("cp.async.wait_group %0;" ::"n"(AHEAD - 1) : "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    threadgroup_barrier(mem_flags::mem_threadgroup);
    uint stage = staged + step % STAGES * STAGE;
    ulong a = describe(stage + half_rows * (X_BYTES / 2));
    ulong b = describe(stage + X_BYTES);
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
    for (uint k = 0; k < TILE_K / 16; ++k) {
      multiply_tiles(d, a + k * 2, b + k * 2, step + k);
    }
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    ask(step + AHEAD);
    // Those of the step before have ended, and their stage is free once all threads have come to the next barrier.
    asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
  }
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
  threadgroup_barrier(mem_flags::mem_threadgroup);

  // A simdgroup has 16 rows, which it lays out in threadgroup memory to store them whole.
  Added added = PICK_ADDED(product);
  constexpr uint PITCH = OF_EACH + 8;
  threadgroup SCALAR* rows = (threadgroup SCALAR*)dynamic + simdgroup * 16 * PITCH;
#pragma unroll
  for (uint j = 0; j < OF_EACH / 8; ++j) {
#pragma unroll
    for (uint h = 0; h < 2; ++h) {
      uint row = h * 8 + lane / 4;
      uint column = j * 8 + lane % 4 * 2;
      float elements[2];
      for (uint e = 0; e < 2; ++e) {
        float sums[2] = {d[j * 4 + h * 2 + e], d[TILE_N / 2 - OF_EACH / 2 + j * 4 + h * 2 + e]};
        uint token = min(first_token + simdgroup * 16 + row, p.m - 1);
        elements[e] = product.element(token, min(first_column + column + e, product.n - 1), sums, added);
      }
      *(threadgroup uint*)(rows + row * PITCH + column) = pack_two(elements[0], elements[1]);
    }
  }
  simdgroup_barrier(mem_flags::mem_threadgroup);
  bool vectors = product.out_stride % 8 == 0 && ulong(product.out) % 16 == 0;
  for (uint i = lane; i < 16 * OF_EACH / 8; i += 32) {
    uint row = i / (OF_EACH / 8);
    uint column = i % (OF_EACH / 8) * 8;
    uint token = first_token + simdgroup * 16 + row;
    if (token >= p.m) {
      continue;
    }
    threadgroup const SCALAR* from = rows + row * PITCH + column;
    device SCALAR* to = product.out + ulong(token) * product.out_stride + first_column + column;
    if (vectors && first_column + column + 8 <= product.n) {
      *(device uint4*)to = *(threadgroup const uint4*)from;
    } else {
      for (uint e = 0; e < 8 && first_column + column + e < product.n; ++e) {
        to[e] = from[e];
      }
    }
  }
}

instantiate_kernel("matmul_wgmma_128", matmul_wgmma, 128)
instantiate_kernel("matmul_wgmma_256", matmul_wgmma, 256)
