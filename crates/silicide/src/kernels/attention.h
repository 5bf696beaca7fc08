// What the forms of attention share: where the key and value of a position lie, and what a mask adds; seen.h has what a query sees.
//
// The host defines SCALAR, the type of queries; CACHE, that of keys and values; RING or PAGES where they lie so; MASK, the type of a mask's elements,
// and MASKED where there is a mask.

#include "seen.h"

// What a mask adds to a score: negative infinity to that of a key that is not seen.
template <typename T>
inline float mask_term(T x) {
  return float(x);
}
inline float mask_term(uchar seen) { return seen ? 0.0f : -INFINITY; }

struct Places {
  device const uint* table;  // PAGES: the page of each page_size positions
  uint oldest;               // RING: the first position that is there, and its row
  uint row_of_oldest;
};

inline Places places_from(constant Params& p, device const uint* table, uint oldest) {
  Places places = {table, 0, 0};
#ifdef RING
  places.oldest = oldest;
  places.row_of_oldest = oldest % p.keys;
#endif
  return places;
}
// All lanes of a simdgroup take part.
inline Places places_of(constant Params& p, device const uint* table, device const uint* positions, uint lane) {
  return places_from(p, table, oldest_position(p, positions, lane));
}

// Whether positions are rows.
#ifdef RING
constant constexpr bool IN_ROWS = false;
#else
#ifdef PAGES
constant constexpr bool IN_ROWS = false;
#else
constant constexpr bool IN_ROWS = true;
#endif
#endif

// Where the key and the value of a position lie. False where its page is not there; then that of some other is given.
inline bool find(constant Params& p, Places places, uint position, thread ulong2& at) {
#ifdef PAGES
  uint page = places.table[position / p.page_size];
  uint row = position % p.page_size;
  bool there = page < p.pages;
  page = there ? page : 0;
  at = ulong2(p.page_strides[0], p.page_strides[1]) * page + ulong2(p.k_strides[0], p.v_strides[0]) * row;
  return there;
#else
  uint row = position;
#ifdef RING
  row = places.row_of_oldest + (position - places.oldest);
  row = row >= p.keys ? row - p.keys : row;
#endif
  at = ulong2(ulong(row) * p.k_strides[0], ulong(row) * p.v_strides[0]);
  return true;
#endif
}

// One query by one simdgroup, key by key: what is not finite touches nothing but the queries that see it. For tiles in which
// there is such a thing, whose products with a weight of zero would be NaN. A head has at most DIMS elements.
template <uint DIMS>
inline void attend_alone(
    device const SCALAR* q,
    device const CACHE* k,
    device const CACHE* v,
    device const MASK* mask,
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
    ulong2 at;
    if (!find(p, places, key, at)) {
      continue;
    }
#ifdef MASKED
    float term = mask_term(mask[key]);
    if (term == -INFINITY) {
      continue;
    }
#endif
    device const CACHE* key_row = k + at.x;
    device const CACHE* value_row = v + at.y;
    float dot = 0.0f;
    for (uint i = 0; i < PER_LANE; ++i) {
      uint d = i * 32 + lane;
      dot += d < p.dim ? mine[i] * float(key_row[d]) : 0.0f;
    }
    float score = simd_sum(dot) * p.scale;
    if (p.softcap != 0.0f) {
      score = p.softcap * metal::precise::tanh(score / p.softcap);
    }
#ifdef MASKED
    score += term;
#endif
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
