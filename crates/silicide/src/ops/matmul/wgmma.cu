// matmul for many rows of x on the tensor cores of NVIDIA's Hopper GPUs, for x of a type of 16 bits and a weight of the same type, or one
// of codes of 4 or 8 bits with scales apart or of GGUF's blocks, which are dequantised in registers, rounded to that type. kernel.metal is
// its check.
//
// Two threadgroups, a cluster, compute 256 rows of the weight by TOKENS rows of x, and stay for as long as there are such tiles. Each has
// half of the rows of the weight, of which its two consumers, groups of four simdgroups, have 64 each, and fetches half of the rows of x
// for both. The first group of each is the producer: one thread asks the copy engine for tiles of 64 columns, STAGES ahead, and for slabs of
// blocks, SLABS ahead. A cluster is several such pairs, which share the columns, where tiles are too few for all processors. The weight is
// the first factor, so that it may come from registers, and sums are f32 of [weight's rows, x's rows].

#define QUICK
#include "codes.h"
#include "products.h"

constant constexpr uint TILE_K = 64;
constant constexpr uint HALF_N = 128;  // rows of the weight, a threadgroup

// What a row of a tile of the weight is: the bits of a code, or none where elements or blocks are stored; columns that share a scale; what
// a scale is stored as, and whether a bias goes with it. Of blocks, the columns of a slab and their bytes.
template <typename R>
struct StoredAs {
  static constant constexpr uint SLAB_COLUMNS = TILE_K, BLOCKS = 0;
  static constant constexpr uint BITS = 0, GROUP = TILE_K;
  typedef ushort Factor;
  static constant constexpr bool BIASED = false;
};
template <uint B, typename S>
struct StoredAs<Affine<B, S>> {
  static constant constexpr uint SLAB_COLUMNS = TILE_K, BLOCKS = 0;
  static constant constexpr uint BITS = B, GROUP = GROUP_SIZE;
  typedef ushort Factor;
  static constant constexpr bool BIASED = true;
};
template <typename C, typename S, uint G>
struct StoredAs<SmallFloats<C, S, G>> {
  static constant constexpr uint SLAB_COLUMNS = TILE_K, BLOCKS = 0;
  static constant constexpr uint BITS = C::BYTES / 2, GROUP = G;
  typedef uchar Factor;
  static constant constexpr bool BIASED = false;
};
template <typename B>
struct StoredAs<Blocks<B>> {
  static constant constexpr uint SLAB_COLUMNS = B::UNITS == 16 ? 256 : 128, BLOCKS = SLAB_COLUMNS / UNIT / B::UNITS * B::BYTES;
  static constant constexpr uint BITS = 0, GROUP = B::GROUP;
  typedef ushort Factor;
  static constant constexpr bool BIASED = false;
};
typedef StoredAs<Reader> W;
constant constexpr uint BITS = W::BITS;
constant constexpr bool IN_BLOCKS = W::BLOCKS != 0;
// Any, where none are read.
typedef conditional_t<BITS == 0, Mxfp4, Reader> Coded;
typedef conditional_t<IN_BLOCKS, Reader, Blocks<Q8_0>> Blocked;
constant constexpr uint W_ROW = IN_BLOCKS ? 0 : BITS == 0 ? TILE_K * 2 : TILE_K * BITS / 8;  // bytes of a tile's row
constant constexpr uint W_BYTES = HALF_N * W_ROW;
// Rows of blocks are an odd number of sixteen bytes, so that eight of them lie in different banks.
constant constexpr uint SLABS = IN_BLOCKS ? 2 : 0;
constant constexpr uint SLAB_STEPS = W::SLAB_COLUMNS / TILE_K;
constant constexpr uint TOGETHER = W::GROUP > W::SLAB_COLUMNS ? W::GROUP / TILE_K : SLAB_STEPS;  // steps that rows are whole numbers of
constant constexpr uint PITCH = ((W::BLOCKS + (W::BLOCKS % 16 == 0 ? 0 : 14) + 15) / 16 | 1) * 16;
constant constexpr uint SLAB = HALF_N * PITCH;
// Of two weights a tile has first the rows of one and then as many of the other. A simdgroup takes eight rows of each, so that both sums of
// an element are a thread's.
constant constexpr uint OF_EACH = HALF_N / SUMS;
constant constexpr uint OUT_ROW = 128 / SUMS;  // bytes of a consumer's part of a row of the result
constant constexpr uint GROUPS = W::GROUP >= TILE_K ? 1 : TILE_K / W::GROUP;  // of a tile's row

