// matmul for few rows of x on NVIDIA's tensor cores, for x in a type of 16 bits and affine codes of 4 or 8 bits, which are exact in
// such a type. kernel.metal is its check.
//
// A threadgroup stays for as long as it has tiles, each 16 rows of the weight (or of two in turn), two of which go together where registers allow. Its
// simdgroups share the columns of a tile in stages of 256. Stages come by asynchronous copies that run ahead over the ends of tiles,
// the first of them before the launch before this one has ended: it does not write the weight. A pair of codes becomes two 16-bit
// floats: of four bits by one logical operation, as the mantissas of 128 + code (bf16) or 1024 + code (f16, which is taken off again:
// it would cost too many digits), of eight bits as code - 128. Products with the codes and with ones are summed for each group of
// columns, then scaled in f32: (s * code + b) x = s * (offset + code) x + (b - offset * s) x.

#include "matrix.h"
#include "nvidia.h"
#include "products.h"

constant constexpr uint COLUMNS = 256;  // of a stage
constant constexpr uint DEPTH = 2;      // stages that a simdgroup has

template <typename R>
struct Coded;
template <uint B, typename S>
struct Coded<Affine<B, S>> {
  static constant constexpr uint BITS = B;
  typedef S Scale;
};

constant constexpr uint BITS = Coded<Reader>::BITS;
constant constexpr bool HALF = is_same_v<SCALAR, half>;
constant constexpr float OFFSET = BITS == 8 ? -128.0f : HALF ? 0.0f : 128.0f;

// Masks of a pair of codes. They are kept in registers, so that an instruction has room for its other constant: `zero` is zero, which
// the compiler must not see.
struct Masks {
  uint code;
  uint top;  // bit of eight

  static Masks of(uint zero) { return {(BITS == 4 ? 0x000f000fu : HALF ? 0x00ff00ffu : 0x007f007fu) | zero, 0x00800080u | zero}; }
};

// Codes i and i + 4 of a word of eight, or i and i + 2 of a word of four; and OFFSET.
inline uint two_codes(uint word, uint i, Masks masks) {
  uint shifted = word >> (BITS * i);
  if constexpr (BITS == 4 && HALF) {
    return add_pairs(and_or(shifted, masks.code, 0x64006400u), 0xe400e400u);
  } else if constexpr (BITS == 4) {
    return and_or(shifted, masks.code, 0x43004300u);
  } else if constexpr (HALF) {
    return add_pairs(and_or(shifted, masks.code, 0x64006400u), 0xe480e480u);
  } else {
    // 128 and the low seven bits, less 128 where the eighth is set and 256 where it is not.
    return add_pairs(and_or(shifted, masks.code, 0x43004300u), and_xor(shifted, masks.top, 0xc380c380u));
  }
}

// What a simdgroup has of a stage: the codes of some rows, then their scales, and their biases.
template <uint GROUP, uint TILES>
struct Stage {
  static constant constexpr uint GROUPS = COLUMNS / GROUP;
  static constant constexpr uint ROWS = 16 * TILES;
  static constant constexpr uint ROW = COLUMNS * BITS / 8;
  static constant constexpr uint SCALE = GROUPS * 2;  // bytes of a row's
  static constant constexpr uint SCALES = ROWS * ROW;
  static constant constexpr uint BIASES = SCALES + ROWS * SCALE;
  static constant constexpr uint BYTES = BIASES + ROWS * SCALE;
  static constant constexpr uint CHUNKS = ROW / 16;   // of a row
  static constant constexpr uint EACH = 32 / CHUNKS;  // rows that a copy of all lanes has
  typedef vec<Coded<Reader>::Scale, (GROUPS < 4 ? GROUPS : 4)> Factors;
};

// A chunk of sixteen bytes lies at its place exclusive-or this, so that eight rows at one column lie in different banks.
inline uint swizzle(uint row) { return (row & 1) << 2 | (row & 2) | (row >> 2 & 1); }

// Where the next stage to ask for lies.
struct Ahead {
  device const uchar* codes;
  device const uchar* scales;
  device const uchar* biases;
  uint rows;   // that there are
  uint tile;   // the next
  uint stage;  // of this one
};

