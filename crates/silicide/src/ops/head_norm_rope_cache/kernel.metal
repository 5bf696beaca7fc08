// head_norm_rope_cache: a team of lanes takes TEAM_HEADS heads of a token, which share its angles, among the heads of the
// queries, then the keys, then the values. Reads a head twice (the second time from cache), writes it once.

#include "rows.h"
#include "rope.h"

// The sum of squares of a head, in the order in which rms_norm sums; `first` is the thread's first packet.
template <uint N, typename T>
inline float squares_of(Packet<T, N> first, device const T* x, uint dim, uint width, uint index) {
  float all = add_squares(first, 0.0f);
  for (uint at = (index + width) * N; at < dim; at += width * N) {
    all = add_squares(load_packet<N>(x, 1, at, dim), all);
  }
  for (ushort mask = 16; mask > 0; mask /= 2) {
    if (mask < width) {
      all = Sum::combine(all, simd_shuffle_xor(all, mask));
    }
  }
  return all;
}

// Elements as rms_norm would store them, where there is one.
template <typename T, typename W>
inline Packet<T, PAIRS> normal(constant Params& p, device const T* x, device const W* weight, uint at, float scale) {
  Packet<T, PAIRS> values = Packet<T, PAIRS>::load(x + at);
  if (p.has_norm == 0) {
    return values;
  }
  Packet<W, PAIRS> w = Packet<W, PAIRS>::load(weight + at);
  Packet<T, PAIRS> scaled = Packet<T, PAIRS>::zeros();
  for (uint i = 0; i < PAIRS; ++i) {
    scaled.put(i, T(float(values.get(i)) * scale * (float(w.get(i)) + p.weight_offset)));
  }
  return scaled;
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
    uint group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]]) {
  constexpr uint N = Wide<T>::COUNT;
  Team team(p.width, group, thread_index, simdgroups);
  uint token = team.row / p.teams;
  uint head = (team.row - token * p.teams) * TEAM_HEADS;
  bool present = token < p.rotary.tokens;
  uint dim = p.rotary.head_dim;
  uint slot = present ? slots[token] : 0;
  // Heads of the queries, and those up to the end of the keys and of the values that have a place.
  uint q_end = present ? p.rotary.heads[0] : 0;
  bool cached = present && slot < p.capacity;
  uint k_end = cached ? p.rotary.heads[0] + p.rotary.heads[1] : q_end;
  uint v_end = cached ? k_end + p.rotary.heads[1] : q_end;
  q += ulong(token) * p.rotary.x_strides[0];
  k += ulong(token) * p.rotary.x_strides[2];
  v += ulong(token) * p.v_strides[0];
  keys += ulong(slot) * p.key_strides[0];
  values += ulong(slot) * p.value_strides[0];

  device const T* source[TEAM_HEADS];
  Packet<T, N> held[TEAM_HEADS];
  for (uint i = 0; i < TEAM_HEADS; ++i) {
    uint h = head + i;
    if (h < q_end) {
      source[i] = q + ulong(h) * p.rotary.x_strides[1];
    } else if (h < k_end) {
      source[i] = k + ulong(h - q_end) * p.rotary.x_strides[3];
    } else {
      source[i] = v + ulong(h < v_end ? h - k_end : 0) * p.v_strides[1];
    }
    held[i] = load_packet<N>(source[i], 1, team.index * N, h < v_end ? dim : 0);
  }

  float scale[TEAM_HEADS];
  for (uint i = 0; i < TEAM_HEADS; ++i) {
    uint h = head + i;
    if (p.has_norm != 0) {
      // All lanes come here, as a shuffle needs them.
      float squares = squares_of(held[i], source[i], h < k_end ? dim : 0, team.width, team.index);
      scale[i] = metal::precise::rsqrt(squares / float(dim) + p.eps);
    }
    if (h >= k_end && h < v_end) {
      device C* target = values + ulong(h - k_end) * p.value_strides[1];
      store_packet(target, 1, team.index * N, dim, converted<C>(held[i]));
      for (uint at = (team.index + team.width) * N; at < dim; at += team.width * N) {
        store_packet(target, 1, at, dim, converted<C>(load_packet<N>(source[i], 1, at, dim)));
      }
    }
  }

  // Other threads write what this one has read. Elements that turn together are one thread's, which reads both before it
  // writes, so in place is safe. Results are rounded to `T` first and then to what holds them.
  simdgroup_barrier(mem_flags::mem_device);
  for (uint pair = team.index * PAIRS; pair < dim / 2 && head < k_end; pair += team.width * PAIRS) {
    RotaryPairs t(p.rotary, pair);
    t.find_angles(positions, frequencies, axes, p.rotary, token, pair);
    for (uint i = 0; i < TEAM_HEADS; ++i) {
      uint h = head + i;
      if (h < k_end) {
        device const W* weight = h < q_end ? q_weight : k_weight;
        Packet<T, PAIRS> a = normal(p, source[i], weight, t.first, scale[i]);
        Packet<T, PAIRS> b = normal(p, source[i], weight, t.second, scale[i]);
        t.turn(a, b);
        if (h < q_end) {
          device T* target = q + ulong(h) * p.rotary.x_strides[1];
          a.store(target + t.first);
          b.store(target + t.second);
        } else {
          device C* target = keys + ulong(h - q_end) * p.key_strides[1];
          Packet<C, PAIRS> stored_a = converted<C>(a);
          Packet<C, PAIRS> stored_b = converted<C>(b);
          stored_a.store(target + t.first);
          stored_b.store(target + t.second);
        }
      }
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
