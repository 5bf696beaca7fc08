// causal_conv1d: one thread a channel and a run of tokens; WIDTH is defined by the host. The threads of the first run are
// the only ones that touch the states, so that one may take the other's place.

#include "silicide.h"
#include "math.h"

template <typename T, typename W>
kernel void causal_conv1d(
    device const T* x [[buffer(0)]],
    device const W* weight [[buffer(1)]],
    device const W* bias [[buffer(2)]],
    device const T* initial_state [[buffer(3)]],
    device T* final_state [[buffer(4)]],
    device T* out [[buffer(5)]],
    constant Params& p [[buffer(6)]],
    uint2 position [[thread_position_in_grid]]) {
  uint channel = position.x;
  if (channel >= p.channels) {
    return;
  }
  uint first = position.y * p.block;
  uint end = min(first + p.block, p.tokens);
  x += channel;
  out += channel;
  weight += ulong(channel) * p.weight_stride;
  initial_state += ulong(channel) * p.state_strides[1];
  final_state += ulong(channel) * p.final_strides[1];

  // Input i - (WIDTH - 1) is number i here: the state comes before the first token.
  float w[WIDTH];
  float window[WIDTH];
  for (uint i = 0; i < WIDTH; ++i) {
    w[i] = float(weight[i]);
    window[i] = 0;
  }
  for (uint i = 0; i < WIDTH - 1; ++i) {
    uint input = first + i;
    if (input >= WIDTH - 1) {
      window[i] = float(x[ulong(input - (WIDTH - 1)) * p.x_stride]);
    } else if (p.has_state) {
      window[i] = float(initial_state[ulong(input) * p.state_strides[0]]);
    }
  }
  if (first == 0 && p.has_final) {
    // What is read of the state lies after what is written.
    for (uint i = 0; i < WIDTH - 1; ++i) {
      uint input = p.tokens + i;
      T value = T(0.0f);
      if (input >= WIDTH - 1) {
        value = x[ulong(input - (WIDTH - 1)) * p.x_stride];
      } else if (p.has_state) {
        value = initial_state[ulong(input) * p.state_strides[0]];
      }
      final_state[ulong(i) * p.final_strides[0]] = value;
    }
  }

  float start = p.has_bias ? float(bias[channel]) : 0.0f;
  for (uint token = first; token < end; ++token) {
    window[WIDTH - 1] = float(x[ulong(token) * p.x_stride]);
    float sum = start;
    for (uint i = 0; i < WIDTH; ++i) {
      sum += w[i] * window[i];
    }
    out[ulong(token) * p.out_stride] = T(p.silu ? silu(sum) : sum);
    for (uint i = 0; i < WIDTH - 1; ++i) {
      window[i] = window[i + 1];
    }
  }
}

instantiate_kernel("causal_conv1d_f32_f32", causal_conv1d, float, float)
instantiate_kernel("causal_conv1d_f16_f16", causal_conv1d, half, half)
instantiate_kernel("causal_conv1d_f16_f32", causal_conv1d, half, float)
instantiate_kernel("causal_conv1d_bf16_bf16", causal_conv1d, bfloat, bfloat)
instantiate_kernel("causal_conv1d_bf16_f32", causal_conv1d, bfloat, float)
