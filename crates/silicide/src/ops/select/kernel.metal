// select: some 4 elements a thread; one kernel a size of element.

#include "silicide.h"
#include "walk.h"

template <typename T>
kernel void select_bits(
    device const uchar* condition [[buffer(0)]],
    device const T* a [[buffer(1)]],
    device const T* b [[buffer(2)]],
    device T* out [[buffer(3)]],
    constant Params& p [[buffer(4)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint3 groups [[threadgroups_per_grid]],
    uint3 thread_index [[thread_position_in_threadgroup]],
    uint3 threads [[threads_per_threadgroup]]) {
  Lane lane(group, groups, thread_index, threads);
  if (lane.row >= p.walk.rows) {
    return;
  }
  condition += walk_start(p.walk, 0, lane.row);
  ulong a_start = walk_start(p.walk, 1, lane.row);
  ulong b_start = walk_start(p.walk, 2, lane.row);
  out += walk_start(p.walk, 3, lane.row);
  for (ulong i = lane.first; i < p.walk.len; i += lane.step) {
    T x;
    if (condition[i * p.walk.inner[0]]) {
      x = p.has_a ? a[a_start + i * p.walk.inner[1]] : T(p.a);
    } else {
      x = p.has_b ? b[b_start + i * p.walk.inner[2]] : T(p.b);
    }
    out[i * p.walk.inner[3]] = x;
  }
}

instantiate_kernel("select_8", select_bits, uchar)
instantiate_kernel("select_16", select_bits, ushort)
instantiate_kernel("select_32", select_bits, uint)
instantiate_kernel("select_64", select_bits, ulong)
