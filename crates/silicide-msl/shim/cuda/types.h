// Scalar types, conversions and traits of the Metal standard library, for CUDA C++ without headers.
// The text that follows the shim is a kernel source after preprocessing, so no macro here reaches it except the last ones of end.h.

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
typedef decltype(sizeof(0)) size_t;
typedef decltype((char *)0 - (char *)0) ptrdiff_t;
typedef signed char int8_t;
typedef short int16_t;
typedef int int32_t;
typedef long int64_t;
typedef uchar uint8_t;
typedef ushort uint16_t;
typedef uint uint32_t;
typedef ulong uint64_t;
static_assert(sizeof(ulong) == 8, "long has 64 bits in Metal");

#define __msl_inline static inline __attribute__((always_inline))

namespace metal {
template <typename T, T V> struct integral_constant { static constexpr T value = V; };
using true_type = integral_constant<bool, true>;
using false_type = integral_constant<bool, false>;
template <bool B, typename T = void> struct enable_if {};
template <typename T> struct enable_if<true, T> { using type = T; };
template <bool B, typename T = void> using enable_if_t = typename enable_if<B, T>::type;
template <bool B, typename T, typename F> struct conditional { using type = T; };
template <typename T, typename F> struct conditional<false, T, F> { using type = F; };
template <bool B, typename T, typename F> using conditional_t = typename conditional<B, T, F>::type;
template <typename A, typename B> struct is_same : false_type {};
template <typename A> struct is_same<A, A> : true_type {};
template <typename A, typename B> constexpr bool is_same_v = is_same<A, B>::value;
template <typename T> struct remove_cv { using type = T; };
template <typename T> struct remove_cv<const T> : remove_cv<T> {};
template <typename T> struct remove_cv<volatile T> : remove_cv<T> {};
template <typename T> using remove_cv_t = typename remove_cv<T>::type;

template <typename T, typename U> __msl_inline T as_type(U u) {
  static_assert(sizeof(T) == sizeof(U), "as_type between types of different sizes");
  T t;
  memcpy(&t, &u, sizeof(T));
  return t;
}
} // namespace metal

// A 16-bit float, stored as its bits and computed with as a float: one operation on two of them and a rounding is what
// 16-bit arithmetic gives.
#define __msl_half(NAME, TO_FLOAT, FROM_FLOAT) \
  struct NAME { \
    ushort __bits; \
    NAME() = default; \
    NAME(float x) { FROM_FLOAT } \
    NAME(int x) : NAME(float(x)) {} \
    NAME(uint x) : NAME(float(x)) {} \
    NAME(long x) : NAME(float(x)) {} \
    NAME(ulong x) : NAME(float(x)) {} \
    operator float() const { TO_FLOAT } \
    NAME &operator+=(float x) { return *this = NAME(float(*this) + x); } \
    NAME &operator-=(float x) { return *this = NAME(float(*this) - x); } \
    NAME &operator*=(float x) { return *this = NAME(float(*this) * x); } \
    NAME &operator/=(float x) { return *this = NAME(float(*this) / x); } \
  }; \
  /* Templates, so that an operation with a float is one of floats. */ \
  template <typename T> __msl_inline metal::enable_if_t<metal::is_same_v<T, NAME>, T> operator+(T a, T b) { return T(float(a) + float(b)); } \
  template <typename T> __msl_inline metal::enable_if_t<metal::is_same_v<T, NAME>, T> operator-(T a, T b) { return T(float(a) - float(b)); } \
  template <typename T> __msl_inline metal::enable_if_t<metal::is_same_v<T, NAME>, T> operator*(T a, T b) { return T(float(a) * float(b)); } \
  template <typename T> __msl_inline metal::enable_if_t<metal::is_same_v<T, NAME>, T> operator/(T a, T b) { return T(float(a) / float(b)); } \
  __msl_inline NAME operator-(NAME a) { return metal::as_type<NAME>(ushort(a.__bits ^ 0x8000)); }

