// fill: a thread takes a few packets, or elements where WHOLE says that these do not pack. One number is a row of steps
// of 0, in an integer of its size.

#include "silicide.h"
#include "packet.h"
#include "walk.h"

inline ulong element(constant Params& p, ulong i, ulong) { return p.start + p.step * i; }
inline float element(constant Params& p, ulong i, float) { return p.float_start + float(i) * p.float_step; }

// V is float, or ulong for integers, of which the lower bits are kept.
template <typename T, typename V>
kernel void fill(
    device T* out [[buffer(0)]],
    constant Params& p [[buffer(1)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint3 thread_index [[thread_position_in_threadgroup]],
    uint3 threads [[threads_per_threadgroup]]) {
  constexpr uint N = WHOLE ? Wide<T>::COUNT : 1;
  Steps<N> steps(group, thread_index, threads);
  if (steps.row >= p.walk.rows) {
    return;
  }
  out += walk_start(p.walk, 0, steps.row);
  for (uint v = 0; v < EACH; ++v) {
    ulong at = steps.at(v);
    if (at < p.walk.len) {
      Packet<T, N> y = Packet<T, N>::zeros();
      for (uint i = 0; i < N; ++i) {
        y.put(i, T(element(p, at + i, V(0))));
      }
      y.store(out + at * p.walk.inner[0]);
    }
  }
}

instantiate_kernel("fill_f32", fill, float, float)
instantiate_kernel("fill_f16", fill, half, float)
instantiate_kernel("fill_bf16", fill, bfloat, float)
instantiate_kernel("fill_8", fill, uchar, ulong)
instantiate_kernel("fill_16", fill, ushort, ulong)
instantiate_kernel("fill_32", fill, uint, ulong)
instantiate_kernel("fill_64", fill, ulong, ulong)
