// binary: a thread takes a few packets, or elements where WHOLE says that these do not pack. Floats are computed in float,
// integers wrap. The host says which FUNCTION.

#include "silicide.h"
#include "packet.h"
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
    uint3 thread_index [[thread_position_in_threadgroup]],
    uint3 threads [[threads_per_threadgroup]]) {
  constexpr uint N = WHOLE ? Wide<T>::COUNT : 1;
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
      Packet<T, N> y = Packet<T, N>::zeros();
      for (uint i = 0; i < N; ++i) {
        C right = p.has_b ? C(rights[v].get(i)) : scalar_of(p, C(0));
        y.put(i, T(combine(Binary::FUNCTION, C(lefts[v].get(i)), right)));
      }
      y.store(out + steps.at(v) * p.walk.inner[2]);
    }
  }
}

instantiate_kernel("binary_f32", binary, float, float)
instantiate_kernel("binary_f16", binary, half, float)
instantiate_kernel("binary_bf16", binary, bfloat, float)
instantiate_kernel("binary_i32", binary, int, int)
instantiate_kernel("binary_u32", binary, uint, uint)
