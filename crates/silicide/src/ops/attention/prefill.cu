// attention for many queries on NVIDIA's tensor cores, for queries, keys and values of one type of 16 bits. tiled.metal is its check.
//
// Simdgroups take 16 * M queries of one head each, and go through the keys that any of these sees, 64 at a time; those of the
// next turn come by asynchronous copies meanwhile. Scores, [queries, keys], stay in registers, where their weights, rounded to
// SCALAR, are already laid out as the factor of the values.
//
// The host defines SCALAR, DIM, M, SIMDGROUPS, and what attention.h names.

#include "attention.h"
#include "nvidia.h"
#include "silicide.h"

constant constexpr uint OWN = 16 * M;  // queries of a simdgroup
constant constexpr uint QUERIES = OWN * SIMDGROUPS;
constant constexpr uint THREADS = 32 * SIMDGROUPS;
constant constexpr uint TILE = 64;                     // keys at a time
constant constexpr uint CHUNKS = DIM / 8;              // of sixteen bytes in a row
constant constexpr uint PITCH = (CHUNKS + 7) / 8 * 8;  // of a row of a tile, in chunks
constant constexpr uint BYTES = TILE * PITCH * 16;
constant constexpr uint STEPS = DIM / 16;
// See LOG2_E.
constant constexpr float SLACK = 8.0f;

