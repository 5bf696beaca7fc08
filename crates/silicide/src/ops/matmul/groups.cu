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
constant constexpr uint FACTORS = L::SCALE * (COLUMNS / C::GROUP);  // bytes of a row's scales, in the smallest groups that there are
constant constexpr uint GROUPS = COLUMNS / C::GROUP;

constant constexpr uint SCALES = ROWS * PITCH;
constant constexpr uint BIASES = SCALES + ROWS * FACTORS;
constant constexpr uint BYTES = BIASES + (L::BIASES ? ROWS * FACTORS : 0);

// Scales of a stage as floats, and minimums. Rows are apart so that four neighbours of eight rows lie in different banks.
constant constexpr uint FLOATS = GROUPS + 4;  // of a row
constant constexpr uint MINIMUMS = ROWS * FLOATS;
constant constexpr uint SCALED = !L::SCALED ? 0 : Reader::HAS_MINIMUM ? 2 * MINIMUMS : MINIMUMS;

// Where the next stage to ask for lies.
struct Ahead {
  device const uchar* codes[SUMS];  // of the first row, and of the second where rows are of two weights in turn
  uint rows;                        // that there are
  bool ends;                        // whether the last of these is its weight's
  device const uchar* scales;       // of the lane's row, or its biases
  uint tile;                        // the next
  uint stage;                       // of this one
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
  uint t = lane % 4;
  uint r = lane / 4;
  auto codes_of = [&](Weight weight, uint row) {
    return holder_of(weight, row).codes + ulong(row / SUMS) * holder_of(weight, row).code_stride;
  };
  Ahead ahead = {{}, 0, false, nullptr, tile, stages};
  auto enter = [&]() {
    if (ahead.tile < end) {
      Product product = PICK_PRODUCT(ahead.tile);
      uint first = product.block * ROWS;
      ahead.rows = min(product.rows() - first, ROWS);
      ahead.ends = first + ahead.rows == product.rows();
      for (uint i = 0; i < SUMS; ++i) {
        ahead.codes[i] = codes_of(product.weight, first + i) + simdgroup * L::CODES;
      }
      if constexpr (L::SCALE != 0) {
        uint row = first + min(lane % ROWS, ahead.rows - 1);
        Stored holder = holder_of(product.weight, row);
        ulong at = (ulong(row / SUMS) * p.k + simdgroup * COLUMNS) / group_size * L::SCALE;
        ahead.scales = (lane < ROWS ? holder.scales : holder.biases) + at;
      }
      ahead.tile += 1;
      ahead.stage = simdgroup;
    }
  };
  auto fetch = [&](uint slot) {
    if (ahead.stage < stages) {
      threadgroup uchar* stage = staged + slot * BYTES;
      uint columns = min(p.k - ahead.stage * COLUMNS, COLUMNS);
      uint bytes = columns == COLUMNS ? L::CODES : columns / 16 * (L::CODES * 16 / COLUMNS);
      auto row_at = [&](uint row) { return ahead.codes[row % SUMS] + row / SUMS * p.code_stride; };
      // Chunks of sixteen bytes may reach past the end of a row, but not of the weight.
      bool is_end = !EVEN && ahead.ends && ahead.stage + 1 == stages;
      // Lanes side by side copy chunks side by side; where rows begin anywhere, four lanes a row, which finds each row's begin less often.
      constexpr uint LANES = EVEN ? CHUNKS : 4;
#pragma unroll
      for (uint i = 0; i < (EVEN ? (ROWS * CHUNKS + 31) / 32 : ROWS / 8); ++i) {
        uint row = (i * 32 + lane) / LANES;
        uint first = (i * 32 + lane) % LANES;
        if (row < ahead.rows) {
          device const uchar* from = row_at(row);
          uint before = EVEN ? 0 : uint(ulong(from)) & 15;
          uint past = before + bytes;
          past = is_end && row + SUMS >= ahead.rows ? past & ~15u : past;
          from = from - before + first * 16;
          Shared to = shared_address(stage) + row * PITCH + first * 16;
#pragma unroll
          for (uint chunk = 0; chunk < CHUNKS; chunk += LANES) {
            if ((first + chunk) * 16 < past) {
              copy_some(to + chunk * 16, from + chunk * 16, 16);
            }
          }
        }
      }
      if (is_end) {
        // The rest of the last row, two bytes a lane: blocks have even sizes.
        for (uint row = ahead.rows - SUMS; row < ahead.rows; ++row) {
          device const uchar* from = row_at(row);
          uint before = uint(ulong(from)) & 15;
          uint at = ((before + bytes) & ~15u) + lane * 2;
          if (at < before + bytes) {
            *(threadgroup ushort*)(stage + row * PITCH + at) = *(device const ushort*)(from - before + at);
          }
        }
      }
      for (uint i = 0; i < SUMS; ++i) {
        ahead.codes[i] += WARPS * L::CODES;
      }
      if constexpr (L::SCALE != 0) {
        uint mine = COLUMNS / group_size * L::SCALE;
        if (lane < ROWS || L::BIASES) {
          threadgroup uchar* to = stage + (lane < ROWS ? SCALES : BIASES) + lane % ROWS * mine;
          if (mine % 16 == 0) {
            for (uint i = 0; i < mine; i += 16) {
              copy_cached<16>(shared_address(to) + i, ahead.scales + i);
            }
          } else if (mine % 8 == 0) {
            copy_cached<8>(shared_address(to), ahead.scales);
          } else {
            copy_cached<4>(shared_address(to), ahead.scales);
          }
        }
        ahead.scales += WARPS * mine;
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
  for (uint i = 0; i < DEPTH - 1; ++i) {
    fetch(i);
  }
  wait_for_inputs();

  // Rows of x past the last are as the last, and their products are not stored. Their columns are asked for one group ahead.
  device const SCALAR* x_rows[OCTETS];
  for (uint o = 0; o < OCTETS; ++o) {
    x_rows[o] = x + ulong(min(first_token + o * 8 + r, p.m - 1)) * p.x_stride;
  }
  uint beside[2][OCTETS][C::GROUP / 8];
  auto look = [&](uint place, uint stage, uint group) {
    for (uint o = 0; o < OCTETS; ++o) {
      columns_beside<Reader>(x_rows[o] + stage * COLUMNS + group * C::GROUP, t, beside[place][o]);
    }
  };
  // The first two groups of a stage, if it has more than one.
  auto look_at = [&](uint stage) {
    look(0, stage, 0);
    look(1, stage, stage * COLUMNS + C::GROUP < p.k ? 1 : 0);
  };
  look_at(min(simdgroup, stages - 1));
  Kept kept = Kept::of(simd_broadcast(p.k >> 31, 0));
  uint all[4] = {ONES, ONES, ONES, ONES};
  uint slot = 0;
  uint turn = 0;
  for (; tile < end; ++tile, ++turn) {
    Product product = PICK_PRODUCT(tile);
    uint first_row = product.block * ROWS;
    float sums[OCTETS][4] = {};
    for (uint at = simdgroup; at < stages; at += WARPS) {
      wait_for_copies<DEPTH - 2>();
      simdgroup_barrier(mem_flags::mem_threadgroup);
      fetch((slot + DEPTH - 1) % DEPTH);
      threadgroup uchar* stage = staged + slot * BYTES;
      slot = (slot + 1) % DEPTH;
      auto reader_at = [&](uint row) {
        uint before = EVEN ? 0 : uint(ulong(codes_of(product.weight, first_row + row) + at * L::CODES)) & 15;
        Stored here = {as_device(stage + before), as_device(stage + SCALES), as_device(stage + BIASES), PITCH, COLUMNS, group_size};
        return Reader::at(here, row);
      };
      if (L::SCALED) {
        for (uint i = 0; i < ROWS * GROUPS / 32; ++i) {
          uint row = lane % ROWS;
          uint g = i * 2 + lane / ROWS;
          Reader reader = reader_at(row);
          Factors f = reader.factors(g * (C::GROUP / UNIT));
          factors[row * FLOATS + g] = f.scale;
          if (Reader::HAS_MINIMUM) {
            factors[MINIMUMS + row * FLOATS + g] = C::OFFSET == 0 ? f.minimum : fma(float(C::OFFSET), f.scale, f.minimum);
          }
        }
        simdgroup_barrier(mem_flags::mem_threadgroup);
      }
      Reader readers[2] = {reader_at(r), reader_at(r + 8)};
      uint next = at + WARPS < stages ? at + WARPS : simdgroup;
      // `scaled` has the scales and minimums of two rows.
      auto multiply_group = [&](uint g, thread const uint (&columns)[OCTETS][C::GROUP / 8], float4 scaled) {
        uint w[2][C::GROUP / 8];
        for (uint h = 0; h < 2; ++h) {
          C::pairs(readers[h], g, t, kept, w[h]);
        }
        for (uint o = 0; o < OCTETS; ++o) {
          uint b[C::GROUP / 8];
          for (uint i = 0; i < C::GROUP / 8; ++i) {
            b[i] = columns[o][i];
          }
          put_in_order<Reader>(b);
          float ones[4] = {};
          float codes[4] = {};
          for (uint i = 0; i < C::GROUP / 8; i += 2) {
            uint a[4] = {w[0][i], w[1][i], w[0][i + 1], w[1][i + 1]};
            multiply(L::SCALED ? codes : sums[o], a, b + i);
            if (Reader::HAS_MINIMUM) {
              multiply(ones, all, b + i);
            }
          }
          if (L::SCALED) {
            for (uint e = 0; e < 4; ++e) {
              sums[o][e] = fma(scaled[e / 2], codes[e], sums[o][e]);
              if (Reader::HAS_MINIMUM) {
                sums[o][e] = fma(scaled[2 + e / 2], ones[e], sums[o][e]);
              }
            }
          }
        }
      };
      threadgroup const float* mine = factors + r * FLOATS;
      uint here = min(p.k - at * COLUMNS, COLUMNS) / C::GROUP;
      if (here == GROUPS) {
        float4 four[4] = {};
#pragma unroll
        for (uint g = 0; g < GROUPS; ++g) {
          if (L::SCALED && g % 4 == 0) {
            for (uint h = 0; h < 2; ++h) {
              threadgroup const float* from = mine + h * 8 * FLOATS + g;
              four[h] = *(threadgroup const float4*)from;
              if (Reader::HAS_MINIMUM) {
                four[2 + h] = *(threadgroup const float4*)(from + MINIMUMS);
              }
            }
          }
          multiply_group(g, beside[g % 2], float4(four[0][g % 4], four[1][g % 4], four[2][g % 4], four[3][g % 4]));
          if (g + 2 < GROUPS) {
            look(g % 2, at, g + 2);
          }
        }
      } else {
#pragma unroll 1
        for (uint g = 0; g < here; ++g) {
          float4 scaled = float4(0.0f);
          for (uint h = 0; h < 2 && L::SCALED; ++h) {
            scaled[h] = mine[h * 8 * FLOATS + g];
            scaled[2 + h] = Reader::HAS_MINIMUM ? mine[h * 8 * FLOATS + MINIMUMS + g] : 0.0f;
          }
          look(0, at, g);
          multiply_group(g, beside[0], scaled);
        }
      }
      look_at(next);
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
