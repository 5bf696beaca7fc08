// gated_delta_gates: one thread a token and head.

#include "silicide.h"
#include "math.h"

template <typename T>
kernel void gated_delta_gates(
    device const T* a [[buffer(0)]],
    device const T* b [[buffer(1)]],
    device const float* rate [[buffer(2)]],
    device const float* dt_bias [[buffer(3)]],
    device float* g [[buffer(4)]],
    device float* beta [[buffer(5)]],
    constant Params& p [[buffer(6)]],
    uint2 position [[thread_position_in_grid]]) {
  uint head = position.x;
  uint row = position.y;
  if (head >= p.heads || row >= p.rows) {
    return;
  }
  float r = p.log_rate ? -metal::precise::exp(rate[head]) : rate[head];
  float log_decay = r * softplus(float(a[ulong(row) * p.a_stride + head]) + dt_bias[head]);
  g[ulong(row) * p.g_stride + head] = p.log ? log_decay : metal::precise::exp(log_decay);
  beta[ulong(row) * p.beta_stride + head] = sigmoid(float(b[ulong(row) * p.b_stride + head]));
}

instantiate_floats("gated_delta_gates", gated_delta_gates)
