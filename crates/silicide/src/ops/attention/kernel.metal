// attention: a form for few queries, one for a prompt's, and the joining of the first one's parts.
//
// Few queries: a threadgroup computes HEADS query heads that share a head of keys and values, for one query and one part of
// the keys that it sees. LANES lanes have an element of 16 of a head each, so a simdgroup takes 32 / LANES keys at a time;
// whoever takes a key keeps a running maximum, and all are joined at the end. Keys and values are read once.
//
// The host defines SCALAR and CACHE, the types of queries and of keys and values; LANES and HEADS; WHOLE, which says that
// heads are whole sixteens and that vectors of four lie aligned; and TILED where there is the form for many queries.

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

// e^(x - most), where nothing was seen nothing.
inline float share(float x, float most) { return x == -INFINITY ? 0.0f : metal::precise::exp(x - most); }

// The greater; NaN where one is.
inline float greater(float a, float b) { return a > b || a != a ? a : b; }

// Where the keys and values of each position are. RING: position i in row i % keys, of which the newest `keys` are there.
struct Places {
  uint oldest;  // the first position that is there
  uint row_of_oldest;
};

// All lanes of a simdgroup take part.
inline Places places_of(constant Params& p, device const uint* positions, uint lane) {
  Places places = {0, 0};
#ifdef RING
  int latest = -1;
  for (uint i = lane; i < p.queries; i += 32) {
    latest = max(latest, as_type<int>(positions[i]));
  }
  uint count = uint(simd_max(latest)) + 1;
  places.oldest = count > p.keys ? count - p.keys : 0;
  places.row_of_oldest = places.oldest % p.keys;
#endif
  return places;
}

// The row of a position.
inline ulong row_of(constant Params& p, Places places, uint position) {
#ifdef RING
  uint row = places.row_of_oldest + (position - places.oldest);
  return row >= p.keys ? row - p.keys : row;
#else
  return position;
#endif
}

// The positions first..end that a query sees.
inline uint2 visible(constant Params& p, Places places, device const uint* positions, uint query) {
#ifdef RING
  int position = as_type<int>(positions[query]);
  uint end = position < 0 ? 0 : uint(position) + 1;
  uint start = p.window != 0 && end > p.window ? end - p.window : 0;
  return uint2(min(max(start, places.oldest), end), end);
#else
  uint end = p.keys;
  if (p.mask == 1) {
    end = p.keys - p.queries + query + 1;
  } else if (p.mask == 2) {
    int position = as_type<int>(positions[query]);
    end = position < 0 ? 0 : min(uint(position) + 1, p.keys);
  }
  return uint2(p.window != 0 && end > p.window ? end - p.window : 0, end);
#endif
}

kernel void attention(
    device const SCALAR* q [[buffer(0)]],
    device const CACHE* k [[buffer(1)]],
    device const CACHE* v [[buffer(2)]],
    device const uint* positions [[buffer(3)]],
    device const float* sinks [[buffer(4)]],
    device SCALAR* out [[buffer(5)]],
    device float* partial [[buffer(6)]],
    constant Params& p [[buffer(7)]],
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
  out += ulong(query) * p.out_strides[0] + ulong(first_head) * p.out_strides[1];

  Places places = places_of(p, positions, lane);
  uint2 range = visible(p, places, positions, query);
  uint start = range.x;
  uint end = range.y;
  // Of them this part has a share, which is a multiple of what is taken at a time.
  uint step = SIMDGROUPS * KEYS;
  uint chunk = ((end - start + groups.z - 1) / groups.z + step - 1) / step * step;
  start = min(start + group.z * chunk, end);
  end = min(start + chunk, end);

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
    bool seen = key < end;
    ulong row = row_of(p, places, min(key, end - 1));
    float4 span[SPAN / 4];
    load_span(k + row * p.k_strides[0], lane, p.dim, span);
    float4 value[SPAN / 4];
    load_span(v + row * p.v_strides[0], lane, p.dim, value);
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
    device float* to = partial + ((ulong(query) * p.q_heads + head) * groups.z + group.z) * (p.dim + 2);
    to[d] = element;
    if (d == 0) {
      to[p.dim] = highest;
      to[p.dim + 1] = all;
    }
  }
}

