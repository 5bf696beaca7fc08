// What the forms of attention share: where the key and value of a position lie, which a query sees, and what a mask adds.
//
// The host defines CACHE, the type of keys and values; RING or PAGES where they lie so; MASK, the type of a mask's elements,
// and MASKED where there is a mask.

// e^(x - most), where nothing was seen nothing.
inline float share(float x, float most) { return x == -INFINITY ? 0.0f : metal::precise::exp(x - most); }

// The greater; NaN where one is.
inline float greater(float a, float b) { return a > b || a != a ? a : b; }

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

// All lanes of a simdgroup take part.
inline Places places_of(constant Params& p, device const uint* table, device const uint* positions, uint lane) {
  Places places = {table, 0, 0};
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

// The positions first..end that a query sees, but for those that a mask hides.
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
