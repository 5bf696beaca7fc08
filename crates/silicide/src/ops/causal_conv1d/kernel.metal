// causal_conv1d: a thread takes a packet of channels, of 8 bytes, or a channel where WHOLE says that these do not pack, and a run of
// tokens, AHEAD at a time: it loads the next inputs before it uses these. The host defines WIDTH and AHEAD. The threads of the first run
// are the only ones that touch the states, so that one may take the other's place.

#include "silicide.h"
#include "math.h"
#include "packet.h"

// The inputs of a token, of which the state's come before the first.
template <uint N, typename T>
inline Packet<T, N> input_at(device const T* x, device const T* state, uint input, constant Params& p) {
  if (input >= WIDTH - 1) {
    return Packet<T, N>::load(x + ulong(input - (WIDTH - 1)) * p.x_stride);
  }
  return p.has_state ? Packet<T, N>::load(state + ulong(input) * p.state_strides[0]) : Packet<T, N>::zeros();
}

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
  constexpr uint N = WHOLE ? Wide<T>::COUNT / 2 : 1;
  uint channel = position.x * N;
  uint first = position.y * p.block;
  if (channel >= p.channels || first >= max(p.tokens, 1u)) {
    return;
  }
  uint end = min(first + p.block, p.tokens);
  x += channel;
  out += channel;
  weight += ulong(channel) * p.weight_stride;
  initial_state += ulong(channel) * p.state_strides[1];
  final_state += ulong(channel) * p.final_strides[1];

  // Of AHEAD tokens, and of those before them.
  Packet<T, N> inputs[WIDTH - 1 + AHEAD];
  for (uint i = 0; i < WIDTH - 1 + AHEAD; ++i) {
    bool there = first + i < end + WIDTH - 1;
    inputs[i] = there ? input_at<N>(x, initial_state, first + i, p) : Packet<T, N>::zeros();
  }
  // The rows of a packet's weights lie side by side.
  float w[WIDTH][N];
  for (uint i = 0; i < WIDTH; ++i) {
    Packet<W, N> some = Packet<W, N>::load(weight + i * N);
    for (uint j = 0; j < N; ++j) {
      w[(i * N + j) % WIDTH][(i * N + j) / WIDTH] = float(some.get(j));
    }
  }
  Packet<W, N> shift = p.has_bias ? Packet<W, N>::load(bias + channel) : Packet<W, N>::zeros();

  if (first == 0 && p.has_final) {
    // What is read of the state lies after what is written.
    for (uint i = 0; i < WIDTH - 1; ++i) {
      Packet<T, N> input = input_at<N>(x, initial_state, p.tokens + i, p);
      input.store(final_state + ulong(i) * p.final_strides[0]);
    }
  }

  for (uint start = first; start < end; start += AHEAD) {
    Packet<T, N> next[AHEAD];
    for (uint v = 0; v < AHEAD; ++v) {
      uint token = start + AHEAD + v;
      next[v] = token < end ? Packet<T, N>::load(x + ulong(token) * p.x_stride) : Packet<T, N>::zeros();
    }
    for (uint v = 0; v < AHEAD; ++v) {
      float sums[N];
      for (uint j = 0; j < N; ++j) {
        sums[j] = float(shift.get(j));
        for (uint i = 0; i < WIDTH; ++i) {
          sums[j] += w[i][j] * float(inputs[v + i].get(j));
        }
      }
      if (p.silu) {
        for (uint j = 0; j < N; ++j) {
          sums[j] = silu(sums[j]);
        }
      }
      Packet<T, N> y = Packet<T, N>::zeros();
      for (uint j = 0; j < N; ++j) {
        y.put(j, T(sums[j]));
      }
      if (start + v < end) {
        y.store(out + ulong(start + v) * p.out_stride);
      }
    }
    for (uint i = 0; i < WIDTH - 1 + AHEAD; ++i) {
      inputs[i] = i + AHEAD < WIDTH - 1 + AHEAD ? inputs[i + AHEAD] : next[i - (WIDTH - 1)];
    }
  }
}

instantiate_kernel("causal_conv1d_f32_f32", causal_conv1d, float, float)
instantiate_kernel("causal_conv1d_f16_f16", causal_conv1d, half, half)
instantiate_kernel("causal_conv1d_f16_f32", causal_conv1d, half, float)
instantiate_kernel("causal_conv1d_bf16_bf16", causal_conv1d, bfloat, bfloat)
instantiate_kernel("causal_conv1d_bf16_f32", causal_conv1d, bfloat, float)
