// attention for many queries: the form that works on tiles of 32 queries and 32 keys, and the classes of a mask's tiles.
//
// The host defines SCALAR, the type of queries, to which keys, values and their weights are rounded; what attention.h names;
// LANES, a sixteenth of what a row of a tile has room for; and WHOLE, as for kernel.metal.

#include "attention.h"
#include "silicide.h"

constant constexpr uint TILE = 32;  // queries, and keys at a time
constant constexpr uint SPAN = 16;
constant constexpr uint DIMS = LANES * SPAN;
constant constexpr uint STRIDE = DIMS + 8;  // of a staged row; the gap keeps rows in different banks

// A row of q, k or v in the tile, by the four threads that have it, rounded to SCALAR; a row that is not there and what is past
// a head's end are zeros. True where all that this thread staged is finite.
template <typename T>
inline bool stage(threadgroup SCALAR* tile, device const T* from, bool there, uint dim, uint thread_index) {
  uint row = thread_index / 4;
  bool finite = true;
  for (uint d = thread_index % 4 * 4; d < DIMS; d += 16) {
    float4 four = float4(0.0f);
    if (there) {
      device const T* at = from + d;
      if (WHOLE) {
        if (d < dim) {
          four = float4(*(device const vec<T, 4>*)at);
        }
      } else {
        for (uint i = 0; i < 4; ++i) {
          if (d + i < dim) {
            four[i] = float(at[i]);
          }
        }
      }
    }
    vec<SCALAR, 4> rounded = vec<SCALAR, 4>(four);
    *(threadgroup vec<SCALAR, 4>*)(tile + row * STRIDE + d) = rounded;
    // The difference of an infinity or NaN to itself is NaN.
    float4 back = float4(rounded);
    float4 none = back - back;
    finite = finite && none.x == 0.0f && none.y == 0.0f && none.z == 0.0f && none.w == 0.0f;
  }
  return finite;
}

#ifdef MASKED
constant constexpr uchar HIDDEN = 0;  // no key of the tile is seen
constant constexpr uchar PLAIN = 1;   // nothing is added to a score
constant constexpr uchar MIXED = 2;

inline uint tiles_of(uint n) { return (n + TILE - 1) / TILE; }

