// kv_quantize_affine, kv_dequantize_affine. To quantise, GROUP / EACH neighbouring lanes take a group of a row, each EACH elements that
// follow one another, whose codes are whole words, and then the same group of other tokens; to dequantise, a thread takes as
// many. The host defines GROUP and BITS; WHOLE, which says that rows and codes are packets that lie aligned; and RING as ring.h has it.

#include "silicide.h"
#include "packet.h"
#include "ring.h"

constant constexpr uint THREADS = 128;
constant constexpr uint EACH = 16;
constant constexpr uint LANES = GROUP / EACH;
constant constexpr uint MOST = (1u << BITS) - 1;
constant constexpr uint WORDS = EACH * BITS / 32;
// A number of up to 22 bits that is added to this is rounded as rint does, and is then the lowest bits.
constant constexpr float ROUNDER = 12582912.0f;
constant constexpr uint ROUNDER_BITS = 0x4b400000;
// What ROUNDER_BITS in the place of every code sum to.
constant constexpr uint ROUNDERS = ROUNDER_BITS * (BITS == 8 ? 0x01010101u : 0x11111111u);

template <typename T, typename S>
kernel void kv_quantize_affine(
    device const T* x [[buffer(0)]],
    device const uint* positions [[buffer(1)]],
    device uint* codes [[buffer(2)]],
    device S* scales [[buffer(3)]],
    device S* biases [[buffer(4)]],
    constant Params& p [[buffer(5)]],
    uint threadgroup_index [[threadgroup_position_in_grid]],
    uint threadgroups [[threadgroups_per_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  threadgroup int newest_of[THREADS / 32];
  uint groups = p.dim / GROUP;
  uint tokens = p.rows / p.heads;
  // Lanes of a token, and tokens at once, of which there is one at least.
  uint width = p.heads * groups * LANES;
  uint together = threadgroups * THREADS / width;
  uint index = threadgroup_index * THREADS + thread_index;
  uint first = index / width;
  uint head = (index - first * width) / (groups * LANES);
  uint at = index % (groups * LANES) * EACH;
  uint part = lane % LANES;
  x += ulong(head) * p.row_strides[1] + at;
  codes += ulong(head) * p.code_strides[1] + at * BITS / 32;
  scales += ulong(head) * p.scale_strides[1] + at / GROUP;
  biases += ulong(head) * p.bias_strides[1] + at / GROUP;
  int newest = newest_position(positions, tokens, newest_of, thread_index, THREADS, lane);
  // A simdgroup goes as one: lanes without a row have zeros, as the others talk to them.
  for (uint begin = 0; begin < tokens; begin += together) {
    uint token = begin + first;
    uint slot = p.capacity;
    // Rows are asked for before it is known whether they have a place.
    device const T* from = x + ulong(token) * p.row_strides[0];
    Packet<T, EACH> packet = Packet<T, EACH>::zeros();
    if (first < together && token < tokens) {
      packet = WHOLE ? Packet<T, EACH>::load(from) : Packet<T, EACH>::gather(from, 1, EACH);
      slot = row_of(positions[token], newest, p.capacity);
    }
    bool present = slot < p.capacity;
    float values[EACH];
    for (uint i = 0; i < EACH; ++i) {
      values[i] = float(packet.get(i));
    }
    float least = INFINITY;
    float most = -INFINITY;
    float none = 0.0f;
    for (uint i = 0; i < EACH; ++i) {
      least = min(least, values[i]);
      most = max(most, values[i]);
      // NaN for an infinity or NaN.
      none = fma(values[i], 0.0f, none);
    }
    for (uint other = 1; other < LANES; other *= 2) {
      least = min(least, simd_shuffle_xor(least, ushort(other)));
      most = max(most, simd_shuffle_xor(most, ushort(other)));
      none += simd_shuffle_xor(none, ushort(other));
    }
    bool finite = none == 0.0f;

    float scale = max((most - least) / float(MOST), 1e-7f);
    bool from_least = fabs(least) > fabs(most);
    float edge = from_least ? least : most;
    scale = from_least ? scale : -scale;
    // The edge is a whole number of steps from 0.
    float steps = rint(edge / scale);
    float bias = steps == 0.0f ? 0.0f : edge;
    scale = steps == 0.0f ? scale : edge / steps;

    // Quotients that are rounded as a division rounds (Markstein): what a product with the reciprocal misses is added. Where the range
    // of values is infinite they are 0.
    bool counts = finite && fabs(scale) < INFINITY;
    float reciprocal = 1.0f / scale;
    uint words[WORDS];
    for (uint i = 0; i < WORDS; ++i) {
      words[i] = 0u - ROUNDERS;
    }
    for (uint i = 0; i < EACH; ++i) {
      float above = values[i] - bias;
      float near = above * reciprocal;
      float quotient = fma(fma(-near, scale, above), reciprocal, near);
      float code = clamp(quotient, 0.0f, float(MOST)) + ROUNDER;
      words[i * BITS / 32] += as_type<uint>(code) << (i * BITS % 32);
    }
    if (present) {
      device uint* to = codes + ulong(slot) * p.code_strides[0];
      for (uint i = 0; i < WORDS; ++i) {
        words[i] = counts ? words[i] : 0;
        if (!WHOLE) {
          to[i] = words[i];
        }
      }
      if (WHOLE) {
        store_words(to, words);
      }
      if (part == 0) {
        scales[ulong(slot) * p.scale_strides[0]] = S(finite ? scale : NAN);
        biases[ulong(slot) * p.bias_strides[0]] = S(finite ? bias : NAN);
      }
    }
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
  uint parts = p.dim / EACH;
  uint row = thread_index / parts;
  uint part = thread_index % parts;
  if (row >= p.rows) {
    return;
  }
  uint head = row / p.capacity;
  uint slot = row % p.capacity;
  uint group = part * EACH / GROUP;
  codes += ulong(slot) * p.code_strides[0] + ulong(head) * p.code_strides[1] + part * WORDS;
  uint words[WORDS];
  if (WHOLE) {
    load_words(codes, words);
  } else {
    for (uint i = 0; i < WORDS; ++i) {
      words[i] = codes[i];
    }
  }
  float scale = float(scales[ulong(slot) * p.scale_strides[0] + ulong(head) * p.scale_strides[1] + group]);
  float bias = float(biases[ulong(slot) * p.bias_strides[0] + ulong(head) * p.bias_strides[1] + group]);
  out += ulong(slot) * p.row_strides[0] + ulong(head) * p.row_strides[1] + part * EACH;
  Packet<T, EACH> values = Packet<T, EACH>::zeros();
  for (uint i = 0; i < EACH; ++i) {
    values.put(i, T(scale * float(words[i * BITS / 32] >> (i * BITS % 32) & MOST) + bias));
  }
  if (WHOLE) {
    values.store(out);
  } else {
    values.scatter(out, 1, EACH);
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
