// select: a thread takes a few packets, or elements where WHOLE says that these do not pack; one kernel a size of element.

#include "silicide.h"
#include "packet.h"
#include "walk.h"

template <typename T>
kernel void select_bits(
    device const uchar* condition [[buffer(0)]],
    device const T* a [[buffer(1)]],
    device const T* b [[buffer(2)]],
    device T* out [[buffer(3)]],
    constant Params& p [[buffer(4)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint3 thread_index [[thread_position_in_threadgroup]],
    uint3 threads [[threads_per_threadgroup]]) {
  constexpr uint N = WHOLE ? (sizeof(T) == 8 ? 4 : 16 / sizeof(T)) : 1;
  Steps<N> steps(group, thread_index, threads);
  if (steps.row >= p.walk.rows) {
    return;
  }
  condition += walk_start(p.walk, 0, steps.row);
  ulong a_start = walk_start(p.walk, 1, steps.row);
  ulong b_start = walk_start(p.walk, 2, steps.row);
  out += walk_start(p.walk, 3, steps.row);
  Packet<uchar, N> which[EACH];
  Packet<T, N> lefts[EACH];
  Packet<T, N> rights[EACH];
  for (uint v = 0; v < EACH; ++v) {
    ulong at = steps.at(v);
    if (at < p.walk.len) {
      which[v] = Packet<uchar, N>::load(condition + at * p.walk.inner[0]);
      if (p.has_a) {
        lefts[v] = Packet<T, N>::load(a + a_start + at * p.walk.inner[1]);
      }
      if (p.has_b) {
        rights[v] = Packet<T, N>::load(b + b_start + at * p.walk.inner[2]);
      }
    }
  }
  for (uint v = 0; v < EACH; ++v) {
    if (steps.at(v) < p.walk.len) {
      Packet<T, N> y = Packet<T, N>::zeros();
      for (uint i = 0; i < N; ++i) {
        T left = p.has_a ? lefts[v].get(i) : T(p.a);
        T right = p.has_b ? rights[v].get(i) : T(p.b);
        y.put(i, which[v].get(i) ? left : right);
      }
      y.store(out + steps.at(v) * p.walk.inner[3]);
    }
  }
}

instantiate_kernel("select_8", select_bits, uchar)
instantiate_kernel("select_16", select_bits, ushort)
instantiate_kernel("select_32", select_bits, uint)
instantiate_kernel("select_64", select_bits, ulong)