// Joins the parts of one query and head, 64 at most: a lane weighs two of them, for all elements.
kernel void attention_join(
    device const float* partial [[buffer(0)]],
    device const float* sinks [[buffer(1)]],
    device SCALAR* out [[buffer(2)]],
    constant Params& p [[buffer(3)]],
    uint2 group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint2 threads [[threads_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  uint query = group.x;
  uint head = group.y;
  device const float* from = partial + (ulong(query) * p.q_heads + head) * p.parts * (p.dim + 2);
  float maxima[2] = {-INFINITY, -INFINITY};
  float sums[2] = {0.0f, 0.0f};
  for (uint i = 0; i < 2; ++i) {
    uint part = i * 32 + lane;
    if (part < p.parts) {
      maxima[i] = from[part * (p.dim + 2) + p.dim];
      sums[i] = from[part * (p.dim + 2) + p.dim + 1];
    }
  }
  float highest = greater(maxima[0], maxima[1]);
  for (uint other = 1; other < 32; other *= 2) {
    highest = greater(highest, simd_shuffle_xor(highest, other));
  }
  if (p.has_sinks) {
    highest = greater(highest, sinks[head]);
  }
  float weights[2] = {share(maxima[0], highest), share(maxima[1], highest)};
  float all = simd_sum(sums[0] * weights[0] + sums[1] * weights[1]);
  if (p.has_sinks) {
    all += share(sinks[head], highest);
  }
  out += ulong(query) * p.out_strides[0] + ulong(head) * p.out_strides[1];
  // All lanes go as long as one has an element, since they tell one another the weights.
  for (uint base = 0; base < p.dim; base += threads.x) {
    uint d = min(base + thread_index, p.dim - 1);
    float element = 0.0f;
    for (uint part = 0; part < p.parts; ++part) {
      float weight = simd_shuffle(part < 32 ? weights[0] : weights[1], part % 32);
      element += from[part * (p.dim + 2) + d] * weight;
    }
    if (base + thread_index < p.dim) {
      out[d] = SCALAR(all == 0.0f ? 0.0f : element / all);
    }
  }
}

#ifdef TILED
constant constexpr uint TILE = 32;  // queries, and keys at a time
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

// One query by one simdgroup, key by key: what is not finite touches nothing but the queries that see it. For tiles in which
// there is such a thing, whose products with a weight of zero would be NaN.
inline void attend_alone(
    device const SCALAR* q,
    device const CACHE* k,
    device const CACHE* v,
    device SCALAR* out,
    uint2 range,
    Places places,
    bool has_sink,
    float sink,
    constant Params& p,
    uint lane) {
  constexpr uint PER_LANE = DIMS / 32;
  float mine[PER_LANE];
  float sum_v[PER_LANE];
  for (uint i = 0; i < PER_LANE; ++i) {
    uint d = i * 32 + lane;
    mine[i] = d < p.dim ? float(q[d]) : 0.0f;
    sum_v[i] = 0.0f;
  }
  float maximum = -INFINITY;
  float sum = 0.0f;
  for (uint key = range.x; key < range.y; ++key) {
    ulong row = row_of(p, places, key);
    device const CACHE* key_row = k + row * p.k_strides[0];
    device const CACHE* value_row = v + row * p.v_strides[0];
    float dot = 0.0f;
    for (uint i = 0; i < PER_LANE; ++i) {
      uint d = i * 32 + lane;
      dot += d < p.dim ? mine[i] * float(key_row[d]) : 0.0f;
    }
    float score = simd_sum(dot) * p.scale;
    if (p.softcap != 0.0f) {
      score = p.softcap * metal::precise::tanh(score / p.softcap);
    }
    float most = greater(score, maximum);
    float kept = share(maximum, most);
    float weight = share(score, most);
    maximum = most;
    sum = sum * kept + weight;
    for (uint i = 0; i < PER_LANE; ++i) {
      uint d = i * 32 + lane;
      sum_v[i] = sum_v[i] * kept + (d < p.dim ? weight * float(value_row[d]) : 0.0f);
    }
  }
  float highest = has_sink ? greater(maximum, sink) : maximum;
  float part = share(maximum, highest);
  float total = sum * part + (has_sink ? share(sink, highest) : 0.0f);
  for (uint i = 0; i < PER_LANE; ++i) {
    uint d = i * 32 + lane;
    if (d < p.dim) {
      out[d] = SCALAR(total == 0.0f ? 0.0f : sum_v[i] * part / total);
    }
  }
}

// Many queries: four simdgroups take eight queries of one head each, and go through the keys that any of the 32 sees. Keys
// and then values are staged in threadgroup memory, rounded to SCALAR, as are the weights of values; scores and sums are
// f32. A query's scores are spread over the four lanes of a row, eight keys each.
kernel void attention_tiled(
    device const SCALAR* q [[buffer(0)]],
    device const CACHE* k [[buffer(1)]],
    device const CACHE* v [[buffer(2)]],
    device const uint* positions [[buffer(3)]],
    device const float* sinks [[buffer(4)]],
    device SCALAR* out [[buffer(5)]],
    constant Params& p [[buffer(6)]],
    uint2 group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup SCALAR tile[TILE * STRIDE];
  threadgroup float all_scores[4 * 8 * TILE];
  threadgroup SCALAR all_weights[4 * 8 * TILE];
  threadgroup float all_diagonals[4 * 64];
  threadgroup uint2 ranges[TILE];
  threadgroup uint odd_in[4];
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

  uint staged = thread_index / 4;
  Places places = places_of(p, positions, lane);
  bool asks = first_query + staged < p.queries;
  stage(tile, q + ulong(first_query + staged) * p.q_strides[0], asks, p.dim, thread_index);
  if (thread_index < TILE) {
    uint query = first_query + thread_index;
    ranges[thread_index] = query < p.queries ? visible(p, places, positions, query) : uint2(0);
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

  for (uint base = start; base < end; base += TILE) {
    threadgroup_barrier(mem_flags::mem_threadgroup);
    bool there = base + staged < end;
    ulong row_at = there ? row_of(p, places, base + staged) : 0;
    finite = stage(tile, k + row_at * p.k_strides[0], there, p.dim, thread_index) && finite;
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
      mine_of[i] = key >= range.x && key < range.y ? score : -INFINITY;
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
    finite = stage(tile, v + row_at * p.v_strides[0], there, p.dim, thread_index) && finite;
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
      attend_alone(
          q + query * p.q_strides[0],
          k,
          v,
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
#endif
