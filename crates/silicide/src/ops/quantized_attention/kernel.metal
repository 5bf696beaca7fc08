// quantized_attention of few queries: the parts of the keys, and the joining of them.
//
// A threadgroup takes one query, ROWS of the heads that share a head of keys and values, and a part of the keys, in blocks.
// Of a block each simdgroup computes the scores of some keys, then one simdgroup a row makes weights of them, and each
// simdgroup weighs the values of the keys that it had. So codes are read once for all ROWS, and exponentials are computed
// once a score. LANES lanes have eight elements of a row each, CHUNKS times.
//
// Codes are not turned into elements: `scale * code + bias` is summed as `scale` times the sum of codes, and `bias` times the
// sum of what they are multiplied by.
//
// The host defines SCALAR, the type of queries; K_BITS, K_SCALE and K_ROTATED of keys and the same of values: the bits of a
// code, the type of scales, and whether codes number levels behind a rotation; LANES, CHUNKS and ROWS; ALIGNED, which says
// that words of codes lie aligned in pairs; and RING where a position is in row position % keys.

#include "silicide.h"
#include "hadamard.h"
#include "parts.h"
#include "quantized_attention.h"

constant constexpr uint SIMDGROUPS = 8;
constant constexpr uint UNROLL = 4;  // keys that a lane takes of a block
constant constexpr uint KEYS = 32 / LANES;
constant constexpr uint BLOCK = SIMDGROUPS * KEYS * UNROLL;
constant constexpr uint DIM = LANES * 8 * CHUNKS;
constant constexpr uint PADDED_ROWS = ROWS > 4 ? 8 : ROWS > 2 ? 4 : ROWS;
constant constexpr uint K_LEVELS = K_ROTATED ? 1u << K_BITS : 1;
constant constexpr uint V_LEVELS = V_ROTATED ? 1u << V_BITS : 1;

// The bits of the eight elements `eighth` of a row. Those of 5 and 6 bits start on a byte, and go past a word.
template <uint BITS>
inline uint2 load_eight(device const uint* row, uint eighth) {
  if (BITS == 4) {
    return uint2(row[eighth], 0);
  }
  if (BITS == 8) {
    device const uint* at = row + 2 * eighth;
    return ALIGNED ? *(device const uint2*)at : uint2(at[0], at[1]);
  }
  uint bit = eighth * (8 * BITS);
  uint low = row[bit / 32];
  uint high = row[bit / 32 + 1];
  uint shift = bit % 32;
  return shift == 0 ? uint2(low, high) : uint2(low >> shift | high << (32 - shift), high >> shift);
}

// What a code stands for, before its scale and bias.
template <uint BITS, bool ROTATED>
inline float unscaled(uint2 words, uint i, threadgroup const float* levels) {
  uint code = code_of<BITS>(words, i);
  return ROTATED ? levels[code] : float(code);
}

