// gather: some 4 elements a thread; one kernel a size of element.

#include "silicide.h"
#include "walk.h"

template <typename T>
kernel void gather(
    device const T* x [[buffer(0)]],
    device const uint* ids [[buffer(1)]],
    device T* out [[buffer(2)]],
    constant Params& p [[buffer(3)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint3 groups [[threadgroups_per_grid]],
    uint3 thread_index [[thread_position_in_threadgroup]],
    uint3 threads [[threads_per_threadgroup]]) {
  Lane lane(group, groups, thread_index, threads);
  if (lane.row >= p.walk.rows) {
    return;
  }
  x += walk_start(p.walk, 0, lane.row);
  ids += walk_start(p.walk, 1, lane.row);
  out += walk_start(p.walk, 2, lane.row);
  for (ulong i = lane.first; i < p.walk.len; i += lane.step) {
    uint id = ids[i * p.walk.inner[1]];
    out[i * p.walk.inner[2]] = id < p.axis_len ? x[id * p.axis_stride + i * p.walk.inner[0]] : T(0);
  }
}

instantiate_kernel("gather_8", gather, uchar)
instantiate_kernel("gather_16", gather, ushort)
instantiate_kernel("gather_32", gather, uint)
instantiate_kernel("gather_64", gather, ulong)
