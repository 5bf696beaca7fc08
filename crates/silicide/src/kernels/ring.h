// Where a launch that writes tokens puts them in a cache. The host defines RING where a position is in row position % capacity.

// The row of a token; `capacity` or more for none. All lanes of a simdgroup take part.
inline uint row_to_write(device const uint* positions, uint token, uint tokens, uint capacity, uint lane) {
  uint row = positions[token];
#ifdef RING
  // What a newer token of this launch lies over is not written.
  int latest = -1;
  for (uint i = lane; i < tokens; i += 32) {
    latest = max(latest, as_type<int>(positions[i]));
  }
  latest = simd_max(latest);
  int position = as_type<int>(row);
  row = position < 0 || uint(latest - position) >= capacity ? capacity : row % capacity;
#endif
  return row;
}
