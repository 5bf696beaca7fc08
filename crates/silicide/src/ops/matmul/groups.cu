// matmul for few rows of x on NVIDIA's tensor cores, for x in a type of 16 bits and a weight of any format whose elements, before they
// are scaled, are exact in that type. kernel.metal is its check.
//
// Threadgroups and simdgroups share tiles of 16 rows of the weight as in few.cu, in stages that are copied ahead as bytes, whatever the
// format. Of a stage that is there a simdgroup first makes the scales and minimums, as floats; then it multiplies the codes of one group of
// columns after the other, and scales the sums.

#include "codes.h"
#include "products.h"

constant constexpr uint DEPTH = 2;  // stages that a simdgroup has
constant constexpr uint WARPS = 8;  // simdgroups
constant constexpr uint ROWS = 16;  // of a tile

// How a stage of a row lies in memory: its columns, the bytes of their codes, and of a scale that lies apart; columns that share it.
template <typename R>
struct Layout;
template <uint BITS, typename S>
struct Layout<Affine<BITS, S>> {
  static constant constexpr uint COLUMNS = 256, CODES = 32 * BITS, SCALE = sizeof(S);
  static constant constexpr bool BIASES = true, SCALED = true;
  static uint group(uint group) { return group; }
};
template <typename C, typename S, uint GROUP>
struct Layout<SmallFloats<C, S, GROUP>> {
  static constant constexpr uint COLUMNS = 256, CODES = 16 * C::BYTES, SCALE = 1;
  static constant constexpr bool BIASES = false, SCALED = true;
  static uint group(uint) { return GROUP; }
};
template <typename B>
struct Layout<Blocks<B>> {
  static constant constexpr uint COLUMNS = 256, CODES = 16 / B::UNITS * B::BYTES, SCALE = 0;
  static constant constexpr bool BIASES = false, SCALED = true;
  static uint group(uint) { return 256; }
};
template <typename T>
struct Layout<Dense<T>> {
  static constant constexpr uint COLUMNS = 128, CODES = 128 * sizeof(T), SCALE = 0;
  static constant constexpr bool BIASES = false, SCALED = false;
  static uint group(uint) { return 128; }
};
typedef Layout<Reader> L;
typedef Codes<Reader> C;
constant constexpr uint COLUMNS = L::COLUMNS;
constant constexpr bool EVEN = L::CODES % 16 == 0;  // rows begin on 16 bytes
constant constexpr uint CHUNKS = EVEN ? L::CODES / 16 : (L::CODES + 30) / 16;
constant constexpr uint PITCH = (CHUNKS | 1) * 16;
constant constexpr uint FACTORS = L::SCALE * (L::BIASES ? 8 : 16);  // bytes of a row's scales, in the smallest groups that there are
constant constexpr uint SCALES = ROWS * PITCH;
constant constexpr uint BIASES = SCALES + ROWS * FACTORS;
constant constexpr uint BYTES = BIASES + (L::BIASES ? ROWS * FACTORS : 0);

// Scales of a stage as floats, and minimums. Rows are apart so that four neighbours of eight rows lie in different banks.
constant constexpr uint GROUPS = COLUMNS / C::GROUP;
constant constexpr uint FLOATS = GROUPS + 4;  // of a row
constant constexpr uint MINIMUMS = ROWS * FLOATS;
constant constexpr uint SCALED = !L::SCALED ? 0 : Reader::HAS_MINIMUM ? 2 * MINIMUMS : MINIMUMS;

// Where the next stage to ask for lies.
struct Ahead {
  Weight weight;
  uint row;    // of its tile the first
  uint rows;   // that there are
  uint last;   // of its weight's the last, if it is here
  uint tile;   // the next
  uint stage;  // of this one
};

