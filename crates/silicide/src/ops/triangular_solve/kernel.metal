// triangular_solve: one threadgroup a block of columns of one batch. As soon as an unknown is known it is taken out of the
// rows below it, each of which belongs to one thread, so that a step is one barrier.

#include "silicide.h"

template <typename T>
kernel void triangular_solve(
    device const T* b [[buffer(0)]],
    device const T* l [[buffer(1)]],
    device T* out [[buffer(2)]],
    constant Params& p [[buffer(3)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint3 thread_index [[thread_position_in_threadgroup]],
    uint3 threads [[threads_per_threadgroup]]) {
  threadgroup float x[4096];
  b += ulong(group.y) * p.b_strides[0];
  l += ulong(group.y) * p.l_strides[0];
  out += ulong(group.y) * p.out_strides[0];
  uint column = group.x * p.columns + thread_index.x;
  bool inside = column < p.m;

  for (uint row = thread_index.y; row < p.n; row += threads.y) {
    x[row * p.columns + thread_index.x] = inside ? float(b[ulong(row) * p.b_strides[1] + column]) : 0.0f;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint i = 0; i + 1 < p.n; ++i) {
    float known = x[i * p.columns + thread_index.x];
    // The first of this thread's rows that is below i.
    uint row = thread_index.y;
    row += row > i ? 0 : (i - row) / threads.y * threads.y + threads.y;
    for (; row < p.n; row += threads.y) {
      x[row * p.columns + thread_index.x] -= float(l[ulong(row) * p.l_strides[1] + i]) * known;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
  for (uint row = thread_index.y; inside && row < p.n; row += threads.y) {
    out[ulong(row) * p.out_strides[1] + column] = T(x[row * p.columns + thread_index.x]);
  }
}

instantiate_floats("triangular_solve", triangular_solve)
