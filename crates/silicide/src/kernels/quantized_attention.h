// What the forms of quantized_attention share: how codes lie, what a query sees, and weights.
//
// The host defines RING where a position is in row position % keys.

// Code `i` of eight.
template <uint BITS>
inline uint code_of(uint2 words, uint i) {
  uint bit = i * BITS;
  uint code = bit < 32 ? words.x >> bit : words.y >> (bit - 32);
  if (bit < 32 && bit + BITS > 32) {
    code |= words.y << (32 - bit);
  }
  return code & ((1u << BITS) - 1);
}

// e^(x - most), where nothing was seen nothing.
inline float share(float x, float most) { return x == -INFINITY ? 0.0f : metal::precise::exp(x - most); }

// The greater; NaN where one is.
inline float greater(float a, float b) { return a > b || a != a ? a : b; }

// The positions first..end that a query sees, and the oldest that a ring has. All lanes of a simdgroup take part.
inline uint3 visible(constant Params& p, device const uint* positions, uint query, uint lane) {
#ifdef RING
  int latest = -1;
  for (uint i = lane; i < p.queries; i += 32) {
    latest = max(latest, as_type<int>(positions[i]));
  }
  uint count = uint(simd_max(latest)) + 1;
  uint oldest = count > p.keys ? count - p.keys : 0;
  int position = as_type<int>(positions[query]);
  uint end = position < 0 ? 0 : uint(position) + 1;
  uint start = p.window != 0 && end > p.window ? end - p.window : 0;
  return uint3(min(max(start, oldest), end), end, oldest);
#else
  uint end = p.keys;
  if (p.mask == 1) {
    end = p.keys - p.queries + query + 1;
  } else if (p.mask == 2) {
    int position = as_type<int>(positions[query]);
    end = position < 0 ? 0 : min(uint(position) + 1, p.keys);
  }
  return uint3(p.window != 0 && end > p.window ? end - p.window : 0, end, 0);
#endif
}
