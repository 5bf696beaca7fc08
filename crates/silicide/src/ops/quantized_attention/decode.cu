// quantized_attention of few queries on NVIDIA's tensor cores: the parts of the keys. kernel.metal is its check, and joins them.
//
// A threadgroup computes ROWS of the heads that share a head of keys and values, for one query and one part of the keys that it
// sees. A simdgroup takes every so-manieth sixteen of keys, whose codes come by asynchronous copies, a turn ahead. Scores are
// [keys, heads], sums of values [elements, heads], so that a lane has the same heads of both.
//
// All products are of f16 and are summed in f32. An affine code is a subnormal as it is: 2^-24 for each unit, and as much times 16 for
// every other code of 4 bits, which need not be shifted. A level is looked up as two halves that make it up, which lie as two elements
// side by side. Queries and weights are brought near 1 by powers of two and are two halves as well: those of up to four heads are
// columns of one product. Scales of keys multiply sums over a group of elements, scales of values the weights.
//
// The host defines QUERY, the type of queries; SCALAR, half; K_BITS, K_SCALE, K_ROTATED and K_GROUP of keys and the same of values:
// the bits of a code, the type of scales, whether codes number levels behind a rotation, and how many elements share a scale; DIM,
// ROWS and SIMDGROUPS; and what quantized_attention.h names.

#include "silicide.h"
#include "code_tiles.h"
#include "hadamard.h"
#include "nvidia.h"
#include "parts.h"
#include "quantized_attention.h"

constant constexpr uint STEPS = DIM / 16;
constant constexpr uint K_GROUPS = DIM / K_GROUP;
constant constexpr uint V_GROUPS = DIM / V_GROUP;
constant constexpr uint K_TILE = KEYS * DIM * K_BITS / 8;  // bytes
constant constexpr uint V_TILE = KEYS * DIM * V_BITS / 8;
constant constexpr uint STAGE = K_TILE + V_TILE;
constant constexpr uint K_LEVELS = K_ROTATED ? 1u << K_BITS : 0;
constant constexpr uint V_LEVELS = V_ROTATED ? 1u << V_BITS : 0;
constant constexpr bool ONE_TABLE = K_LEVELS == V_LEVELS;
constant constexpr bool PACKED = ROWS <= 4;
// Whether the first half of a query is all of it.
constant constexpr bool EXACT = !K_ROTATED && sizeof(QUERY) == 2;
constant constexpr uint Q_HALVES = PACKED || EXACT ? 1 : 2;
constant constexpr uint V_HALVES = PACKED ? 1 : 2;
constant constexpr uint Q_ROWS = EXACT && PACKED ? 4 : 8 * Q_HALVES;
constant constexpr uint Q_PITCH = DIM / 8 + 4;  // by four words, for eight lanes in different banks
constant constexpr float WEIGHT = 4096.0f;  // what weights are multiplied by, so that few are subnormal
constant constexpr float SLACK = 2.0f;     // see LOG2_E: products of weights with WEIGHT and a scale below 2 are halves still
constant constexpr uint PADDED = PACKED ? 4 : 8;
// Products that go side by side, so that one need not wait for the other.
constant constexpr uint CHAINS = !K_ROTATED ? 1 : PACKED ? 4 : 2;
constant constexpr uint PITCH = DIM + 4;  // of sums of a head

// The transpose of an 8x8 matrix of 16 bits, by shuffles: with movmatrix this kernel does not end on Hopper.
inline uint turned(uint rows, uint lane) {
  uint from = lane % 4 * 8 + lane / 8;
  uint first = simd_shuffle(rows, ushort(from));
  uint second = simd_shuffle(rows, ushort(from + 4));
  return pick_bytes(first, second, lane / 4 % 2 == 0 ? 0x5410 : 0x7632);
}

// x as two halves.
inline uint halves_of(float x) { return pack_two(x, x - unpack_two(pack_two(x, x)).x); }

// 2^(exponent - 127), and 2^(127 - exponent).
inline float power(uint exponent) { return as_type<float>(exponent << 23); }
inline float inverse_power(uint exponent) { return as_type<float>((254 - exponent) << 23); }

