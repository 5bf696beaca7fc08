// glu: a thread takes a few packets, or elements where WHOLE says that these do not pack. The host says which FUNCTION.

#include "silicide.h"
#include "gate.h"
#include "packet.h"
#include "walk.h"

template <typename T>
kernel void glu(
    device const T* gate [[buffer(0)]],
    device const T* up [[buffer(1)]],
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
  gate += walk_start(p.walk, 0, steps.row);
  up += walk_start(p.walk, 1, steps.row);
  out += walk_start(p.walk, 2, steps.row);
  Packet<T, N> gates[EACH];
  Packet<T, N> ups[EACH];
  for (uint v = 0; v < EACH; ++v) {
    if (steps.at(v) < p.walk.len) {
      gates[v] = Packet<T, N>::load(gate + steps.at(v) * p.walk.inner[0]);
      ups[v] = Packet<T, N>::load(up + steps.at(v) * p.walk.inner[1]);
    }
  }
  for (uint v = 0; v < EACH; ++v) {
    if (steps.at(v) < p.walk.len) {
      Packet<T, N> y = Packet<T, N>::zeros();
      for (uint i = 0; i < N; ++i) {
        y.put(i, T(activate(Gate::FUNCTION, float(gates[v].get(i))) * float(ups[v].get(i))));
      }
      y.store(out + steps.at(v) * p.walk.inner[2]);
    }
  }
}

instantiate_floats("glu", glu)