#ifdef HALF_TYPES
#define TYPES "f32.f16.f16"
#else
#define TYPES "f32.bf16.bf16"
#endif

#define D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define D16(i) D4(i), D4(i + 4), D4(i + 8), D4(i + 12)
#define D32(i) D16(i), D16(i + 16)
#define D64(i) D32(i), D32(i + 32)
#define SUMS_32                                                        \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define SUMS_64                                                        \
  SUMS_32 ", "                                                         \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define SUMS_128                                                       \
  SUMS_64 ", "                                                         \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, " \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

// d += a b for a of [64, 16] and b of [16, 2 * d's], in threadgroup memory with their columns together; or d = a b.
inline void multiply_tiles(thread float (&d)[32], ulong a, ulong b, uint more) {
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
               "wgmma.mma_async.sync.aligned.m64n64k16." TYPES " {" SUMS_32 "}, %32, %33, p, 1, 1, 0, 0;\n}"
               : D32(0)
               : "l"(a), "l"(b), "r"(more));
}
inline void multiply_tiles(thread float (&d)[64], ulong a, ulong b, uint more) {
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
               "wgmma.mma_async.sync.aligned.m64n128k16." TYPES " {" SUMS_64 "}, %64, %65, p, 1, 1, 0, 0;\n}"
               : D64(0)
               : "l"(a), "l"(b), "r"(more));
}
inline void multiply_tiles(thread float (&d)[128], ulong a, ulong b, uint more) {
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %130, 0;\n"
               "wgmma.mma_async.sync.aligned.m64n256k16." TYPES " {" SUMS_128 "}, %128, %129, p, 1, 1, 0, 0;\n}"
               : D64(0), D64(64)
               : "l"(a), "l"(b), "r"(more));
}

// The same with a in registers.
inline void multiply_tiles(thread float (&d)[32], thread const uint (&a)[4], ulong b, uint more) {
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
               "wgmma.mma_async.sync.aligned.m64n64k16." TYPES " {" SUMS_32 "}, {%32, %33, %34, %35}, %36, p, 1, 1, 0;\n}"
               : D32(0)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(more));
}
inline void multiply_tiles(thread float (&d)[64], thread const uint (&a)[4], ulong b, uint more) {
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"
               "wgmma.mma_async.sync.aligned.m64n128k16." TYPES " {" SUMS_64 "}, {%64, %65, %66, %67}, %68, p, 1, 1, 0;\n}"
               : D64(0)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(more));
}
inline void multiply_tiles(thread float (&d)[128], thread const uint (&a)[4], ulong b, uint more) {
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %133, 0;\n"
               "wgmma.mma_async.sync.aligned.m64n256k16." TYPES " {" SUMS_128 "}, {%128, %129, %130, %131}, %132, p, 1, 1, 0;\n}"
               : D64(0), D64(64)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(more));
}

// How the tensor cores find a tile: rows of 128 bytes, in every eight of which the sixteen-byte chunks of row r lie at their place
// exclusive-or r.
inline ulong describe(uint shared) { return (shared & 0x3ffff) >> 4 | 1ul << 16 | 64ul << 32 | 1ul << 62; }

