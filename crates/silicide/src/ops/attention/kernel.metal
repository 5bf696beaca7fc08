// attention: the form for few queries, and the joining of its parts. tiled.metal has the form for a prompt's.
//
// A threadgroup computes HEADS query heads that share a head of keys and values, for one query and one part of the keys that it
// sees. LANES lanes have an element of 16 of a head each, so a simdgroup takes 32 / LANES keys at a time; whoever takes a key
// keeps a running maximum, and all are joined at the end. Keys and values are read once.
//
// The host defines SCALAR, the type of queries; what attention.h names; LANES and HEADS; and WHOLE, which says that heads are
// whole sixteens and that vectors of four lie aligned.

#include "attention.h"
#include "parts.h"
#include "silicide.h"

constant constexpr uint SIMDGROUPS = 8;
constant constexpr uint SPAN = 16;  // elements of a head, a lane
constant constexpr uint KEYS = 32 / LANES;

// Where four i of a lane's elements of a head are: neighbouring lanes have neighbouring fours.
inline uint four_at(uint i, uint lane) { return (i * LANES + lane % LANES) * 4; }

// A lane's elements of a head of `dim`; those past its end as zeros.
template <typename T>
inline void load_span(device const T* head, uint lane, uint dim, thread float4* span) {
  for (uint i = 0; i < SPAN / 4; ++i) {
    uint d = four_at(i, lane);
    span[i] = float4(0.0f);
    if (WHOLE) {
      if (d < dim) {
        span[i] = float4(*(device const vec<T, 4>*)(head + d));
      }
    } else {
      for (uint j = 0; j < 4; ++j) {
        if (d + j < dim) {
          span[i][j] = float(head[d + j]);
        }
      }
    }
  }
}

