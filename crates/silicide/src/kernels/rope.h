// Rotary embeddings: pairs of elements of each head, turned by position times frequency.

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

// Two elements of a head and how they turn; the pairs after those that turn are two elements each of the rest.
struct RotaryPair {
  uint first;
  uint second;
  bool turns;
  float2 cos_sin;
};

inline RotaryPair rotary_pair(
    device const uint* positions,
    device const long* frequencies,
    device const uint* axes,
    constant RotaryParams& p,
    uint token,
    uint pair) {
  RotaryPair t;
  t.turns = pair < p.pairs;
  if (t.turns) {
    t.first = pair * p.step + (pair / p.section) * p.section;
    t.second = t.first + p.distance;
    uint position = positions[axes[pair] * ulong(p.tokens) + token];
    t.cos_sin = rotary_cos_sin(p.signed_positions ? long(int(position)) : long(position), frequencies[pair]) * p.scale;
  } else {
    t.first = p.rest + (pair - p.pairs);
    t.second = p.head_dim / 2 + pair;
    t.cos_sin = float2(1.0f, 0.0f);
  }
  return t;
}

// One thread a pair and `heads_per_thread` heads, which share the angle. `x2` and `out2` are a second tensor, whose heads
// come after those of the first. Both elements of a pair are read before either is written, so in place is safe.
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
    uint thread_index [[thread_index_in_threadgroup]],
    uint3 threads [[threads_per_threadgroup]]) {
  uint token = group.x;
  uint pair = group.z * threads.x + thread_index;
  uint copied = p.copies ? p.head_dim / 2 - p.pairs : 0;
  if (pair >= p.pairs + copied) {
    return;
  }
  RotaryPair t = rotary_pair(positions, frequencies, axes, p, token, pair);
  uint head = group.y * p.heads_per_thread;
  uint end = min(head + p.heads_per_thread, p.heads[0] + p.heads[1]);
  for (; head < end; ++head) {
    uint i = head >= p.heads[0];
    uint h = i ? head - p.heads[0] : head;
    device const T* source = (i ? x2 : x) + ulong(token) * p.x_strides[2 * i] + ulong(h) * p.x_strides[2 * i + 1];
    device T* target = (i ? out2 : out) + ulong(token) * p.out_strides[2 * i] + ulong(h) * p.out_strides[2 * i + 1];
    T a = source[t.first];
    T b = source[t.second];
    if (t.turns) {
      target[t.first] = T(float(a) * t.cos_sin.x - float(b) * t.cos_sin.y);
      target[t.second] = T(float(b) * t.cos_sin.x + float(a) * t.cos_sin.y);
    } else {
      target[t.first] = a;
      target[t.second] = b;
    }
  }
}