inline void make_barrier(uint barrier, uint arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
inline void arrive_expecting(uint barrier, uint bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
// At the barrier that lies at the same place in threadgroup `rank` of the cluster.
inline void arrive_at(uint barrier, uint rank) {
  asm volatile("{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %0, %1;\n"
               "mbarrier.arrive.shared::cluster.b64 _, [there];\n}" ::"r"(barrier), "r"(rank)
               : "memory");
}
inline void wait_at(uint barrier, uint parity) {
  uint done = 0;
  while (!done) {
    asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
                 : "=r"(done)
                 : "r"(barrier), "r"(parity)
                 : "memory");
  }
}
// Orders no memory: a release for the cluster would be a fence for the whole GPU.
inline void cluster_barrier() {
  asm volatile("barrier.cluster.arrive.relaxed;\nbarrier.cluster.wait;" ::: "memory");
}
inline void cluster_barrier_for_memory() {
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}
// What lies at the same place in threadgroup `rank` of the cluster.
inline float4 load_from(uint at, uint rank) {
  float4 v;
  asm volatile("{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %4, %5;\nld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [there];\n}"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "r"(at), "r"(rank)
               : "memory");
  return v;
}

inline void fetch_tile(uint to, constant TileMap& map, uint column, uint row, uint barrier) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(to),
               "l"(&map), "r"(column), "r"(row), "r"(barrier)
               : "memory");
}
// To the same place in threadgroups `first` and `first` + 1 of the cluster, at whose barriers the bytes are counted.
inline void fetch_tile_for_both(uint to, constant TileMap& map, uint column, uint row, uint barrier, uint first) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
      "l"(&map), "r"(column), "r"(row), "r"(barrier), "h"(ushort(3 << first))
      : "memory");
}
inline void store_tile(constant TileMap& map, uint column, uint row, uint from) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%1, %2}], [%3];\ncp.async.bulk.commit_group;" ::"l"(&map),
               "r"(column), "r"(row), "r"(from)
               : "memory");
}

// Two codes, each the lowest bits of a half of `two`, whose other bits are anything where codes have four, and zeros where they have
// eight, as SCALAR. Unsigned ones become the last digits of 128 or 1024, which is taken off again.
template <uint B, typename S>
inline uint values_of(thread const Affine<B, S>*, uint two) {
  if constexpr (HALF) {
    return fma_pairs(and_or(two, B == 4 ? 0x000f000fu : 0x00ff00ffu, 0x64006400u), ONES, 0xe400e400u);
  } else if constexpr (B == 4) {
    return fma_pairs(and_or(two, 0x000f000fu, 0x43004300u), ONES, 0xc300c300u);
  } else {
    // Of the low seven bits; less 128 where the eighth is not set.
    return fma_pairs(and_or(two, 0x007f007fu, 0x43004300u), ONES, 0xc300c300u - (two & 0x00800080u) * 0x186);
  }
}
// The fields of small floats are moved to their places, and a product with a power of two makes up for the other bias of the exponent.
constant constexpr uint NEGATIVE_ZEROS = 0x80008000u;
inline uint values_of(thread const E2m1*, uint two) {
  uint bits = HALF ? two << 9 & 0x0e000e00u : two << 6 & 0x01c001c0u;
  return fma_pairs(and_or(two << 12, 0x80008000u, bits), HALF ? 0x74007400u : 0x7e807e80u, NEGATIVE_ZEROS);
}
inline uint values_of(thread const E4m3*, uint two) {
  uint digits = two & 0x007f007fu;
  uint bits = and_or(two << 8, 0x80008000u, digits << (HALF ? 7 : 4));
  // Where all seven are set it is NaN.
  uint nan = (digits + 0x00010001u & 0x00800080u) * (HALF ? 0xf8 : 0xff);
  return fma_pairs(bits, HALF ? 0x5c005c00u : 0x7b807b80u, NEGATIVE_ZEROS) | nan;
}
template <typename C, typename S, uint G>
inline uint values_of(thread const SmallFloats<C, S, G>*, uint two) {
  return values_of((thread const C*)nullptr, two);
}