// WARPS simdgroups, 8 * OCTETS rows of x, and TILES that go together.
template <uint GROUP, uint WARPS, uint OCTETS, uint TILES>
kernel void matmul_tensor_few(
    PRODUCTS,
    threadgroup uchar* dynamic [[threadgroup(0)]],
    uint2 group [[threadgroup_position_in_grid]],
    uint2 threadgroups [[threadgroups_per_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  typedef Stage<GROUP, TILES> S;
  constexpr uint LANE = GROUP / 4;  // columns of a group that a lane has
  constexpr uint PITCH = S::ROWS + 4;
  constexpr uint PART = PITCH * 8 * OCTETS;
  threadgroup uchar* staged = dynamic + simdgroup * DEPTH * S::BYTES;
  threadgroup float* partials = (threadgroup float*)(dynamic + WARPS * DEPTH * S::BYTES);

  // As many tiles for each threadgroup, or one less.
  ulong tiles = p.blocks[0] + p.blocks[1] + p.blocks[2];
  uint tile = tiles * group.x / threadgroups.x;
  uint end = tiles * (group.x + 1) / threadgroups.x;
  uint first_token = group.y * 8 * OCTETS;
  uint stages = (p.k + COLUMNS - 1) / COLUMNS;
  uint groups = p.k / GROUP;
  // Those from `tile` on that go together, which are of one weight.
  auto together = [&](Product product, uint tile) {
    return TILES == 1 ? 1 : min(min(end - tile, TILES), (product.rows() + 15) / 16 - product.block);
  };

  // Of each copy a lane has one chunk.
  uint chunk = lane % S::CHUNKS;
  uint copy_row = lane / S::CHUNKS;
  uint places[8 / S::EACH];
  for (uint i = 0; i < 8 / S::EACH; ++i) {
    places[i] = copy_row * S::ROW + (chunk ^ swizzle(i * S::EACH + copy_row)) * 16;
  }
  ulong code_step = ulong(S::EACH / SUMS) * p.code_stride;
  Ahead ahead = {nullptr, nullptr, nullptr, 0, tile, stages};
  auto enter = [&]() {
    if (ahead.tile < end) {
      Product product = PICK_PRODUCT(ahead.tile);
      uint row = product.block * 16;
      uint count = together(product, ahead.tile);
      ahead.rows = min(product.rows() - row, count * 16);
      ulong first = ulong((row + copy_row) / SUMS) * p.code_stride;
      ahead.codes = holder_of(product.weight, copy_row).codes + first + simdgroup * S::ROW + chunk * 16;
      // The second half of the lanes copies the biases, where the first is enough for the scales.
      uint factor_row = row + min(lane % S::ROWS, ahead.rows - 1);
      ulong at = ulong(factor_row / SUMS) * (groups * 2) + simdgroup * S::SCALE;
      Stored holder = holder_of(product.weight, factor_row);
      ahead.scales = (lane < S::ROWS ? holder.scales : holder.biases) + at;
      ahead.biases = holder.biases + at;
      ahead.tile += count;
      ahead.stage = simdgroup;
    }
  };
  auto fetch = [&](uint slot) {
    if (ahead.stage < stages) {
      threadgroup uchar* stage = staged + slot * S::BYTES;
      Shared to = shared_address(stage);
      bool inside = ahead.stage * COLUMNS + chunk * (128 / BITS) < p.k;
      for (uint i = 0; i < S::ROWS / S::EACH; ++i) {
        if (i * S::EACH + copy_row < ahead.rows && inside) {
          copy_sixteen(to + places[i % (8 / S::EACH)] + i * S::EACH * S::ROW, ahead.codes + i * code_step, true);
        }
      }
      if (p.k % COLUMNS == 0) {
        copy_cached<S::SCALE>(to + S::SCALES + lane * S::SCALE, ahead.scales);
        if (TILES == 2) {
          copy_cached<S::SCALE>(to + S::BIASES + lane * S::SCALE, ahead.biases);
        }
      } else {
        // Rows of scales lie anywhere, and the last stage has fewer.
        for (uint i = 0; i < S::GROUPS; ++i) {
          if (ahead.stage * S::GROUPS + i < groups) {
            ((threadgroup ushort*)(stage + S::SCALES))[lane * S::GROUPS + i] = ((device const ushort*)ahead.scales)[i];
            if (TILES == 2) {
              ((threadgroup ushort*)(stage + S::BIASES))[lane * S::GROUPS + i] = ((device const ushort*)ahead.biases)[i];
            }
          }
        }
      }
      ahead.codes += WARPS * S::ROW;
      ahead.scales += WARPS * S::SCALE;
      ahead.biases += WARPS * S::SCALE;
      ahead.stage += WARPS;
      if (ahead.stage >= stages) {
        enter();
      }
    }
    end_copies();
  };
  if (simdgroup < stages) {
    enter();
  }
  for (uint i = 0; i < DEPTH - 1; ++i) {
    fetch(i);
  }
  wait_for_inputs();

  // Rows of x past the last are as the last, and their products are not stored. Their columns are asked for one group ahead.
  uint t = lane % 4;
  uint r = lane / 4;
  device const SCALAR* x_rows[OCTETS];
  for (uint j = 0; j < OCTETS; ++j) {
    x_rows[j] = x + ulong(min(first_token + j * 8 + r, p.m - 1)) * p.x_stride + t * LANE;
  }
  uint4 beside[OCTETS][LANE / 8];
  auto look = [&](uint column) {
    column = column < p.k ? column : min(simdgroup, stages - 1) * COLUMNS;
    for (uint j = 0; j < OCTETS; ++j) {
      for (uint i = 0; i < LANE / 8; ++i) {
        beside[j][i] = *(device const uint4*)(x_rows[j] + column + i * 8);
      }
    }
  };
  look(simdgroup * COLUMNS);

  uint all[4] = {ONES, ONES, ONES, ONES};
  Masks masks = Masks::of(simd_broadcast(p.k >> 31, 0));
  uint slot = 0;
  uint turn = 0;
  while (tile < end) {
    Product product = PICK_PRODUCT(tile);
    uint count = together(product, tile);
    float sums[TILES][OCTETS][4] = {};
    for (uint at = simdgroup; at < stages; at += WARPS) {
      wait_for_copies<DEPTH - 2>();
      simdgroup_barrier(mem_flags::mem_threadgroup);
      fetch(slot ^ 1);
      threadgroup const uchar* stage = staged + slot * S::BYTES;
      slot ^= 1;
      typename S::Factors factors[TILES][2][2][(S::GROUPS + 3) / 4];
#pragma unroll
      for (uint g = 0; g < S::GROUPS; ++g) {
        if (g > 0 && at * COLUMNS + g * GROUP >= p.k) {
          break;
        }
        uint b[OCTETS][GROUP / 16][2];
        for (uint j = 0; j < OCTETS; ++j) {
          for (uint s = 0; s < GROUP / 16; ++s) {
            uint4 eight = beside[j][s / 2];
            uint first = s % 2 == 0 ? eight.x : BITS == 4 ? eight.y : eight.z;
            uint second = s % 2 == 1 ? eight.w : BITS == 4 ? eight.z : eight.y;
            b[j][s][0] = low_halves(first, second);
            b[j][s][1] = high_halves(first, second);
          }
        }
        look(g + 1 < S::GROUPS ? at * COLUMNS + (g + 1) * GROUP : (at + WARPS) * COLUMNS);
        float ones[OCTETS][4] = {};
        for (uint j = 0; j < OCTETS; ++j) {
          for (uint s = 0; s < GROUP / 16; ++s) {
            multiply(ones[j], all, b[j][s]);
          }
        }
        for (uint i = 0; i < TILES; ++i) {
          if (i > 0 && i >= count) {
            break;
          }
          constexpr uint BYTES = LANE * BITS / 8;
          constexpr uint WORDS = BYTES < 16 ? BYTES / 4 : 4;  // of a load
          typedef conditional_t<WORDS == 1, uint, vec<uint, (WORDS > 1 ? WORDS : 2)>> Words;
          uint words[2][BYTES / 4];
          for (uint h = 0; h < 2; ++h) {
            threadgroup const uchar* row = stage + (i * 16 + h * 8 + r) * S::ROW;
            for (uint w = 0; w < BYTES / 4; w += WORDS) {
              uint byte = (g * 4 + t) * BYTES + w * 4;
              Words loaded = *(threadgroup const Words*)(row + (byte / 16 ^ swizzle(r)) * 16 + byte % 16);
              for (uint i = 0; i < WORDS; ++i) {
                words[h][w + i] = ((thread const uint*)&loaded)[i];
              }
            }
          }
          float codes[OCTETS][4] = {};
          for (uint s = 0; s < GROUP / 16; ++s) {
            uint w = BITS == 4 ? s / 2 : s;
            uint i = BITS == 4 ? s % 2 * 2 : 0;
            uint a[4] = {two_codes(words[0][w], i, masks), two_codes(words[1][w], i, masks),
                         two_codes(words[0][w], i + 1, masks), two_codes(words[1][w], i + 1, masks)};
            for (uint j = 0; j < OCTETS; ++j) {
              multiply(codes[j], a, b[j][s]);
            }
          }
          for (uint h = 0; h < 2; ++h) {
            threadgroup const uchar* from = stage + S::SCALES + (i * 16 + h * 8 + r) * S::SCALE + g * 2;
            if (g % 4 == 0) {
              factors[i][h][0][g / 4] = *(threadgroup const typename S::Factors*)from;
              factors[i][h][1][g / 4] = *(threadgroup const typename S::Factors*)(from + S::ROWS * S::SCALE);
            }
            float scale = float(factors[i][h][0][g / 4][g % 4]);
            float bias = fma(-OFFSET, scale, float(factors[i][h][1][g / 4][g % 4]));
            for (uint j = 0; j < OCTETS; ++j) {
              for (uint e = h * 2; e < h * 2 + 2; ++e) {
                sums[i][j][e] = fma(scale, codes[j][e], fma(bias, ones[j][e % 2], sums[i][j][e]));
              }
            }
          }
        }
      }
    }

    // Joins the simdgroups. A turn's part is read before the barrier of the next turn, and written again after it.
    threadgroup float* partial = partials + turn % 2 * (WARPS * PART);
    for (uint i = 0; i < TILES; ++i) {
      for (uint j = 0; j < OCTETS; ++j) {
        for (uint e = 0; e < 4; ++e) {
          partial[simdgroup * PART + (j * 8 + t * 2 + e % 2) * PITCH + i * 16 + e / 2 * 8 + r] = sums[i][j][e];
        }
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    uint first_row = product.block * 16;
    uint rows = min(product.rows() - first_row, count * 16);
    // Half of the threads or fewer have something to do: the others at the next turn.
    uint worker = (thread_index + turn * (WARPS * 16)) % (WARPS * 32);
    for (uint i = worker; i < S::ROWS / SUMS * 8 * OCTETS; i += WARPS * 32) {
      uint row = i % (S::ROWS / SUMS) * SUMS;
      uint token = i / (S::ROWS / SUMS);
      if (first_token + token < p.m && row < rows) {
        float joined[SUMS] = {};
        for (uint s = 0; s < WARPS; ++s) {
          for (uint j = 0; j < SUMS; ++j) {
            joined[j] += partial[s * PART + token * PITCH + row + j];
          }
        }
        product.store(first_token + token, (first_row + row) / SUMS, joined, PICK_ADDED(product));
      }
    }
    tile += count;
    ++turn;
  }
}

instantiate_kernel("matmul_tensor_few_32", matmul_tensor_few, 32, 8, 1, 1)
instantiate_kernel("matmul_tensor_few_64", matmul_tensor_few, 64, 8, 1, 1)
instantiate_kernel("matmul_tensor_few_128", matmul_tensor_few, 128, 8, 1, 1)
instantiate_kernel("matmul_tensor_few_32_pairs", matmul_tensor_few, 32, 8, 1, 2)
instantiate_kernel("matmul_tensor_few_64_pairs", matmul_tensor_few, 64, 8, 1, 2)
instantiate_kernel("matmul_tensor_few_128_pairs", matmul_tensor_few, 128, 8, 1, 2)
instantiate_kernel("matmul_tensor_few_32_wide", matmul_tensor_few, 32, 16, 1, 1)
instantiate_kernel("matmul_tensor_few_64_wide", matmul_tensor_few, 64, 16, 1, 1)
instantiate_kernel("matmul_tensor_few_128_wide", matmul_tensor_few, 128, 16, 1, 1)
instantiate_kernel("matmul_tensor_few_32_wide_pairs", matmul_tensor_few, 32, 16, 1, 2)
instantiate_kernel("matmul_tensor_few_64_wide_pairs", matmul_tensor_few, 64, 16, 1, 2)
instantiate_kernel("matmul_tensor_few_128_wide_pairs", matmul_tensor_few, 128, 16, 1, 2)
instantiate_kernel("matmul_tensor_few_32_sixteen", matmul_tensor_few, 32, 8, 2, 1)
instantiate_kernel("matmul_tensor_few_64_sixteen", matmul_tensor_few, 64, 8, 2, 1)
instantiate_kernel("matmul_tensor_few_128_sixteen", matmul_tensor_few, 128, 8, 2, 1)
