// attention for few queries on NVIDIA's tensor cores, for queries, keys and values of one type of 16 bits. The plain form spends more
// time on arithmetic than memory takes; kernel.metal is its check, and joins its parts.
//
// A threadgroup of four simdgroups computes the query heads that share a head of keys and values, at most 8 * TILES, for one query
// and one part of the keys that it sees. A simdgroup takes every fourth sixteen of keys, which come by asynchronous copies,
// STAGES - 1 ahead. Scores are [keys, heads], sums of values [elements, heads], so that a lane has the same heads of both. A
// weight is split in two 16-bit numbers, whose products with values are summed in f32.
//
// The host defines SCALAR, DIM, TILES, STAGES, and what attention.h names.

#include "attention.h"
#include "nvidia.h"
#include "parts.h"
#include "silicide.h"

constant constexpr uint SIMDGROUPS = 4;
constant constexpr uint KEYS = 16;
constant constexpr uint CHUNKS = DIM / 8;                       // of sixteen bytes in a row
constant constexpr uint PITCH = (CHUNKS + 7) / 8 * 8;           // of a row of a tile, in chunks
constant constexpr uint TILE = KEYS * PITCH * 16;               // bytes
constant constexpr uint STEPS = DIM / 16;
constant constexpr uint CHAINS = STEPS < 4 ? STEPS : 4;         // sums of a score side by side, so that one need not wait for the other
constant constexpr uint LINES = (DIM * 2 + LINE - 1) / LINE;    // of the cache in a row
constant constexpr uint COLUMNS = TILES * 8;                    // of products: heads, and zeros
constant constexpr float SLACK = 8.0f;                          // see LOG2_E
constant constexpr uint SUMS_PITCH = (DIM + 31) / 32 * 32 + 4;  // of sums of a head: so that those of lanes lie in different banks

