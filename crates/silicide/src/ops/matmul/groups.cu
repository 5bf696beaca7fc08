// matmul for few rows of x on NVIDIA's tensor cores, for x in a type of 16 bits and a weight of any format whose elements, before they
// are scaled, are exact in that type. kernel.metal is its check.
//
// Threadgroups and simdgroups share tiles of 16 rows of the weight as in few.cu, in stages that are copied ahead as bytes, whatever the
// format. Of a stage that is there a simdgroup first makes the scales and minimums, as floats; then it multiplies the codes of one group of
// columns after the other, and scales the sums.

#include "codes.h"
#include "stages.h"

constant constexpr uint DEPTH = 2;  // stages that a simdgroup has
constant constexpr uint WARPS = 8;  // simdgroups
constant constexpr uint ROWS = 16;  // of a tile

typedef Layout<Reader> L;
typedef Codes<Reader> C;
constant constexpr bool DENSE = L::CODES >= 512;  // elements have no scale
constant constexpr uint COLUMNS = DENSE ? 65536 / L::CODES : 256;
constant constexpr uint GROUPS = COLUMNS / C::GROUP;
typedef Stages<ROWS, COLUMNS> S;

// Scales of a stage as floats, and minimums. Rows are apart so that four neighbours of eight rows lie in different banks.
constant constexpr uint FLOATS = GROUPS + 4;  // of a row
constant constexpr uint MINIMUMS = ROWS * FLOATS;
constant constexpr uint SCALED = DENSE ? 0 : Reader::HAS_MINIMUM ? 2 * MINIMUMS : MINIMUMS;

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
  uint group_size = L::group(p.group_size);
  uint stage_bytes = S::bytes(p.k, group_size);
  threadgroup uchar* staged = dynamic + simdgroup * DEPTH * stage_bytes;
  threadgroup float* factors = (threadgroup float*)(dynamic + WARPS * DEPTH * stage_bytes) + simdgroup * SCALED;
  threadgroup float* partials = (threadgroup float*)(dynamic + WARPS * DEPTH * stage_bytes) + WARPS * SCALED;
  ulong tiles = p.blocks[0] + p.blocks[1] + p.blocks[2];
  uint tile = tiles * group.x / threadgroups.x;
  uint end = tiles * (group.x + 1) / threadgroups.x;
  uint first_token = group.y * 8 * OCTETS;
  uint stages = (p.k + COLUMNS - 1) / COLUMNS;
  uint t = lane % 4;
  uint r = lane / 4;
  S ahead;
  uint ahead_tile = tile;
  uint ahead_stage = stages;
  auto enter = [&]() {
    if (ahead_tile < end) {
      ahead.enter(PICK_PRODUCT(ahead_tile), p.k, group_size, simdgroup, lane);
      ++ahead_tile;
      ahead_stage = simdgroup;
    }
  };
  auto fetch = [&](uint slot) {
    if (ahead_stage < stages) {
      bool last = ahead_stage + 1 == stages;
      uint columns = last ? p.k - ahead_stage * COLUMNS : COLUMNS;
      ahead.copy(staged + slot * stage_bytes, columns, last, p.code_stride, p.k, group_size, lane);
      ahead.skip(WARPS, group_size);
      ahead_stage += WARPS;
      if (ahead_stage >= stages) {
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
    // The rows whose scales and whose codes a lane reads.
    Staged<S> scaled_row = Staged<S>::of(product, ROWS, lane % ROWS, p.k, group_size);
    Staged<S> rows[2] = {Staged<S>::of(product, ROWS, r, p.k, group_size), Staged<S>::of(product, ROWS, r + 8, p.k, group_size)};
    uint first_row = product.block * ROWS;
    float sums[OCTETS][4] = {};
    for (uint at = simdgroup; at < stages; at += WARPS) {
      wait_for_copies<DEPTH - 2>();
      simdgroup_barrier(mem_flags::mem_threadgroup);
      fetch((slot + DEPTH - 1) % DEPTH);
      threadgroup const uchar* stage = staged + slot * stage_bytes;
      slot = (slot + 1) % DEPTH;
      if (!DENSE) {
        for (uint i = 0; i < ROWS * GROUPS / 32; ++i) {
          uint row = lane % ROWS;
          uint g = i * 2 + lane / ROWS;
          Reader reader = scaled_row.reader(stage, at, group_size, COLUMNS);
          Factors f = reader.factors(g * (C::GROUP / UNIT));
          factors[row * FLOATS + g] = f.scale;
          if (Reader::HAS_MINIMUM) {
            factors[MINIMUMS + row * FLOATS + g] = C::OFFSET == 0 ? f.minimum : fma(float(C::OFFSET), f.scale, f.minimum);
          }
        }
        simdgroup_barrier(mem_flags::mem_threadgroup);
      }
      Reader readers[2] = {rows[0].reader(stage, at, group_size, COLUMNS), rows[1].reader(stage, at, group_size, COLUMNS)};
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
          put_in_order<C::ORDER, C::GROUP / 8>(b);
          float ones[4] = {};
          float codes[4] = {};
          for (uint i = 0; i < C::GROUP / 8; i += 2) {
            uint a[4] = {w[0][i], w[1][i], w[0][i + 1], w[1][i + 1]};
            multiply(DENSE ? sums[o] : codes, a, b + i);
            if (Reader::HAS_MINIMUM) {
              multiply(ones, all, b + i);
            }
          }
          if (!DENSE) {
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
          if (!DENSE && g % 4 == 0) {
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
          for (uint h = 0; h < 2 && !DENSE; ++h) {
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
