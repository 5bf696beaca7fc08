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
#include "silicide.h"

constant constexpr uint SIMDGROUPS = 4;
constant constexpr uint KEYS = 16;
constant constexpr uint CHUNKS = DIM / 8;                       // of sixteen bytes in a row
constant constexpr uint PITCH = (CHUNKS + 7) / 8 * 8;           // of a row of a tile, in chunks
constant constexpr uint TILE = KEYS * PITCH * 16;               // bytes
constant constexpr uint STEPS = DIM / 16;
constant constexpr float SLACK = 8.0f;                          // see LOG2_E
constant constexpr uint SUMS_PITCH = DIM + 4;                   // of sums of a head: so that those of lanes lie in different banks

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
  threadgroup float maxima[SIMDGROUPS * TILES * 8];
  threadgroup float sums[SIMDGROUPS * TILES * 8];
  threadgroup float shares[SIMDGROUPS * TILES * 8];
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

  Places places = places_of(p, table, positions, lane);
  uint2 range = visible(p, places.oldest, positions, query);
  uint step = SIMDGROUPS * KEYS;
  uint chunk = ((range.y - range.x + groups.z - 1) / groups.z + step - 1) / step * step;
  uint start = min(range.x + group.z * chunk, range.y);
  uint end = min(start + chunk, range.y);

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

  for (uint turn = 0; turn + 1 < STAGES; ++turn) {
    fetch(turn);
  }
  uint mine[TILES][STEPS][2];
  for (uint n = 0; n < TILES; ++n) {
    uint head = n * 8 + lane / 4;
    for (uint i = 0; i < STEPS * 2; ++i) {
      device const SCALAR* from = q + ulong(min(head, heads - 1)) * p.q_strides[1] + i * 8 + lane % 4 * 2;
      mine[n][i / 2][i % 2] = head < heads ? *(device const uint*)from : 0;
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
      // Two sums go side by side, so that one need not wait for the other.
      float halves_of[2][TILES][4] = {};
      for (uint i = 0; i < STEPS; ++i) {
        uint a[4];
        load_matrices(a, beside(keys + key_at, i));
        for (uint n = 0; n < TILES; ++n) {
          multiply(halves_of[i % 2][n], a, mine[n][i]);
        }
      }
      float scores[TILES][4];
      for (uint n = 0; n < TILES; ++n) {
        for (uint e = 0; e < 4; ++e) {
          scores[n][e] = halves_of[0][n][e] + halves_of[1][n][e];
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
          most[c] = max(scores[n][c], scores[n][2 + c]);
          for (uint other = 4; other < 32; other *= 2) {
            most[c] = max(most[c], simd_shuffle_xor(most[c], other));
          }
          most[c] *= unit;
          rises[c] = most[c] > maximum[n][c] + SLACK;
        }
        if (simd_any(rises[0] || rises[1])) {
          for (uint c = 0; c < 2; ++c) {
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
    float zero = 0.0f;
    for (uint n = 0; n < TILES; ++n) {
      for (uint i = 0; i < STEPS * 4; ++i) {
        zero = fma(sum_v[n][i / 4][i % 4], 0.0f, zero);
      }
    }
    if (simd_all(zero == 0.0f)) {
      break;
    }
  }

  // The stages are used up; their memory joins the simdgroups.
  threadgroup_barrier(mem_flags::mem_threadgroup);
  threadgroup float* joined = (threadgroup float*)dynamic;
  for (uint n = 0; n < TILES; ++n) {
    for (uint c = 0; c < 2; ++c) {
      uint head = n * 8 + lane % 4 * 2 + c;
      for (uint other = 4; other < 32; other *= 2) {
        sum[n][c] += simd_shuffle_xor(sum[n][c], other);
      }
      if (lane < 4) {
        maxima[simdgroup * TILES * 8 + head] = maximum[n][c] / LOG2_E;
        sums[simdgroup * TILES * 8 + head] = sum[n][c];
      }
      for (uint i = 0; i < STEPS; ++i) {
        for (uint r = 0; r < 2; ++r) {
          joined[(simdgroup * TILES * 8 + head) * SUMS_PITCH + i * 16 + r * 8 + lane / 4] = sum_v[n][i][r * 2 + c];
        }
      }
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);

  // What the sums of each simdgroup count for.
  bool whole = groups.z == 1;
  auto highest_of = [&](uint h) {
    float sink = whole && p.has_sinks && h < heads ? sinks[first_head + h] : -INFINITY;
    return greatest(maxima + h, SIMDGROUPS, TILES * 8, sink);
  };
  uint thread_index = simdgroup * 32 + lane;
  if (thread_index < SIMDGROUPS * TILES * 8) {
    shares[thread_index] = share(maxima[thread_index], highest_of(thread_index % (TILES * 8)));
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);

  for (uint i = thread_index * 4; i < heads * DIM; i += SIMDGROUPS * 32 * 4) {
    uint h = i / DIM;
    uint d = i % DIM;
    uint head = first_head + h;
    float all = 0.0f;
    float4 four = float4(0.0f);
    for (uint s = 0; s < SIMDGROUPS; ++s) {
      uint at = s * TILES * 8 + h;
      all += sums[at] * shares[at];
      four += *(threadgroup const float4*)(joined + at * SUMS_PITCH + d) * shares[at];
    }
    if (whole) {
      all += p.has_sinks ? share(sinks[head], highest_of(h)) : 0.0f;
      for (uint j = 0; j < 4; ++j) {
        out[ulong(h) * p.out_strides[1] + d + j] = SCALAR(all == 0.0f ? 0.0f : four[j] / all);
      }
      continue;
    }
    device float* to = partial + ((ulong(query) * p.q_heads + head) * groups.z + group.z) * (DIM + 2);
    *(device float2*)(to + d) = float2(four.x, four.y);
    *(device float2*)(to + d + 2) = float2(four.z, four.w);
    if (d == 0) {
      *(device float2*)(to + DIM) = float2(highest_of(h), all);
    }
  }
}