// A processor has registers for so many threads, of which each takes most that it can have.
[[kernel, max_total_threads_per_threadgroup(256)]] void attention_prefill(
    device const SCALAR* q [[buffer(0)]],
    device const SCALAR* k [[buffer(1)]],
    device const SCALAR* v [[buffer(2)]],
    device const uint* positions [[buffer(3)]],
    device const float* sinks [[buffer(4)]],
    device const uint* table [[buffer(5)]],
    device const uchar* mask [[buffer(6)]],
    device const uchar* classes [[buffer(7)]],
    device SCALAR* out [[buffer(8)]],
    constant Params& p [[buffer(9)]],
    threadgroup uchar* dynamic [[threadgroup(0)]],
    uint2 group [[threadgroup_position_in_grid]],
    uint2 groups [[threadgroups_per_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup uint2 ranges[QUERIES];
  Shared staged = kept(align_chunks(shared_address(dynamic)));
  Shared staged_q = staged + 4 * BYTES;

  // Later queries see more keys, so they go first.
  uint first_query = (groups.x - 1 - group.x) * QUERIES;
  uint head = group.y;
  uint kv_head = head / (p.q_heads / p.kv_heads);
  q += ulong(head) * p.q_strides[1];
  k += ulong(kv_head) * p.k_strides[1];
  v += ulong(kv_head) * p.v_strides[1];
  out += ulong(head) * p.out_strides[1];

  Places places = places_of(p, table, positions, lane);
  if (thread_index < QUERIES) {
    uint query = first_query + thread_index;
    ranges[thread_index] = query < p.queries ? visible(p, places.oldest, positions, query) : uint2(0);
  }
  for (uint i = thread_index; i < QUERIES * CHUNKS; i += THREADS) {
    uint row = i / CHUNKS;
    bool there = first_query + row < p.queries;
    ulong at = ulong(min(first_query + row, p.queries - 1)) * p.q_strides[0];
    copy_sixteen(staged_q + chunk_at<PITCH>(row, i % CHUNKS), q + at + i % CHUNKS * 8, there);
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  // All that any query sees, and what all of them see.
  uint start = 0xffffffffu;
  uint end = 0;
  uint inner_start = 0;
  uint inner_end = 0xffffffffu;
  for (uint i = 0; i < QUERIES; ++i) {
    uint2 range = ranges[i];
    if (range.x < range.y) {
      start = min(start, range.x);
      end = max(end, range.y);
    }
    if (first_query + i < p.queries) {
      inner_start = max(inner_start, range.x);
      inner_end = min(inner_end, range.y);
    }
  }
  uint first_row = simdgroup * OWN;
  auto row_of = [&](uint m, uint r) { return first_row + m * 16 + r * 8 + lane / 4; };
  uint2 mine_of[M][2];
#pragma unroll
  for (uint m = 0; m < M; ++m) {
    for (uint r = 0; r < 2; ++r) {
      mine_of[m][r] = ranges[row_of(m, r)];
    }
  }
  // What any query of the simdgroup sees.
  uint2 own = ranges[first_row + lane % OWN];
  own = uint2(simd_min(own.x < own.y ? own.x : 0xffffffffu), simd_max(own.x < own.y ? own.y : 0));

  auto fetch = [&](uint base) {
    if (base < end) {
      Shared to = staged + (base - start) / TILE % 2 * 2 * BYTES;
      if (IN_ROWS && THREADS % (CHUNKS * 8) == 0 && base + TILE <= end) {
        constexpr uint ROWS = THREADS / CHUNKS;
        uint first = thread_index / CHUNKS;
        uint c = thread_index % CHUNKS;
        device const SCALAR* key = k + ulong(base + first) * p.k_strides[0] + c * 8;
        device const SCALAR* value = v + ulong(base + first) * p.v_strides[0] + c * 8;
        // Rows are whole eights apart, which have their chunks at the same places.
        Shared place = to + chunk_at<PITCH>(first, c);
#pragma unroll
        for (uint row = 0; row < TILE; row += ROWS) {
          copy_sixteen(place + row * PITCH * 16, key, true);
          copy_sixteen(place + row * PITCH * 16 + BYTES, value, true);
          key += ROWS * p.k_strides[0];
          value += ROWS * p.v_strides[0];
        }
        end_copies();
        return;
      }
      for (uint i = thread_index; i < TILE * CHUNKS; i += THREADS) {
        uint row = i / CHUNKS;
        uint c = i % CHUNKS;
        ulong2 at;
        bool there = find(p, places, min(base + row, end - 1), at) && base + row < end;
        copy_sixteen(to + chunk_at<PITCH>(row, c), k + at.x + c * 8, there);
        copy_sixteen(to + BYTES + chunk_at<PITCH>(row, c), v + at.y + c * 8, there);
      }
    }
    end_copies();
  };
  uint query_at = chunk_at<PITCH>(first_row + lane % 16, lane / 16);
  // Where a lane's rows of matrices of keys and of values begin.
  uint key_at = chunk_at<PITCH>(lane / 16 * 8 + lane % 8, lane / 8 % 2);
  uint value_at = BYTES + chunk_at<PITCH>(lane % 16, lane / 16);

  float sum_v[M][DIM / 8][4] = {};
  // Scores times `unit` are by the logarithm of 2, as what weights are measured by is, which is near the greatest so far.
  bool plain = p.softcap == 0.0f && p.scale > 0.0f;
  float unit = plain ? p.scale * LOG2_E : 1.0f;
  float maximum[M][2];
  float sum[M][2] = {};
#pragma unroll
  for (uint m = 0; m < M; ++m) {
    maximum[m][0] = maximum[m][1] = -INFINITY;
  }

  fetch(start);
  for (uint base = start; base < end; base += TILE) {
    wait_for_copies<0>();
    threadgroup_barrier(mem_flags::mem_threadgroup);
    fetch(base + TILE);
    Shared keys = staged + (base - start) / TILE % 2 * 2 * BYTES;

    if (base >= own.y || base + TILE <= own.x) {
      continue;
    }
    float scores[M][TILE / 8][4] = {};
    // Matrices are on their way while products of those before run.
    uint tiles[2][TILE / 16][4];
    auto load_keys = [&](uint i) {
      for (uint j = 0; j < TILE / 16; ++j) {
        load_matrices(tiles[i % 2][j], beside(keys + key_at, i) + j * 16 * PITCH * 16);
      }
    };
    load_keys(0);
#pragma unroll
    for (uint i = 0; i < STEPS; ++i) {
      uint a[M][4];
#pragma unroll
      for (uint m = 0; m < M; ++m) {
        load_matrices(a[m], beside(staged_q + query_at, i) + m * 16 * PITCH * 16);
      }
      if (i + 1 < STEPS) {
        load_keys(i + 1);
      }
      for (uint j = 0; j < TILE / 16; ++j) {
#pragma unroll
        for (uint m = 0; m < M; ++m) {
          multiply(scores[m][2 * j], a[m], tiles[i % 2][j]);
          multiply(scores[m][2 * j + 1], a[m], tiles[i % 2][j] + 2);
        }
      }
    }

#ifdef PAGES
    bool all_seen = false;
#else
    bool all_seen = base >= inner_start && base + TILE <= inner_end;
#endif
    bool rises[M][2];
    float most[M][2];
    bool any_rises = false;
#pragma unroll
    for (uint m = 0; m < M; ++m) {
      if (!plain) {
        for (uint j = 0; j < TILE / 8; ++j) {
          for (uint e = 0; e < 4; ++e) {
            float score = scores[m][j][e] * p.scale;
            if (p.softcap != 0.0f) {
              score = p.softcap * metal::precise::tanh(score / p.softcap);
            }
            scores[m][j][e] = score * LOG2_E;
          }
        }
      }
      if (!all_seen) {
        for (uint j = 0; j < TILE / 8; ++j) {
          for (uint e = 0; e < 4; ++e) {
            uint key = base + j * 8 + lane % 4 * 2 + e % 2;
            bool seen = key >= mine_of[m][e / 2].x && key < mine_of[m][e / 2].y;
#ifdef PAGES
            ulong2 at;
            seen = seen && find(p, places, key, at);
#endif
            scores[m][j][e] = seen ? scores[m][j][e] : -INFINITY;
          }
        }
      }
      for (uint r = 0; r < 2; ++r) {
        // A score that is NaN is the greatest of none, but its weight is NaN.
        float greatest = -INFINITY;
        for (uint j = 0; j < TILE / 8; ++j) {
          greatest = max(greatest, max(scores[m][j][r * 2], scores[m][j][r * 2 + 1]));
        }
        greatest = max(greatest, simd_shuffle_xor(greatest, 1));
        most[m][r] = max(greatest, simd_shuffle_xor(greatest, 2)) * unit;
        rises[m][r] = most[m][r] > maximum[m][r] + SLACK;
        any_rises = any_rises || rises[m][r];
      }
    }
    if (simd_any(any_rises)) {
#pragma unroll
      for (uint m = 0; m < M; ++m) {
        for (uint r = 0; r < 2; ++r) {
          float kept = rises[m][r] ? power_of_two(maximum[m][r] - most[m][r]) : 1.0f;
          maximum[m][r] = rises[m][r] ? most[m][r] : maximum[m][r];
          sum[m][r] *= kept;
          for (uint i = 0; i < DIM / 8; ++i) {
            sum_v[m][i][r * 2] *= kept;
            sum_v[m][i][r * 2 + 1] *= kept;
          }
        }
      }
    }
    // Where nothing was seen all differences are to be negative infinity.
    float above[M][2];
#pragma unroll
    for (uint m = 0; m < M; ++m) {
      for (uint r = 0; r < 2; ++r) {
        above[m][r] = maximum[m][r] == -INFINITY ? 0.0f : maximum[m][r];
      }
    }
    // Of a step of sixteen keys the values of DIM / PARTS elements.
    constexpr uint PARTS = DIM % 64 == 0 ? DIM / 64 : DIM / 16;
    constexpr uint WIDTH = DIM / PARTS / 16;
    auto load_values = [&](uint n) {
      for (uint i = 0; i < WIDTH; ++i) {
        load_transposed(tiles[n % 2][i], beside(keys + value_at, n % PARTS * WIDTH + i) + n / PARTS * 16 * PITCH * 16);
      }
    };
    load_values(0);
#pragma unroll
    for (uint j = 0; j < TILE / 8; j += 2) {
      uint weights[M][4];
#pragma unroll
      for (uint m = 0; m < M; ++m) {
        for (uint half_step = 0; half_step < 2; ++half_step) {
          for (uint r = 0; r < 2; ++r) {
            thread const float* of = scores[m][j + half_step] + r * 2;
            float first = power_of_two(fma(of[0], unit, -above[m][r]));
            float second = power_of_two(fma(of[1], unit, -above[m][r]));
            sum[m][r] += first + second;
            weights[m][half_step * 2 + r] = pack_two(first, second);
          }
        }
      }
#pragma unroll
      for (uint part = 0; part < PARTS; ++part) {
        uint n = j / 2 * PARTS + part;
        if (n + 1 < TILE / 16 * PARTS) {
          load_values(n + 1);
        }
        for (uint i = 0; i < WIDTH; ++i) {
          uint at = (part * WIDTH + i) * 2;
#pragma unroll
          for (uint m = 0; m < M; ++m) {
            multiply(sum_v[m][at], weights[m], tiles[n % 2][i]);
            multiply(sum_v[m][at + 1], weights[m], tiles[n % 2][i] + 2);
          }
        }
      }
    }
  }
  wait_for_copies<0>();

  bool finite = true;
#pragma unroll
  for (uint m = 0; m < M; ++m) {
    for (uint r = 0; r < 2; ++r) {
      sum[m][r] += simd_shuffle_xor(sum[m][r], 1);
      sum[m][r] += simd_shuffle_xor(sum[m][r], 2);
      finite = finite && (maximum[m][r] == -INFINITY || abs(maximum[m][r]) < INFINITY);
    }
    for (uint i = 0; i < DIM / 8; ++i) {
      for (uint e = 0; e < 4; ++e) {
        finite = finite && abs(sum_v[m][i][e]) < INFINITY;
      }
    }
  }
  float sink = p.has_sinks ? sinks[head] : -INFINITY;
  if (!simd_all(finite)) {
    for (uint i = first_row; i < first_row + OWN; ++i) {
      uint query = first_query + i;
      if (query < p.queries) {
        attend_alone<(DIM + 31) / 32 * 32>(
            q + ulong(query) * p.q_strides[0], k, v, mask, out + ulong(query) * p.out_strides[0], ranges[i], places, p.has_sinks, sink,
            p, lane);
      }
    }
    return;
  }
#pragma unroll
  for (uint m = 0; m < M; ++m) {
    for (uint r = 0; r < 2; ++r) {
      uint query = first_query + row_of(m, r);
      float highest = greater(maximum[m][r], sink * LOG2_E);
      float part = highest == -INFINITY ? 0.0f : power_of_two(maximum[m][r] - highest);
      float total = sum[m][r] * part + (p.has_sinks ? power_of_two(sink * LOG2_E - highest) : 0.0f);
      part = total == 0.0f ? 0.0f : part / total;
      if (query < p.queries) {
        device SCALAR* to = out + ulong(query) * p.out_strides[0] + lane % 4 * 2;
        for (uint i = 0; i < DIM / 8; ++i) {
          to[i * 8] = SCALAR(sum_v[m][i][r * 2] * part);
          to[i * 8 + 1] = SCALAR(sum_v[m][i][r * 2 + 1] * part);
        }
      }
    }
  }
}