kernel void attention(
    device const SCALAR* q [[buffer(0)]],
    device const CACHE* k [[buffer(1)]],
    device const CACHE* v [[buffer(2)]],
    device const uint* positions [[buffer(3)]],
    device const float* sinks [[buffer(4)]],
    device const uint* table [[buffer(5)]],
    device const MASK* mask [[buffer(6)]],
    device SCALAR* out [[buffer(7)]],
    device float* partial [[buffer(8)]],
    constant Params& p [[buffer(9)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint3 groups [[threadgroups_per_grid]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup float maxima[SIMDGROUPS * HEADS];
  threadgroup float sums[SIMDGROUPS * HEADS];
  threadgroup float joined[SIMDGROUPS * HEADS * LANES * SPAN];

  uint query = group.x;
  uint first_head = group.y * HEADS;
  uint kv_head = first_head / (p.q_heads / p.kv_heads);
  q += ulong(query) * p.q_strides[0] + ulong(first_head) * p.q_strides[1];
  k += ulong(kv_head) * p.k_strides[1];
  v += ulong(kv_head) * p.v_strides[1];
  mask += ulong(query) * p.mask_strides[0] + ulong(first_head) * p.mask_strides[1];
  out += ulong(query) * p.out_strides[0] + ulong(first_head) * p.out_strides[1];

  Places places = places_of(p, table, positions, lane);
  uint step = SIMDGROUPS * KEYS;
  uint2 range = part_of(visible(p, places.oldest, positions, query), group.z, groups.z, step);
  uint start = range.x;
  uint end = range.y;

  float4 mine[HEADS][SPAN / 4];
  float4 sum_v[HEADS][SPAN / 4];
  float maximum[HEADS];
  float sum[HEADS];
  for (uint h = 0; h < HEADS; ++h) {
    load_span(q + ulong(h) * p.q_strides[1], lane, p.dim, mine[h]);
    for (uint i = 0; i < SPAN / 4; ++i) {
      mine[h][i] *= p.scale;
      sum_v[h][i] = float4(0.0f);
    }
    maximum[h] = -INFINITY;
    sum[h] = 0.0f;
  }

  // All lanes go as long as one has a key, since they talk to one another.
  for (uint base = start + simdgroup * KEYS; base < end; base += step) {
    uint key = base + lane / LANES;
    ulong2 at;
    bool there = find(p, places, min(key, end - 1), at) && key < end;
#ifdef MASKED
    float terms[HEADS];
    bool any = false;
    for (uint h = 0; h < HEADS; ++h) {
      terms[h] = there ? mask_term(mask[ulong(h) * p.mask_strides[1] + key]) : -INFINITY;
      any = any || terms[h] != -INFINITY;
    }
    // Keys that no head sees are not read.
    if (!simd_any(any)) {
      continue;
    }
#endif
    float4 span[SPAN / 4];
    load_span(k + at.x, lane, p.dim, span);
    float4 value[SPAN / 4];
    load_span(v + at.y, lane, p.dim, value);
    for (uint h = 0; h < HEADS; ++h) {
      float4 dot = mine[h][0] * span[0];
      for (uint i = 1; i < SPAN / 4; ++i) {
        dot = fma(mine[h][i], span[i], dot);
      }
      float score = (dot.x + dot.y) + (dot.z + dot.w);
      for (uint other = 1; other < LANES; other *= 2) {
        score += simd_shuffle_xor(score, other);
      }
      if (p.softcap != 0.0f) {
        score = p.softcap * metal::precise::tanh(score / p.softcap);
      }
#ifdef MASKED
      bool seen = terms[h] != -INFINITY;
      score += terms[h];
#else
      bool seen = there;
#endif
      score = seen ? score : -INFINITY;
      float most = greater(score, maximum[h]);
      float kept = share(maximum[h], most);
      float weight = share(score, most);
      maximum[h] = most;
      sum[h] = sum[h] * kept + weight;
      for (uint i = 0; i < SPAN / 4; ++i) {
        // What is not seen weighs nothing, be it infinite.
        float4 more = seen ? value[i] : float4(0.0f);
        sum_v[h][i] = fma(more, float4(weight), sum_v[h][i] * kept);
      }
    }
  }

  for (uint h = 0; h < HEADS; ++h) {
    // Those who took other keys, in this simdgroup and then in all.
    float most = maximum[h];
    for (uint other = LANES; other < 32; other *= 2) {
      most = greater(most, simd_shuffle_xor(most, other));
    }
    float part = share(maximum[h], most);
    float total = sum[h] * part;
    for (uint i = 0; i < SPAN / 4; ++i) {
      sum_v[h][i] *= part;
    }
    for (uint other = LANES; other < 32; other *= 2) {
      total += simd_shuffle_xor(total, other);
      for (uint i = 0; i < SPAN / 4; ++i) {
        sum_v[h][i] += simd_shuffle_xor(sum_v[h][i], other);
      }
    }
    uint at = simdgroup * HEADS + h;
    if (lane == 0) {
      maxima[at] = most;
      sums[at] = total;
    }
    if (lane < LANES) {
      for (uint i = 0; i < SPAN; ++i) {
        joined[at * LANES * SPAN + four_at(i / 4, lane) + i % 4] = sum_v[h][i / 4][i % 4];
      }
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);

  bool whole = groups.z == 1;
  for (uint i = simdgroup * 32 + lane; i < HEADS * p.dim; i += SIMDGROUPS * 32) {
    uint h = i / p.dim;
    uint d = i % p.dim;
    uint head = first_head + h;
    float highest = whole && p.has_sinks ? sinks[head] : -INFINITY;
    for (uint s = 0; s < SIMDGROUPS; ++s) {
      highest = greater(highest, maxima[s * HEADS + h]);
    }
    float all = whole && p.has_sinks ? share(sinks[head], highest) : 0.0f;
    float element = 0.0f;
    for (uint s = 0; s < SIMDGROUPS; ++s) {
      uint at = s * HEADS + h;
      float part = share(maxima[at], highest);
      all += sums[at] * part;
      element += joined[at * LANES * SPAN + d] * part;
    }
    if (whole) {
      out[ulong(h) * p.out_strides[1] + d] = SCALAR(all == 0.0f ? 0.0f : element / all);
      continue;
    }
    device float* to = partial + ((ulong(query) * p.q_heads + head) * groups.z + group.z) * part_floats(p.dim);
    to[PART_SUMS + d] = element;
    if (d == 0) {
      *(device float2*)to = float2(highest, all);
    }
  }
}

// Joins the parts of one query and head, for 128 elements.
kernel void attention_join(
    device const float* partial [[buffer(0)]],
    device const float* sinks [[buffer(1)]],
    device SCALAR* out [[buffer(2)]],
    constant Params& p [[buffer(3)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]]) {
  constexpr uint EACH = 4;
  threadgroup float joined[SIMDGROUPS * 32 * EACH];
  uint query = group.x;
  uint head = group.y;
  uint first = (group.z * 32 + lane) * EACH;
  float sink = p.has_sinks ? sinks[head] : -INFINITY;
  float values[EACH];
  device const float* from = partial + (ulong(query) * p.q_heads + head) * p.parts * part_floats(p.dim);
  join_parts<EACH>(from, p.parts, p.dim, first, sink, joined, lane, simdgroup, simdgroups, values);
  out += ulong(query) * p.out_strides[0] + ulong(head) * p.out_strides[1];
  for (uint i = 0; i < EACH; ++i) {
    if (simdgroup == 0 && first + i < p.dim) {
      out[first + i] = SCALAR(values[i]);
    }
  }
}
