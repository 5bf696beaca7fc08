// unary: some 4 elements a thread; the function chosen by a uniform branch.

#include "silicide.h"
#include "math.h"
#include "walk.h"

inline float apply(constant Params& p, float x) {
  switch (Unary(p.function)) {
    case Unary::Neg: return -x;
    case Unary::Abs: return metal::abs(x);
    case Unary::Exp: return metal::precise::exp(x);
    case Unary::Log: return metal::precise::log(x);
    case Unary::Sqrt: return metal::precise::sqrt(x);
    case Unary::Rsqrt: return metal::precise::rsqrt(x);
    case Unary::Square: return x * x;
    case Unary::Sigmoid: return sigmoid(x);
    case Unary::Silu: return silu(x);
    case Unary::Tanh: return metal::precise::tanh(x);
    case Unary::GeluTanh: return gelu_tanh(x);
    case Unary::GeluErf: return gelu_erf(x);
    case Unary::Relu: return x < 0.0f ? 0.0f : x;
    case Unary::Softplus: return softplus(x);
    case Unary::Sin: return metal::precise::sin(x);
    case Unary::Cos: return metal::precise::cos(x);
    case Unary::Softcap: return p.a * metal::precise::tanh(x / p.a);
    case Unary::ScaleShift: return p.a * x + p.b;
    case Unary::Clamp: return x < p.a ? p.a : x > p.b ? p.b : x;
  }
  return x;
}

template <typename T>
kernel void unary(
    device const T* x [[buffer(0)]],
    device T* out [[buffer(1)]],
    constant Params& p [[buffer(2)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint3 groups [[threadgroups_per_grid]],
    uint3 thread_index [[thread_position_in_threadgroup]],
    uint3 threads [[threads_per_threadgroup]]) {
  Lane lane(group, groups, thread_index, threads);
  if (lane.row >= p.walk.rows) {
    return;
  }
  x += walk_start(p.walk, 0, lane.row);
  out += walk_start(p.walk, 1, lane.row);
  for (ulong i = lane.first; i < p.walk.len; i += lane.step) {
    out[i * p.walk.inner[1]] = T(apply(p, float(x[i * p.walk.inner[0]])));
  }
}

instantiate_floats("unary", unary)