__msl_half(half,
  float f; asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(__bits)); return f;,
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(__bits) : "f"(x));)
__msl_half(bfloat,
  return metal::as_type<float>(uint(__bits) << 16);,
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(__bits) : "f"(x));)

namespace metal {
template <typename T> struct __msl_kind { enum : bool { real = false, whole = false, is_signed = false }; };
#define __msl_real_kind(T) template <> struct __msl_kind<T> { enum : bool { real = true, whole = false, is_signed = true }; };
#define __msl_whole_kind(T, S) template <> struct __msl_kind<T> { enum : bool { real = false, whole = true, is_signed = S }; };
__msl_real_kind(float) __msl_real_kind(half) __msl_real_kind(bfloat)
__msl_whole_kind(bool, false) __msl_whole_kind(char, true) __msl_whole_kind(signed char, true) __msl_whole_kind(uchar, false)
__msl_whole_kind(short, true) __msl_whole_kind(ushort, false) __msl_whole_kind(int, true) __msl_whole_kind(uint, false)
__msl_whole_kind(long, true) __msl_whole_kind(ulong, false)
template <typename T> constexpr bool is_floating_point_v = __msl_kind<remove_cv_t<T>>::real;
template <typename T> struct is_floating_point : integral_constant<bool, is_floating_point_v<T>> {};
template <typename T> constexpr bool is_integral_v = __msl_kind<remove_cv_t<T>>::whole;
template <typename T> struct is_integral : integral_constant<bool, is_integral_v<T>> {};
template <typename T> constexpr bool is_signed_v = __msl_kind<remove_cv_t<T>>::is_signed;
template <typename T> struct is_signed : integral_constant<bool, is_signed_v<T>> {};

template <typename T> struct numeric_limits;
#define __msl_limits(T, LO, HI, DIGITS) \
  template <> struct numeric_limits<T> { \
    enum : int { digits = DIGITS }; \
    enum : bool { is_integer = true }; \
    static constexpr T min() { return LO; } \
    static constexpr T lowest() { return LO; } \
    static constexpr T max() { return HI; } \
  };
__msl_limits(char, -128, 127, 7)
__msl_limits(uchar, 0, 255, 8)
__msl_limits(short, -32768, 32767, 15)
__msl_limits(ushort, 0, 65535, 16)
__msl_limits(int, -2147483647 - 1, 2147483647, 31)
__msl_limits(uint, 0, 4294967295u, 32)
__msl_limits(long, -9223372036854775807L - 1, 9223372036854775807L, 63)
__msl_limits(ulong, 0, 18446744073709551615ul, 64)
#define __msl_float_limits(T, BITS, MIN, MAX, EPS, INF, NANBITS, DIGITS) \
  template <> struct numeric_limits<T> { \
    enum : int { digits = DIGITS }; \
    enum : bool { is_integer = false }; \
    static T min() { return as_type<T>(BITS(MIN)); } \
    static T max() { return as_type<T>(BITS(MAX)); } \
    static T lowest() { return as_type<T>(BITS(MAX | 1u << (sizeof(T) * 8 - 1))); } \
    static T epsilon() { return as_type<T>(BITS(EPS)); } \
    static T infinity() { return as_type<T>(BITS(INF)); } \
    static T quiet_NaN() { return as_type<T>(BITS(NANBITS)); } \
  };
__msl_float_limits(float, uint, 0x00800000u, 0x7f7fffffu, 0x34000000u, 0x7f800000u, 0x7fc00000u, 24)
__msl_float_limits(half, ushort, 0x0400u, 0x7bffu, 0x1400u, 0x7c00u, 0x7e00u, 11)
__msl_float_limits(bfloat, ushort, 0x0080u, 0x7f7fu, 0x3c00u, 0x7f80u, 0x7fc0u, 8)

template <typename T, size_t N> struct array {
  T __elems[N];
  constexpr size_t size() const { return N; }
  T &operator[](size_t i) { return __elems[i]; }
  const T &operator[](size_t i) const { return __elems[i]; }
};
} // namespace metal
