// compare: a thread takes a few packets, or elements where WHOLE says that these do not pack. Floats are compared as float,
// integers as long. The host says which FUNCTION.

#include "silicide.h"
#include "packet.h"
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
    uint3 thread_index [[thread_position_in_threadgroup]],
    uint3 threads [[threads_per_threadgroup]]) {
  constexpr uint N = WHOLE ? (sizeof(T) == 8 ? 4 : 16 / sizeof(T)) : 1;
  Steps<N> steps(group, thread_index, threads);
  if (steps.row >= p.walk.rows) {
    return;
  }
  a += walk_start(p.walk, 0, steps.row);
  b += walk_start(p.walk, 1, steps.row);
  out += walk_start(p.walk, 2, steps.row);
  Packet<T, N> lefts[EACH];
  Packet<T, N> rights[EACH];
  for (uint v = 0; v < EACH; ++v) {
    if (steps.at(v) < p.walk.len) {
      lefts[v] = Packet<T, N>::load(a + steps.at(v) * p.walk.inner[0]);
      if (p.has_b) {
        rights[v] = Packet<T, N>::load(b + steps.at(v) * p.walk.inner[1]);
      }
    }
  }
  for (uint v = 0; v < EACH; ++v) {
    if (steps.at(v) < p.walk.len) {
      Packet<uchar, N> y = Packet<uchar, N>::zeros();
      for (uint i = 0; i < N; ++i) {
        C right = p.has_b ? C(rights[v].get(i)) : scalar_of(p, C(0));
        y.put(i, uchar(holds(Compare::FUNCTION, C(lefts[v].get(i)), right)));
      }
      y.store(out + steps.at(v) * p.walk.inner[2]);
    }
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
