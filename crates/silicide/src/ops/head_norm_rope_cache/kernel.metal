// head_norm_rope_cache: a team of lanes takes TEAM_HEADS heads of a token, among the heads of the queries, then the keys, then the
// values. Where the host says in IN_LANES that a head is a packet a lane, and that what a packet turns with is another lane's, heads stay
// in registers and the threadgroup shares the token's angles; otherwise a head is read twice (the second time from cache).

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

// Elements as rms_norm would store them.
template <typename T, typename W, uint N>
inline Packet<T, N> scaled(constant Params& p, Packet<T, N> values, Packet<W, N> weight, float scale) {
  Packet<T, N> result = Packet<T, N>::zeros();
  for (uint i = 0; i < N; ++i) {
    result.put(i, T(float(values.get(i)) * scale * (float(weight.get(i)) + p.weight_offset)));
  }
  return result;
}

// Those of some pairs, where there is a norm.
template <typename T, typename W>
inline Packet<T, PAIRS> normal(constant Params& p, device const T* x, device const W* weight, uint at, float scale) {
  Packet<T, PAIRS> values = Packet<T, PAIRS>::load(x + at);
  if (p.has_norm == 0) {
    return values;
  }
  Packet<W, PAIRS> w = Packet<W, PAIRS>::load(weight + at);
  return scaled(p, values, w, scale);
}

// The scales by which rms_norm multiplies heads of a packet a lane. The sums of squares go to the lanes so that each finishes that of one
// head, by the additions of rms_norm.
template <uint N, typename T>
inline void scales_of(thread const Packet<T, N> (&held)[TEAM_HEADS], thread float (&scale)[TEAM_HEADS], Team team, uint lane, constant Params& p) {
  float sums[TEAM_HEADS];
  for (uint i = 0; i < TEAM_HEADS; ++i) {
    sums[i] = add_squares(held[i], 0.0f);
  }
  ushort mask = ushort(team.width / 2);
  for (uint n = TEAM_HEADS / 2; n > 0; n /= 2) {
    bool upper = (team.index & mask) != 0;
    for (uint i = 0; i < n; ++i) {
      float kept = upper ? sums[i + n] : sums[i];
      float given = upper ? sums[i] : sums[i + n];
      sums[i] = Sum::combine(kept, simd_shuffle_xor(given, mask));
    }
    mask /= 2;
  }
  for (; mask > 0; mask /= 2) {
    sums[0] = Sum::combine(sums[0], simd_shuffle_xor(sums[0], mask));
  }
  float own = metal::precise::rsqrt(sums[0] / float(p.rotary.head_dim) + p.eps);
  for (uint i = 0; i < TEAM_HEADS; ++i) {
    scale[i] = simd_shuffle(own, ushort(lane - team.index + i * (team.width / TEAM_HEADS)));
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
    threadgroup float* angles [[threadgroup(0)]],
    uint2 group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]]) {
  constexpr uint N = Wide<T>::COUNT;
  Team team(p.width, group.y, thread_index, simdgroups);
  uint token = group.x;
  uint head = team.row * TEAM_HEADS;
  uint dim = p.rotary.head_dim;
  uint slot = slots[token];
  // Heads of the queries, and those up to the end of the keys and of the values that have a place.
  uint q_end = p.rotary.heads[0];
  bool cached = slot < p.capacity;
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
  if (IN_LANES) {
    for (uint pair = thread_index; pair < p.rotary.pairs; pair += simdgroups * 32) {
      float2 cos_sin = rotary_angle(positions, frequencies, axes, p.rotary, token, pair);
      angles[pair] = cos_sin.x;
      angles[p.rotary.pairs + pair] = cos_sin.y;
    }
    if (p.has_norm != 0) {
      scales_of(held, scale, team, lane, p);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);

    // `distance` is a power of two, and its packets that of lanes between the two of a pair.
    uint first = team.index * N;
    uint pair = first & (p.rotary.distance - 1);
    bool turns = first < 2 * p.rotary.distance && pair < p.rotary.pairs;
    float cos[N];
    float sin[N];
    for (uint i = 0; i < N; i += 4) {
      float4 c = *(threadgroup float4*)(angles + (turns ? pair : 0) + i);
      float4 s = *(threadgroup float4*)(angles + p.rotary.pairs + (turns ? pair : 0) + i);
      for (uint j = 0; j < 4; ++j) {
        cos[i + j] = c[j];
        sin[i + j] = first & p.rotary.distance ? s[j] : -s[j];
      }
    }
    Packet<W, N> weight = Packet<W, N>::zeros();
    for (uint i = 0; i < TEAM_HEADS; ++i) {
      uint h = head + i;
      Packet<T, N> loaded = held[i];
      if (p.has_norm != 0) {
        if (h < k_end && (i == 0 || h == q_end)) {
          weight = Packet<W, N>::load((h < q_end ? q_weight : k_weight) + first);
        }
        held[i] = scaled(p, held[i], weight, scale[i]);
      }
      Packet<T, N> other;
      for (uint w = 0; w < N * sizeof(T) / 4; ++w) {
        other.words[w] = simd_shuffle_xor(held[i].words[w], ushort(p.rotary.distance / N));
      }
      if (turns) {
        Packet<T, N> turned = Packet<T, N>::zeros();
        for (uint e = 0; e < N; ++e) {
          turned.put(e, T(float(held[i].get(e)) * cos[e] + float(other.get(e)) * sin[e]));
        }
        held[i] = turned;
      }
      if (h < q_end) {
        held[i].store(q + ulong(h) * p.rotary.x_strides[1] + first);
      } else if (h < k_end) {
        Packet<C, N> stored = converted<C>(held[i]);
        stored.store(keys + ulong(h - q_end) * p.key_strides[1] + first);
      } else if (h < v_end) {
        Packet<C, N> stored = converted<C>(loaded);
        stored.store(values + ulong(h - k_end) * p.value_strides[1] + first);
      }
    }
    return;
  }

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
