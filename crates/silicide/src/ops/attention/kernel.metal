// attention: one threadgroup for each query and head. Simdgroups take every eighth key, lanes take every 32nd element of
// a head; each simdgroup keeps a running maximum, and the threadgroup joins them at the end.

#include "silicide.h"

constant constexpr uint SIMDGROUPS = 8;
constant constexpr uint MAX_PER_LANE = 16;  // head_dim up to 512

template <typename T, typename C>
kernel void attention(
    device const T* q [[buffer(0)]],
    device const C* k [[buffer(1)]],
    device const C* v [[buffer(2)]],
    device const uint* positions [[buffer(3)]],
    device const float* sinks [[buffer(4)]],
    device T* out [[buffer(5)]],
    constant Params& p [[buffer(6)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup float maxima[SIMDGROUPS];
  threadgroup float sums[SIMDGROUPS];
  threadgroup float partial[SIMDGROUPS * 32];

  uint query = group.x;
  uint head = group.y;
  uint kv_head = head / (p.q_heads / p.kv_heads);
  q += ulong(query) * p.q_strides[0] + ulong(head) * p.q_strides[1];
  k += ulong(kv_head) * p.k_strides[1];
  v += ulong(kv_head) * p.v_strides[1];
  out += ulong(query) * p.out_strides[0] + ulong(head) * p.out_strides[1];

  // The keys start..end are visible.
  uint end = p.keys;
  if (p.mask == 1) {
    end = p.keys - p.queries + query + 1;
  } else if (p.mask == 2) {
    int position = as_type<int>(positions[query]);
    end = position < 0 ? 0 : min(uint(position) + 1, p.keys);
  }
  uint start = p.window != 0 && end > p.window ? end - p.window : 0;

  float mine[MAX_PER_LANE];
  float sum_v[MAX_PER_LANE];
  uint per_lane = (p.dim + 31) / 32;
  for (uint i = 0; i < per_lane; ++i) {
    uint d = i * 32 + lane;
    mine[i] = d < p.dim ? float(q[d]) * p.scale : 0.0f;
    sum_v[i] = 0;
  }

  float maximum = -INFINITY;
  float sum = 0;
  for (uint key = start + simdgroup; key < end; key += SIMDGROUPS) {
    device const C* key_row = k + ulong(key) * p.k_strides[0];
    float score = 0;
    for (uint i = 0; i < per_lane; ++i) {
      uint d = i * 32 + lane;
      score += d < p.dim ? mine[i] * float(key_row[d]) : 0.0f;
    }
    score = simd_sum(score);
    if (p.softcap != 0) {
      score = p.softcap * metal::precise::tanh(score / p.softcap);
    }
    float next = max(maximum, score);
    // A score of minus infinity weighs nothing, and must not make NaN of the difference.
    float old_weight = maximum == -INFINITY ? 0.0f : metal::precise::exp(maximum - next);
    float weight = score == -INFINITY ? 0.0f : metal::precise::exp(score - next);
    maximum = next;
    sum = sum * old_weight + weight;
    device const C* value_row = v + ulong(key) * p.v_strides[0];
    for (uint i = 0; i < per_lane; ++i) {
      uint d = i * 32 + lane;
      sum_v[i] = sum_v[i] * old_weight + (d < p.dim ? weight * float(value_row[d]) : 0.0f);
    }
  }

  if (lane == 0) {
    maxima[simdgroup] = maximum;
    sums[simdgroup] = sum;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  float highest = p.has_sinks ? sinks[head] : -INFINITY;
  for (uint i = 0; i < SIMDGROUPS; ++i) {
    highest = max(highest, maxima[i]);
  }
  float total = p.has_sinks ? metal::precise::exp(sinks[head] - highest) : 0.0f;
  for (uint i = 0; i < SIMDGROUPS; ++i) {
    total += maxima[i] == -INFINITY ? 0.0f : sums[i] * metal::precise::exp(maxima[i] - highest);
  }
  float weight = maximum == -INFINITY ? 0.0f : metal::precise::exp(maximum - highest) / total;

  for (uint i = 0; i < per_lane; ++i) {
    partial[simdgroup * 32 + lane] = sum_v[i] * weight;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    uint d = i * 32 + lane;
    if (simdgroup == 0 && d < p.dim) {
      float value = 0;
      for (uint s = 0; s < SIMDGROUPS; ++s) {
        value += partial[s * 32 + lane];
      }
      out[d] = T(value);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
}

#define instantiate_attention(name, T)                         \
  instantiate_kernel("attention_" name "_f32", attention, T, float)  \
  instantiate_kernel("attention_" name "_f16", attention, T, half)   \
  instantiate_kernel("attention_" name "_bf16", attention, T, bfloat)

instantiate_attention("f32", float)
instantiate_attention("f16", half)
instantiate_attention("bf16", bfloat)
