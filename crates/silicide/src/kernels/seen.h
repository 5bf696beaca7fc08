// What attention over floats and over codes share: which keys a query sees, and weights.
//
// The host defines RING where a position is in row position % keys. Parameters name `queries`, `keys`, `mask` and `window`.

// e^(x - most), where nothing was seen nothing.
inline float share(float x, float most) { return x == -INFINITY ? 0.0f : metal::precise::exp(x - most); }

// The greater; NaN where one is.
inline float greater(float a, float b) { return a > b || a != a ? a : b; }

// Scores times LOG2_E are by the logarithm of 2, and those times LN_2 as they were. Kernels of tensor cores measure weights by a score that
// may be SLACK less than the greatest, by that logarithm: only where one rises further they scale their sums again.
constant constexpr float LOG2_E = 1.4426950408889634f;
constant constexpr float LN_2 = 0.6931471805599453f;

// The greatest of `known` and of what each of some simdgroups has found, whose places are `pitch` apart.
inline float greatest(threadgroup const float* maxima, uint simdgroups, uint pitch, float known) {
  for (uint s = 0; s < simdgroups; ++s) {
    known = greater(known, maxima[s * pitch]);
  }
  return known;
}

// The oldest position that a ring has whose newest is `count - 1`.
inline uint oldest_of(constant Params& p, uint count) { return count > p.keys ? count - p.keys : 0; }

// The oldest position that a ring has. All lanes of a simdgroup take part.
inline uint oldest_position(constant Params& p, device const uint* positions, uint lane) {
#ifdef RING
  int latest = -1;
  for (uint i = lane; i < p.queries; i += 32) {
    latest = max(latest, as_type<int>(positions[i]));
  }
  return oldest_of(p, uint(simd_max(latest)) + 1);
#else
  return 0;
#endif
}

// Whether what a query sees depends on its position.
inline bool has_positions(constant Params& p) {
#ifdef RING
  return true;
#else
  return p.mask == 2;
#endif
}

// The positions first..end that a query at a position sees, but for those that a mask hides.
inline uint2 visible_at(constant Params& p, uint oldest, uint position, uint query) {
  uint end = as_type<int>(position) < 0 ? 0 : position + 1;
#ifndef RING
  end = p.mask == 2 ? min(end, p.keys) : p.mask == 1 ? p.keys - p.queries + query + 1 : p.keys;
#endif
  uint start = p.window != 0 && end > p.window ? end - p.window : 0;
#ifdef RING
  start = min(max(start, oldest), end);
#endif
  return uint2(start, end);
}
inline uint2 visible(constant Params& p, uint oldest, device const uint* positions, uint query) {
  return visible_at(p, oldest, has_positions(p) ? positions[query] : 0, query);
}

// The share that a part has of a range, in whole steps.
inline uint2 part_of(uint2 range, uint part, uint parts, uint step) {
  uint length = ((range.y - range.x + parts - 1) / parts + step - 1) / step * step;
  uint start = min(range.x + part * length, range.y);
  return uint2(start, min(start + length, range.y));
}
