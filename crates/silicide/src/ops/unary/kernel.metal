// unary: a thread takes a few packets, or elements where WHOLE says that these do not pack. The host says which FUNCTION.

#include "silicide.h"
#include "math.h"
#include "packet.h"
#include "walk.h"

inline float apply(constant Params& p, float x) {
  switch (Unary::FUNCTION) {
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
    uint3 thread_index [[thread_position_in_threadgroup]],
    uint3 threads [[threads_per_threadgroup]]) {
  constexpr uint N = WHOLE ? Wide<T>::COUNT : 1;
  Steps<N> steps(group, thread_index, threads);
  if (steps.row >= p.walk.rows) {
    return;
  }
  x += walk_start(p.walk, 0, steps.row);
  out += walk_start(p.walk, 1, steps.row);
  Packet<T, N> in[EACH];
  for (uint v = 0; v < EACH; ++v) {
    if (steps.at(v) < p.walk.len) {
      in[v] = Packet<T, N>::load(x + steps.at(v) * p.walk.inner[0]);
    }
  }
  for (uint v = 0; v < EACH; ++v) {
    if (steps.at(v) < p.walk.len) {
      Packet<T, N> y = Packet<T, N>::zeros();
      for (uint i = 0; i < N; ++i) {
        y.put(i, T(apply(p, float(in[v].get(i)))));
      }
      y.store(out + steps.at(v) * p.walk.inner[1]);
    }
  }
}

instantiate_floats("unary", unary)