// A scale or a bias, twice.
template <uint B, typename S>
inline uint factor_of(thread const Affine<B, S>*, uint bits) {
  return bits * 0x10001;
}
template <typename C, uint G>
inline uint factor_of(thread const SmallFloats<C, E4m3, G>*, uint code) {
  return values_of((thread const E4m3*)nullptr, code * 0x10001);
}
template <typename C, uint G>
inline uint factor_of(thread const SmallFloats<C, E8m0, G>*, uint code) {
  return code == 255 ? 0x7fc07fc0u : code == 0 ? 0x00400040u : code * 0x00800080u;
}

// Two codes of a unit that lie together, one a byte.
template <typename B>
inline ushort two_codes(Blocks<B> reader, uint unit, uint first) {
  return B::template codes<ushort>(reader.block(unit), unit % B::UNITS, first);
}
template <typename B>
inline uint values_of(Blocks<B>, ushort two) {
  Kept kept = Kept::of(0);
  if constexpr (B::ZERO < 128) {
    return less_zero<B::ZERO>(pick_bytes(two, kept.above, 0x4140));
  } else {
    return two_of_eight<false>(pick_bytes(two, 0, 0x4140), kept);
  }
}

// A scale as the sum of two SCALAR.
inline uint split(float scale) {
  float rest = scale - unpack_two(pack_two(scale, scale)).x;
  return pack_two(scale, abs(scale) < INFINITY ? rest : 0.0f);
}

template <uint N>
struct RowsOfX {
  static constant constexpr uint COUNT = N;
};

