// expert_matmul on NVIDIA's tensor cores, for x in a type of 16 bits. Weights are rounded to this type, sums are f32. kernel.metal is the
// check.

#include "experts.h"
#include "matrix.h"
#include "nvidia.h"
#include "packed.h"

constant constexpr uint WARPS = 8;  // simdgroups of a threadgroup

struct Found {
  uint expert;
  uint count;
};

// An expert and how many pairs a threadgroup has of it, at most MOST: part group.z of tile group.y. Where pairs are not grouped it is pair
// group.y and those that find_pairs adds.
template <uint MOST>
inline Found find_expert(device const uint* ids, device const uint* tiles, constant Params& p, uint3 group) {
  if (!p.is_grouped) {
    return {ids[group.y], 1};
  }
  device const uint* tile = tiles + group.y * 3;
  uint skipped = group.z * MOST;
  return {tile[0], tile[2] > skipped ? min(tile[2] - skipped, MOST) : 0};
}

// The pairs of that expert. Where they are not grouped, every MOST-th pair of an expert stands for itself and those after it; the
// others have none.
template <uint MOST>
inline void find_pairs(
    thread Found& found,
    device const uint* ids,
    device const uint* order,
    device const uint* tiles,
    constant Params& p,
    uint3 group,
    threadgroup uint* pairs,
    uint thread_index,
    uint lane) {
  if (p.is_grouped) {
    uint first = tiles[group.y * 3 + 1] + group.z * MOST;
    for (uint i = thread_index; i < found.count; i += WARPS * 32) {
      pairs[i] = order[first + i];
    }
  } else {
    found.count = 0;
    uint before = 0;
    for (uint i = lane; i < group.y; i += 32) {
      before += ids[i] == found.expert ? 1 : 0;
    }
    if (simd_sum(before) % MOST == 0) {
      for (uint first = group.y; first < p.pairs && found.count < MOST; first += 32) {
        uint i = first + lane;
        bool same = i < p.pairs && ids[i] == found.expert;
        uint all = uint(ulong(simd_ballot(same)));
        uint place = found.count + popcount(all & ((1u << lane) - 1));
        if (same && place < MOST && thread_index < 32) {
          pairs[place] = i;
        }
        found.count += popcount(all);
      }
      found.count = min(found.count, MOST);
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
}

// Zeros for pairs that have no expert, where others have what `rows` rows of the weight give.
inline void store_zeros(
    threadgroup const uint* pairs, uint count, device SCALAR* out, constant Params& p, uint first_row, uint rows, uint thread_index) {
  uint first = first_row / SUMS;
  uint columns = first < p.n ? min(rows / SUMS, p.n - first) : 0;
  for (uint i = thread_index; i < count * columns; i += WARPS * 32) {
    out[ulong(pairs[i / columns]) * p.out_stride + first + i % columns] = SCALAR(0.0f);
  }
}

// Few pairs: a tile is 16 rows of the weight, whose columns `p.splits` simdgroups share by turns of 128. The factors of a product are made
// where they are loaded. Of the eight units of a turn's row, four lanes have two each; that a product's columns are then not neighbours
// does not matter, as long as it takes those of x likewise.
template <uint OCTETS>
kernel void expert_matmul_units(EXPERTS) {
  constexpr uint MOST = 8 * OCTETS;
  constexpr uint ROWS = 16;
  constexpr uint PITCH = ROWS + 4;
  threadgroup uint pairs[MOST];
  threadgroup float partials[WARPS * MOST * PITCH];
  Found found = find_expert<MOST>(ids, tiles, p, group);
  if (found.count == 0) {
    return;
  }
  uint tiles_here = WARPS / p.splits;
  uint first_row = group.x * tiles_here * ROWS;
  uint t = lane % 4;
  uint g = lane / 4;
  uint row = first_row + simdgroup / p.splits * ROWS + g;
  uint rows = p.n * SUMS;
  Weight weight = WEIGHT;
  Reader readers[2];
  for (uint h = 0; h < 2; ++h) {
    readers[h] = reader_of(weight, min(found.expert, p.experts - 1) * rows + min(row + h * 8, rows - 1));
  }
  uint units = p.k / UNIT;
  uint steps = (units + 7) / 8;
  uint step = simdgroup % p.splits;
  auto look = [&](thread Packed<Reader> (&w)[2], uint step) {
    for (uint h = 0; h < 2; ++h) {
      w[h] = Packed<Reader>::load(readers[h], step * 8 + t * 2, units);
    }
  };
  // The turns that are under way.
  Packed<Reader> even[2];
  Packed<Reader> odd[2];
  look(even, step);
  look(odd, step + p.splits);

  find_pairs<MOST>(found, ids, order, tiles, p, group, pairs, thread_index, lane);
  if (found.count == 0) {
    return;
  }
  if (found.expert >= p.experts) {
    store_zeros(pairs, found.count, out, p, first_row, tiles_here * ROWS, thread_index);
    return;
  }
  device const SCALAR* x_rows[OCTETS];
  for (uint o = 0; o < OCTETS; ++o) {
    x_rows[o] = x + ulong(pairs[min(o * 8 + g, found.count - 1)] / p.slots_of_x) * p.x_stride;
  }
  float sums[OCTETS][4] = {};
  auto turn = [&](thread const Packed<Reader> (&packed)[2], uint step) {
    for (uint i = 0; i < 2; ++i) {
      uint unit = step * 8 + t * 2 + i;
      uint w[2][8];
      packed[0].pairs(i, w[0]);
      packed[1].pairs(i, w[1]);
      for (uint o = 0; o < OCTETS; ++o) {
        if (o > 0 && o * 8 >= found.count) {
          break;
        }
        uint4 halves[2] = {uint4(0), uint4(0)};
        if (unit < units) {
          device const uint4* from = (device const uint4*)(x_rows[o] + unit * UNIT);
          halves[0] = from[0];
          halves[1] = from[1];
        }
        for (uint j = 0; j < 4; ++j) {
          uint a[4] = {w[0][j * 2], w[1][j * 2], w[0][j * 2 + 1], w[1][j * 2 + 1]};
          uint b[2] = {halves[j / 2][j % 2 * 2], halves[j / 2][j % 2 * 2 + 1]};
          multiply(sums[o], a, b);
        }
      }
    }
  };
  for (; step < steps; step += 2 * p.splits) {
    turn(even, step);
    look(even, step + 2 * p.splits);
    if (step + p.splits < steps) {
      turn(odd, step + p.splits);
      look(odd, step + 3 * p.splits);
    }
  }

  for (uint o = 0; o < OCTETS; ++o) {
    for (uint e = 0; e < 4; ++e) {
      partials[(simdgroup * MOST + o * 8 + t * 2 + e % 2) * PITCH + e / 2 * 8 + g] = sums[o][e];
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  constexpr uint ELEMENTS = ROWS / SUMS;
  for (uint i = thread_index; i < tiles_here * found.count * ELEMENTS; i += WARPS * 32) {
    uint place = i / ELEMENTS % found.count;
    uint tile = i / ELEMENTS / found.count;
    uint row = i % ELEMENTS * SUMS;
    uint column = (first_row + tile * ROWS + row) / SUMS;
    if (column < p.n) {
      float joined[SUMS] = {p.has_bias ? float(bias[ulong(found.expert) * p.n + column]) : 0.0f};
      for (uint s = tile * p.splits; s < (tile + 1) * p.splits; ++s) {
        for (uint j = 0; j < SUMS; ++j) {
          joined[j] += partials[(s * MOST + place) * PITCH + row + j];
        }
      }
      out[ulong(pairs[place]) * p.out_stride + column] = SCALAR(element_of(joined));
    }
  }
}

instantiate_kernel("expert_matmul_units_8", expert_matmul_units, 1)
instantiate_kernel("expert_matmul_units_16", expert_matmul_units, 2)

// Many pairs: a threadgroup computes TILE_M pairs of an expert by 128 rows of its weight. Rows of x come by asynchronous copies, three in
// flight; a thread dequantises two units of the weight for the next step while products of this one run.
constant constexpr uint TILE_N = 128;
constant constexpr uint TILE_K = 64;
constant constexpr uint STAGES = 3;

// The place of eight elements in a tile whose rows have TILE_K: so that eight rows at one column lie in different banks.
inline uint chunk_at(uint row, uint chunk) { return row * TILE_K + (chunk ^ (row & 7)) * 8; }

template <uint TILE_M>
kernel void expert_matmul_tensor(EXPERTS, threadgroup uchar* dynamic [[threadgroup(0)]]) {
  constexpr uint ROWS = TILE_M / 2;  // of a simdgroup's part, whose columns are 32
  threadgroup SCALAR* staged_x = (threadgroup SCALAR*)dynamic;
  threadgroup SCALAR* staged_w = staged_x + STAGES * TILE_M * TILE_K;
  threadgroup uint pairs[TILE_M];
  Found found = find_expert<TILE_M>(ids, tiles, p, group);
  if (found.count == 0) {
    return;
  }
  find_pairs<TILE_M>(found, ids, order, tiles, p, group, pairs, thread_index, lane);
  uint first_row = group.x * TILE_N;
  if (found.count == 0) {
    return;
  }
  if (found.expert >= p.experts) {
    store_zeros(pairs, found.count, out, p, first_row, TILE_N, thread_index);
    return;
  }
  uint units = p.k / UNIT;
  uint steps = (p.k + TILE_K - 1) / TILE_K;

  // Eight threads copy a row of x, two fill one of the weight. Rows of x that are not there are left as they are, what is past the weight's
  // last row is computed from the last; neither is stored.
  uint chunk = thread_index % 8;
  uint column = min(chunk * 8, p.k - 8);
  device const SCALAR* x_rows[TILE_M / 32];
  for (uint i = 0; i < TILE_M / 32; ++i) {
    x_rows[i] = x + ulong(pairs[min(i * 32 + thread_index / 8, found.count - 1)] / p.slots_of_x) * p.x_stride + column;
  }
  auto fetch_x = [&](uint step) {
    threadgroup SCALAR* tile = staged_x + step % STAGES * (TILE_M * TILE_K);
    bool inside = step * TILE_K + chunk * 8 < p.k;
    for (uint i = 0; i < TILE_M / 32; ++i) {
      uint row = i * 32 + thread_index / 8;
      if (row < found.count) {
        copy_sixteen(shared_address(tile + chunk_at(row, chunk)), x_rows[i] + (inside ? step * TILE_K : 0), inside);
      }
    }
    end_copies();
  };
  uint w_row = thread_index / 2;
  uint w_unit = thread_index % 2 * 2;
  Weight weight = WEIGHT;
  // Eight rows of each of two weights in turn, so that a thread has the sums of two elements that lie side by side.
  uint in_turn = SUMS == 1 ? w_row : w_row / 16 * 16 + w_row % 8 * 2 + w_row / 8 % 2;
  uint rows = p.n * SUMS;
  Reader reader = reader_of(weight, found.expert * rows + min(first_row + in_turn, rows - 1));
  auto fetch_w = [&](uint step) { return Packed<Reader>::load(reader, step * 4 + w_unit, units); };
  auto store_w = [&](Packed<Reader> from, uint step) {
    threadgroup SCALAR* tile = staged_w + step % 2 * (TILE_N * TILE_K);
    for (uint i = 0; i < 2; ++i) {
      uint packed[8];
      from.pairs(i, packed);
      for (uint h = 0; h < 2; ++h) {
        uint4 eight = uint4(packed[h * 4], packed[h * 4 + 1], packed[h * 4 + 2], packed[h * 4 + 3]);
        *(threadgroup uint4*)(tile + chunk_at(w_row, (w_unit + i) * 2 + h)) = eight;
      }
    }
  };

  uint m = simdgroup / 4 * ROWS;
  uint n = simdgroup % 4 * 32;
  float sums[ROWS / 16][4][4] = {};
  for (uint step = 0; step + 1 < STAGES; ++step) {
    fetch_x(step);
  }
  // What is kept as it was loaded is asked for two steps before it is stored, or one where registers are short; the rest in the same step.
  constexpr bool EARLY = Packed<Reader>::RAW;
  constexpr bool DEEP = EARLY && TILE_M < 128;
  store_w(fetch_w(0), 0);
  Packed<Reader> odd = {};
  Packed<Reader> even = {};
  if (EARLY) {
    odd = fetch_w(1);
  }
  if (DEEP) {
    even = fetch_w(2);
  }
  auto multiply_step = [&](uint step, thread Packed<Reader>& next) {
    wait_for_copies<STAGES - 2>();
    threadgroup_barrier(mem_flags::mem_threadgroup);
    // Past the end it is an empty group, or a tile that nothing reads.
    fetch_x(step + STAGES - 1);
    if (!EARLY) {
      next = fetch_w(step + 1);
    }
    threadgroup const SCALAR* tile_x = staged_x + step % STAGES * (TILE_M * TILE_K);
    threadgroup const SCALAR* tile_w = staged_w + step % 2 * (TILE_N * TILE_K);
    if (m < found.count) {
#pragma unroll 1
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
    }
    store_w(next, step + 1);
    if (EARLY) {
      next = fetch_w(step + (DEEP ? 3 : 2));
    }
  };
  for (uint step = 0; step < steps; ++step) {
    multiply_step(step, odd);
    if (DEEP && ++step < steps) {
      multiply_step(step, even);
    }
  }

  bool together = p.out_stride % 2 == 0 && ulong(out) % 4 == 0;
  for (uint j = 0; j < 4; j += SUMS) {
    uint column = (first_row + n + j * 8) / SUMS + lane % 4 * 2;
    if (column >= p.n) {
      continue;
    }
    bool second = column + 1 < p.n;
    device const SCALAR* offsets = bias + ulong(found.expert) * p.n + column;
    float offset[2] = {p.has_bias ? float(offsets[0]) : 0.0f, p.has_bias && second ? float(offsets[1]) : 0.0f};
    for (uint i = 0; i < ROWS / 16; ++i) {
      for (uint h = 0; h < 2; ++h) {
        uint place = m + i * 16 + h * 8 + lane / 4;
        if (place >= found.count) {
          continue;
        }
        device SCALAR* to = out + ulong(pairs[place]) * p.out_stride + column;
        float elements[2];
        for (uint e = 0; e < 2; ++e) {
          float of_one[2] = {sums[i][j][h * 2 + e], sums[i][j + SUMS - 1][h * 2 + e]};
          elements[e] = element_of(of_one) + offset[e];
        }
        if (together && second) {
          *(device uint*)to = pack_two(elements[0], elements[1]);
        } else {
          to[0] = SCALAR(elements[0]);
          if (second) {
            to[1] = SCALAR(elements[1]);
          }
        }
      }
    }
  }
}

instantiate_kernel("expert_matmul_tensor_32", expert_matmul_tensor, 32)
instantiate_kernel("expert_matmul_tensor_64", expert_matmul_tensor, 64)
instantiate_kernel("expert_matmul_tensor_128", expert_matmul_tensor, 128)
