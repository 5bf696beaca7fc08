// fill: some 4 elements a thread. One number is a row of steps of 0, in an integer of its size.

#include "silicide.h"
#include "walk.h"

inline ulong element(constant Params& p, ulong i, ulong) { return p.start + p.step * i; }
inline float element(constant Params& p, ulong i, float) { return p.float_start + float(i) * p.float_step; }

// V is float, or ulong for integers, of which the lower bits are kept.
template <typename T, typename V>
kernel void fill(
    device T* out [[buffer(0)]],
    constant Params& p [[buffer(1)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint3 groups [[threadgroups_per_grid]],
    uint3 thread_index [[thread_position_in_threadgroup]],
    uint3 threads [[threads_per_threadgroup]]) {
  Lane lane(group, groups, thread_index, threads);
  if (lane.row >= p.walk.rows) {
    return;
  }
  out += walk_start(p.walk, 0, lane.row);
  for (ulong i = lane.first; i < p.walk.len; i += lane.step) {
    out[i * p.walk.inner[0]] = T(element(p, i, V(0)));
  }
}

instantiate_kernel("fill_f32", fill, float, float)
instantiate_kernel("fill_f16", fill, half, float)
instantiate_kernel("fill_bf16", fill, bfloat, float)
instantiate_kernel("fill_8", fill, uchar, ulong)
instantiate_kernel("fill_16", fill, ushort, ulong)
instantiate_kernel("fill_32", fill, uint, ulong)
instantiate_kernel("fill_64", fill, ulong, ulong)
