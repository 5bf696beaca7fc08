// compare: some 4 elements a thread. Floats are compared as float, integers as long.

#include "silicide.h"
#include "walk.h"

template <typename C>
inline bool holds(Compare op, C a, C b) {
  switch (op) {
    case Compare::Equal: return a == b;
    case Compare::NotEqual: return a != b;
    case Compare::Less: return a < b;
    case Compare::LessEqual: return a <= b;
    case Compare::Greater: return a > b;
    default: return a >= b;
  }
}

inline float scalar_of(constant Params& p, float) { return p.scalar; }
inline long scalar_of(constant Params& p, long) { return p.integer; }

template <typename T, typename C>
kernel void compare(
    device const T* a [[buffer(0)]],
    device const T* b [[buffer(1)]],
    device uchar* out [[buffer(2)]],
    constant Params& p [[buffer(3)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint3 groups [[threadgroups_per_grid]],
    uint3 thread_index [[thread_position_in_threadgroup]],
    uint3 threads [[threads_per_threadgroup]]) {
  Lane lane(group, groups, thread_index, threads);
  if (lane.row >= p.walk.rows) {
    return;
  }
  a += walk_start(p.walk, 0, lane.row);
  b += walk_start(p.walk, 1, lane.row);
  out += walk_start(p.walk, 2, lane.row);
  for (ulong i = lane.first; i < p.walk.len; i += lane.step) {
    C x = C(a[i * p.walk.inner[0]]);
    C y = p.has_b ? C(b[i * p.walk.inner[1]]) : scalar_of(p, C(0));
    out[i * p.walk.inner[2]] = holds(Compare(p.op), x, y);
  }
}

instantiate_kernel("compare_f32", compare, float, float)
instantiate_kernel("compare_f16", compare, half, float)
instantiate_kernel("compare_bf16", compare, bfloat, float)
instantiate_kernel("compare_u8", compare, uchar, long)
instantiate_kernel("compare_i8", compare, char, long)
instantiate_kernel("compare_u16", compare, ushort, long)
instantiate_kernel("compare_u32", compare, uint, long)
instantiate_kernel("compare_i32", compare, int, long)
instantiate_kernel("compare_i64", compare, long, long)
