// Math, integer, relational and geometric functions.

namespace metal {
// Functions of floats.
#define __msl_f1(NAME, FUNCTION) \
  template <typename T> __msl_inline __msl_if_real<T> NAME(T x) { return __msl_map<T>([](float v) { return FUNCTION(v); }, x); }
#define __msl_f2(NAME, FUNCTION) \
  template <typename T> __msl_inline __msl_if_real<T> NAME(T a, T b) { \
    return __msl_map<T>([](float v, float w) { return FUNCTION(v, w); }, a, b); \
  }
__msl_inline float __msl_fract(float x) { return x - ::floorf(x); }
__msl_inline float __msl_sign(float x) { return x > 0.0f ? 1.0f : x < 0.0f ? -1.0f : 0.0f; }
__msl_inline float __msl_step(float edge, float x) { return x < edge ? 0.0f : 1.0f; }
__msl_inline float __msl_divide(float a, float b) { return a / b; }
#define __msl_math(EXP, DIVIDE) \
  __msl_f1(exp, EXP) __msl_f1(exp2, ::exp2f) __msl_f1(exp10, ::exp10f) \
  __msl_f1(log, ::logf) __msl_f1(log2, ::log2f) __msl_f1(log10, ::log10f) \
  __msl_f1(sin, ::sinf) __msl_f1(cos, ::cosf) __msl_f1(tan, ::tanf) \
  __msl_f1(asin, ::asinf) __msl_f1(acos, ::acosf) __msl_f1(atan, ::atanf) \
  __msl_f1(sinh, ::sinhf) __msl_f1(cosh, ::coshf) __msl_f1(tanh, ::tanhf) \
  __msl_f1(asinh, ::asinhf) __msl_f1(acosh, ::acoshf) __msl_f1(atanh, ::atanhf) \
  __msl_f2(atan2, ::atan2f) __msl_f2(fmod, ::fmodf) __msl_f2(pow, ::powf) __msl_f2(powr, ::powf) \
  __msl_f1(sqrt, ::sqrtf) __msl_f1(rsqrt, ::rsqrtf) \
  __msl_f1(floor, ::floorf) __msl_f1(ceil, ::ceilf) __msl_f1(trunc, ::truncf) __msl_f1(round, ::roundf) __msl_f1(rint, ::rintf) \
  __msl_f1(fabs, ::fabsf) __msl_f1(fract, __msl_fract) __msl_f1(sign, __msl_sign) \
  __msl_f2(fmin, ::fminf) __msl_f2(fmax, ::fmaxf) __msl_f2(copysign, ::copysignf) __msl_f2(step, __msl_step) \
  template <typename T> __msl_inline __msl_if_real<T> sincos(T x, T &c) { \
    c = cos(x); \
    return sin(x); \
  } \
  template <typename T> __msl_inline __msl_if_real<T> fma(T a, T b, T c) { \
    return __msl_map<T>([](float u, float v, float w) { return ::fmaf(u, v, w); }, a, b, c); \
  } \
  __msl_f2(divide, DIVIDE)

__msl_math(::expf, __msl_divide)
// Metal offers both accuracies by name; here they differ in what gates use.
namespace precise { __msl_math(::expf, __msl_divide) }
namespace fast { __msl_math(::__expf, ::__fdividef) }

template <typename T> __msl_inline __msl_if_number<T> abs(T x) {
  return __msl_map<T>([](auto v) -> decltype(v) {
    if constexpr (__msl_real<decltype(v)>) return ::fabsf(v);
    else return v < decltype(v)(0) ? decltype(v)(-v) : v;
  }, x);
}
// Of a number and NaN the number, as fmin and fmax have it.
template <typename T> __msl_inline __msl_if_number<T> min(T a, T b) {
  return __msl_map<T>([](auto v, auto w) -> decltype(v) {
    if constexpr (__msl_real<decltype(v)>) return ::fminf(v, w);
    else return w < v ? w : v;
  }, a, b);
}
template <typename T> __msl_inline __msl_if_number<T> max(T a, T b) {
  return __msl_map<T>([](auto v, auto w) -> decltype(v) {
    if constexpr (__msl_real<decltype(v)>) return ::fmaxf(v, w);
    else return v < w ? w : v;
  }, a, b);
}
template <typename T> __msl_inline __msl_if_vector<T> min(T a, __msl_element<T> b) { return min(a, T(b)); }
template <typename T> __msl_inline __msl_if_vector<T> max(T a, __msl_element<T> b) { return max(a, T(b)); }
template <typename T> __msl_inline __msl_if_number<T> clamp(T x, T lo, T hi) { return min(max(x, lo), hi); }
template <typename T> __msl_inline __msl_if_vector<T> clamp(T x, __msl_element<T> lo, __msl_element<T> hi) {
  return min(max(x, T(lo)), T(hi));
}
template <typename T> __msl_inline __msl_if_real<T> saturate(T x) { return clamp(x, T(0), T(1)); }
template <typename T> __msl_inline __msl_if_real<T> mix(T a, T b, T t) { return a + (b - a) * t; }
template <typename T> __msl_inline __msl_if_vector<T> mix(T a, T b, __msl_element<T> t) { return a + (b - a) * T(t); }
template <typename T> __msl_inline __msl_if_real<T> smoothstep(T a, T b, T x) {
  T t = saturate((x - a) / (b - a));
  return t * t * (T(3) - T(2) * t);
}

template <typename T> __msl_inline T select(T no, T yes, bool c) { return c ? yes : no; }
template <typename T, int N> __msl_inline vec<T, N> select(vec<T, N> no, vec<T, N> yes, vec<bool, N> c) {
  vec<T, N> r;
  for (int i = 0; i < N; i++) r[i] = c[i] ? yes[i] : no[i];
  return r;
}

// By the bits, so that no option of the compiler makes them constants.
#define __msl_classify(NAME, TEST) \
  __msl_inline bool NAME(float x) { \
    uint bits = as_type<uint>(x), magnitude = bits & 0x7fffffffu; \
    (void)magnitude; \
    return TEST; \
  } \
  template <typename T, int N> __msl_inline vec<bool, N> NAME(vec<T, N> x) { \
    vec<bool, N> r; \
    for (int i = 0; i < N; i++) r[i] = NAME(float(x[i])); \
    return r; \
  }
__msl_classify(isnan, magnitude > 0x7f800000u)
__msl_classify(isinf, magnitude == 0x7f800000u)
__msl_classify(isfinite, magnitude < 0x7f800000u)
__msl_classify(isnormal, magnitude >= 0x00800000u && magnitude < 0x7f800000u)
__msl_classify(signbit, bits >> 31 != 0)

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
  template <typename T> __msl_inline __msl_if_whole<T> NAME(T x) { \
    return __msl_map<T>([](auto v) -> decltype(v) { \
      constexpr int bits = sizeof(v) * 8; \
      ulong u = (ulong)v & (~0ul >> (64 - bits)); \
      return EXPRESSION; \
    }, x); \
  }
__msl_bits1(popcount, __popcll(u))
__msl_bits1(clz, __clzll(u) - (64 - bits))
__msl_bits1(ctz, u == 0 ? bits : __ffsll(u) - 1)
__msl_bits1(reverse_bits, __brevll(u) >> (64 - bits))
template <typename T> __msl_inline __msl_if_whole<T> rotate(T v, T n) {
  return __msl_map<T>([](auto x, auto by) -> decltype(x) {
    constexpr int bits = sizeof(x) * 8;
    ulong u = (ulong)x & (~0ul >> (64 - bits)), s = (ulong)by % bits;
    return s == 0 ? u : u << s | u >> (bits - s);
  }, v, n);
}
__msl_inline int mulhi(int a, int b) { return (long)a * b >> 32; }
__msl_inline uint mulhi(uint a, uint b) { return (ulong)a * b >> 32; }
__msl_inline ulong mulhi(ulong a, ulong b) { return __umul64hi(a, b); }
__msl_inline uint absdiff(int a, int b) { return a > b ? (uint)a - (uint)b : (uint)b - (uint)a; }
__msl_inline uint absdiff(uint a, uint b) { return a > b ? a - b : b - a; }
__msl_inline uint extract_bits(uint x, uint offset, uint bits) { return bits == 0 ? 0 : (x >> offset) & (~0u >> (32 - bits)); }
__msl_inline int extract_bits(int x, uint offset, uint bits) {
  return bits == 0 ? 0 : (int)((uint)x << (32 - bits - offset)) >> (32 - bits);
}
__msl_inline uint insert_bits(uint base, uint insert, uint offset, uint bits) {
  uint mask = bits == 0 ? 0 : (~0u >> (32 - bits)) << offset;
  return (base & ~mask) | (insert << offset & mask);
}
__msl_inline float ldexp(float x, int e) { return ::ldexpf(x, e); }
__msl_inline half ldexp(half x, int e) { return half(::ldexpf(float(x), e)); }
__msl_inline float frexp(float x, int &e) { return ::frexpf(x, &e); }
__msl_inline float modf(float x, float &whole) { return ::modff(x, &whole); }

template <typename T, int N> __msl_inline T dot(vec<T, N> a, vec<T, N> b) {
  T s = a[0] * b[0];
  for (int i = 1; i < N; i++) s = s + a[i] * b[i];
  return s;
}
template <typename T, int N> __msl_inline T length_squared(vec<T, N> a) { return dot(a, a); }
template <typename T, int N> __msl_inline T length(vec<T, N> a) { return sqrt(dot(a, a)); }
template <typename T, int N> __msl_inline T distance(vec<T, N> a, vec<T, N> b) { return length(a - b); }
template <typename T, int N> __msl_inline vec<T, N> normalize(vec<T, N> a) { return a / vec<T, N>(length(a)); }
template <typename T> __msl_inline vec<T, 3> cross(vec<T, 3> a, vec<T, 3> b) {
  return {a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x};
}
} // namespace metal
