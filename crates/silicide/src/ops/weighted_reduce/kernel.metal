// weighted_reduce: a threadgroup takes some columns of a token, each thread some 4 of them that are a threadgroup apart.

#include "silicide.h"
#include "math.h"

template <typename T>
kernel void weighted_reduce(
    device const T* y [[buffer(0)]],
    device const float* weights [[buffer(1)]],
    device const T* shared_gate_logit [[buffer(2)]],
    device const T* shared [[buffer(3)]],
    device const T* residual [[buffer(4)]],
    device T* out [[buffer(5)]],
    constant Params& p [[buffer(6)]],
    uint2 group [[threadgroup_position_in_grid]],
    uint2 groups [[threadgroups_per_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint2 threads [[threads_per_threadgroup]]) {
  uint token = group.x;
  y += ulong(token) * p.slots * p.y_stride;
  weights += ulong(token) * p.slots;
  shared += ulong(token) * p.strides[0];
  residual += ulong(token) * p.strides[1];
  out += ulong(token) * p.strides[2];
  float gate = p.has_gate ? sigmoid(float(shared_gate_logit[token])) : 1.0f;

  // A thread reads what it writes over before it does, and nothing else that is written.
  for (uint i = group.y * threads.x + thread_index; i < p.n; i += groups.y * threads.x) {
    float sum = 0.0f;
    for (uint slot = 0; slot < p.slots; ++slot) {
      sum = fma(weights[slot], float(y[ulong(slot) * p.y_stride + i]), sum);
    }
    if (p.has_shared) {
      sum = fma(gate, float(shared[i]), sum);
    }
    if (p.has_residual) {
      sum += float(residual[i]);
    }
    out[i] = T(sum);
  }
}

instantiate_floats("weighted_reduce", weighted_reduce)