// The class of each tile of a mask, a simdgroup a tile: [heads, or 1 where they share a mask][tiles of queries][of keys].
kernel void attention_classes(
    device const MASK* mask [[buffer(0)]],
    device uchar* classes [[buffer(1)]],
    constant Params& p [[buffer(2)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint3 groups [[threadgroups_per_grid]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  uint tile = group.x * 4 + simdgroup;
  uint key = tile * TILE + lane;
  uint first = group.y * TILE;
  mask += ulong(first) * p.mask_strides[0] + ulong(group.z) * p.mask_strides[1] + key;
  bool hidden = true;
  bool plain = true;
  if (key < p.keys) {
    for (uint i = 0; i < min(TILE, p.queries - first); ++i) {
      float term = mask_term(mask[ulong(i) * p.mask_strides[0]]);
      hidden = hidden && term == -INFINITY;
      plain = plain && term == 0.0f;
    }
  }
  bool seen = simd_any(!hidden);
  bool adds = simd_any(!plain);
  if (lane == 0 && tile < tiles_of(p.keys)) {
    classes[(ulong(group.z) * groups.y + group.y) * tiles_of(p.keys) + tile] = seen ? adds ? MIXED : PLAIN : HIDDEN;
  }
}
#endif

// Many queries: four simdgroups take eight queries of one head each, and go through the keys that any of the 32 sees. Keys
// and then values are staged in threadgroup memory, rounded to SCALAR, as are the weights of values; scores and sums are
// f32. A query's scores are spread over the four lanes of a row, eight keys each.
kernel void attention_tiled(
    device const SCALAR* q [[buffer(0)]],
    device const CACHE* k [[buffer(1)]],
    device const CACHE* v [[buffer(2)]],
    device const uint* positions [[buffer(3)]],
    device const float* sinks [[buffer(4)]],
    device const uint* table [[buffer(5)]],
    device const MASK* mask [[buffer(6)]],
    device const uchar* classes [[buffer(7)]],
    device SCALAR* out [[buffer(8)]],
    constant Params& p [[buffer(9)]],
    uint2 group [[threadgroup_position_in_grid]],
    uint2 groups [[threadgroups_per_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup SCALAR tile[TILE * STRIDE];
  threadgroup float all_scores[4 * 8 * TILE];
  threadgroup SCALAR all_weights[4 * 8 * TILE];
  threadgroup float all_diagonals[4 * 64];
  threadgroup uint2 ranges[TILE];
  threadgroup uint odd_in[4];
#ifdef PAGES
  threadgroup uint found[TILE];  // keys of the tile that are there
#endif
  threadgroup float* scores = all_scores + simdgroup * 8 * TILE;
  threadgroup SCALAR* weights = all_weights + simdgroup * 8 * TILE;
  threadgroup float* diagonal = all_diagonals + simdgroup * 64;

  uint first_query = group.x * TILE;
  uint head = group.y;
  uint kv_head = head / (p.q_heads / p.kv_heads);
  q += ulong(head) * p.q_strides[1];
  k += ulong(kv_head) * p.k_strides[1];
  v += ulong(kv_head) * p.v_strides[1];
  out += ulong(head) * p.out_strides[1];
#ifdef MASKED
  mask += ulong(head) * p.mask_strides[1];
  uint class_head = p.mask_strides[1] == 0 ? 0 : head;
  classes += (ulong(class_head) * groups.x + group.x) * tiles_of(p.keys);
#endif

  uint staged = thread_index / 4;
  Places places = places_of(p, table, positions, lane);
  bool asks = first_query + staged < p.queries;
  stage(tile, q + ulong(first_query + staged) * p.q_strides[0], asks, p.dim, thread_index);
  if (thread_index < TILE) {
    uint query = first_query + thread_index;
    ranges[thread_index] = query < p.queries ? visible(p, places.oldest, positions, query) : uint2(0);
  }
  diagonal[lane] = 0.0f;
  diagonal[lane + 32] = 0.0f;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  simdgroup_matrix<SCALAR, 8, 8> mine[DIMS / 8];
  simdgroup_float8x8 sum_v[DIMS / 8];
  for (uint d = 0; d < DIMS / 8; ++d) {
    simdgroup_load(mine[d], tile + simdgroup * 8 * STRIDE + d * 8, STRIDE);
    sum_v[d] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
  }
  uint start = 0xffffffffu;
  uint end = 0;
  for (uint i = 0; i < TILE; ++i) {
    if (ranges[i].x < ranges[i].y) {
      start = min(start, ranges[i].x);
      end = max(end, ranges[i].y);
    }
  }
  uint row = lane / 4;
  uint column = lane % 4 * 8;
  uint2 range = ranges[simdgroup * 8 + row];
  float maximum = -INFINITY;
  float sum = 0.0f;
  bool finite = true;
#ifdef MASKED
  // Tiles of keys are those that have classes.
  start = start / TILE * TILE;
  device const MASK* mask_row = mask + ulong(min(first_query + simdgroup * 8 + row, p.queries - 1)) * p.mask_strides[0];
#endif

  for (uint base = start; base < end; base += TILE) {
#ifdef MASKED
    uchar kind = classes[base / TILE];
    if (kind == HIDDEN) {
      continue;
    }
#endif
    threadgroup_barrier(mem_flags::mem_threadgroup);
    ulong2 at = ulong2(0, 0);
    bool there = base + staged < end && find(p, places, base + staged, at);
#ifdef PAGES
    if (thread_index % 4 == 0) {
      found[staged] = there;
    }
#endif
    finite = stage(tile, k + at.x, there, p.dim, thread_index) && finite;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint j = 0; j < TILE; j += 8) {
      simdgroup_float8x8 score = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
      for (uint d = 0; d < DIMS / 8; ++d) {
        simdgroup_matrix<SCALAR, 8, 8> keys;
        simdgroup_load(keys, tile + j * STRIDE + d * 8, STRIDE, ulong2(0, 0), true);
        simdgroup_multiply_accumulate(score, mine[d], keys, score);
      }
      simdgroup_store(score, scores + j, TILE);
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);

    float mine_of[8];
    float most = maximum;
    for (uint i = 0; i < 8; ++i) {
      uint key = base + column + i;
      float score = scores[row * TILE + column + i] * p.scale;
      if (p.softcap != 0.0f) {
        score = p.softcap * metal::precise::tanh(score / p.softcap);
      }
      bool seen = key >= range.x && key < range.y;
#ifdef PAGES
      seen = seen && found[column + i] != 0;
#endif
#ifdef MASKED
      if (kind == MIXED && seen) {
        float term = mask_term(mask_row[key]);
        score += term;
        seen = term != -INFINITY;
      }
#endif
      mine_of[i] = seen ? score : -INFINITY;
      most = greater(mine_of[i], most);
    }
    most = greater(most, simd_shuffle_xor(most, 1));
    most = greater(most, simd_shuffle_xor(most, 2));
    finite = finite && (most == -INFINITY || most - most == 0.0f);
    float kept = share(maximum, most);
    float more = 0.0f;
    for (uint i = 0; i < 8; ++i) {
      float weight = share(mine_of[i], most);
      more += weight;
      weights[row * TILE + column + i] = SCALAR(weight);
    }
    more += simd_shuffle_xor(more, 1);
    more += simd_shuffle_xor(more, 2);
    sum = sum * kept + more;
    maximum = most;
    // Once the greatest score is found nothing is scaled again.
    if (simd_any(kept != 1.0f)) {
      if (column == 0) {
        diagonal[row * 9] = kept;
      }
      simdgroup_barrier(mem_flags::mem_threadgroup);
      simdgroup_float8x8 scale;
      simdgroup_load(scale, diagonal, 8);
      for (uint d = 0; d < DIMS / 8; ++d) {
        simdgroup_float8x8 scaled;
        simdgroup_multiply(scaled, scale, sum_v[d]);
        sum_v[d] = scaled;
      }
    }

    threadgroup_barrier(mem_flags::mem_threadgroup);
    finite = stage(tile, v + at.y, there, p.dim, thread_index) && finite;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint j = 0; j < TILE; j += 8) {
      simdgroup_matrix<SCALAR, 8, 8> part;
      simdgroup_load(part, weights + j, TILE);
      for (uint d = 0; d < DIMS / 8; ++d) {
        simdgroup_matrix<SCALAR, 8, 8> values;
        simdgroup_load(values, tile + j * STRIDE + d * 8, STRIDE);
        simdgroup_multiply_accumulate(sum_v[d], part, values, sum_v[d]);
      }
    }
  }

  bool odd = simd_any(!finite);
  if (lane == 0) {
    odd_in[simdgroup] = odd;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (odd_in[0] + odd_in[1] + odd_in[2] + odd_in[3] != 0) {
    for (uint i = simdgroup * 8; i < simdgroup * 8 + 8 && first_query + i < p.queries; ++i) {
      ulong query = first_query + i;
      float sink = p.has_sinks ? sinks[head] : 0.0f;
      attend_alone<DIMS>(
          q + query * p.q_strides[0],
          k,
          v,
          mask + query * p.mask_strides[0],
          out + query * p.out_strides[0],
          ranges[i],
          places,
          p.has_sinks,
          sink,
          p,
          lane);
    }
    return;
  }

  float highest = p.has_sinks ? greater(maximum, sinks[head]) : maximum;
  float part = share(maximum, highest);
  float total = sum * part + (p.has_sinks ? share(sinks[head], highest) : 0.0f);
  float factor = total == 0.0f ? 0.0f : part / total;
  uint query = first_query + simdgroup * 8 + row;
  for (uint d = 0; d < DIMS / 8; d += 4) {
    simdgroup_barrier(mem_flags::mem_threadgroup);
    for (uint j = 0; j < 4; ++j) {
      simdgroup_store(sum_v[d + j], scores + j * 8, TILE);
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
    for (uint i = 0; i < 8; ++i) {
      uint at = d * 8 + column + i;
      if (query < p.queries && at < p.dim) {
        out[ulong(query) * p.out_strides[0] + at] = SCALAR(scores[row * TILE + column + i] * factor);
      }
    }
  }
}