kernel void attention_decode(
    device const SCALAR* q [[buffer(0)]],
    device const SCALAR* k [[buffer(1)]],
    device const SCALAR* v [[buffer(2)]],
    device const uint* positions [[buffer(3)]],
    device const float* sinks [[buffer(4)]],
    device const uint* table [[buffer(5)]],
    device const uchar* mask [[buffer(6)]],
    device SCALAR* out [[buffer(7)]],
    device float* partial [[buffer(8)]],
    constant Params& p [[buffer(9)]],
    threadgroup uchar* dynamic [[threadgroup(0)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint3 groups [[threadgroups_per_grid]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup float maxima[SIMDGROUPS * COLUMNS];
  threadgroup float sums[SIMDGROUPS * COLUMNS];
  Shared staged = kept(align_chunks(shared_address(dynamic))) + simdgroup * STAGES * 2 * TILE;
  // Where a lane's rows of matrices of keys and of values begin.
  uint key_at = chunk_at<PITCH>(lane % 16, lane / 16);
  uint value_at = TILE + chunk_at<PITCH>(lane / 16 * 8 + lane % 8, lane / 8 % 2);

  uint query = group.x;
  uint heads = p.q_heads / p.kv_heads;
  uint first_head = group.y * heads;
  q += ulong(query) * p.q_strides[0] + ulong(first_head) * p.q_strides[1];
  k += ulong(group.y) * p.k_strides[1];
  v += ulong(group.y) * p.v_strides[1];
  out += ulong(query) * p.out_strides[0] + ulong(first_head) * p.out_strides[1];

  Places places = {table, 0, 0};
  uint start = 0;
  uint end = 0;
  auto take_part = [&](uint position) {
    uint2 range = part_of(visible_at(p, places.oldest, position, query), group.z, groups.z, SIMDGROUPS * KEYS);
    start = range.x;
    end = range.y;
  };

  auto first_key = [&](uint turn) { return start + (turn * SIMDGROUPS + simdgroup) * KEYS; };
  auto fetch = [&](uint turn) {
    uint base = first_key(turn);
    if (base < end) {
      Shared to = staged + turn % STAGES * 2 * TILE;
      if (IN_ROWS && 32 % CHUNKS == 0 && base + KEYS <= end) {
        constexpr uint ROWS = 32 / CHUNKS;
        uint first = lane / CHUNKS;
        uint c = lane % CHUNKS;
        device const SCALAR* key = k + ulong(base + first) * p.k_strides[0] + c * 8;
        device const SCALAR* value = v + ulong(base + first) * p.v_strides[0] + c * 8;
#pragma unroll
        for (uint row = 0; row < KEYS; row += ROWS) {
          Shared place = to + chunk_at<PITCH>(row + first, c);
          copy_sixteen(place, key, true);
          copy_sixteen(place + TILE, value, true);
          key += ROWS * p.k_strides[0];
          value += ROWS * p.v_strides[0];
        }
        end_copies();
        return;
      }
      for (uint i = lane; i < KEYS * CHUNKS; i += 32) {
        uint row = i / CHUNKS;
        uint c = i % CHUNKS;
        ulong2 at;
        bool there = find(p, places, min(base + row, end - 1), at) && base + row < end;
        copy_sixteen(to + chunk_at<PITCH>(row, c), k + at.x + c * 8, there);
        copy_sixteen(to + TILE + chunk_at<PITCH>(row, c), v + at.y + c * 8, there);
      }
    }
    end_copies();
  };

#ifndef PAGES
  // Launches before may still write the newest rows, and the position: the second cache is asked for what the first turn will likely
  // read. More of them delay the first.
  uint likely = has_positions(p) ? peek(positions + query) : 0;
  places = places_from(p, table, oldest_of(p, likely + 1));
  take_part(likely);
  for (uint i = lane; i < KEYS * LINES; i += 32) {
    uint key = first_key(0) + i / LINES;
    ulong2 at;
    if (key < end && find(p, places, key, at)) {
      prefetch(k + at.x + i % LINES * (LINE / 2));
      prefetch(v + at.y + i % LINES * (LINE / 2));
    }
  }
#endif
  wait_for_inputs();
  places = places_of(p, table, positions, lane);
  take_part(has_positions(p) ? positions[query] : 0);

  // Queries come by way of the last stage.
  Shared queries = staged + (STAGES - 1) * 2 * TILE;
  for (uint i = lane; i < COLUMNS * CHUNKS; i += 32) {
    uint head = i / CHUNKS;
    uint c = i % CHUNKS;
    copy_sixteen(queries + chunk_at<PITCH>(head, c), q + ulong(min(head, heads - 1)) * p.q_strides[1] + c * 8, head < heads);
  }
  end_copies();
  for (uint turn = 0; turn + 1 < STAGES; ++turn) {
    fetch(turn);
  }
  uint mine[TILES][STEPS][2];
  wait_for_copies<STAGES - 1>();
  simdgroup_barrier(mem_flags::mem_threadgroup);
  for (uint n = 0; n < TILES; ++n) {
    Shared row = queries + chunk_at<PITCH>(n * 8 + lane % 8, lane / 8);
    for (uint i = 0; i < STEPS; i += 2) {
      uint four[4];
      // Where the number of steps is odd the last two matrices are of no use.
      load_matrices(four, beside(row, i));
      for (uint j = 0; j < 4 && i + j / 2 < STEPS; ++j) {
        mine[n][i + j / 2][j % 2] = four[j];
      }
    }
  }

  // Scores times `unit` are by the logarithm of 2, as what weights are measured by is, which is near the greatest so far.
  bool plain = p.softcap == 0.0f && p.scale > 0.0f;
  float unit = plain ? p.scale * LOG2_E : 1.0f;
  float sum_v[TILES][STEPS][4];
  float maximum[TILES][2];
  float sum[TILES][2];
  // A value that is not finite times a half of a weight may be NaN where times the whole it is infinite; then weights are rounded.
  for (uint halves = 2; halves > 0; --halves) {
    for (uint n = 0; n < TILES; ++n) {
      for (uint i = 0; i < STEPS * 4; ++i) {
        sum_v[n][i / 4][i % 4] = 0.0f;
      }
      for (uint c = 0; c < 2; ++c) {
        maximum[n][c] = -INFINITY;
        sum[n][c] = 0.0f;
      }
    }
    for (uint turn = 0; halves == 1 && turn + 1 < STAGES; ++turn) {
      fetch(turn);
    }
    for (uint turn = 0; first_key(turn) < end; ++turn) {
      wait_for_copies<STAGES - 2>();
      simdgroup_barrier(mem_flags::mem_threadgroup);
      fetch(turn + STAGES - 1);
      Shared keys = staged + turn % STAGES * 2 * TILE;
      float parts_of[CHAINS][TILES][4] = {};
      for (uint i = 0; i < STEPS; ++i) {
        uint a[4];
        load_matrices(a, beside(keys + key_at, i));
        for (uint n = 0; n < TILES; ++n) {
          multiply(parts_of[i % CHAINS][n], a, mine[n][i]);
        }
      }
      float scores[TILES][4];
      for (uint n = 0; n < TILES; ++n) {
        for (uint e = 0; e < 4; ++e) {
          scores[n][e] = parts_of[0][n][e];
          for (uint c = 1; c < CHAINS; ++c) {
            scores[n][e] += parts_of[c][n][e];
          }
        }
      }

      uint weights[TILES][2][2];
      for (uint n = 0; n < TILES; ++n) {
        bool seen[2];
        for (uint r = 0; r < 2; ++r) {
          uint key = first_key(turn) + lane / 4 + r * 8;
          ulong2 at;
          seen[r] = find(p, places, min(key, end - 1), at) && key < end;
        }
        if (!plain) {
          for (uint e = 0; e < 4; ++e) {
            float score = scores[n][e] * p.scale;
            if (p.softcap != 0.0f) {
              score = p.softcap * metal::precise::tanh(score / p.softcap);
            }
            scores[n][e] = score * LOG2_E;
          }
        }
        float most[2];
        bool rises[2];
        for (uint c = 0; c < 2; ++c) {
          for (uint r = 0; r < 2; ++r) {
            scores[n][r * 2 + c] = seen[r] ? scores[n][r * 2 + c] : -INFINITY;
          }
          // A score that is NaN is the greatest of none, but its weight is NaN.
          most[c] = max(scores[n][c], scores[n][2 + c]) * unit;
          rises[c] = most[c] > maximum[n][c] + SLACK;
        }
        if (simd_any(rises[0] || rises[1])) {
          for (uint c = 0; c < 2; ++c) {
            for (uint other = 4; other < 32; other *= 2) {
              most[c] = max(most[c], simd_shuffle_xor(most[c], other));
            }
            rises[c] = most[c] > maximum[n][c] + SLACK;
            float kept = rises[c] ? power_of_two(maximum[n][c] - most[c]) : 1.0f;
            maximum[n][c] = rises[c] ? most[c] : maximum[n][c];
            sum[n][c] *= kept;
            for (uint i = 0; i < STEPS; ++i) {
              sum_v[n][i][c] *= kept;
              sum_v[n][i][c + 2] *= kept;
            }
          }
        }
        for (uint c = 0; c < 2; ++c) {
          float above = maximum[n][c] == -INFINITY ? 0.0f : maximum[n][c];
          for (uint r = 0; r < 2; ++r) {
            float weight = power_of_two(fma(scores[n][r * 2 + c], unit, -above));
            scores[n][r * 2 + c] = weight;
            sum[n][c] += weight;
          }
        }
        for (uint r = 0; r < 2; ++r) {
          uint high = pack_two(scores[n][r * 2], scores[n][r * 2 + 1]);
          float2 rest = float2(scores[n][r * 2], scores[n][r * 2 + 1]) - unpack_two(high);
          weights[n][0][r] = transpose(high);
          weights[n][1][r] = transpose(pack_two(rest.x, rest.y));
        }
      }
      for (uint i = 0; i < STEPS; ++i) {
        uint a[4];
        load_transposed(a, beside(keys + value_at, i));
        for (uint n = 0; n < TILES; ++n) {
          multiply(sum_v[n][i], a, weights[n][0]);
          if (halves == 2) {
            multiply(sum_v[n][i], a, weights[n][1]);
          }
        }
      }
    }
    wait_for_copies<0>();
    simdgroup_barrier(mem_flags::mem_threadgroup);
    // Zero, unless one is not finite.
    float zeros[4] = {};
    for (uint n = 0; n < TILES; ++n) {
      for (uint i = 0; i < STEPS * 4; ++i) {
        zeros[i % 4] = fma(sum_v[n][i / 4][i % 4], 0.0f, zeros[i % 4]);
      }
    }
    if (simd_all(zeros[0] + zeros[1] + zeros[2] + zeros[3] == 0.0f)) {
      break;
    }
  }

  for (uint n = 0; n < TILES; ++n) {
    for (uint c = 0; c < 2; ++c) {
      if (lane < 4) {
        maxima[simdgroup * COLUMNS + n * 8 + lane * 2 + c] = maximum[n][c] * LN_2;
      }
      for (uint other = 4; other < 32; other *= 2) {
        sum[n][c] += simd_shuffle_xor(sum[n][c], other);
      }
    }
  }
  // From here on the stages are used up; their memory joins the simdgroups.
  threadgroup_barrier(mem_flags::mem_threadgroup);
  threadgroup float* joined = (threadgroup float*)dynamic;
  bool whole = groups.z == 1;
  uint thread_index = simdgroup * 32 + lane;
  auto highest_of = [&](uint head) {
    float sink = whole && p.has_sinks && head < heads ? sinks[first_head + head] : -INFINITY;
    return greatest(maxima + head, SIMDGROUPS, COLUMNS, sink);
  };
  // Of each head four sums of a lane lie side by side: those of elements 8 apart.
  for (uint n = 0; n < TILES; ++n) {
    for (uint c = 0; c < 2; ++c) {
      uint head = n * 8 + lane % 4 * 2 + c;
      float counts = share(maximum[n][c] * LN_2, highest_of(head));
      if (lane < 4) {
        sums[simdgroup * COLUMNS + head] = sum[n][c] * counts;
      }
      threadgroup float* to = joined + (simdgroup * COLUMNS + head) * SUMS_PITCH + lane / 4 * 4;
      for (uint i = 0; i < STEPS; i += 2) {
        float4 four;
        for (uint j = 0; j < 4; ++j) {
          four[j] = i + j / 2 < STEPS ? sum_v[n][min(i + j / 2, STEPS - 1)][j % 2 * 2 + c] * counts : 0.0f;
        }
        *(threadgroup float4*)(to + i * 16) = four;
      }
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);

  constexpr uint FOURS = (STEPS + 1) / 2 * 8;
  for (uint i = thread_index; i < heads * FOURS; i += SIMDGROUPS * 32) {
    uint h = i / FOURS;
    uint of_head = i % FOURS;
    uint head = first_head + h;
    float4 four = float4(0.0f);
    float all = 0.0f;
    for (uint s = 0; s < SIMDGROUPS; ++s) {
      four += *(threadgroup const float4*)(joined + (s * COLUMNS + h) * SUMS_PITCH + of_head * 4);
      all += sums[s * COLUMNS + h];
    }
    if (whole && p.has_sinks) {
      all += share(sinks[head], highest_of(h));
    }
    device float* to = partial + ((ulong(query) * p.q_heads + head) * groups.z + group.z) * part_floats(DIM);
    for (uint j = 0; j < 4; ++j) {
      uint d = of_head / 8 * 32 + j * 8 + of_head % 8;
      if (STEPS % 2 != 0 && d >= DIM) {
        break;
      }
      if (whole) {
        out[ulong(h) * p.out_strides[1] + d] = SCALAR(all == 0.0f ? 0.0f : four[j] / all);
      } else {
        to[PART_SUMS + d] = four[j];
      }
    }
    if (!whole && of_head == 0) {
      *(device float2*)to = float2(highest_of(h), all);
    }
  }
}
