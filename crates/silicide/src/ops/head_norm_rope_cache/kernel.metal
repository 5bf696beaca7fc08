// head_norm_rope_cache: one simdgroup a head of the queries, the keys or the values. Reads a head twice (the second time
// from cache), writes it once.

#include "silicide.h"
#include "rope.h"

// The sum of squares of a head, in the order in which rms_norm sums: lanes take four neighbours each.
template <typename T>
inline float squares_of(device const T* x, uint dim, bool aligned, uint lane) {
  float all = 0;
  for (uint start = 0; start < dim; start += 128) {
    uint first = start + lane * 4;
    float4 four = float4(0.0f);
    if (first < dim) {
      if (aligned) {
        four = float4(*(device const vec<T, 4>*)(x + first));
      } else {
        for (uint i = 0; i < min(4u, dim - first); ++i) {
          four[i] = float(x[first + i]);
        }
      }
    }
    all += simd_sum(dot(four, four));
  }
  return all;
}

// An element as rms_norm would store it.
template <typename T, typename W>
inline float normal(device const T* x, device const W* weight, uint i, float scale, float offset) {
  return float(T(float(x[i]) * scale * (float(weight[i]) + offset)));
}

// Normalises and turns a head. Elements that turn together are one thread's, which reads both before it writes, so in
// place is safe. Results are rounded to `T` first and then to what holds them.
template <typename T, typename W, typename C>
inline void norm_and_turn(
    device const T* x,
    device const W* weight,
    device const uint* positions,
    device const long* frequencies,
    device const uint* axes,
    device C* out,
    constant Params& p,
    uint token,
    float scale,
    uint lane) {
  for (uint pair = lane; pair < p.rotary.head_dim / 2; pair += 32) {
    RotaryPair t = rotary_pair(positions, frequencies, axes, p.rotary, token, pair);
    float a = normal(x, weight, t.first, scale, p.weight_offset);
    float b = normal(x, weight, t.second, scale, p.weight_offset);
    if (t.turns) {
      out[t.first] = C(float(T(a * t.cos_sin.x - b * t.cos_sin.y)));
      out[t.second] = C(float(T(b * t.cos_sin.x + a * t.cos_sin.y)));
    } else {
      out[t.first] = C(a);
      out[t.second] = C(b);
    }
  }
}

template <typename T, typename W, typename C>
kernel void head_norm_rope_cache(
    device T* q [[buffer(0)]],
    device const T* k [[buffer(1)]],
    device const T* v [[buffer(2)]],
    device const W* q_weight [[buffer(3)]],
    device const W* k_weight [[buffer(4)]],
    device const uint* positions [[buffer(5)]],
    device const long* frequencies [[buffer(6)]],
    device const uint* axes [[buffer(7)]],
    device const uint* slots [[buffer(8)]],
    device C* keys [[buffer(9)]],
    device C* values [[buffer(10)]],
    constant Params& p [[buffer(11)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]]) {
  uint token = group.x;
  uint head = group.y * simdgroups + simdgroup;
  uint q_heads = p.rotary.heads[0];
  uint kv_heads = p.rotary.heads[1];
  uint dim = p.rotary.head_dim;
  uint slot = slots[token];

  if (head < q_heads) {
    q += ulong(token) * p.rotary.x_strides[0] + ulong(head) * p.rotary.x_strides[1];
    float scale = metal::precise::rsqrt(squares_of(q, dim, p.aligned, lane) / float(dim) + p.eps);
    // Other threads write what this one has read.
    simdgroup_barrier(mem_flags::mem_device);
    norm_and_turn<T>(q, q_weight, positions, frequencies, axes, q, p, token, scale, lane);
  } else if (head < q_heads + kv_heads && slot < p.capacity) {
    head -= q_heads;
    k += ulong(token) * p.rotary.x_strides[2] + ulong(head) * p.rotary.x_strides[3];
    keys += ulong(slot) * p.key_strides[0] + ulong(head) * p.key_strides[1];
    float scale = metal::precise::rsqrt(squares_of(k, dim, p.aligned, lane) / float(dim) + p.eps);
    norm_and_turn<T>(k, k_weight, positions, frequencies, axes, keys, p, token, scale, lane);
  } else if (head < q_heads + 2 * kv_heads && slot < p.capacity) {
    head -= q_heads + kv_heads;
    v += ulong(token) * p.v_strides[0] + ulong(head) * p.v_strides[1];
    values += ulong(slot) * p.value_strides[0] + ulong(head) * p.value_strides[1];
    for (uint i = lane; i < dim; i += 32) {
      values[i] = C(float(v[i]));
    }
  }
}

#define instantiate_cache(name, T, W)                                                        \
  instantiate_kernel("head_norm_rope_cache_" name "_f32", head_norm_rope_cache, T, W, float) \
  instantiate_kernel("head_norm_rope_cache_" name "_f16", head_norm_rope_cache, T, W, half)  \
  instantiate_kernel("head_norm_rope_cache_" name "_bf16", head_norm_rope_cache, T, W, bfloat)

instantiate_cache("f32_f32", float, float)
instantiate_cache("f16_f16", half, half)
instantiate_cache("f16_f32", half, float)
instantiate_cache("bf16_bf16", bfloat, bfloat)
instantiate_cache("bf16_f32", bfloat, float)
