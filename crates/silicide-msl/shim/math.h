// Math, integer, relational and geometric functions.

namespace metal {
#define __msl_f1(NAME, BUILTIN) \
  template <typename T> __msl_inline __msl_if_real<T> NAME(T x) { return BUILTIN(x); }
#define __msl_call1(NAME, FUNCTION) \
  template <typename T> __msl_inline __msl_if_real<T> NAME(T x) { \
    if constexpr (__msl_width<T> == 0) return T(FUNCTION(float(x))); \
    else { \
      T y; \
      for (int i = 0; i < __msl_width<T>; i++) y[i] = FUNCTION(float(x[i])); \
      return y; \
    } \
  }
#define __msl_call2(NAME, FUNCTION) \
  template <typename T> __msl_inline __msl_if_real<T> NAME(T a, T b) { \
    if constexpr (__msl_width<T> == 0) return T(FUNCTION(float(a), float(b))); \
    else { \
      T y; \
      for (int i = 0; i < __msl_width<T>; i++) y[i] = FUNCTION(float(a[i]), float(b[i])); \
      return y; \
    } \
  }
#define __msl_math \
  __msl_f1(exp, __builtin_elementwise_exp) \
  __msl_f1(exp2, __builtin_elementwise_exp2) \
  __msl_f1(log, __builtin_elementwise_log) \
  __msl_f1(log2, __builtin_elementwise_log2) \
  __msl_f1(log10, __builtin_elementwise_log10) \
  __msl_f1(sin, __builtin_elementwise_sin) \
  __msl_f1(cos, __builtin_elementwise_cos) \
  __msl_call1(tan, __builtin_tanf) \
  __msl_call1(asin, __builtin_asinf) \
  __msl_call1(acos, __builtin_acosf) \
  __msl_call1(atan, __builtin_atanf) \
  __msl_call1(sinh, __builtin_sinhf) \
  __msl_call1(cosh, __builtin_coshf) \
  __msl_call1(tanh, __builtin_tanhf) \
  __msl_call1(asinh, __builtin_asinhf) \
  __msl_call1(acosh, __builtin_acoshf) \
  __msl_call1(atanh, __builtin_atanhf) \
  __msl_call2(atan2, __builtin_atan2f) \
  __msl_call2(fmod, __builtin_fmodf) \
  __msl_call2(pow, __builtin_powf) \
  template <typename T> __msl_inline __msl_if_real<T> powr(T a, T b) { return pow(a, b); } \
  template <typename T> __msl_inline __msl_if_real<T> exp10(T x) { return pow(T(10), x); } \
  __msl_f1(sqrt, __builtin_elementwise_sqrt) \
  template <typename T> __msl_inline __msl_if_real<T> rsqrt(T x) { return T(1) / sqrt(x); } \
  template <typename T> __msl_inline __msl_if_real<T> sincos(T x, __private T &c) { \
    c = cos(x); \
    return sin(x); \
  } \
  __msl_f1(floor, __builtin_elementwise_floor) \
  __msl_f1(ceil, __builtin_elementwise_ceil) \
  __msl_f1(trunc, __builtin_elementwise_trunc) \
  __msl_f1(round, __builtin_elementwise_round) \
  __msl_f1(rint, __builtin_elementwise_roundeven) \
  __msl_f1(fabs, __builtin_elementwise_abs) \
  template <typename T> __msl_inline __msl_if_number<T> abs(T x) { \
    if constexpr (__msl_real<T> || (__is_signed(__msl_element<T>))) return __builtin_elementwise_abs(x); \
    else return x; \
  } \
  template <typename T> __msl_inline __msl_if_real<T> fract(T x) { return x - floor(x); } \
  template <typename T> __msl_inline __msl_if_real<T> fmin(T a, T b) { return __builtin_elementwise_min(a, b); } \
  template <typename T> __msl_inline __msl_if_real<T> fmax(T a, T b) { return __builtin_elementwise_max(a, b); } \
  template <typename T> __msl_inline __msl_if_number<T> min(T a, T b) { return __builtin_elementwise_min(a, b); } \
  template <typename T> __msl_inline __msl_if_number<T> max(T a, T b) { return __builtin_elementwise_max(a, b); } \
  template <typename T> __msl_inline __msl_if_vector<T> min(T a, __msl_element<T> b) { return min(a, T(b)); } \
  template <typename T> __msl_inline __msl_if_vector<T> max(T a, __msl_element<T> b) { return max(a, T(b)); } \
  template <typename T> __msl_inline __msl_if_number<T> clamp(T x, T lo, T hi) { return min(max(x, lo), hi); } \
  template <typename T> __msl_inline __msl_if_vector<T> clamp(T x, __msl_element<T> lo, __msl_element<T> hi) { \
    return min(max(x, T(lo)), T(hi)); \
  } \
  template <typename T> __msl_inline __msl_if_real<T> saturate(T x) { return clamp(x, T(0), T(1)); } \
  template <typename T> __msl_inline __msl_if_real<T> copysign(T a, T b) { return __builtin_elementwise_copysign(a, b); } \
  template <typename T> __msl_inline __msl_if_real<T> fma(T a, T b, T c) { return __builtin_elementwise_fma(a, b, c); } \
  template <typename T> __msl_inline __msl_if_real<T> mix(T a, T b, T t) { return a + (b - a) * t; } \
  template <typename T> __msl_inline __msl_if_vector<T> mix(T a, T b, __msl_element<T> t) { return a + (b - a) * T(t); } \
  template <typename T> __msl_inline __msl_if_real<T> step(T edge, T x) { return select(T(1), T(0), x < edge); } \
  template <typename T> __msl_inline __msl_if_real<T> smoothstep(T a, T b, T x) { \
    T t = saturate((x - a) / (b - a)); \
    return t * t * (T(3) - T(2) * t); \
  } \
  template <typename T> __msl_inline __msl_if_real<T> sign(T x) { \
    return select(select(T(0), T(-1), x < T(0)), T(1), x > T(0)); \
  } \
  template <typename T> __msl_inline __msl_if_real<T> divide(T a, T b) { return a / b; }

// The mask of a vector's select is what a comparison of such vectors gives.
template <typename T> __msl_inline T select(T no, T yes, bool c) { return c ? yes : no; }
template <typename T, typename M, typename = metal::enable_if_t<(__msl_width<M> > 0)>>
__msl_inline T select(T no, T yes, M c) {
  static_assert(__msl_width<T> == __msl_width<M>, "select: the mask has another width");
  T r;
  for (int i = 0; i < __msl_width<T>; i++) r[i] = c[i] ? yes[i] : no[i];
  return r;
}
__msl_math
// Metal offers both accuracies by name. The runner has one, the accurate one.
namespace precise { __msl_math }
namespace fast { __msl_math }

#define __msl_classify(NAME, BUILTIN) \
  __msl_inline bool NAME(float x) { return BUILTIN(x); } \
  __msl_inline bool NAME(half x) { return BUILTIN(float(x)); } \
  template <typename T> __msl_inline auto NAME(T x) -> metal::enable_if_t<(__msl_width<T> > 0), decltype(x == x)> { \
    decltype(x == x) r; \
    for (int i = 0; i < __msl_width<T>; i++) r[i] = BUILTIN(float(x[i])) ? -1 : 0; \
    return r; \
  }
__msl_classify(isnan, __builtin_isnan)
__msl_classify(isinf, __builtin_isinf)
__msl_classify(isfinite, __builtin_isfinite)
__msl_classify(isnormal, __builtin_isnormal)
__msl_classify(signbit, __builtin_signbit)

__msl_inline bool any(bool b) { return b; }
__msl_inline bool all(bool b) { return b; }
template <typename T> __msl_inline metal::enable_if_t<(__msl_width<T> > 0), bool> any(T v) {
  bool r = false;
  for (int i = 0; i < __msl_width<T>; i++) r |= v[i] != 0;
  return r;
}
template <typename T> __msl_inline metal::enable_if_t<(__msl_width<T> > 0), bool> all(T v) {
  bool r = true;
  for (int i = 0; i < __msl_width<T>; i++) r &= v[i] != 0;
  return r;
}

#define __msl_bits1(NAME, EXPRESSION) \
  template <typename T> __msl_inline __msl_if_whole<T> NAME(T v) { \
    auto one = [](__msl_element<T> x) -> __msl_element<T> { \
      constexpr int bits = sizeof(x) * 8; \
      ulong u = (ulong)x & (~0ul >> (64 - bits)); \
      return EXPRESSION; \
    }; \
    if constexpr (__msl_width<T> == 0) return one(v); \
    else { \
      T r; \
      for (int i = 0; i < __msl_width<T>; i++) r[i] = one(v[i]); \
      return r; \
    } \
  }
__msl_bits1(popcount, __builtin_popcountl(u))
__msl_bits1(clz, u == 0 ? bits : __builtin_clzl(u) - (64 - bits))
__msl_bits1(ctz, u == 0 ? bits : __builtin_ctzl(u))
__msl_bits1(reverse_bits, __builtin_bitreverse64(u) >> (64 - bits))

template <typename T> __msl_inline __msl_if_whole<T> rotate(T v, T n) {
  using U = decltype(v);
  constexpr int bits = sizeof(__msl_element<T>) * 8;
  auto one = [](__msl_element<T> x, __msl_element<T> by) -> __msl_element<T> {
    ulong u = (ulong)x & (~0ul >> (64 - bits)), s = (ulong)by % bits;
    return s == 0 ? u : u << s | u >> (bits - s);
  };
  if constexpr (__msl_width<T> == 0) return one(v, n);
  else {
    U r;
    for (int i = 0; i < __msl_width<T>; i++) r[i] = one(v[i], n[i]);
    return r;
  }
}
__msl_inline int mulhi(int a, int b) { return (long)a * b >> 32; }
__msl_inline uint mulhi(uint a, uint b) { return (ulong)a * b >> 32; }
__msl_inline ulong mulhi(ulong a, ulong b) { return (unsigned __int128)a * b >> 64; }
__msl_inline uint absdiff(int a, int b) { return a > b ? (uint)a - (uint)b : (uint)b - (uint)a; }
__msl_inline uint absdiff(uint a, uint b) { return a > b ? a - b : b - a; }
// Scalars go through vectors: clang widens small ones before it saturates.
#define __msl_saturating(NAME, BUILTIN) \
  template <typename T> __msl_inline __msl_if_whole<T> NAME(T a, T b) { \
    if constexpr (__msl_width<T> == 0) return BUILTIN(vec<T, 2>(a), vec<T, 2>(b))[0]; \
    else return BUILTIN(a, b); \
  }
__msl_saturating(addsat, __builtin_elementwise_add_sat)
__msl_saturating(subsat, __builtin_elementwise_sub_sat)
__msl_inline uint extract_bits(uint x, uint offset, uint bits) {
  return bits == 0 ? 0 : (x >> offset) & (~0u >> (32 - bits));
}
__msl_inline int extract_bits(int x, uint offset, uint bits) {
  return bits == 0 ? 0 : (int)((uint)x << (32 - bits - offset)) >> (32 - bits);
}
__msl_inline uint insert_bits(uint base, uint insert, uint offset, uint bits) {
  uint mask = bits == 0 ? 0 : (~0u >> (32 - bits)) << offset;
  return (base & ~mask) | (insert << offset & mask);
}
__msl_inline float ldexp(float x, int e) { return __builtin_ldexpf(x, e); }
__msl_inline half ldexp(half x, int e) { return half(__builtin_ldexpf(float(x), e)); }
__msl_inline float frexp(float x, __private int &e) {
  // Done on the bits: libm's form takes a pointer.
  uint u = as_type<uint>(x);
  if ((u << 1) == 0 || (u >> 23 & 255) == 255) return e = 0, x;
  int scale = 0;
  if ((u >> 23 & 255) == 0) u = as_type<uint>(x * 0x1p24f), scale = 24;
  e = (int)(u >> 23 & 255) - 126 - scale;
  return as_type<float>((u & 0x807fffffu) | 0x3f000000u);
}
__msl_inline float modf(float x, __private float &whole) {
  whole = trunc(x);
  return copysign(isinf(x) ? 0.0f : x - whole, x);
}

template <typename T> __msl_inline __msl_element<__msl_if_vector<T>> dot(T a, T b) {
  __msl_element<T> s = a[0] * b[0];
  for (int i = 1; i < __msl_width<T>; i++) s += a[i] * b[i];
  return s;
}
template <typename T> __msl_inline __msl_element<__msl_if_vector<T>> length_squared(T a) { return dot(a, a); }
template <typename T> __msl_inline __msl_element<__msl_if_vector<T>> length(T a) { return sqrt(dot(a, a)); }
template <typename T> __msl_inline __msl_element<__msl_if_vector<T>> distance(T a, T b) { return length(a - b); }
template <typename T> __msl_inline __msl_if_vector<T> normalize(T a) { return a / T(length(a)); }
template <typename T> __msl_inline __msl_if_vector<T> cross(T a, T b) {
  static_assert(__msl_width<T> == 3, "cross takes vectors of three components");
  return a.yzx * b.zxy - a.zxy * b.yzx;
}
} // namespace metal
