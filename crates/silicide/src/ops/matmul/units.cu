// matmul for few rows of x on NVIDIA's tensor cores, for x in a type of 16 bits and a weight of any format whose elements, before they
// are scaled, are exact in that type. kernel.metal is its check.
//
// Threadgroups and simdgroups share tiles of 16 rows of the weight as in few.cu, in stages that are copied ahead as bytes, whatever the
// format: a reader of the stage gives a lane whole units, four lanes the four of 64 columns of a row. Units have scales of their own, so
// their products must be summed apart: rows of x are spread over sixteen, each with the columns of one unit of the four and zeros
// elsewhere, which makes four rows of x a factor of the tensor cores. Sums of a unit are scaled in f32.

#include "matrix.h"
#include "nvidia.h"
#include "products.h"

constant constexpr uint DEPTH = 2;  // stages that a simdgroup has
constant constexpr bool HALF = is_same_v<SCALAR, half>;
constant constexpr uint WARPS = 8;  // simdgroups
constant constexpr uint ROWS = 16;  // of a tile

// How a stage of a row lies in memory: its columns, the bytes of their codes, and of a scale that lies apart; columns that share it.
template <typename R>
struct Layout;
template <uint BITS, typename S>
struct Layout<Affine<BITS, S>> {
  static constant constexpr uint COLUMNS = 256, CODES = 32 * BITS, SCALE = sizeof(S);
  static constant constexpr bool BIASES = true;
  static uint group(uint group) { return group; }
};
template <typename C, typename S, uint GROUP>
struct Layout<SmallFloats<C, S, GROUP>> {
  static constant constexpr uint COLUMNS = 256, CODES = 16 * C::BYTES, SCALE = 1;
  static constant constexpr bool BIASES = false;
  static uint group(uint) { return GROUP; }
};
template <typename B>
struct Layout<Blocks<B>> {
  static constant constexpr uint COLUMNS = 256, CODES = 16 / B::UNITS * B::BYTES, SCALE = 0;
  static constant constexpr bool BIASES = false;
  static uint group(uint) { return 256; }
};
template <typename T>
struct Layout<Dense<T>> {
  static constant constexpr uint COLUMNS = 128, CODES = 128 * sizeof(T), SCALE = 0;
  static constant constexpr bool BIASES = false;
  static uint group(uint) { return 128; }
};
typedef Layout<Reader> L;
constant constexpr uint COLUMNS = L::COLUMNS;
constant constexpr bool EVEN = L::CODES % 16 == 0;  // rows begin on 16 bytes
constant constexpr uint CHUNKS = EVEN ? L::CODES / 16 : (L::CODES + 30) / 16;
constant constexpr uint PITCH = (CHUNKS | 1) * 16;
constant constexpr uint FACTORS = L::SCALE * (L::BIASES ? 8 : 16);  // bytes of a row's scales, in the smallest groups that there are
constant constexpr uint SCALES = ROWS * PITCH;
constant constexpr uint BIASES = SCALES + ROWS * FACTORS;
constant constexpr uint BYTES = BIASES + (L::BIASES ? ROWS * FACTORS : 0);

// A unit as pairs of SCALAR.
struct Packed {
  uint pairs[8];
  float scale;
  float minimum;
};

template <typename R>
inline Packed load_packed(R reader, uint unit) {
  Packed packed;
  if constexpr (is_same_v<R, Dense<SCALAR>>) {
    device const uint4* at = (device const uint4*)(reader.row + unit * UNIT);
    for (uint i = 0; i < 2; ++i) {
      uint4 four = at[i];
      packed.pairs[i * 4] = four.x;
      packed.pairs[i * 4 + 1] = four.y;
      packed.pairs[i * 4 + 2] = four.z;
      packed.pairs[i * 4 + 3] = four.w;
    }
    packed.scale = 1.0f;
    packed.minimum = 0.0f;
  } else {
    Unit u = reader.load(unit);
    for (uint i = 0; i < 4; ++i) {
      packed.pairs[i * 2] = pack_two(u.values[i].x, u.values[i].y);
      packed.pairs[i * 2 + 1] = pack_two(u.values[i].z, u.values[i].w);
    }
    packed.scale = u.scale;
    packed.minimum = u.minimum;
  }
  return packed;
}

// Where the next stage to ask for lies.
struct Ahead {
  Weight weight;
  uint row;    // of its tile the first
  uint rows;   // that there are
  uint last;   // of its weight's the last, if it is here
  uint tile;   // the next
  uint stage;  // of this one
};