template <uint TOKENS>
kernel void matmul_wgmma(
    PRODUCT_BUFFERS,
    constant MappedParams& mapped [[buffer(19)]],
    threadgroup uchar* dynamic [[threadgroup(0)]],
    uint group [[threadgroup_position_in_grid]],
    uint groups [[threadgroups_per_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  constant Params& p = mapped.p;
  constexpr uint X_BYTES = TOKENS * TILE_K * 2;
  constexpr uint STAGE = X_BYTES + W_BYTES;
  constexpr uint OUT = 128 * OUT_ROW;
  uint staged = (shared_address(dynamic) + 1023) / 1024 * 1024;
  uint slabs = staged + STAGES * STAGE;
  uint outs = slabs + SLABS * SLAB;
  uint full = outs + 2 * OUT;
  uint empty = full + STAGES * 8;
  uint slab_full = empty + STAGES * 8;
  uint slab_empty = slab_full + SLABS * 8;

  // Where there are few tiles several pairs of a cluster share the columns.
  uint splits = TOKENS == 64 ? p.splits : 1;
  uint share = group / 2 % splits;
  uint pair = share * 2;
  uint rank = group % 2;
  if (thread_index == 0) {
    for (uint i = 0; i < STAGES; ++i) {
      make_barrier(full + i * 8, 1);
      // A lane of each simdgroup of the four consumers of the cluster.
      make_barrier(empty + i * 8, 16);
    }
    for (uint i = 0; i < SLABS; ++i) {
      make_barrier(slab_full + i * 8, 1);
      // A lane of each simdgroup of the threadgroup's consumers.
      make_barrier(slab_empty + i * 8, 8);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  cluster_barrier();
  wait_for_inputs();

  // Tiles that follow each other share rows of the weight, and bands of x that the second cache holds. Where the last of them would leave
  // half of the clusters idle, each is two, of half as many rows of x.
  constexpr uint BAND = 2048 / TOKENS;
  uint clusters = groups / 2 / splits;
  uint down = (p.m + TOKENS - 1) / TOKENS;
  uint across = p.blocks[0] + p.blocks[1] + p.blocks[2];
  uint tiles = down * across;
  uint last = tiles % clusters;
  uint whole = TOKENS == 256 && last * 2 <= clusters ? tiles - last : tiles;
  uint pieces = whole + (tiles - whole) * 2;
  auto tile_of = [&](uint piece) { return piece < whole ? piece : whole + (piece - whole) / 2; };
  uint together = ((p.k + TILE_K - 1) / TILE_K) / TOGETHER;
  uint first_step = share * together / splits * TOGETHER;
  uint steps = (share + 1) * together / splits * TOGETHER - first_step;
  auto first_token = [&](uint piece) {
    uint tile = tile_of(piece);
    uint band = tile / (BAND * across);
    uint token = (band * BAND + tile % (BAND * across) % min(BAND, down - band * BAND)) * TOKENS;
    return piece < whole ? token : token + (piece - whole) % 2 * (TOKENS / 2);
  };
  auto pick = [&](uint piece) {
    uint tile = tile_of(piece);
    uint band = tile / (BAND * across);
    return PICK_PRODUCT(tile % (BAND * across) / min(BAND, down - band * BAND));
  };
  auto first_column = [&](Product product) { return (product.block * 2 + rank) * OF_EACH; };

  uint stage = 0;
  uint parity = 0;
  auto advance = [&]() {
    if (++stage == STAGES) {
      stage = 0;
      parity ^= 1;
    }
  };
  uint slab = 0;
  uint slab_parity = 0;
  auto advance_slab = [&]() {
    slab ^= 1;
    slab_parity ^= slab == 0;
  };

  if (simdgroup < 4) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (thread_index == 0) {
      for (uint piece = group / 2 / splits; piece < pieces; piece += clusters) {
        bool half_tile = piece >= whole;
        uint token = first_token(piece) + (half_tile ? 0 : rank * (TOKENS / 2));
        Product product = pick(piece);
        uint column = first_column(product);
        for (uint step = 0; step < steps; ++step) {
          uint at = first_step + step;
          if (IN_BLOCKS && step % SLAB_STEPS == 0) {
            wait_at(slab_empty + slab * 8, slab_parity ^ 1);
            arrive_expecting(slab_full + slab * 8, SLAB);
            for (uint i = 0; i < SUMS; ++i) {
              // Elements of the map are of two bytes.
              fetch_tile(
                  slabs + slab * SLAB + i * (SLAB / SUMS), mapped.weights[product.which + i], at / SLAB_STEPS * W::BLOCKS / 16 * 8, column,
                  slab_full + slab * 8);
            }
            advance_slab();
          }
          wait_at(empty + stage * 8, parity ^ 1);
          arrive_expecting(full + stage * 8, half_tile ? STAGE - X_BYTES / 2 : STAGE);
          uint to = staged + stage * STAGE;
          if (!half_tile || rank == 0) {
            fetch_tile_for_both(to + rank * (X_BYTES / 2), mapped.x, at * TILE_K, token, full + stage * 8, pair);
          }
          for (uint i = 0; i < SUMS && !IN_BLOCKS; ++i) {
            fetch_tile(
                to + X_BYTES + i * (W_BYTES / SUMS), mapped.weights[product.which + i], at * W_ROW / (BITS == 0 ? 2 : 1), column,
                full + stage * 8);
          }
          advance();
        }
      }
    }
    if (splits > 1) {
      cluster_barrier_for_memory();
    }
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    uint consumer = simdgroup / 4 - 1;
    uint warp = simdgroup % 4;
    uint row = SUMS == 2 ? consumer * 32 + warp * 8 : consumer * 64 + warp * 16;  // of the tile, the simdgroup's first
    constexpr uint BESIDE = SUMS == 2 ? OF_EACH : 8;                              // from its first eight rows to the others
    auto release = [&](uint stage) {
      if (lane < 2) {
        arrive_at(empty + stage * 8, pair + lane);
      }
    };

    auto compute = [&](uint piece, auto rows_of_x) {
      constexpr uint ROWS = decltype(rows_of_x)::COUNT;
      float d[ROWS / 2];
      Product product = pick(piece);
      uint column = first_column(product);
      uint before = 0;
      auto end_step = [&](uint step) {
        asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
        // Those of the step before have ended.
        asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
        if (step > 0) {
          release(before);
        }
        before = stage;
        advance();
      };
      if constexpr (BITS == 0 && !IN_BLOCKS && SUMS == 1) {
        for (uint step = 0; step < steps; ++step) {
          wait_at(full + stage * 8, parity);
          uint x_tile = staged + stage * STAGE;
          ulong a = describe(x_tile + X_BYTES + consumer * (W_BYTES / 2));
          ulong b = describe(x_tile);
          asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
          for (uint k = 0; k < TILE_K / 16; ++k) {
            multiply_tiles(d, a + k * 2, b + k * 2, step + k);
          }
          end_step(step);
        }
      } else {
        typedef W::Factor Factor;
        uint groups_of_row = p.k / W::GROUP;
        device const Factor* scales[2];
        device const Factor* biases[2];
        for (uint h = 0; h < 2; ++h) {
          Stored weight = holder_of(product.weight, h);
          uint own = column + row + lane / 4 + (SUMS == 2 ? 0 : h * 8);
          ulong at = ulong(min(own, product.n - 1)) * groups_of_row + first_step * TILE_K / W::GROUP;
          scales[h] = (device const Factor*)weight.scales + at;
          biases[h] = (device const Factor*)weight.biases + at;
        }
        // One step ahead.
        Factor factors[2][2][GROUPS];
        auto look = [&](uint step) {
          uint first = min(step, steps - 1) * TILE_K / W::GROUP;
          for (uint h = 0; h < 2; ++h) {
            for (uint i = 0; i < GROUPS; ++i) {
              factors[h][0][i] = scales[h][first + i];
              if (W::BIASED) {
                factors[h][1][i] = biases[h][first + i];
              }
            }
          }
        };
        if (BITS != 0) {
          look(0);
        }
        auto dequantize_tile = [&](uint step, thread uint (&a)[TILE_K / 16][4]) {
          uint scale[2][GROUPS];
          uint bias[2][GROUPS];
          for (uint h = 0; h < 2; ++h) {
            for (uint i = 0; i < GROUPS; ++i) {
              scale[h][i] = factor_of((thread const Coded*)nullptr, factors[h][0][i]);
              bias[h][i] = W::BIASED ? factor_of((thread const Coded*)nullptr, factors[h][1][i]) : NEGATIVE_ZEROS;
            }
          }
          look(step + 1);
          wait_at(full + stage * 8, parity);
          uint own = row + lane / 4;
          uint codes = staged + stage * STAGE + X_BYTES + own * W_ROW;
          for (uint h = 0; h < 2; ++h) {
            uint two[TILE_K / 16][2];  // in its halves, neighbouring codes of eight columns
            if constexpr (BITS == 4) {
              // Those of byte lane % 4 of every word.
              for (uint i = 0; i < 2; ++i) {
                uint words[4];
                asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                             : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                             : "r"(codes + h * BESIDE * W_ROW + i * 16));
                for (uint w = 0; w < 4; ++w) {
                  two[i * 2 + w / 2][w % 2] = pick_bytes(words[w], 0, 0x4440 | lane % 4) * 0x1001;
                }
              }
            } else {
              // Rows of 64 bytes have their chunks at their places exclusive-or half of the row's number.
              for (uint k = 0; k < TILE_K / 16; ++k) {
                for (uint e = 0; e < 2; ++e) {
                  ushort pair;
                  asm volatile("ld.shared.u16 %0, [%1];"
                               : "=h"(pair)
                               : "r"(codes + h * BESIDE * W_ROW + (k ^ own / 2 % 4) * 16 + e * 8 + lane % 4 * 2));
                  two[k][e] = pick_bytes(pair, 0, 0x4140);
                }
              }
            }
            for (uint k = 0; k < TILE_K / 16; ++k) {
              for (uint e = 0; e < 2; ++e) {
                uint values = values_of((thread const Coded*)nullptr, two[k][e]);
                a[k][e * 2 + h] = fma_pairs(values, scale[h][k * GROUPS / 4], bias[h][k * GROUPS / 4]);
              }
            }
          }
        };
        // `part` is step % SLAB_STEPS: rows are whole slabs.
        auto dequantize_blocks = [&](uint step, uint part, thread uint (&a)[TILE_K / 16][4]) {
          if (part == 0) {
            wait_at(slab_full + slab * 8, slab_parity);
          }
          // The copy engine wants to begin on sixteen bytes.
          uint skipped = (first_step + step) / SLAB_STEPS * W::BLOCKS % 16;
          threadgroup const uchar* rows = dynamic + (slabs + slab * SLAB - shared_address(dynamic)) + (row + lane / 4) * PITCH + skipped;
          for (uint h = 0; h < 2; ++h) {
            Blocked reader = {as_device(rows + h * BESIDE * PITCH)};
            // Each of four lanes has the scale of one unit.
            uint own = split(reader.factors(part * (TILE_K / 16) + lane % 4).scale);
            ushort two[TILE_K / 16][2];
            for (uint k = 0; k < TILE_K / 16; ++k) {
              for (uint e = 0; e < 2; ++e) {
                two[k][e] = two_codes(reader, part * (TILE_K / 16) + k, lane % 4 * 2 + e * 8);
              }
            }
            uint scale;
            for (uint k = 0; k < TILE_K / 16; ++k) {
              if (k % (W::GROUP / UNIT) == 0) {
                scale = simd_shuffle(own, ushort(lane / 4 * 4 + k));
              }
              for (uint e = 0; e < 2; ++e) {
                uint pair = values_of(reader, two[k][e]);
                uint rest = fma_pairs(pair, high_halves(scale, scale), NEGATIVE_ZEROS);
                a[k][e * 2 + h] = fma_pairs(pair, low_halves(scale, scale), rest);
              }
            }
          }
          if (part == SLAB_STEPS - 1) {
            simdgroup_barrier(mem_flags::mem_none);
            if (lane == 0) {
              arrive_at(slab_empty + slab * 8, pair + rank);
            }
            advance_slab();
          }
          wait_at(full + stage * 8, parity);
        };
        // Registers that products of the step before may still read are another step's.
        auto one = [&](uint step, uint part, thread uint (&a)[TILE_K / 16][4]) {
          if constexpr (IN_BLOCKS) {
            dequantize_blocks(step, part, a);
          } else if constexpr (BITS == 0) {
            wait_at(full + stage * 8, parity);
            uint own = row + lane / 8 % 2 * BESIDE + lane % 8;
            for (uint k = 0; k < TILE_K / 16; ++k) {
              load_matrices(a[k], staged + stage * STAGE + X_BYTES + own * W_ROW + (k * 2 + lane / 16 ^ lane % 8) * 16);
            }
          } else {
            dequantize_tile(step, a);
          }
          ulong b = describe(staged + stage * STAGE);
          asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
          for (uint k = 0; k < TILE_K / 16; ++k) {
            multiply_tiles(d, a[k], b + k * 2, step + k);
          }
          end_step(step);
        };
        uint even[TILE_K / 16][4];
        uint odd[TILE_K / 16][4];
        uint step = 0;
        constexpr uint AT_ONCE = IN_BLOCKS ? SLAB_STEPS : 2;
        for (; step + AT_ONCE <= steps; step += AT_ONCE) {
#pragma unroll
          for (uint part = 0; part < AT_ONCE; part += 2) {
            one(step + part, part, even);
            one(step + part + 1, part + 1, odd);
          }
        }
        if (!IN_BLOCKS && step < steps) {
          one(step, 0, even);
        }
      }
      asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
      release(before);

      // The first pair adds up the sums of all, which lie where their tiles were.
      if (splits > 1) {
        uint own = staged + (thread_index - 128) * 16;
        asm volatile("bar.sync 3, 256;" ::: "memory");
        if (share > 0) {
#pragma unroll
          for (uint i = 0; i < ROWS / 2; i += 4) {
            asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(own + i * 1024), "f"(d[i]), "f"(d[i + 1]), "f"(d[i + 2]), "f"(d[i + 3])
                         : "memory");
          }
        }
        cluster_barrier_for_memory();
        if (share > 0) {
          return;
        }
        for (uint other = 1; other < splits; ++other) {
#pragma unroll
          for (uint i = 0; i < ROWS / 2; i += 4) {
            float4 sums = load_from(own + i * 1024, other * 2 + rank);
            d[i] += sums.x;
            d[i + 1] += sums.y;
            d[i + 2] += sums.z;
            d[i + 3] += sums.w;
          }
        }
      }

      // A consumer lays out up to 128 rows of x at a time, transposed, as the copy engine takes them.
      uint out = outs + consumer * OUT;
      uint token = first_token(piece);
      Added added = PICK_ADDED(product);
      // Sum `e` of d's sums j * 4 to j * 4 + 3, of rows of x j * 8 + lane % 4 * 2 and the next, for the thread's row of the weight and the other.
      auto element = [&](uint j, uint e) {
        float sums[2] = {d[j * 4 + e], d[j * 4 + e % 2 + 2]};
        uint own = row + lane / 4 + (SUMS == 2 ? 0 : e / 2 * 8);
        return product.element(
            min(token + j * 8 + lane % 4 * 2 + e % 2, p.m - 1), min(column + own, product.n - 1), sums, added);
      };
#pragma unroll
      for (uint part = 0; part < (ROWS + 127) / 128; ++part) {
        if (thread_index % 128 == 0) {
          asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
        }
        asm volatile("bar.sync %0, 128;" ::"r"(consumer + 1) : "memory");
#pragma unroll
        for (uint j = 0; j < min(ROWS, 128u) / 8; j += 2 * SUMS) {
          uint packed[4];
#pragma unroll
          for (uint i = 0; i < 4; ++i) {
            uint from = part * 16 + j + (SUMS == 2 ? i : i / 2);
            uint e = SUMS == 2 ? 0 : i % 2 * 2;
            packed[i] = pack_two(element(from, e), element(from, e + 1));
          }
          uint r = lane % 8;
          uint below = SUMS == 2 ? lane / 8 : lane / 16;
          uint place = SUMS == 2 ? warp ^ r / 2 : (warp * 2 + lane / 8 % 2) ^ r;
          asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                           out + ((j + below) * 8 + r) * OUT_ROW + place * 16),
                       "r"(packed[0]), "r"(packed[1]), "r"(packed[2]), "r"(packed[3])
                       : "memory");
        }
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
        asm volatile("bar.sync %0, 128;" ::"r"(consumer + 1) : "memory");
        if (thread_index % 128 == 0) {
          store_tile(mapped.outs[product.which], column + consumer * (64 / SUMS), token + part * 128, out);
        }
      }
    };
    uint piece = group / 2 / splits;
    for (; piece < whole; piece += clusters) {
      compute(piece, RowsOfX<TOKENS>());
    }
    if constexpr (TOKENS == 256) {
      for (; piece < pieces; piece += clusters) {
        compute(piece, RowsOfX<TOKENS / 2>());
      }
    }
    if (thread_index % 128 == 0) {
      asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
    }
  }
  // Neither leaves while the other may still write to its memory or come to its barriers.
  cluster_barrier();
}

instantiate_kernel("matmul_wgmma_64", matmul_wgmma, 64)
instantiate_kernel("matmul_wgmma_128", matmul_wgmma, 128)
instantiate_kernel("matmul_wgmma_256", matmul_wgmma, 256)