// N levels as two halves each, once for each lane. A simdgroup brings some, of which a lane asks for one.
template <uint N, typename S>
inline void fill_levels(threadgroup uint* levels, device const S* from, uint lane, uint simdgroup) {
  constexpr uint EACH = (N + SIMDGROUPS - 1) / SIMDGROUPS;
  uint first = simdgroup * EACH;
  uint own = halves_of(float(from[min(first + lane, N - 1)]));
  for (uint i = 0; i < EACH; ++i) {
    uint level = simd_shuffle(own, ushort(i));
    if (first + i < N) {
      levels[(first + i) * LEVELS_APART + lane] = level;
    }
  }
}

kernel void quantized_attention_decode(
    device const QUERY* q [[buffer(0)]],
    device const uint* k_codes [[buffer(1)]],
    device const K_SCALE* k_scales [[buffer(2)]],
    device const K_SCALE* k_biases [[buffer(3)]],
    device const uint* v_codes [[buffer(4)]],
    device const V_SCALE* v_scales [[buffer(5)]],
    device const V_SCALE* v_biases [[buffer(6)]],
    device const uint* k_signs [[buffer(7)]],
    device const uint* positions [[buffer(8)]],
    device float* partial [[buffer(9)]],
    constant Params& p [[buffer(10)]],
    threadgroup uchar* dynamic [[threadgroup(0)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint3 groups [[threadgroups_per_grid]],
    uint lane_index [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  uint lane = kept(lane_index);
  threadgroup uint4 queries[Q_ROWS * Q_PITCH];
  threadgroup float query_sums[PADDED * K_GROUPS];
  threadgroup uint exponents[PADDED];
  threadgroup float maxima[SIMDGROUPS * 8];
  threadgroup float sums[SIMDGROUPS * 8];
  dynamic += align_chunks(shared_address(dynamic)) - shared_address(dynamic);
  threadgroup uchar* staged = dynamic + simdgroup * (2 * STAGE);
  threadgroup uint* k_levels = (threadgroup uint*)(dynamic + SIMDGROUPS * 2 * STAGE);
  // A level has a place for each lane, then one for each lane of the other table where there are two.
  threadgroup uint* v_levels = ONE_TABLE ? k_levels : k_levels + 32;

  uint query = group.x;
  uint sharing = p.q_heads / p.kv_heads;
  uint tiles = (sharing + ROWS - 1) / ROWS;
  uint kv_head = group.y / tiles;
  uint first_row = group.y % tiles * ROWS;
  uint first_head = kv_head * sharing + first_row;
  uint rows = min(uint(ROWS), sharing - first_row);
  q += ulong(query) * p.q_strides[0] + ulong(first_head) * p.q_strides[1];
  k_codes += ulong(kv_head) * p.k.code_strides[1];
  k_scales += ulong(kv_head) * p.k.scale_strides[1];
  v_codes += ulong(kv_head) * p.v.code_strides[1];
  v_scales += ulong(kv_head) * p.v.scale_strides[1];
  uint thread_index = simdgroup * 32 + lane;

  if (!K_ROTATED) {
    k_biases += ulong(kv_head) * p.k.bias_strides[1];
  }
  if (!V_ROTATED) {
    v_biases += ulong(kv_head) * p.v.bias_strides[1];
  }

  uint oldest = 0;
  uint oldest_row = 0;
  uint start = 0;
  uint end = 0;
  auto take_part = [&](uint position) {
    uint2 range = part_of(visible_at(p, oldest, position, query), group.z, groups.z, SIMDGROUPS * KEYS);
    start = range.x;
    end = range.y;
#ifdef RING
    oldest_row = oldest % p.keys;
#endif
  };
  auto row_of = [&](uint key) {
    uint row = min(key, end - 1);
#ifdef RING
    row = oldest_row + (row - oldest);
    row = row >= p.keys ? row - p.keys : row;
#endif
    return row;
  };
  auto first_key = [&](uint turn) { return start + (turn * SIMDGROUPS + simdgroup) * KEYS; };
#ifdef RING
  constexpr bool WHOLE_TURNS = false;
#else
  constexpr bool WHOLE_TURNS = WHOLE_ROWS<K_BITS> && WHOLE_ROWS<V_BITS>;
#endif
  device const uchar* next_keys;
  device const uchar* next_values;
  auto fetch = [&](uint turn, uint slot) {
    uint base = first_key(turn);
    if (base < end) {
      Shared to = shared_address(staged + slot * STAGE);
      if (WHOLE_TURNS && base + KEYS <= end) {
        copy_rows<K_BITS>(to, next_keys, p.k.code_strides[0], lane);
        copy_rows<V_BITS>(to + K_TILE, next_values, p.v.code_strides[0], lane);
        next_keys += SIMDGROUPS * KEYS * 4 * ulong(p.k.code_strides[0]);
        next_values += SIMDGROUPS * KEYS * 4 * ulong(p.v.code_strides[0]);
      } else {
        copy_tile<K_BITS>(to, k_codes, p.k.code_strides[0], lane, [&](uint i) { return row_of(base + i); });
        copy_tile<V_BITS>(to + K_TILE, v_codes, p.v.code_strides[0], lane, [&](uint i) { return row_of(base + i); });
      }
    }
    end_copies();
  };
  // Asks the second cache for the rows of a turn, or their factors alone. A side of a row has half of the lanes.
  auto ask = [&](uint turn, bool codes_too) {
    auto ask_row = [&](uint row, auto* codes, auto* scales, auto* biases, constant Side& side, uint bytes, bool rotated) {
      for (uint byte = 0; byte < bytes && codes_too; byte += LINE) {
        prefetch((device const uchar*)row_at(codes, row, side.code_strides[0]) + byte);
      }
      prefetch(row_at(scales, row, side.scale_strides[0]));
      if (!rotated) {
        prefetch(row_at(biases, row, side.bias_strides[0]));
      }
    };
    if (first_key(turn) < end) {
      uint row = row_of(first_key(turn) + lane % 16);
      if (lane < 16) {
        ask_row(row, k_codes, k_scales, k_biases, p.k, K_TILE / KEYS, K_ROTATED);
      } else {
        ask_row(row, v_codes, v_scales, v_biases, p.v, V_TILE / KEYS, V_ROTATED);
      }
    }
  };
  // Launches before may still write the newest rows, and the position: the second cache is asked for what the first turn will likely read.
  uint likely = has_positions(p) ? peek(positions + query) : 0;
  oldest = oldest_of(p, likely + 1);
  take_part(likely);
  ask(0, true);
  // Levels are written by no launch.
  if constexpr (K_ROTATED) {
    fill_levels<K_LEVELS>(k_levels, k_biases, lane, simdgroup);
  }
  if constexpr (V_ROTATED && !ONE_TABLE) {
    fill_levels<V_LEVELS>(v_levels, v_biases, lane, simdgroup);
  }
  wait_for_inputs();
  oldest = oldest_position(p, positions, lane);
  take_part(has_positions(p) ? positions[query] : 0);
  // Each takes long to come: a row of queries a simdgroup, codes, scales.
  float values[DIM / 32];
  for (uint i = 0; i < DIM / 32; ++i) {
    values[i] = simdgroup < rows ? float(q[ulong(simdgroup) * p.q_strides[1] + lane + 32 * i]) : 0.0f;
  }

  // Row i of a tile of scores is a key as in `row_place`.
  uint t = lane % 4;
  uint g = lane / 4;
  uint first_row_key = g / 2 + g % 2 * 4;
  Factors<K_SCALE, K_GROUPS, K_ROTATED> k_factors;
  Factors<V_SCALE, V_GROUPS, V_ROTATED> v_factors;
  auto look = [&](auto& factors, uint turn, auto* scales, auto* biases, constant Side& side) {
    uint base = first_key(turn);
    if (base < end) {
      for (uint r = 0; r < 2; ++r) {
        uint row = row_of(base + first_row_key + r * 8);
        factors.load(
            r, row_at(scales, row, side.scale_strides[0]), row_at(biases, row, side.bias_strides[0]), side.scale_stride);
      }
    }
  };
  look(k_factors, 0, k_scales, k_biases, p.k);
  look(v_factors, 0, v_scales, v_biases, p.v);
  next_keys = chunk_from<K_BITS>(k_codes, p.k.code_strides[0], first_key(0), lane);
  next_values = chunk_from<V_BITS>(v_codes, p.v.code_strides[0], first_key(0), lane);
  fetch(0, 0);

  // Queries are turned as keys were.
  if (simdgroup < PADDED) {
    if (K_ROTATED) {
      for (uint i = 0; i < DIM / 32; ++i) {
        bool negative = p.k.has_signs && negative_sign(k_signs, lane + 32 * i);
        values[i] *= negative ? -p.rotation_scale : p.rotation_scale;
      }
      hadamard_registers(values, DIM / 32);
      hadamard_lanes(values, lane, 32);
    }
    float most = 0.0f;
    for (uint i = 0; i < DIM / 32; ++i) {
      most = max(most, abs(values[i]));
    }
    uint exponent = clamp(as_type<uint>(simd_max(most)) >> 23, 1u, 229u);
    if (lane == 0) {
      exponents[simdgroup] = exponent;
    }
    for (uint i = 0; i < K_GROUPS && !K_ROTATED; ++i) {
      float of_group = 0.0f;
      for (uint j = 0; j < K_GROUP / 32; ++j) {
        of_group += values[i * (K_GROUP / 32) + j];
      }
      of_group = simd_sum(of_group);
      if (lane == 0) {
        query_sums[simdgroup * K_GROUPS + i] = of_group * (p.scale * LOG2_E);
      }
    }
    // Of 32 elements a lane of a product has eight; of bytes four, and four that are 16 further on. A word of queries has the pair that
    // a word of codes or levels has.
    uint column = K_BITS == 8 ? lane / 4 % 4 : lane / 8;
    uint code = K_BITS == 8 ? lane / 16 * 4 + lane % 4 : lane % 8;
    uint pair = K_ROTATED ? code / 2 : K_BITS == 4 ? code % 4 : code / 4 * 2 + code % 2;
    uint of_pair = K_ROTATED ? code % 2 : K_BITS == 4 ? code / 4 : code / 2 % 2;
    threadgroup half* to = (threadgroup half*)(queries + simdgroup * Q_PITCH + column) + pair * 2 + of_pair;
    float factor = inverse_power(exponent) * (!K_ROTATED && K_BITS == 4 && pair % 2 == 1 ? 0.0625f : 1.0f);
    for (uint i = 0; i < DIM / 32; ++i) {
      float x = values[i] * factor;
      half high = half(x);
      to[i * 32] = high;
      if (!EXACT) {
        to[PADDED * Q_PITCH * 8 + i * 32] = half(x - float(high));
      }
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);

  // Those of the columns of scores that this lane has.
  float unit[2];
  float sum_q[2][K_GROUPS];
  for (uint c = 0; c < 2; ++c) {
    uint head = (2 * t + c) % PADDED;
    unit[c] = power(exponents[head]) * (K_ROTATED ? p.k.from_unit : 16777216.0f) * (p.scale * LOG2_E);
    for (uint i = 0; i < K_GROUPS && !K_ROTATED; ++i) {
      // Of columns that are one head one has them.
      sum_q[c][i] = PACKED && !EXACT && t >= 2 ? 0.0f : query_sums[head * K_GROUPS + i];
    }
  }
  uint mine[Q_HALVES][DIM / 8];
  for (uint h = 0; h < Q_HALVES; ++h) {
    for (uint i = 0; i < DIM / 32; ++i) {
      uint4 four = queries[(h * 8 + g % Q_ROWS) * Q_PITCH + i * 4 + t];
      for (uint j = 0; j < 4; ++j) {
        mine[h][i * 4 + j] = four[j];
      }
    }
  }

  Shared all_k_levels = shared_address(k_levels);
  Shared all_v_levels = shared_address(v_levels);
  uint my_level = lane * 4;
  uint key_place = row_place<K_BITS>(lane);
  uint value_place = row_place<V_BITS>(lane);
  float sum_v[STEPS][4] = {};
  float sum_bias[V_GROUPS][2] = {};
  float maximum[2] = {-INFINITY, -INFINITY};
  float sum[2] = {};
  uint exponent = 1;  // that scales of values have at most so far
  float limit = power(2);
  uint slot = 0;
  for (uint turn = 0; first_key(turn) < end; ++turn) {
    wait_for_copies<0>();
    simdgroup_barrier(mem_flags::mem_threadgroup);
    fetch(turn + 1, slot ^ 1);
    threadgroup const uchar* keys = staged + slot * STAGE;
    slot ^= 1;
    threadgroup const uchar* values = keys + K_TILE;
    Shared key_matrices = shared_address(keys) + key_place;
    Shared value_matrices = shared_address(values) + value_place;

    // The turn ends with a wait for all that these loads bring, so they come first, and find it in the second cache.
    ask(turn + 2, false);
    auto next_k_factors = k_factors;
    auto next_v_factors = v_factors;
    look(next_k_factors, turn + 1, k_scales, k_biases, p.k);
    look(next_v_factors, turn + 1, v_scales, v_biases, p.v);
    float scores[4] = {};
    for (uint i = 0; i < K_GROUPS; ++i) {
      float chains[CHAINS][4] = {};
      uint four[4];
      for (uint j = i * (K_GROUP / 32); j < (i + 1) * (K_GROUP / 32); ++j) {
        if (K_BITS == 8 || (K_BITS == 4 && j % 2 == 0)) {
          load_matrices(four, beside(key_matrices, j * K_BITS / 8));
        }
        uint2 words[2];
        for (uint r = 0; r < 2; ++r) {
          words[r] = K_BITS == 8   ? uint2(four[r], four[2 + r])
                     : K_BITS == 4 ? uint2(four[j % 2 * 2 + r], 0)
                                   : load_eight<K_BITS>(keys, first_row_key + r * 8, j * 4 + t);
        }
        if constexpr (K_ROTATED) {
          for (uint pair = 0; pair < 4; ++pair) {
            uint a[4];
            for (uint e = 0; e < 4; ++e) {
              a[e] = level_of<K_BITS>(all_k_levels, my_level, words[e % 2], (pair * 2 + e / 2) * K_BITS);
            }
            for (uint h = 0; h < Q_HALVES; ++h) {
              uint two = mine[h][j * 4 + pair];
              uint b[2] = {low_halves(two, two), high_halves(two, two)};
              multiply(chains[pair % CHAINS], a, b);
            }
          }
        } else {
          for (uint pair = 0; pair < 4; pair += 2) {
            uint a[4];
            for (uint e = 0; e < 4; ++e) {
              uint at = pair + e / 2;
              a[e] = K_BITS == 4 ? two_codes<K_BITS>(words[e % 2].x, at)
                                 : two_codes<K_BITS>(at < 2 ? words[e % 2].x : words[e % 2].y, at % 2);
            }
            for (uint h = 0; h < Q_HALVES; ++h) {
              multiply(chains[0], a, mine[h] + j * 4 + pair);
            }
          }
        }
      }
      for (uint e = 0; e < 4; ++e) {
        float dot = chains[0][e];
        for (uint c = 1; c < CHAINS; ++c) {
          dot += chains[c][e];
        }
        scores[e] = fma(k_factors.scales[e / 2][i] * unit[e % 2], dot, scores[e]);
        if (!K_ROTATED) {
          scores[e] = fma(k_factors.biases[e / 2][i], sum_q[e % 2][i], scores[e]);
        }
      }
    }

    // Scores are by the logarithm of 2. A score that is NaN is the greatest of none, but has its say in the sums.
    if (PACKED && !EXACT) {
      for (uint e = 0; e < 4; ++e) {
        scores[e] += simd_shuffle_xor(scores[e], ushort(2));
      }
    }
    if (p.softcap != 0.0f) {
      float cap = p.softcap * LOG2_E;
      for (uint e = 0; e < 4; ++e) {
        scores[e] = cap * metal::precise::tanh(scores[e] / cap);
      }
    }
    bool rises[2];
    float most[2];
    if (first_key(turn) + KEYS > end) {
      for (uint e = 0; e < 4; ++e) {
        scores[e] = first_key(turn) + first_row_key + e / 2 * 8 < end ? scores[e] : -INFINITY;
      }
    }
    for (uint c = 0; c < 2; ++c) {
      most[c] = max(scores[c], scores[2 + c]);
      rises[c] = most[c] > maximum[c] + SLACK;
    }
    float scaled[2] = {1.0f, 1.0f};
    bool rescales = simd_any(rises[0] || rises[1]);
    if (rescales) {
      for (uint c = 0; c < 2; ++c) {
        for (uint other = 4; other < 32; other *= 2) {
          most[c] = max(most[c], simd_shuffle_xor(most[c], ushort(other)));
        }
        rises[c] = most[c] > maximum[c] + SLACK;
        scaled[c] = rises[c] ? power_of_two(maximum[c] - most[c]) : 1.0f;
        maximum[c] = rises[c] ? most[c] : maximum[c];
        sum[c] *= scaled[c];
        for (uint i = 0; i < V_GROUPS && !V_ROTATED; ++i) {
          sum_bias[i][c] *= scaled[c];
        }
      }
    }
    for (uint c = 0; c < 2; ++c) {
      float above = maximum[c] == -INFINITY ? 0.0f : maximum[c];
      for (uint r = 0; r < 2; ++r) {
        float weight = power_of_two(scores[r * 2 + c] - above);
        scores[r * 2 + c] = weight;
        sum[c] += weight;
      }
    }

    for (uint i = 0; i < V_GROUPS * 2 && !V_ROTATED; ++i) {
      float sum = sum_bias[i / 2][i % 2];
      for (uint r = 0; r < 2; ++r) {
        sum = fma(scores[r * 2 + i % 2], v_factors.biases[r][i / 2], sum);
      }
      sum_bias[i / 2][i % 2] = sum;
    }
    float largest = 0.0f;
    for (uint i = 0; i < V_GROUPS * 2; ++i) {
      largest = max(largest, abs(v_factors.scales[i % 2][i / 2]));
    }
    if (simd_any(largest >= limit)) {
      // A scale that is not finite has no say: its products are not finite either.
      uint before = exponent;
      for (uint i = 0; i < V_GROUPS * 2; ++i) {
        uint of = as_type<uint>(abs(v_factors.scales[i % 2][i / 2])) >> 23;
        exponent = max(exponent, of == 255 ? 0 : min(of, 253u));
      }
      exponent = simd_max(exponent);
      limit = power(exponent + 1);
      for (uint c = 0; c < 2; ++c) {
        scaled[c] *= exponent - before < 127 ? inverse_power(127 + exponent - before) : 0.0f;
      }
      rescales = true;
    }
    if (rescales) {
      for (uint i = 0; i < STEPS * 4; ++i) {
        sum_v[i / 4][i % 4] *= scaled[i % 2];
      }
    }

    for (uint i = 0; i < V_GROUPS; ++i) {
      // Of keys as rows of scores are, of heads as columns: columns and rows of what multiplies values.
      uint weights[V_HALVES][2];
      for (uint r = 0; r < 2; ++r) {
        float2 x = float2(scores[r * 2], scores[r * 2 + 1]) * (v_factors.scales[r][i] * (inverse_power(exponent) * WEIGHT));
        uint high = pack_two(x.x, x.y);
        float2 rest = x - unpack_two(high);
        uint low = pack_two(rest.x, rest.y);
        weights[0][r] = turned(PACKED && t >= 2 ? low : high, lane);
        if (V_HALVES == 2) {
          weights[V_HALVES - 1][r] = turned(low, lane);
        }
      }
      if constexpr (WHOLE<V_BITS>) {
        // Words of sixteen keys: STEPS_EACH steps of each, for two eights.
        constexpr uint STEPS_EACH = BESIDE<V_BITS> / 2;
        for (uint j = i * (V_GROUP / (32 * STEPS_EACH)); j < (i + 1) * (V_GROUP / (32 * STEPS_EACH)); ++j) {
          uint four[4];
          load_transposed(four, beside(value_matrices, j));
          for (uint chunk = 0; chunk < 2; ++chunk) {
            for (uint step = 0; step < STEPS_EACH; ++step) {
              thread float* sums = sum_v[(j * 2 + chunk) * STEPS_EACH + step];
              if constexpr (V_ROTATED) {
                for (uint r = 0; r < 2; ++r) {
                  uint a[4];
                  for (uint e = 0; e < 4; ++e) {
                    uint bit = e / 2 * 16 + (step * 2 + e % 2) * V_BITS;
                    a[e] = level_of<V_BITS>(all_v_levels, my_level, uint2(four[chunk * 2 + r], 0), bit);
                  }
                  for (uint h = 0; h < V_HALVES; ++h) {
                    uint two = weights[h][r];
                    uint b[2] = {low_halves(two, two), high_halves(two, two)};
                    multiply(sums, a, b);
                  }
                }
              } else {
                uint a[4];
                for (uint e = 0; e < 4; ++e) {
                  a[e] = two_codes<V_BITS>(four[chunk * 2 + e / 2], step * 2 + e % 2);
                }
                for (uint h = 0; h < V_HALVES; ++h) {
                  multiply(sums, a, weights[h]);
                }
              }
            }
          }
        }
      } else {
        for (uint j = i * (V_GROUP / 64); j < (i + 1) * (V_GROUP / 64); ++j) {
          uint2 words[4];
          for (uint k = 0; k < 4; ++k) {
            words[k] = load_eight<V_BITS>(values, t + k * 4, j * 8 + g);
          }
          for (uint step = 0; step < 4; ++step) {
            for (uint r = 0; r < 2; ++r) {
              uint a[4];
              for (uint e = 0; e < 4; ++e) {
                a[e] = level_of<V_BITS>(all_v_levels, my_level, words[r * 2 + e / 2], (step * 2 + e % 2) * V_BITS);
              }
              for (uint h = 0; h < V_HALVES; ++h) {
                uint two = weights[h][r];
                uint b[2] = {low_halves(two, two), high_halves(two, two)};
                multiply(sum_v[j * 4 + step], a, b);
              }
            }
          }
        }
      }
    }
    k_factors = next_k_factors;
    v_factors = next_v_factors;
  }
  wait_for_copies<0>();

  for (uint c = 0; c < 2; ++c) {
    if (g == 0) {
      maxima[simdgroup * 8 + 2 * t + c] = maximum[c] * LN_2;
    }
    for (uint other = 4; other < 32; other *= 2) {
      sum[c] += simd_shuffle_xor(sum[c], ushort(other));
      for (uint i = 0; i < V_GROUPS; ++i) {
        sum_bias[i][c] += simd_shuffle_xor(sum_bias[i][c], ushort(other));
      }
    }
  }
  // From here on the stages are used up; their memory joins the simdgroups.
  threadgroup_barrier(mem_flags::mem_threadgroup);
  threadgroup float* joined = (threadgroup float*)dynamic;
  // Of the column lane % 8.
  float most = greatest(maxima + lane, SIMDGROUPS / 4, 32, -INFINITY);
  most = greater(most, simd_shuffle_xor(most, ushort(8)));
  most = greater(most, simd_shuffle_xor(most, ushort(16)));
  // Of each column four sums of a lane lie side by side.
  for (uint c = 0; c < 2; ++c) {
    uint column = 2 * t + c;
    float counts = share(maximum[c] * LN_2, simd_shuffle(most, ushort(column)));
    if (g == 0) {
      sums[simdgroup * 8 + column] = sum[c] * counts;
    }
    // Their product may not be finite where that of a sum and both is.
    float unit = (V_ROTATED ? p.v.from_unit : 16777216.0f) / WEIGHT;
    float scale = power(exponent) * counts;
    for (uint i = 0; i < STEPS; i += 2) {
      // Of columns that are one head one has the biases.
      float bias = V_ROTATED || (PACKED && t >= 2) ? 0.0f : sum_bias[i / (V_GROUP / 16)][c] * counts;
      float4 four;
      for (uint j = 0; j < 4; ++j) {
        float of_code = !V_ROTATED && V_BITS == 4 && j % 2 == 1 ? 0.0625f : 1.0f;
        four[j] = fma(sum_v[i + j / 2][j % 2 * 2 + c] * (unit * of_code), scale, bias);
      }
      *(threadgroup float4*)(joined + (simdgroup * 8 + column) * PITCH + (i * 4 + g) * 4) = four;
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);

  for (uint i = thread_index; i < rows * DIM; i += SIMDGROUPS * 32) {
    uint h = i / DIM;
    uint at = i % DIM;
    float element = 0.0f;
    for (uint s = 0; s < SIMDGROUPS; ++s) {
      threadgroup const float* from = joined + (s * 8 + h) * PITCH + at;
      element += PACKED ? from[0] + from[4 * PITCH] : from[0];
    }
    constexpr uint STEPS_EACH = BESIDE<V_BITS> / 2;
    uint step = at / 32 * 2 + at % 4 / 2;
    uint d = step / STEPS_EACH * (16 * STEPS_EACH) + at / 4 % 8 * (2 * STEPS_EACH) + step % STEPS_EACH * 2 + at % 2;
    device float* to = partial + ((ulong(query) * p.q_heads + first_head + h) * groups.z + group.z) * part_floats(DIM);
    to[PART_SUMS + d] = element;
    float highest = simd_shuffle(most, ushort(h));
    if (at == 0) {
      float all = 0.0f;
      for (uint s = 0; s < SIMDGROUPS; ++s) {
        all += sums[s * 8 + h];
      }
      *(device float2*)to = float2(highest, all);
    }
  }
}
