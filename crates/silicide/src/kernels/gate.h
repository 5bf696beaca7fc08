// The activations of gated linear units.

#include "math.h"

inline float activate(Gate gate, float g) {
  switch (gate) {
    case Gate::Silu: return silu(g);
    case Gate::GeluTanh: return gelu_tanh(g);
    case Gate::GeluErf: return gelu_erf(g);
    default: return sigmoid(g);
  }
}
