// binary: some 4 elements a thread. Floats are computed in float, integers wrap.

#include "silicide.h"
#include "walk.h"

// The type whose arithmetic wraps.
template <typename C>
struct Wrapping {
  using type = C;
};
template <>
struct Wrapping<int> {
  using type = uint;
};

inline float scalar_of(constant Params& p, float) { return p.scalar; }
inline int scalar_of(constant Params& p, int) { return int(p.scalar_integer); }
inline uint scalar_of(constant Params& p, uint) { return p.scalar_integer; }

template <typename C>
inline C combine(Binary op, C a, C b) {
  using W = typename Wrapping<C>::type;
  switch (op) {
    case Binary::Add: return C(W(a) + W(b));
    case Binary::Sub: return C(W(a) - W(b));
    case Binary::Mul: return C(W(a) * W(b));
    case Binary::Div: return a / b;
    // Where the first is NaN the comparison is false, where the second is the choice is it.
    case Binary::Max: return a > b || a != a ? a : b;
    default: return a < b || a != a ? a : b;
  }
}

template <typename T, typename C>
kernel void binary(
    device const T* a [[buffer(0)]],
    device const T* b [[buffer(1)]],
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
  a += walk_start(p.walk, 0, lane.row);
  b += walk_start(p.walk, 1, lane.row);
  out += walk_start(p.walk, 2, lane.row);
  for (ulong i = lane.first; i < p.walk.len; i += lane.step) {
    C x = C(a[i * p.walk.inner[0]]);
    C y = p.has_b ? C(b[i * p.walk.inner[1]]) : scalar_of(p, C(0));
    out[i * p.walk.inner[2]] = T(combine(Binary(p.op), x, y));
  }
}

instantiate_kernel("binary_f32", binary, float, float)
instantiate_kernel("binary_f16", binary, half, float)
instantiate_kernel("binary_bf16", binary, bfloat, float)
instantiate_kernel("binary_i32", binary, int, int)
instantiate_kernel("binary_u32", binary, uint, uint)
