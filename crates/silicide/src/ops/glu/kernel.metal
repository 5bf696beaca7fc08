// glu: some 4 elements a thread.

#include "silicide.h"
#include "math.h"
#include "walk.h"

inline float activate(Gate gate, float g) {
  switch (gate) {
    case Gate::Silu: return silu(g);
    case Gate::GeluTanh: return gelu_tanh(g);
    case Gate::GeluErf: return gelu_erf(g);
    default: return sigmoid(g);
  }
}

template <typename T>
kernel void glu(
    device const T* gate [[buffer(0)]],
    device const T* up [[buffer(1)]],
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
  gate += walk_start(p.walk, 0, lane.row);
  up += walk_start(p.walk, 1, lane.row);
  out += walk_start(p.walk, 2, lane.row);
  for (ulong i = lane.first; i < p.walk.len; i += lane.step) {
    float g = float(gate[i * p.walk.inner[0]]);
    float u = float(up[i * p.walk.inner[1]]);
    out[i * p.walk.inner[2]] = T(activate(Gate(p.gate), g) * u);
  }
}

instantiate_floats("glu", glu)