// Four rows of x a set.
template <uint SETS>
kernel void matmul_tensor_units(
    PRODUCTS,
    threadgroup uchar* dynamic [[threadgroup(0)]],
    uint2 group [[threadgroup_position_in_grid]],
    uint2 threadgroups [[threadgroups_per_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  constexpr uint GAP = ROWS + 4;
  constexpr uint PART = GAP * 4 * SETS;
  threadgroup uchar* staged = dynamic + simdgroup * DEPTH * BYTES;
  threadgroup float* partials = (threadgroup float*)(dynamic + WARPS * DEPTH * BYTES);
  ulong tiles = p.blocks[0] + p.blocks[1] + p.blocks[2];
  uint tile = tiles * group.x / threadgroups.x;
  uint end = tiles * (group.x + 1) / threadgroups.x;
  uint first_token = group.y * 4 * SETS;
  uint stages = p.k / COLUMNS;
  uint group_size = L::group(p.group_size);
  auto codes_of = [&](Weight weight, uint row) {
    return holder_of(weight, row).codes + ulong(row / SUMS) * holder_of(weight, row).code_stride;
  };
  Ahead ahead = {{}, 0, 0, 0, tile, stages};
  auto enter = [&]() {
    if (ahead.tile < end) {
      Product product = PICK_PRODUCT(ahead.tile);
      ahead.weight = product.weight;
      ahead.row = product.block * ROWS;
      ahead.rows = min(product.rows() - ahead.row, ROWS);
      ahead.last = product.n - ahead.row / SUMS - 1;
      ahead.tile += 1;
      ahead.stage = simdgroup;
    }
  };
  auto fetch = [&](uint slot) {
    if (ahead.stage < stages) {
      Shared to = shared_address(staged + slot * BYTES);
      for (uint i = 0; i < (ROWS * CHUNKS + 31) / 32; ++i) {
        uint at = i * 32 + lane;
        uint row = at / CHUNKS;
        uint chunk = at % CHUNKS;
        if (row < ahead.rows) {
          device const uchar* from = codes_of(ahead.weight, ahead.row + row) + ahead.stage * L::CODES;
          if (EVEN) {
            copy_some(to + row * PITCH + chunk * 16, from + chunk * 16, 16);
          } else {
            uint before = uint(ulong(from)) & 15;
            if (chunk * 16 < before + L::CODES) {
              uint there = min(before + L::CODES - chunk * 16, 16u);
              device const uchar* start = from - before + chunk * 16;
              uint place = row * PITCH + chunk * 16;
              if (there < 16 && row / SUMS == ahead.last && ahead.stage + 1 == stages) {
                // The copy below may touch all sixteen bytes, and here the weight ends. Blocks have even sizes.
                for (uint b = 0; b < there; b += 2) {
                  *(threadgroup ushort*)(staged + slot * BYTES + place + b) = *(device const ushort*)(start + b);
                }
              } else {
                copy_some(to + place, start, there);
              }
            }
          }
        }
      }
      if constexpr (L::SCALE != 0) {
        uint groups = p.k / group_size;
        uint mine = COLUMNS / group_size * L::SCALE;
        uint row = lane % ROWS;
        uint from = ahead.row + min(row, ahead.rows - 1);
        Stored holder = holder_of(ahead.weight, from);
        if (lane < ROWS || L::BIASES) {
          device const uchar* at = lane < ROWS ? holder.scales : holder.biases;
          at += ulong(from / SUMS) * (groups * L::SCALE) + ahead.stage * mine;
          Shared there = to + (lane < ROWS ? SCALES : BIASES) + row * mine;
          if (mine % 16 == 0) {
            for (uint i = 0; i < mine; i += 16) {
              copy_cached<16>(there + i, at + i);
            }
          } else if (mine % 8 == 0) {
            copy_cached<8>(there, at);
          } else {
            copy_cached<4>(there, at);
          }
        }
      }
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
  fetch(0);
  wait_for_inputs();

  uint t = lane % 4;
  uint g = lane / 4;
  bool mine = g % 4 == t;
  device const SCALAR* x_rows[SETS][2];
  for (uint s = 0; s < SETS; ++s) {
    for (uint h = 0; h < 2; ++h) {
      x_rows[s][h] = x + ulong(min(first_token + s * 4 + h * 2 + g / 4, p.m - 1)) * p.x_stride + t * UNIT;
    }
  }
  uint all[2] = {ONES, ONES};
  uint from = t * 8 + g % 4;
  uint slot = 0;
  uint turn = 0;
  for (; tile < end; ++tile, ++turn) {
    Product product = PICK_PRODUCT(tile);
    uint first_row = product.block * ROWS;
    float sums[2][SETS][4] = {};
    for (uint at = simdgroup; at < stages; at += WARPS) {
      wait_for_copies<0>();
      simdgroup_barrier(mem_flags::mem_threadgroup);
      fetch(slot ^ 1);
      threadgroup uchar* stage = staged + slot * BYTES;
      slot ^= 1;
      Reader readers[2];
      for (uint i = 0; i < 2; ++i) {
        uint row = i * 8 + g;
        uint before = EVEN ? 0 : uint(ulong(codes_of(product.weight, first_row + row) + at * L::CODES)) & 15;
        Stored here = {as_device(stage + before), as_device(stage + SCALES), as_device(stage + BIASES), PITCH, COLUMNS, group_size};
        readers[i] = Reader::at(here, row);
      }
#pragma unroll 1
      for (uint step = 0; step < COLUMNS / 64; ++step) {
        uint4 beside[SETS][2][2];
        for (uint s = 0; s < SETS; ++s) {
          for (uint h = 0; h < 2; ++h) {
            for (uint j = 0; j < 2; ++j) {
              beside[s][h][j] = mine ? ((device const uint4*)(x_rows[s][h] + at * COLUMNS + step * 64))[j] : uint4(0);
            }
          }
        }
        Packed w[2];
        float scales[2][2];
        float minimums[2][2];
        for (uint i = 0; i < 2; ++i) {
          w[i] = load_packed(readers[i], step * 4 + t);
          for (uint c = 0; c < 2; ++c) {
            scales[i][c] = simd_shuffle(w[i].scale, ushort(from + c * 4));
            minimums[i][c] = Reader::HAS_MINIMUM ? simd_shuffle(w[i].minimum, ushort(from + c * 4)) : 0.0f;
          }
        }
        for (uint s = 0; s < SETS; ++s) {
          float ones[4] = {};
          float codes[2][4] = {};
          for (uint j = 0; j < 4; ++j) {
            uint4 low = beside[s][0][j / 2];
            uint4 high = beside[s][1][j / 2];
            uint a[4] = {j % 2 ? low.z : low.x, j % 2 ? high.z : high.x, j % 2 ? low.w : low.y, j % 2 ? high.w : high.y};
            for (uint i = 0; i < 2; ++i) {
              multiply(codes[i], a, w[i].pairs + j * 2);
            }
            if (Reader::HAS_MINIMUM) {
              multiply(ones, a, all);
            }
          }
          for (uint i = 0; i < 2; ++i) {
            for (uint e = 0; e < 4; ++e) {
              sums[i][s][e] = fma(scales[i][e % 2], codes[i][e], sums[i][s][e]);
              if (Reader::HAS_MINIMUM) {
                sums[i][s][e] = fma(minimums[i][e % 2], ones[e], sums[i][s][e]);
              }
            }
          }
        }
      }
    }
    threadgroup float* partial = partials + turn % 2 * (WARPS * PART);
    for (uint i = 0; i < 2; ++i) {
      for (uint s = 0; s < SETS; ++s) {
        for (uint e = 0; e < 4; ++e) {
          float sum = sums[i][s][e];
          sum += simd_shuffle_xor(sum, ushort(4));
          sum += simd_shuffle_xor(sum, ushort(8));
          if (g % 4 == 0) {
            partial[simdgroup * PART + (s * 4 + e / 2 * 2 + g / 4) * GAP + i * 8 + t * 2 + e % 2] = sum;
          }
        }
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    uint worker = (thread_index + turn * (WARPS * 16)) % (WARPS * 32);
    for (uint i = worker; i < ROWS / SUMS * 4 * SETS; i += WARPS * 32) {
      uint row = i % (ROWS / SUMS) * SUMS;
      uint token = i / (ROWS / SUMS);
      if (first_token + token < p.m && first_row + row < product.rows()) {
        float joined[SUMS] = {};
        for (uint s = 0; s < WARPS; ++s) {
          for (uint j = 0; j < SUMS; ++j) {
            joined[j] += partial[s * PART + token * GAP + row + j];
          }
        }
        product.store(first_token + token, (first_row + row) / SUMS, joined, PICK_ADDED(product));
      }
    }
  }
}

instantiate_kernel("matmul_tensor_units_4", matmul_tensor_units, 1)
instantiate_kernel("matmul_tensor_units_8", matmul_tensor_units, 2)
