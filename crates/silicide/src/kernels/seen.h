// What attention over floats and over codes share: which keys a query sees, and weights.
//
// The host defines RING where a position is in row position % keys. Parameters name `queries`, `keys`, `mask` and `window`.

// e^(x - most), where nothing was seen nothing.
inline float share(float x, float most) { return x == -INFINITY ? 0.0f : metal::precise::exp(x - most); }

// The greater; NaN where one is.
inline float greater(float a, float b) { return a > b || a != a ? a : b; }

// Scores times this are by the logarithm of 2. Kernels of tensor cores measure weights by a score that may be SLACK less than the greatest,
// by that logarithm: only where one rises further they scale their sums again.
constant constexpr float LOG2_E = 1.4426950408889634f;

// The greatest of `known` and of what each of some simdgroups has found, whose places are `pitch` apart.
inline float greatest(threadgroup const float* maxima, uint simdgroups, uint pitch, float known) {
  for (uint s = 0; s < simdgroups; ++s) {
    known = greater(known, maxima[s * pitch]);
  }
  return known;
}

// The oldest position that a ring has. All lanes of a simdgroup take part.
inline uint oldest_position(constant Params& p, device const uint* positions, uint lane) {
#ifdef RING
  int latest = -1;
  for (uint i = lane; i < p.queries; i += 32) {
    latest = max(latest, as_type<int>(positions[i]));
  }
  uint count = uint(simd_max(latest)) + 1;
  return count > p.keys ? count - p.keys : 0;
#else
  return 0;
#endif
}

// The positions first..end that a query sees, but for those that a mask hides.
inline uint2 visible(constant Params& p, uint oldest, device const uint* positions, uint query) {
#ifdef RING
  int position = as_type<int>(positions[query]);
  uint end = position < 0 ? 0 : uint(position) + 1;
  uint start = p.window != 0 && end > p.window ? end - p.window : 0;
  return uint2(min(max(start, oldest), end), end);
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
