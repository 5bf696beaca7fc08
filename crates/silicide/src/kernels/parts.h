// The parts that the keys of a query are computed in, each with a softmax of its own, and the joining of them. On NVIDIA the kernel before
// fills all registers but those of a few processors, which have most of the threadgroups that join: what these cost are instructions.

#include "seen.h"

// Floats of a part: its greatest score and the sum of its weights, then from PART_SUMS on the sums of `dim` elements.
constant constexpr uint PART_SUMS = 4;
inline uint part_floats(uint dim) { return PART_SUMS + (dim + 3) / 4 * 4; }

// N floats, as many at a time as lie aligned.
template <uint N>
inline void load_sums(device const float* from, thread float* sums) {
  if (N % 4 == 0) {
    for (uint i = 0; i < N; i += 4) {
      float4 four = *(device const float4*)(from + i);
      for (uint j = 0; j < 4; ++j) {
        sums[i + j] = four[j];
      }
    }
  } else if (N % 2 == 0) {
    for (uint i = 0; i < N; i += 2) {
      float2 two = *(device const float2*)(from + i);
      sums[i] = two.x;
      sums[i + 1] = two.y;
    }
  } else {
    for (uint i = 0; i < N; ++i) {
      sums[i] = from[i];
    }
  }
}

// Parts that a simdgroup joins, of which a lane has N elements.
template <uint N>
struct Joined {
  static constant constexpr uint PARTS = N > 4 ? 8 : 16;
};

// N elements from `first` on, a multiple of N, as a head's parts, 64 at most, and its sink give them, which is negative infinity for none.
// There are simdgroups for all parts; `joined` has room for 32 times N elements of each. Simdgroup 0 has the result, and anything for
// elements past the head's end.
template <uint N>
inline void join_parts(
    device const float* partial,
    uint parts,
    uint dim,
    uint first,
    float sink,
    threadgroup float* joined,
    uint lane,
    uint simdgroup,
    uint simdgroups,
    thread float* values) {
  constexpr uint JOINED = Joined<N>::PARTS;
  uint pitch = part_floats(dim);
  float maxima[2] = {-INFINITY, -INFINITY};
  float sums[2] = {0.0f, 0.0f};
  for (uint i = 0; i < 2; ++i) {
    uint part = i * 32 + lane;
    if (part < parts) {
      float2 both = *(device const float2*)(partial + part * pitch);
      maxima[i] = both.x;
      sums[i] = both.y;
    }
  }
  // Asked for before weights are known.
  uint begin = simdgroup * JOINED;
  float elements[JOINED][N] = {};
  for (uint j = 0; j < JOINED; ++j) {
    if (begin + j < parts && first < dim) {
      load_sums<N>(partial + (begin + j) * pitch + PART_SUMS + first, elements[j]);
    }
  }
  float highest = greater(maxima[0], maxima[1]);
  for (uint other = 1; other < 32; other *= 2) {
    highest = greater(highest, simd_shuffle_xor(highest, ushort(other)));
  }
  highest = greater(highest, sink);
  float weights[2] = {share(maxima[0], highest), share(maxima[1], highest)};
  float all = simd_sum(sums[0] * weights[0] + sums[1] * weights[1]) + share(sink, highest);

  for (uint i = 0; i < N; ++i) {
    values[i] = 0.0f;
  }
  for (uint j = 0; j < JOINED; ++j) {
    float weight = simd_shuffle(begin < 32 ? weights[0] : weights[1], ushort((begin + j) % 32));
    for (uint i = 0; i < N; ++i) {
      values[i] = fma(elements[j][i], weight, values[i]);
    }
  }
  if (simdgroups > 1) {
    for (uint i = 0; i < N; ++i) {
      joined[(simdgroup * N + i) * 32 + lane] = values[i];
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint s = 1; s < simdgroups && simdgroup == 0; ++s) {
      for (uint i = 0; i < N; ++i) {
        values[i] += joined[(s * N + i) * 32 + lane];
      }
    }
  }
  for (uint i = 0; i < N; ++i) {
    values[i] = all == 0.0f ? 0.0f : values[i] / all;
  }
}
