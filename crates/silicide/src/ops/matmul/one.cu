// matmul for one row of x on NVIDIA's tensor cores, for x in a type of 16 bits and a quantised weight of any format. kernel.metal is its
// check.
//
// A threadgroup takes tiles of eight rows of the weight, and its simdgroups equal parts of these tiles' stages of COLUMNS, one after the
// other, copied ahead over the ends of tiles; the first of them before the launch before this one has ended: it does not write the weight.
//
// Eight runs of 32 columns of a tile go into one product of matrices, 16 x 8, whose sums stay apart: the upper half of the left matrix is
// runs 0 to 3 of the eight rows, the lower half runs 4 to 7, lane t of four having run t; the right matrix has run n of x in column n,
// where lane n % 4 has it, and zeros elsewhere. So sums (row, n) are run n's, and a lane scales two of them.

#include "runs.h"
#include "stages.h"

constant constexpr uint ROWS = 8;   // of a tile
constant constexpr uint DEPTH = 2;  // stages that a simdgroup has
constant constexpr uint RUN = 32;   // columns
constant constexpr uint COLUMNS = Layout<Reader>::CODES <= 160 ? 512 : 256;
constant constexpr uint RUNS = COLUMNS / RUN;
// Lanes read runs of 16 bytes: those of two rows lie in different banks where these are half a turn of banks apart.
typedef Stages<ROWS, COLUMNS, Layout<Reader>::CODES == 128 ? 4 : 0> S;
typedef Run<Reader> R;
constant constexpr uint HALVES = PARTS<Reader>;  // of a run, which have scales of their own
constant constexpr bool TOTALS = Reader::HAS_MINIMUM || R::OFFSET != 0;
constant constexpr uint KNOWN = SMALL<Reader> ? 2 : 1;  // numbers that are kept of a part of x: its sum, then what its products are times

// The bits of a where `mask` has ones, else of b. A choice of floats would become a branch.
inline float pick_bits(uint mask, float a, float b) { return as_type<float>(as_type<uint>(a) & mask | as_type<uint>(b) & ~mask); }

