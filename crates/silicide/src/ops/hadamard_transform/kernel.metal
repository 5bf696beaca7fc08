// hadamard_transform: a thread holds PER_THREAD elements, as far apart as a row has threads: SIMDGROUPS times 32. Bits
// of the index are first those of its registers, then those of the lane; those of the simdgroup become register bits by
// way of threadgroup memory, where lanes stand side by side when writing and when reading. A row of 512 or less is one
// simdgroup's; of 16 or less, several share it. Every row is read once and written once.

#include "silicide.h"
#include "hadamard.h"
#include "walk.h"

template <typename T>
kernel void hadamard_transform(
    device const T* x [[buffer(0)]],
    device const uint* signs_before [[buffer(1)]],
    device const uint* signs_after [[buffer(2)]],
    device T* out [[buffer(3)]],
    constant Params& p [[buffer(4)]],
    uint group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]]) {
  threadgroup float exchanged[SIMDGROUPS > 1 ? 32 * SIMDGROUPS * PER_THREAD : 1];
  constexpr uint STEP = 32 * SIMDGROUPS;
  uint row = group;
  uint first = thread_index;
  if (SIMDGROUPS == 1) {
    row = (group * simdgroups + simdgroup) * (32 / p.width) + lane / p.width;
    first = lane % p.width;
  }
  // Lanes past the last row work on zeros, as shuffles need all of them.
  bool present = row < p.walk.rows;
  x += present ? walk_start(p.walk, 0, row) : 0;
  out += present ? walk_start(p.walk, 1, row) : 0;

  float values[PER_THREAD];
  for (uint i = 0; i < PER_THREAD; ++i) {
    uint at = first + STEP * i;
    float value = present ? float(x[at * p.walk.inner[0]]) * p.scale : 0.0f;
    values[i] = p.has_before && negative_sign(signs_before, at) ? -value : value;
  }
  hadamard_registers(values, PER_THREAD);
  hadamard_lanes(values, lane, p.width);

  if (SIMDGROUPS > 1) {
    for (uint i = 0; i < PER_THREAD; ++i) {
      exchanged[first + STEP * i] = values[i];
    }
    // Of device memory too, as another thread may write over what this one read.
    threadgroup_barrier(mem_flags::mem_threadgroup | mem_flags::mem_device);
    for (uint i = 0; i < PER_THREAD; ++i) {
      uint block = simdgroup * (PER_THREAD / SIMDGROUPS) + i / SIMDGROUPS;
      values[i] = exchanged[lane + 32 * (i % SIMDGROUPS) + STEP * block];
    }
    hadamard_registers(values, SIMDGROUPS);
  }

  for (uint i = 0; i < PER_THREAD; ++i) {
    uint at = first + STEP * i;
    if (SIMDGROUPS > 1) {
      at = lane + 32 * (i % SIMDGROUPS) + STEP * (simdgroup * (PER_THREAD / SIMDGROUPS) + i / SIMDGROUPS);
    }
    bool negative = p.has_after && negative_sign(signs_after, at);
    if (present) {
      out[at * p.walk.inner[1]] = T(negative ? -values[i] : values[i]);
    }
  }
}

instantiate_floats("hadamard_transform", hadamard_transform)
