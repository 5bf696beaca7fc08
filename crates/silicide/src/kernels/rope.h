// Rotary embeddings: pairs of elements of each head, turned by position times frequency.

#include "packet.h"

// The cosine and sine of `position` times a frequency in 2^-64 turns, to within a unit in the last place. The product
// wraps at whole turns, so it is reduced exactly at any position to an eighth of a turn, where the Taylor series below are
// exact to f32. The angle is the sum of two floats: `high` has 12 bits, and so has 3217/512, which is close to 2 pi, so
// their product is exact.
inline float2 rotary_cos_sin(long position, long frequency) {
  ulong phase = ulong(position) * ulong(frequency);
  uint quadrant = uint((phase + (1ul << 61)) >> 62);
  long rest = long(phase - (ulong(quadrant) << 62));
  long upper = (rest + (1l << 49)) >> 50;
  float low = float(rest - upper * (1l << 50));
  float high = float(upper) / 16384.0f;

  float exact = high * (3217.0f / 512.0f);
  float more = high * -1.78178204e-5f + low * (6.28318531f / 18446744073709551616.0f);
  float angle = exact + more;
  float error = more - (angle - exact);

  float x = angle * angle;
  float s = angle * x * (-1.0f / 6 + x * (1.0f / 120 + x * (-1.0f / 5040 + x * (1.0f / 362880))));
  s = angle + (s + error * (1.0f - 0.5f * x));
  float near = 1.0f - 0.5f * x;
  float c = x * x * (1.0f / 24 + x * (-1.0f / 720 + x * (1.0f / 40320 + x * (-1.0f / 3628800))));
  c = near + ((1.0f - near - 0.5f * x) + (c - angle * error));

  float2 turned = quadrant & 1 ? float2(-s, c) : float2(c, s);
  return quadrant & 2 ? -turned : turned;
}

// The cosine and sine, scaled, by which a pair of a token's elements turns.
inline float2 rotary_angle(
    device const uint* positions,
    device const long* frequencies,
    device const uint* axes,
    constant RotaryParams& p,
    uint token,
    uint pair) {
  ulong axis = p.axes > 1 ? axes[pair] : 0;
  uint position = positions[axis * p.tokens + token];
  long signed_position = p.signed_positions ? long(int(position)) : long(position);
  return rotary_cos_sin(signed_position, frequencies[pair]) * p.scale;
}

// Pairs that are handled together: four where the host says in WHOLE that first elements of four are neighbours, and second
// ones, aligned in every tensor, and that they turn alike or not at all.
constant constexpr uint PAIRS = WHOLE ? 4 : 1;

// Where the elements of PAIRS pairs begin, and how they turn; the pairs after those that turn are two elements each of the
// rest.
struct RotaryPairs {
  uint first;
  uint second;
  bool turns;
  float2 cos_sin[PAIRS];

  RotaryPairs(constant RotaryParams& p, uint pair) : turns(pair < p.pairs) {
    if (turns) {
      first = pair * p.step + (p.section < p.pairs ? pair / p.section * p.section : 0);
      second = first + p.distance;
    } else {
      first = p.rest + (pair - p.pairs);
      second = p.head_dim / 2 + pair;
    }
  }

  void find_angles(
      device const uint* positions,
      device const long* frequencies,
      device const uint* axes,
      constant RotaryParams& p,
      uint token,
      uint pair) {
    if (!turns) {
      return;
    }
    for (uint i = 0; i < PAIRS; ++i) {
      cos_sin[i] = rotary_angle(positions, frequencies, axes, p, token, pair + i);
    }
  }

  // Turns both elements of each pair.
  template <typename T>
  void turn(thread Packet<T, PAIRS>& firsts, thread Packet<T, PAIRS>& seconds) const {
    if (!turns) {
      return;
    }
    Packet<T, PAIRS> a = Packet<T, PAIRS>::zeros();
    Packet<T, PAIRS> b = Packet<T, PAIRS>::zeros();
    for (uint i = 0; i < PAIRS; ++i) {
      float x = float(firsts.get(i));
      float y = float(seconds.get(i));
      a.put(i, T(x * cos_sin[i].x - y * cos_sin[i].y));
      b.put(i, T(y * cos_sin[i].x + x * cos_sin[i].y));
    }
    firsts = a;
    seconds = b;
  }
};

// Heads that share a thread's angles; all of them are on their way before the first is turned.
constant constexpr uint HEADS = 4;

// One thread PAIRS pairs and HEADS heads of a token. `x2` and `out2` are a second tensor, whose heads come after those of the
// first. Both elements of a pair are read before either is written, so in place is safe.
template <typename T>
kernel void rotary(
    device const T* x [[buffer(0)]],
    device T* out [[buffer(1)]],
    device const T* x2 [[buffer(2)]],
    device T* out2 [[buffer(3)]],
    device const uint* positions [[buffer(4)]],
    device const long* frequencies [[buffer(5)]],
    device const uint* axes [[buffer(6)]],
    constant RotaryParams& p [[buffer(7)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint3 thread_index [[thread_position_in_threadgroup]],
    uint3 threads [[threads_per_threadgroup]]) {
  uint token = group.x * threads.z + thread_index.z;
  uint head = (group.y * threads.y + thread_index.y) * HEADS;
  uint pair = (group.z * threads.x + thread_index.x) * PAIRS;
  uint heads = p.heads[0] + p.heads[1];
  uint copied = p.copies ? p.head_dim / 2 - p.pairs : 0;
  if (token >= p.tokens || head >= heads || pair >= p.pairs + copied) {
    return;
  }
  x += ulong(token) * p.x_strides[0];
  x2 += ulong(token) * p.x_strides[2];
  out += ulong(token) * p.out_strides[0];
  out2 += ulong(token) * p.out_strides[2];
  RotaryPairs t(p, pair);
  Packet<T, PAIRS> firsts[HEADS];
  Packet<T, PAIRS> seconds[HEADS];
  for (uint i = 0; i < HEADS; ++i) {
    uint h = head + i;
    if (h < heads) {
      bool other = h >= p.heads[0];
      device const T* source = other ? x2 + ulong(h - p.heads[0]) * p.x_strides[3] : x + ulong(h) * p.x_strides[1];
      firsts[i] = Packet<T, PAIRS>::load(source + t.first);
      seconds[i] = Packet<T, PAIRS>::load(source + t.second);
    }
  }
  t.find_angles(positions, frequencies, axes, p, token, pair);
  for (uint i = 0; i < HEADS; ++i) {
    uint h = head + i;
    if (h < heads) {
      bool other = h >= p.heads[0];
      device T* target = other ? out2 + ulong(h - p.heads[0]) * p.out_strides[3] : out + ulong(h) * p.out_strides[1];
      t.turn(firsts[i], seconds[i]);
      firsts[i].store(target + t.first);
      seconds[i].store(target + t.second);
    }
  }
}