// A processor runs 24 simdgroups, and has registers for no more.
[[kernel, max_total_threads_per_threadgroup(768)]] void matmul_tensor_one(
    PRODUCTS,
    threadgroup uchar* dynamic [[threadgroup(0)]],
    uint group [[threadgroup_position_in_grid]],
    uint threadgroups [[threadgroups_per_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]]) {
  uint stages = (p.k + COLUMNS - 1) / COLUMNS;
  uint group_size = Layout<Reader>::group(p.group_size);
  uint stage_bytes = S::bytes(p.k, group_size);
  ulong tiles = p.blocks[0] + p.blocks[1] + p.blocks[2];
  uint first_tile = tiles * group / threadgroups;
  uint of_mine = uint(tiles * (group + 1) / threadgroups) - first_tile;
  uint units = of_mine * stages;
  uint begin = units * simdgroup / simdgroups;
  uint end = units * (simdgroup + 1) / simdgroups;

  // The stages of all simdgroups; runs of x, as pairs, and their sums; parts of sums. A simdgroup has a part for each of its tiles, at
  // the sum of the numbers of both.
  threadgroup uchar* staged = dynamic + hidden(simdgroup * DEPTH * stage_bytes);
  threadgroup uint2* x_pairs = (threadgroup uint2*)(dynamic + simdgroups * DEPTH * stage_bytes);
  threadgroup uint4* zero = (threadgroup uint4*)(x_pairs + stages * RUNS * 8);
  threadgroup float* totals = (threadgroup float*)(zero + 4);
  threadgroup float* parts = totals + (TOTALS ? stages * RUNS * HALVES * KNOWN : 0);

  uint tile = begin / stages;
  uint stage = begin % stages;
  S ahead;
  uint ahead_at = begin;
  uint ahead_tile = tile;
  uint ahead_stage = stage;
  auto enter = [&]() {
    if (ahead_at < end) {
      ahead.enter(PICK_PRODUCT(first_tile + ahead_tile), p.k, group_size, ahead_stage, lane);
    }
  };
  auto fetch = [&](uint slot) {
    if (ahead_at < end) {
      bool last = ahead_stage + 1 == stages;
      ahead.copy(staged + slot * stage_bytes, last ? p.k - ahead_stage * COLUMNS : COLUMNS, last, p.code_stride, p.k, group_size, lane);
      ++ahead_at;
      if (last) {
        ahead_stage = 0;
        ++ahead_tile;
        enter();
      } else {
        ++ahead_stage;
        ahead.skip(1, group_size);
      }
    }
    end_copies();
  };
  enter();
  for (uint i = 0; i + 1 < DEPTH; ++i) {
    fetch(i);
  }
  uint threads = simdgroups * 32;
  if (thread_index < 4) {
    zero[thread_index] = uint4(0);
  }
  for (uint i = thread_index; i < (simdgroups + of_mine) * ROWS; i += threads) {
    parts[i] = 0.0f;
  }
  wait_for_inputs();

  // Some are asked for together: each takes long to come.
  uint eights = stages * RUNS * 4;
  for (uint first = thread_index; first < eights; first += 4 * threads) {
    uint4 loaded[4];
    for (uint j = 0; j < 4; ++j) {
      uint i = first + j * threads;
      loaded[j] = i * 8 < p.k ? ((device const uint4*)x)[i] : uint4(0);
    }
    for (uint j = 0; j < 4; ++j) {
      uint i = first + j * threads;
      if (i >= eights) {
        break;
      }
      Near near = {1.0f, 1.0f};
      if constexpr (SMALL<Reader>) {
        float most = 0.0f;
        for (uint w = 0; w < 4; ++w) {
          float2 two = abs(unpack_two(loaded[j][w]));
          most = max(most, max(two.x, two.y));
        }
        most = max(most, simd_shuffle_xor(most, ushort(1)));
        most = max(most, simd_shuffle_xor(most, ushort(2)));
        near = Near::of(most);
      }
      uint2 fours[2];
      beside_run<Reader>(loaded[j], near.to, fours);
      for (uint h = 0; h < 2; ++h) {
        x_pairs[i / 4 * 8 + R::place(i % 4 * 2 + h)] = fours[h];
      }
      if (TOTALS) {
        float total = 0.0f;
        for (uint w = 0; w < 4; ++w) {
          float2 two = unpack_two(loaded[j][w]);
          total += two.x + two.y;
        }
        total += simd_shuffle_xor(total, ushort(1));
        if (HALVES == 1) {
          total += simd_shuffle_xor(total, ushort(2));
        }
        if (i % (4 / HALVES) == 0) {
          totals[i / (4 / HALVES) * KNOWN] = total;
          if (KNOWN == 2) {
            totals[i / (4 / HALVES) * KNOWN + 1] = near.back;
          }
        }
      }
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);

  uint t = lane % 4;
  uint r = lane / 4;
  bool has_x = r % 4 == t;
  threadgroup const uint4* my_x = (threadgroup const uint4*)x_pairs + r * 4;
  Kept kept = Kept::of(simd_broadcast(p.k >> 31, 0));
  uint of_lower = t < 2 ? 0 : ~0u;  // whether a lane's sums are in the lower half
  float sum = 0.0f;
  uint slot = 0;
  Staged<S> places = {};
  // One stage; the last of a row may be short.
  auto add = [&](Reader reader, auto is_short) {
    constexpr bool SHORT = is_short.value;
#pragma unroll
    for (uint q = 0; q < RUNS; q += 8) {
      uint b[16];
      threadgroup const uint4* from = has_x ? my_x + (stage * RUNS + q) * 4 : zero;
      for (uint i = 0; i < 4; ++i) {
        uint4 four = from[i];
        for (uint w = 0; w < 4; ++w) {
          b[i * 4 + w] = four[w];
        }
      }
      uint upper[16];
      uint lower[16];
      R::pairs(reader, q + t, kept, upper);
      R::pairs(reader, q + 4 + t, kept, lower);
      // Two sums go side by side, so that one need not wait for the other.
      float sums[2][4] = {};
      for (uint i = 0; i < 16; i += 2) {
        uint a[4] = {upper[i], lower[i], upper[i + 1], lower[i + 1]};
        multiply(sums[i / 8], a, b + i);
      }
      float mine[2 * HALVES];
      for (uint i = 0; i < 2; ++i) {
        float first = pick_bits(of_lower, sums[0][2 + i], sums[0][i]);
        float second = pick_bits(of_lower, sums[1][2 + i], sums[1][i]);
        mine[i * HALVES] = HALVES == 1 ? first + second : first;
        mine[i * HALVES + HALVES - 1] = HALVES == 1 ? first + second : second;
      }
      uint first = q + t * 2;
      Factors factors[2 * HALVES];
      factors_of_two(reader, first, factors);
      threadgroup const float* my_totals = totals + (stage * RUNS + first) * (HALVES * KNOWN);
      for (uint i = 0; i < 2 * HALVES; ++i) {
        if (SHORT && stage * RUNS + first + i / HALVES >= p.k / RUN) {
          continue;
        }
        Factors f = factors[i];
        sum = fma(f.scale, SMALL<Reader> ? mine[i] * my_totals[i * KNOWN + 1] : mine[i], sum);
        if (TOTALS) {
          float minimum = R::OFFSET == 0 ? f.minimum : fma(-float(int(R::OFFSET)), f.scale, f.minimum);
          sum = fma(minimum, my_totals[i * KNOWN], sum);
        }
      }
    }
  };
  for (uint at = begin; at < end; ++at) {
    if (at == begin || stage == 0) {
      places = Staged<S>::of(PICK_PRODUCT(first_tile + tile), ROWS, r, p.k, group_size);
    }
    wait_for_copies<DEPTH - 2>();
    simdgroup_barrier(mem_flags::mem_threadgroup);
    fetch((slot + DEPTH - 1) % DEPTH);
    Reader reader = places.reader(staged + slot * stage_bytes, stage, group_size, COLUMNS);
    slot = (slot + 1) % DEPTH;
    bool last = stage + 1 == stages;
    if (last && p.k % COLUMNS != 0) {
      add(reader, integral_constant<bool, true>{});
    } else {
      add(reader, integral_constant<bool, false>{});
    }
    if (last || at + 1 == end) {
      sum += simd_shuffle_xor(sum, ushort(1));
      sum += simd_shuffle_xor(sum, ushort(2));
      if (t == 0) {
        parts[(simdgroup + tile) * ROWS + r] = sum;
      }
      sum = 0.0f;
    }
    ++stage;
    if (last) {
      stage = 0;
      ++tile;
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);

  // The simdgroup that has a unit.
  auto owner = [&](uint unit) { return ((unit + 1) * simdgroups - 1) / units; };
  for (uint i = thread_index; i < of_mine * (ROWS / SUMS); i += threads) {
    uint tile = i / (ROWS / SUMS);
    uint row = i % (ROWS / SUMS) * SUMS;
    Product product = PICK_PRODUCT(first_tile + tile);
    if (product.block * ROWS + row < product.rows()) {
      float joined[SUMS] = {};
      for (uint s = owner(tile * stages); s <= owner(tile * stages + stages - 1); ++s) {
        for (uint j = 0; j < SUMS; ++j) {
          joined[j] += parts[(s + tile) * ROWS + row + j];
        }
      }
      product.store(0, (product.block * ROWS + row) / SUMS, joined, PICK_ADDED(product));
    }
  }
}