kernel void quantized_attention(
    device const SCALAR* q [[buffer(0)]],
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
    uint3 group [[threadgroup_position_in_grid]],
    uint3 groups [[threadgroups_per_grid]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup float k_levels[K_LEVELS];
  threadgroup float v_levels[V_LEVELS];
  threadgroup float scores[2 * ROWS * BLOCK];
  threadgroup float factors[ROWS];
  // Queries, and in the end the results of two simdgroups.
  threadgroup float joined[2 * ROWS * DIM];

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
  if (K_ROTATED) {
    for (uint i = thread_index; i < K_LEVELS; i += 32 * SIMDGROUPS) {
      k_levels[i] = float(k_biases[i]);
    }
  } else {
    k_biases += ulong(kv_head) * p.k.bias_strides[1];
  }
  if (V_ROTATED) {
    for (uint i = thread_index; i < V_LEVELS; i += 32 * SIMDGROUPS) {
      v_levels[i] = float(v_biases[i]);
    }
  } else {
    v_biases += ulong(kv_head) * p.v.bias_strides[1];
  }

  // A row of queries a simdgroup, scaled and turned as the keys were.
  if (simdgroup < ROWS) {
    float values[DIM / 32];
    for (uint i = 0; i < DIM / 32; ++i) {
      uint d = lane + 32 * i;
      bool there = simdgroup < rows && d < p.dim;
      values[i] = there ? float(q[ulong(simdgroup) * p.q_strides[1] + d]) * p.scale : 0.0f;
    }
    if (K_ROTATED) {
      for (uint i = 0; i < DIM / 32; ++i) {
        bool negative = p.k.has_signs && negative_sign(k_signs, lane + 32 * i);
        values[i] *= negative ? -p.rotation_scale : p.rotation_scale;
      }
      hadamard_registers(values, DIM / 32);
      hadamard_lanes(values, lane, 32);
    }
    for (uint i = 0; i < DIM / 32; ++i) {
      joined[simdgroup * DIM + lane + 32 * i] = values[i];
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);

  // Where this lane's elements are, and which of a row's scales they have.
  uint eighths[CHUNKS];
  bool there[CHUNKS];
  uint k_scale_at[CHUNKS];
  uint k_bias_at[CHUNKS];
  uint v_scale_at[CHUNKS];
  uint v_bias_at[CHUNKS];
  float mine[ROWS][8 * CHUNKS];
  float sum_q[ROWS][CHUNKS];
  float sum_v[ROWS][8 * CHUNKS];
  float sum_bias[ROWS][CHUNKS];
  for (uint c = 0; c < CHUNKS; ++c) {
    uint eighth = c * LANES + lane % LANES;
    there[c] = eighth * 8 < p.dim;
    eighths[c] = min(eighth, p.dim / 8 - 1);
    k_bias_at[c] = eighths[c] * 8 >> p.k.group_shift;
    v_bias_at[c] = eighths[c] * 8 >> p.v.group_shift;
    k_scale_at[c] = k_bias_at[c] * p.k.scale_stride;
    v_scale_at[c] = v_bias_at[c] * p.v.scale_stride;
    for (uint r = 0; r < ROWS; ++r) {
      sum_q[r][c] = 0.0f;
      sum_bias[r][c] = 0.0f;
      for (uint i = 0; i < 8; ++i) {
        float x = joined[r * DIM + (c * LANES + lane % LANES) * 8 + i];
        mine[r][8 * c + i] = x;
        sum_q[r][c] += x;
        sum_v[r][8 * c + i] = 0.0f;
      }
    }
  }

  uint oldest = oldest_position(p, positions, lane);
  uint2 range = part_of(visible(p, oldest, positions, query), group.z, groups.z, BLOCK);
  uint start = range.x;
  uint end = range.y;

#ifdef RING
  uint oldest_row = oldest % p.keys;
#endif
  // Of the row that this simdgroup makes weights for.
  float maximum = -INFINITY;
  float sum = 0.0f;
  uint flip = 0;
  for (uint base = start; base < end; base += BLOCK) {
    threadgroup float* now = scores + flip * ROWS * BLOCK;
    flip ^= 1;
    // Everything is asked for before anything is needed. No row past the last visible is read.
    uint2 k_words[UNROLL][CHUNKS];
    uint2 v_words[UNROLL][CHUNKS];
    float k_scale[UNROLL][CHUNKS];
    float k_bias[UNROLL][CHUNKS];
    float v_scale[UNROLL][CHUNKS];
    float v_bias[UNROLL][CHUNKS];
    for (uint u = 0; u < UNROLL; ++u) {
      uint key = base + (u * SIMDGROUPS + simdgroup) * KEYS + lane / LANES;
      bool seen = key < end;
      ulong row = min(key, end - 1);
#ifdef RING
      row = oldest_row + (row - oldest);
      row = row >= p.keys ? row - p.keys : row;
#endif
      for (uint c = 0; c < CHUNKS; ++c) {
        k_words[u][c] = load_eight<K_BITS>(k_codes + row * p.k.code_strides[0], eighths[c]);
        v_words[u][c] = load_eight<V_BITS>(v_codes + row * p.v.code_strides[0], eighths[c]);
        // What is not there or not seen has the scale and bias 0, be its own infinite.
        k_scale[u][c] = there[c] ? float(k_scales[row * p.k.scale_strides[0] + k_scale_at[c]]) : 0.0f;
        v_scale[u][c] = seen ? float(v_scales[row * p.v.scale_strides[0] + v_scale_at[c]]) : 0.0f;
        k_bias[u][c] = 0.0f;
        v_bias[u][c] = 0.0f;
        if (K_ROTATED) {
          k_scale[u][c] *= p.k.from_unit;
        } else if (there[c]) {
          k_bias[u][c] = float(k_biases[row * p.k.bias_strides[0] + k_bias_at[c]]);
        }
        if (V_ROTATED) {
          v_scale[u][c] *= p.v.from_unit;
        } else if (seen) {
          v_bias[u][c] = float(v_biases[row * p.v.bias_strides[0] + v_bias_at[c]]);
        }
      }
    }

    for (uint u = 0; u < UNROLL; ++u) {
      float score[PADDED_ROWS];
      for (uint r = 0; r < PADDED_ROWS; ++r) {
        score[r] = 0.0f;
      }
      for (uint c = 0; c < CHUNKS; ++c) {
        float dot[ROWS];
        for (uint r = 0; r < ROWS; ++r) {
          dot[r] = 0.0f;
        }
        for (uint i = 0; i < 8; ++i) {
          float x = unscaled<K_BITS, K_ROTATED>(k_words[u][c], i, k_levels);
          for (uint r = 0; r < ROWS; ++r) {
            dot[r] = fma(mine[r][8 * c + i], x, dot[r]);
          }
        }
        for (uint r = 0; r < ROWS; ++r) {
          score[r] = fma(dot[r], k_scale[u][c], score[r]);
          if (!K_ROTATED) {
            score[r] = fma(sum_q[r][c], k_bias[u][c], score[r]);
          }
        }
      }
      // Lanes halve the rows among them as they sum, until each has one.
      uint row = 0;
      uint other = 1;
      for (uint half_of = PADDED_ROWS / 2; half_of > 0; half_of /= 2) {
        bool upper = lane & other;
        for (uint r = 0; r < half_of; ++r) {
          float given = upper ? score[r] : score[r + half_of];
          score[r] = (upper ? score[r + half_of] : score[r]) + simd_shuffle_xor(given, ushort(other));
        }
        row += upper ? half_of : 0;
        other *= 2;
      }
      for (; other < LANES; other *= 2) {
        score[0] += simd_shuffle_xor(score[0], ushort(other));
      }
      float one = score[0];
      if (p.softcap != 0.0f) {
        one = p.softcap * metal::precise::tanh(one / p.softcap);
      }
      uint key = (u * SIMDGROUPS + simdgroup) * KEYS + lane / LANES;
      if (lane % LANES < PADDED_ROWS && row < ROWS) {
        now[row * BLOCK + key] = base + key < end ? one : -INFINITY;
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);

    if (simdgroup < ROWS) {
      threadgroup float* weights = now + simdgroup * BLOCK;
      float most = maximum;
      for (uint i = lane; i < BLOCK; i += 32) {
        most = greater(weights[i], most);
      }
      for (uint other = 1; other < 32; other *= 2) {
        most = greater(most, simd_shuffle_xor(most, ushort(other)));
      }
      float total = 0.0f;
      for (uint i = lane; i < BLOCK; i += 32) {
        float weight = share(weights[i], most);
        weights[i] = weight;
        total += weight;
      }
      float kept = share(maximum, most);
      sum = sum * kept + simd_sum(total);
      maximum = most;
      if (lane == 0) {
        factors[simdgroup] = kept;
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);

    for (uint r = 0; r < ROWS; ++r) {
      float kept = factors[r];
      for (uint c = 0; c < CHUNKS; ++c) {
        sum_bias[r][c] *= kept;
        for (uint i = 0; i < 8; ++i) {
          sum_v[r][8 * c + i] *= kept;
        }
      }
    }
    for (uint u = 0; u < UNROLL; ++u) {
      uint key = (u * SIMDGROUPS + simdgroup) * KEYS + lane / LANES;
      float weights[ROWS];
      for (uint r = 0; r < ROWS; ++r) {
        weights[r] = now[r * BLOCK + key];
      }
      for (uint c = 0; c < CHUNKS; ++c) {
        float scaled[ROWS];
        for (uint r = 0; r < ROWS; ++r) {
          scaled[r] = weights[r] * v_scale[u][c];
          if (!V_ROTATED) {
            sum_bias[r][c] = fma(weights[r], v_bias[u][c], sum_bias[r][c]);
          }
        }
        for (uint i = 0; i < 8; ++i) {
          float x = unscaled<V_BITS, V_ROTATED>(v_words[u][c], i, v_levels);
          for (uint r = 0; r < ROWS; ++r) {
            sum_v[r][8 * c + i] = fma(scaled[r], x, sum_v[r][8 * c + i]);
          }
        }
      }
    }
  }

  // Lanes that took other keys, then simdgroups, two at a time.
  for (uint r = 0; r < ROWS; ++r) {
    for (uint i = 0; i < 8 * CHUNKS; ++i) {
      float element = sum_v[r][i] + sum_bias[r][i / 8];
      for (uint other = LANES; other < 32; other *= 2) {
        element += simd_shuffle_xor(element, ushort(other));
      }
      sum_v[r][i] = element;
    }
  }
  for (uint turn = 0; turn < SIMDGROUPS; turn += 2) {
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (simdgroup / 2 == turn / 2 && lane < LANES) {
      for (uint r = 0; r < ROWS; ++r) {
        threadgroup float* to = joined + (simdgroup % 2 * ROWS + r) * DIM + lane * 8;
        for (uint i = 0; i < 8 * CHUNKS; ++i) {
          uint at = i / 8 * (LANES * 8) + i % 8;
          to[at] = turn == 0 ? sum_v[r][i] : to[at] + sum_v[r][i];
        }
      }
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  partial += ((ulong(query) * p.q_heads + first_head) * groups.z + group.z) * part_floats(p.dim);
  ulong apart = ulong(groups.z) * part_floats(p.dim);
  for (uint r = 0; r < rows; ++r) {
    for (uint d = thread_index; d < p.dim; d += 32 * SIMDGROUPS) {
      partial[r * apart + PART_SUMS + d] = joined[r * DIM + d] + joined[(ROWS + r) * DIM + d];
    }
  }
  if (simdgroup < rows && lane == 0) {
    *(device float2*)(partial + simdgroup * apart) = float2(maximum, sum);
  }
}

// Joins the parts of a query and head, and turns the result back where values are behind a rotation.
kernel void quantized_attention_join(
    device const float* partial [[buffer(0)]],
    device const float* sinks [[buffer(1)]],
    device const uint* v_signs [[buffer(2)]],
    device SCALAR* out [[buffer(3)]],
    constant Params& p [[buffer(4)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]]) {
  constexpr uint EACH = DIM / 32;
  threadgroup float joined[SIMDGROUPS * DIM];
  uint query = group.x;
  uint head = group.y;
  bool negative[EACH];
  for (uint i = 0; i < EACH; ++i) {
    negative[i] = V_ROTATED && p.v.has_signs && negative_sign(v_signs, lane * EACH + i);
  }
  float sink = p.has_sinks ? sinks[head] : -INFINITY;
  float values[EACH];
  device const float* from = partial + (ulong(query) * p.q_heads + head) * p.parts * part_floats(p.dim);
  join_parts<EACH>(from, p.parts, p.dim, lane * EACH, sink, joined, lane, simdgroup, simdgroups, values);
  if (simdgroup != 0) {
    return;
  }
  if (V_ROTATED) {
    hadamard_registers(values, EACH);
    hadamard_lanes(values, lane, 32);
    for (uint i = 0; i < EACH; ++i) {
      values[i] *= negative[i] ? -p.rotation_scale : p.rotation_scale;
    }
  }
  out += ulong(query) * p.out_strides[0] + ulong(head) * p.out_strides[1];
  for (uint i = 0; i < EACH; ++i) {
    uint d = lane * EACH + i;
    if (d < p.dim) {
      out[d] = SCALAR(values[i]);
    }
  }
}
