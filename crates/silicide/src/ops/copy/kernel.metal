// copy: some 4 elements a thread; one kernel a size of element.

#include "silicide.h"
#include "walk.h"

template <typename T>
kernel void copy(
    device const T* x [[buffer(0)]],
    device T* out [[buffer(1)]],
    constant Params& p [[buffer(2)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint3 groups [[threadgroups_per_grid]],
    uint3 thread_index [[thread_position_in_threadgroup]],
    uint3 threads [[threads_per_threadgroup]]) {
  Lane lane(group, groups, thread_index, threads);
  if (lane.row >= p.walk.rows) {
    return;
  }
  x += walk_start(p.walk, 0, lane.row);
  out += walk_start(p.walk, 1, lane.row);
  for (ulong i = lane.first; i < p.walk.len; i += lane.step) {
    out[i * p.walk.inner[1]] = x[i * p.walk.inner[0]];
  }
}

instantiate_kernel("copy_8", copy, uchar)
instantiate_kernel("copy_16", copy, ushort)
instantiate_kernel("copy_32", copy, uint)
instantiate_kernel("copy_64", copy, ulong)
