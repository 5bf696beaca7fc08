// Where a launch that writes tokens puts them in a cache. The host defines RING where a position is in row position % capacity.

// The newest of a launch's positions in a ring. All threads of a threadgroup take part, whose simdgroups `shared` has a place for.
inline int newest_position(
    device const uint* positions, uint tokens, threadgroup int* shared, uint thread_index, uint threads, uint lane) {
  int newest = -1;
#ifdef RING
  // Eight are asked for together, as each takes long to come.
  for (uint first = thread_index; first < tokens; first += 8 * threads) {
    int eight[8];
    for (uint i = 0; i < 8; ++i) {
      uint at = first + i * threads;
      eight[i] = at < tokens ? as_type<int>(positions[at]) : -1;
    }
    for (uint i = 0; i < 8; ++i) {
      newest = max(newest, eight[i]);
    }
  }
  newest = simd_max(newest);
  if (lane == 0) {
    shared[thread_index / 32] = newest;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint i = 0; i < threads / 32; ++i) {
    newest = max(newest, shared[i]);
  }
#endif
  return newest;
}

// The row of a position; `capacity` or more for none.
inline uint row_of(uint position, int newest, uint capacity) {
#ifdef RING
  // What a newer token of this launch lies over is not written.
  int at = as_type<int>(position);
  return at < 0 || uint(newest - at) >= capacity ? capacity : position % capacity;
#endif
  return position;
}