// Eight rows of x an octet.
template <uint OCTETS>
kernel void matmul_tensor_groups(
    PRODUCTS,
    threadgroup uchar* dynamic [[threadgroup(0)]],
    uint2 group [[threadgroup_position_in_grid]],
    uint2 threadgroups [[threadgroups_per_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  constexpr uint GAP = ROWS + 4;
  constexpr uint PART = GAP * 8 * OCTETS;
  threadgroup uchar* staged = dynamic + simdgroup * DEPTH * BYTES;
  threadgroup float* factors = (threadgroup float*)(dynamic + WARPS * DEPTH * BYTES) + simdgroup * SCALED;
  threadgroup float* partials = (threadgroup float*)(dynamic + WARPS * DEPTH * BYTES) + WARPS * SCALED;
  ulong tiles = p.blocks[0] + p.blocks[1] + p.blocks[2];
  uint tile = tiles * group.x / threadgroups.x;
  uint end = tiles * (group.x + 1) / threadgroups.x;
  uint first_token = group.y * 8 * OCTETS;
  uint stages = (p.k + COLUMNS - 1) / COLUMNS;
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
      uint columns = min(p.k - ahead.stage * COLUMNS, COLUMNS);
      uint bytes = columns == COLUMNS ? L::CODES : columns / 16 * (L::CODES * 16 / COLUMNS);
      for (uint i = 0; i < (ROWS * CHUNKS + 31) / 32; ++i) {
        uint at = i * 32 + lane;
        uint row = at / CHUNKS;
        uint chunk = at % CHUNKS;
        if (row < ahead.rows) {
          device const uchar* from = codes_of(ahead.weight, ahead.row + row) + ahead.stage * L::CODES;
          if (EVEN) {
            if (chunk * 16 < bytes) {
              copy_some(to + row * PITCH + chunk * 16, from + chunk * 16, 16);
            }
          } else {
            uint before = uint(ulong(from)) & 15;
            if (chunk * 16 < before + bytes) {
              uint there = min(before + bytes - chunk * 16, 16u);
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
        auto scales_of = [&](uint row, bool biases) {
          uint from = ahead.row + min(row, ahead.rows - 1);
          Stored holder = holder_of(ahead.weight, from);
          return (biases ? holder.biases : holder.scales) + ulong(from / SUMS) * (groups * L::SCALE) + ahead.stage * mine;
        };
        if (p.k % COLUMNS == 0) {
          if (lane < ROWS || L::BIASES) {
            device const uchar* at = scales_of(lane % ROWS, lane >= ROWS);
            Shared there = to + (lane < ROWS ? SCALES : BIASES) + lane % ROWS * mine;
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
        } else {
          // Rows of scales lie anywhere, and the last stage has fewer.
          uint count = columns / group_size * L::SCALE;
          for (uint i = lane; i < ROWS * (L::BIASES ? 2 : 1) * count; i += 32) {
            uint row = i / count;
            threadgroup uchar* there = staged + slot * BYTES + (row < ROWS ? SCALES : BIASES) + row % ROWS * mine;
            there[i % count] = scales_of(row % ROWS, row >= ROWS)[i % count];
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

  // Rows of x past the last are as the last, and their products are not stored. Their columns are asked for one group ahead.
  uint t = lane % 4;
  uint r = lane / 4;
  device const SCALAR* x_rows[OCTETS];
  for (uint o = 0; o < OCTETS; ++o) {
    x_rows[o] = x + ulong(min(first_token + o * 8 + r, p.m - 1)) * p.x_stride;
  }
  uint beside[OCTETS][C::GROUP / 8];
  auto look = [&](uint stage, uint group) {
    for (uint o = 0; o < OCTETS; ++o) {
      columns_beside<Reader>(x_rows[o] + stage * COLUMNS + group * C::GROUP, t, beside[o]);
    }
  };
  look(min(simdgroup, stages - 1), 0);
  Kept kept = Kept::of(simd_broadcast(p.k >> 31, 0));
  uint all[4] = {ONES, ONES, ONES, ONES};
  uint slot = 0;
  uint turn = 0;
  for (; tile < end; ++tile, ++turn) {
    Product product = PICK_PRODUCT(tile);
    uint first_row = product.block * ROWS;
    float sums[OCTETS][4] = {};
    for (uint at = simdgroup; at < stages; at += WARPS) {
      wait_for_copies<0>();
      simdgroup_barrier(mem_flags::mem_threadgroup);
      fetch(slot ^ 1);
      threadgroup uchar* stage = staged + slot * BYTES;
      slot ^= 1;
      auto reader_at = [&](uint row) {
        uint before = EVEN ? 0 : uint(ulong(codes_of(product.weight, first_row + row) + at * L::CODES)) & 15;
        Stored here = {as_device(stage + before), as_device(stage + SCALES), as_device(stage + BIASES), PITCH, COLUMNS, group_size};
        return Reader::at(here, row);
      };
      if (L::SCALED) {
        for (uint i = 0; i < ROWS * GROUPS / 32; ++i) {
          uint row = lane % ROWS;
          uint place = row * FLOATS + i * 2 + lane / ROWS;
          Reader reader = reader_at(row);
          Factors f = reader.factors((i * 2 + lane / ROWS) * (C::GROUP / UNIT));
          factors[place] = f.scale;
          if (Reader::HAS_MINIMUM) {
            factors[MINIMUMS + place] = fma(float(C::OFFSET), f.scale, f.minimum);
          }
        }
        simdgroup_barrier(mem_flags::mem_threadgroup);
      }
      Reader readers[2] = {reader_at(r), reader_at(r + 8)};
      uint here = (p.k - at * COLUMNS) / C::GROUP;
      float4 scales[2];
      float4 minimums[2];
#pragma unroll
      for (uint g = 0; g < GROUPS; ++g) {
        if (g > 0 && g >= here) {
          break;
        }
        uint b[OCTETS][C::GROUP / 8];
        for (uint o = 0; o < OCTETS; ++o) {
          for (uint i = 0; i < C::GROUP / 8; ++i) {
            b[o][i] = beside[o][i];
          }
          put_in_order<Reader>(b[o]);
        }
        if (g + 1 < GROUPS && g + 1 < here) {
          look(at, g + 1);
        } else {
          look(at + WARPS < stages ? at + WARPS : simdgroup, 0);
        }
        uint w[2][C::GROUP / 8];
        for (uint h = 0; h < 2; ++h) {
          C::pairs(readers[h], g, t, kept, w[h]);
        }
        if (L::SCALED && g % 4 == 0) {
          for (uint h = 0; h < 2; ++h) {
            threadgroup const float* from = factors + (h * 8 + r) * FLOATS + g;
            scales[h] = *(threadgroup const float4*)from;
            if (Reader::HAS_MINIMUM) {
              minimums[h] = *(threadgroup const float4*)(from + MINIMUMS);
            }
          }
        }
        for (uint o = 0; o < OCTETS; ++o) {
          float ones[4] = {};
          float codes[4] = {};
          for (uint i = 0; i < C::GROUP / 8; i += 2) {
            uint a[4] = {w[0][i], w[1][i], w[0][i + 1], w[1][i + 1]};
            multiply(L::SCALED ? codes : sums[o], a, b[o] + i);
            if (Reader::HAS_MINIMUM) {
              multiply(ones, all, b[o] + i);
            }
          }
          if (L::SCALED) {
            for (uint e = 0; e < 4; ++e) {
              sums[o][e] = fma(scales[e / 2][g % 4], codes[e], sums[o][e]);
              if (Reader::HAS_MINIMUM) {
                sums[o][e] = fma(minimums[e / 2][g % 4], ones[e], sums[o][e]);
              }
            }
          }
        }
      }
    }
    // Joins the simdgroups. A turn's part is read before the barrier of the next turn, and written again after it.
    threadgroup float* partial = partials + turn % 2 * (WARPS * PART);
    for (uint o = 0; o < OCTETS; ++o) {
      for (uint e = 0; e < 4; ++e) {
        partial[simdgroup * PART + (o * 8 + t * 2 + e % 2) * GAP + e / 2 * 8 + r] = sums[o][e];
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    uint worker = (thread_index + turn * (WARPS * 16)) % (WARPS * 32);
    for (uint i = worker; i < ROWS / SUMS * 8 * OCTETS; i += WARPS * 32) {
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

instantiate_kernel("matmul_tensor_groups_8", matmul_tensor_groups, 1)
instantiate_kernel("matmul_tensor_groups_16", matmul_tensor_groups, 2)
