// sample: one threadgroup a row. The cut of top-p and top-k is found by halving the range of keys; weights are integers,
// whose sums are the same in any order.

#include "silicide.h"
#include "order.h"
#include "walk.h"

struct SumLong {
  using type = ulong;
  static constant constexpr ulong identity = 0;
  static ulong combine(ulong a, ulong b) { return a + b; }
  // simd_sum takes 32 bits at most: three parts whose sums do not overflow.
  static ulong simd(ulong x) {
    ulong low = simd_sum(uint(x) & 0xffffffu);
    ulong middle = simd_sum(uint(x >> 24) & 0xffffffu);
    ulong high = simd_sum(uint(x >> 48));
    return low + (middle << 24) + (high << 48);
  }
};

inline uint high_product(uint a, uint b) { return uint((ulong(a) * b) >> 32); }

// 2^40 * 2^-(below * scale), rounded down, in integers but for one product: the same on every device.
inline ulong weight(float below, float scale) {
  float exponent = below * scale;
  exponent = exponent < 63.0f ? exponent : 63.0f;
  uint fixed = uint(exponent * 16777216.0f);
  uint x = fixed << 8;
  // ln(2)^k / k! in units of 2^-32: the series of 2^-x.
  uint t = 0x1eu;
  t = 0x1b5u - high_product(x, t);
  t = 0x162cu - high_product(x, t);
  t = 0xffe6u - high_product(x, t);
  t = 0xa1849u - high_product(x, t);
  t = 0x576200u - high_product(x, t);
  t = 0x276556eu - high_product(x, t);
  t = 0xe35846cu - high_product(x, t);
  t = 0x3d7f7bffu - high_product(x, t);
  t = 0xb17217f8u - high_product(x, t);
  ulong fraction = 0x100000000ul - high_product(x, t);
  return (fraction << 8) >> (fixed >> 24);
}

// Philox4x32-10: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", 2011.
inline uint4 philox(uint4 counter, uint2 key) {
  for (uint round = 0; round < 10; ++round) {
    uint high_a = high_product(counter.x, 0xd2511f53u);
    uint high_b = high_product(counter.z, 0xcd9e8d57u);
    counter = uint4(
        high_b ^ counter.y ^ key.x, counter.z * 0xcd9e8d57u, high_a ^ counter.w ^ key.y, counter.x * 0xd2511f53u);
    key.x += 0x9e3779b9u;
    key.y += 0xbb67ae85u;
  }
  return counter;
}

// a * b / 2^64.
inline ulong scaled(ulong a, uint b_high, uint b_low) {
  ulong a_high = a >> 32;
  ulong a_low = a & 0xffffffffu;
  ulong cross = a_high * b_low + ((a_low * b_low) >> 32);
  ulong other = a_low * b_high + (cross & 0xffffffffu);
  return a_high * b_high + (cross >> 32) + (other >> 32);
}

kernel void sample(
    device const float* logits [[buffer(0)]],
    device uint* state [[buffer(1)]],
    device uint* out [[buffer(2)]],
    constant Params& p [[buffer(3)]],
    uint row [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint threads [[threads_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]]) {
  threadgroup uint scratch[32];
  threadgroup ulong wide[32];
  threadgroup ulong parts[1024];
  const float log2_e = 1.44269504f;
  const uint vocab = uint(p.walk.len);
  const ulong stride = p.walk.inner[0];
  logits += walk_start(p.walk, 0, row);
  state += ulong(row) * 4;

  uint top = 0;
  for (uint i = thread_index; i < vocab; i += threads) {
    top = max(top, order_key(logits[i * stride]));
  }
  top = threadgroup_reduce<MaxKey>(top, scratch, lane, simdgroup, simdgroups);
  // NaN, an infinity, or nothing but negative infinity: there is nothing to draw from.
  bool broken = top >= 0xff800000u || top <= 0x007fffffu;
  float most = as_type<float>(top >> 31 ? top & 0x7fffffffu : ~top);

  uint cut = 0;
  uint last = 0xffffffffu;
  if (!broken && (p.has_top_p || p.has_top_k)) {
    ulong limit = ~0ul;
    if (p.has_top_p) {
      ulong total = 0;
      for (uint i = thread_index; i < vocab; i += threads) {
        total += weight(most - logits[i * stride], log2_e);
      }
      total = threadgroup_reduce<SumLong>(total, wide, lane, simdgroup, simdgroups);
      limit = max(1ul, (total >> 32) * p.top_p + (((total & 0xffffffffu) * p.top_p) >> 32));
    }
    // The least key with too little above it.
    ulong above = 0;
    for (int bit = 31; bit >= 0; --bit) {
      uint middle = cut | ((1u << bit) - 1);
      ulong mass = 0;
      ulong count = 0;
      for (uint i = thread_index; i < vocab; i += threads) {
        float logit = logits[i * stride];
        if (order_key(logit) > middle) {
          count += 1;
          mass += p.has_top_p ? weight(most - logit, log2_e) : 0;
        }
      }
      count = threadgroup_reduce<SumLong>(count, wide, lane, simdgroup, simdgroups);
      mass = threadgroup_reduce<SumLong>(mass, wide, lane, simdgroup, simdgroups);
      if (mass >= limit || count >= p.top_k) {
        cut |= 1u << bit;
      } else {
        above = count;
      }
    }
    if (p.has_top_k) {
      // The last of equals that top-k keeps: the least index with enough of them up to it.
      ulong wanted = p.top_k - above;
      uint low = 0;
      uint high = vocab;
      while (low < high) {
        uint middle = low + (high - low) / 2;
        ulong count = 0;
        for (uint i = thread_index; i <= middle; i += threads) {
          count += order_key(logits[i * stride]) == cut;
        }
        count = threadgroup_reduce<SumLong>(count, wide, lane, simdgroup, simdgroups);
        if (count >= wanted) {
          high = middle;
        } else {
          low = middle + 1;
        }
      }
      last = low;
    }
  }

  // Each thread weighs a stretch of its own, so that one can walk them in order.
  uint share = (vocab + threads - 1) / threads;
  uint start = min(thread_index * share, vocab);
  uint end = min(start + share, vocab);
  ulong mine = 0;
  for (uint i = start; i < end; ++i) {
    float logit = logits[i * stride];
    uint key = order_key(logit);
    bool kept = (key > cut || (key == cut && i <= last)) && most - logit <= p.distance;
    mine += kept ? weight(most - logit, p.scale) : 0;
  }
  parts[thread_index] = mine;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (thread_index != 0) {
    return;
  }
  uint4 random = philox(uint4(state[2], state[3], 0, 0), uint2(state[0], state[1]));
  state[2] += 1;
  state[3] += state[2] == 0 ? 1 : 0;
  if (broken) {
    out[row] = 0xffffffffu;
    return;
  }
  ulong total = 0;
  for (uint i = 0; i < threads; ++i) {
    total += parts[i];
  }
  ulong left = scaled(total, random.x, random.y);
  uint part = 0;
  while (left >= parts[part]) {
    left -= parts[part];
    ++part;
  }
  uint i = part * share;
  for (;; ++i) {
    float logit = logits[i * stride];
    uint key = order_key(logit);
    bool kept = (key > cut || (key == cut && i <= last)) && most - logit <= p.distance;
    ulong w = kept ? weight(most - logit, p.scale) : 0;
    if (left < w) {
      break;
    }
    left -= w;
  }
  out[row] = i;
}
