// Rows of which each is read once: a team of threads holds a row in packets between two passes over it. The host says in
// `width` how many threads a team has, and in WHOLE that rows are whole packets, which lie aligned in every tensor.

#include "silicide.h"
#include "packet.h"

// Packets that a thread holds. Of longer rows it reads its packets again.
constant constexpr uint HELD = 2;

// A row's threads: those of a threadgroup, or where `width` is 32 or less, a power of two, so many lanes.
struct Team {
  uint width;
  uint row;
  uint index;
  Team(uint width, uint group, uint thread_index, uint simdgroups) : width(width), row(group), index(thread_index) {
    if (width <= 32) {
      uint shift = 31 - metal::clz(width);
      row = group * (simdgroups * 32 >> shift) + (thread_index >> shift);
      index = thread_index & (width - 1);
    }
  }
};

// Combines `x` over a team and gives every thread the result. All threads of the threadgroup come here; `scratch` is as
// for threadgroup_reduce.
template <typename Op>
inline float team_reduce(float x, uint width, threadgroup float* scratch, uint lane, uint simdgroup, uint simdgroups) {
  if (width > 32) {
    return threadgroup_reduce<Op>(x, scratch, lane, simdgroup, simdgroups);
  }
  for (ushort mask = 16; mask > 0; mask /= 2) {
    if (mask < width) {
      x = Op::combine(x, simd_shuffle_xor(x, mask));
    }
  }
  return x;
}

// The packet of a row that starts at element `first`; zeros stand for what is past the end.
template <uint N, typename T>
inline Packet<T, N> load_packet(device const T* row, ulong stride, uint first, uint len) {
  if (WHOLE) {
    return first < len ? Packet<T, N>::load(row + first) : Packet<T, N>::zeros();
  }
  return Packet<T, N>::gather(row + first * stride, stride, first < len ? min(len - first, N) : 0);
}

template <uint N, typename T>
inline void store_packet(device T* row, ulong stride, uint first, uint len, Packet<T, N> packet) {
  if (!WHOLE) {
    packet.scatter(row + first * stride, stride, first < len ? min(len - first, N) : 0);
  } else if (first < len) {
    packet.store(row + first);
  }
}

// The sum of the squares of a packet, added to `sum` one by one, so that every kernel rounds alike.
template <uint N, typename T>
inline float add_squares(Packet<T, N> packet, float sum) {
  for (uint i = 0; i < N; ++i) {
    float value = float(packet.get(i));
    sum = fma(value, value, sum);
  }
  return sum;
}
