// cast: a thread takes a few packets of 4, or elements where WHOLE says that these do not pack; one kernel a source type, the target
// chosen by a uniform branch.

#include "silicide.h"
#include "packet.h"
#include "walk.h"

// An integer of D's range from a float: the fraction dropped, the ends held, 0 for NaN.
template <typename D>
inline D clamped(float x) {
  constexpr D low = metal::numeric_limits<D>::min();
  constexpr D high = metal::numeric_limits<D>::max();
  if (x != x) {
    return D(0);
  }
  // float(high) may be one past high, which no float between could be.
  return x >= float(high) ? high : x <= float(low) ? low : D(x);
}

// An element of D from a float, or from a long between integers.
template <typename D>
struct To {
  static D of(float x) { return clamped<D>(x); }
  static D of(long x) { return D(x); }
};
template <>
struct To<float> {
  template <typename V>
  static float of(V x) { return float(x); }
};
template <>
struct To<half> {
  template <typename V>
  static half of(V x) { return half(float(x)); }
};
template <>
struct To<bfloat> {
  template <typename V>
  static bfloat of(V x) { return bfloat(float(x)); }
};
// The byte of a bool.
struct Truth {
  template <typename V>
  static uchar of(V x) { return x != 0; }
};

template <typename D, typename By, uint N, typename V>
inline void store(device uchar* out, ulong at, thread const V (&x)[N]) {
  Packet<D, N> y = Packet<D, N>::zeros();
  for (uint i = 0; i < N; ++i) {
    y.put(i, By::of(x[i]));
  }
  y.store((device D*)out + at);
}

template <uint N, typename V>
inline void store_as(DType to, device uchar* out, ulong at, thread const V (&x)[N]) {
  switch (to) {
    case DType::F32: store<float, To<float>>(out, at, x); break;
    case DType::F16: store<half, To<half>>(out, at, x); break;
    case DType::BF16: store<bfloat, To<bfloat>>(out, at, x); break;
    case DType::U8: store<uchar, To<uchar>>(out, at, x); break;
    case DType::I8: store<char, To<char>>(out, at, x); break;
    case DType::U16: store<ushort, To<ushort>>(out, at, x); break;
    case DType::U32: store<uint, To<uint>>(out, at, x); break;
    case DType::I32: store<int, To<int>>(out, at, x); break;
    case DType::I64: store<long, To<long>>(out, at, x); break;
    case DType::Bool: store<uchar, Truth>(out, at, x); break;
  }
}

// V is float for floats, long for integers and bools, of which any that is not 0 is 1.
template <typename S, typename V, bool BOOL>
kernel void cast(
    device const S* x [[buffer(0)]],
    device uchar* out [[buffer(1)]],
    constant Params& p [[buffer(2)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint3 thread_index [[thread_position_in_threadgroup]],
    uint3 threads [[threads_per_threadgroup]]) {
  constexpr uint N = WHOLE ? 4 : 1;
  Steps<N> steps(group, thread_index, threads);
  if (steps.row >= p.walk.rows) {
    return;
  }
  x += walk_start(p.walk, 0, steps.row);
  ulong start = walk_start(p.walk, 1, steps.row);
  Packet<S, N> in[EACH];
  for (uint v = 0; v < EACH; ++v) {
    if (steps.at(v) < p.walk.len) {
      in[v] = Packet<S, N>::load(x + steps.at(v) * p.walk.inner[0]);
    }
  }
  for (uint v = 0; v < EACH; ++v) {
    if (steps.at(v) < p.walk.len) {
      V values[N];
      for (uint i = 0; i < N; ++i) {
        values[i] = BOOL ? V(in[v].get(i) != S(0)) : V(in[v].get(i));
      }
      store_as(DType(p.to), out, start + steps.at(v) * p.walk.inner[1], values);
    }
  }
}

instantiate_kernel("cast_f32", cast, float, float, false)
instantiate_kernel("cast_f16", cast, half, float, false)
instantiate_kernel("cast_bf16", cast, bfloat, float, false)
instantiate_kernel("cast_u8", cast, uchar, long, false)
instantiate_kernel("cast_i8", cast, char, long, false)
instantiate_kernel("cast_u16", cast, ushort, long, false)
instantiate_kernel("cast_u32", cast, uint, long, false)
instantiate_kernel("cast_i32", cast, int, long, false)
instantiate_kernel("cast_i64", cast, long, long, false)
instantiate_kernel("cast_bool", cast, uchar, long, true)
