// kv_quantize_affine, kv_dequantize_affine. To quantise, a simdgroup takes a group of a row, of which a lane has PER_LANE
// elements that follow one another; neighbouring lanes put a word of codes together. To dequantise, a thread takes a word.
// The host defines PER_LANE and BITS, and RING as ring.h has it.

#include "silicide.h"
#include "ring.h"

constant constexpr uint SIMDGROUPS = 4;
constant constexpr uint GROUP = 32 * PER_LANE;
constant constexpr uint MOST = (1u << BITS) - 1;

template <typename T, typename S>
kernel void kv_quantize_affine(
    device const T* x [[buffer(0)]],
    device const uint* positions [[buffer(1)]],
    device uint* codes [[buffer(2)]],
    device S* scales [[buffer(3)]],
    device S* biases [[buffer(4)]],
    constant Params& p [[buffer(5)]],
    uint threadgroup_index [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup int newest_of[SIMDGROUPS];
  uint groups = p.dim / GROUP;
  uint index = threadgroup_index * SIMDGROUPS + simdgroup;
  uint row = index / groups;
  uint group = index % groups;
  uint token = row / p.heads;
  uint head = row % p.heads;
  int newest = newest_position(positions, p.rows / p.heads, newest_of, thread_index, 32 * SIMDGROUPS, lane);
  uint slot = row_of(positions[min(token, p.rows / p.heads - 1)], newest, p.capacity);
  // A simdgroup goes as one.
  if (row >= p.rows || slot >= p.capacity) {
    return;
  }
  x += ulong(token) * p.row_strides[0] + ulong(head) * p.row_strides[1] + group * GROUP + lane * PER_LANE;
  codes += ulong(slot) * p.code_strides[0] + ulong(head) * p.code_strides[1] + group * (GROUP * BITS / 32);

  float values[PER_LANE];
  float least = INFINITY;
  float most = -INFINITY;
  float none = 0.0f;
  for (uint i = 0; i < PER_LANE; ++i) {
    values[i] = float(x[i]);
    least = min(least, values[i]);
    most = max(most, values[i]);
    // The difference of an infinity or NaN to itself is NaN.
    none += values[i] - values[i];
  }
  least = simd_min(least);
  most = simd_max(most);
  bool finite = simd_sum(none) == 0.0f;

  float scale = max((most - least) / float(MOST), 1e-7f);
  bool from_least = fabs(least) > fabs(most);
  float edge = from_least ? least : most;
  scale = from_least ? scale : -scale;
  // The edge is a whole number of steps from 0.
  float steps = rint(edge / scale);
  float bias = steps == 0.0f ? 0.0f : edge;
  scale = steps == 0.0f ? scale : edge / steps;

  uint word = 0;
  for (uint i = 0; i < PER_LANE; ++i) {
    float code = clamp(rint((values[i] - bias) / scale), 0.0f, float(MOST));
    word |= (finite ? uint(code) : 0u) << (i * BITS);
  }
  constexpr uint MEMBERS = 32 / (PER_LANE * BITS);
  word <<= lane % MEMBERS * (PER_LANE * BITS);
  for (uint other = 1; other < MEMBERS; other *= 2) {
    word |= simd_shuffle_xor(word, ushort(other));
  }
  if (lane % MEMBERS == 0) {
    codes[lane / MEMBERS] = word;
  }
  if (lane == 0) {
    scales[ulong(slot) * p.scale_strides[0] + ulong(head) * p.scale_strides[1] + group] = S(finite ? scale : NAN);
    biases[ulong(slot) * p.bias_strides[0] + ulong(head) * p.bias_strides[1] + group] = S(finite ? bias : NAN);
  }
}

template <typename T, typename S>
kernel void kv_dequantize_affine(
    device const uint* codes [[buffer(0)]],
    device const S* scales [[buffer(1)]],
    device const S* biases [[buffer(2)]],
    device T* out [[buffer(3)]],
    constant Params& p [[buffer(4)]],
    uint thread_index [[thread_position_in_grid]]) {
  uint words = p.dim * BITS / 32;
  uint row = thread_index / words;
  uint at = thread_index % words;
  if (row >= p.rows) {
    return;
  }
  uint head = row / p.capacity;
  uint slot = row % p.capacity;
  uint group = at * (32 / BITS) / GROUP;
  float scale = float(scales[ulong(slot) * p.scale_strides[0] + ulong(head) * p.scale_strides[1] + group]);
  float bias = float(biases[ulong(slot) * p.bias_strides[0] + ulong(head) * p.bias_strides[1] + group]);
  uint word = codes[ulong(slot) * p.code_strides[0] + ulong(head) * p.code_strides[1] + at];
  out += ulong(slot) * p.row_strides[0] + ulong(head) * p.row_strides[1] + at * (32 / BITS);
  for (uint i = 0; i < 32 / BITS; ++i) {
    out[i] = T(scale * float(word >> (i * BITS) & MOST) + bias);
  }
}

#define instantiate_affine(name, T, S)                                       \
  instantiate_kernel("kv_quantize_affine_" name, kv_quantize_affine, T, S)     \
  instantiate_kernel("kv_dequantize_affine_" name, kv_dequantize_affine, T, S)

instantiate_affine("f32_f32", float, float)
instantiate_affine("f32_f16", float, half)
instantiate_affine("f32_bf16", float, bfloat)
instantiate_affine("f16_f32", half, float)
instantiate_affine("f16_f16", half, half)
instantiate_affine("f16_bf16", half, bfloat)
instantiate_affine("bf16_f32", bfloat, float)
instantiate_affine("bf16_f16", bfloat, half)
instantiate_affine("bf16_bf16", bfloat, bfloat)
