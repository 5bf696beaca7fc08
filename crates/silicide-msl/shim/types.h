// Scalar and vector types, conversions and traits of the Metal standard library, for clang's C++ for OpenCL.
// The text that follows the shim is a kernel source after preprocessing, so no macro here reaches it except the last ones of end.h.

#pragma OPENCL EXTENSION cl_khr_fp16 : enable

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
typedef __SIZE_TYPE__ size_t;
typedef __PTRDIFF_TYPE__ ptrdiff_t;
typedef signed char int8_t;
typedef short int16_t;
typedef int int32_t;
typedef long int64_t;
typedef uchar uint8_t;
typedef ushort uint16_t;
typedef uint uint32_t;
typedef ulong uint64_t;
typedef __bf16 bfloat;

#define __msl_inline static inline __attribute__((always_inline))
#define __msl_unchecked __attribute__((no_sanitize("kernel-address"), no_sanitize("undefined")))

// vec2 and vec4 of the packed kind have the size of their parts, so a smaller alignment is all that differs.
#define __msl_vectors(T) \
  typedef T T##2 __attribute__((ext_vector_type(2))); \
  typedef T T##3 __attribute__((ext_vector_type(3))); \
  typedef T T##4 __attribute__((ext_vector_type(4))); \
  typedef T##2 packed_##T##2 __attribute__((aligned(sizeof(T)))); \
  typedef T##4 packed_##T##4 __attribute__((aligned(sizeof(T)))); \
  struct packed_##T##3 { \
    T x, y, z; \
    packed_##T##3() = default; \
    packed_##T##3(T a, T b, T c) : x(a), y(b), z(c) {} \
    packed_##T##3(T##3 v) : x(v.x), y(v.y), z(v.z) {} \
    operator T##3() const { return T##3{x, y, z}; } \
    T operator[](int i) const { return i == 0 ? x : i == 1 ? y : z; } \
  };
__msl_vectors(char)
__msl_vectors(uchar)
__msl_vectors(short)
__msl_vectors(ushort)
__msl_vectors(int)
__msl_vectors(uint)
__msl_vectors(long)
__msl_vectors(ulong)
__msl_vectors(half)
__msl_vectors(bfloat)
__msl_vectors(float)

namespace metal {
using ::bfloat;

template <typename T, int N> using vec = T __attribute__((ext_vector_type(N)));

template <typename T, T V> struct integral_constant { static constexpr const __constant T value = V; };
struct true_type { enum : bool { value = true }; };
struct false_type { enum : bool { value = false }; };
template <bool B, typename T = void> struct enable_if {};
template <typename T> struct enable_if<true, T> { using type = T; };
template <bool B, typename T = void> using enable_if_t = typename enable_if<B, T>::type;
template <bool B, typename T, typename F> struct conditional { using type = T; };
template <typename T, typename F> struct conditional<false, T, F> { using type = F; };
template <bool B, typename T, typename F> using conditional_t = typename conditional<B, T, F>::type;
template <typename A, typename B> struct is_same : false_type {};
template <typename A> struct is_same<A, A> : true_type {};
template <typename A, typename B> constexpr __constant bool is_same_v = __is_same(A, B);
template <typename T> struct remove_cv { using type = __remove_cv(T); };
template <typename T> using remove_cv_t = __remove_cv(T);
template <typename T> using remove_reference_t = __remove_reference_t(T);
template <typename T> constexpr __constant bool is_floating_point_v =
    __is_same(__remove_cv(T), float) || __is_same(__remove_cv(T), half) || __is_same(__remove_cv(T), bfloat);
template <typename T> struct is_floating_point { enum : bool { value = is_floating_point_v<T> }; };
template <typename T> constexpr __constant bool is_integral_v = __is_integral(T);
template <typename T> struct is_integral { enum : bool { value = __is_integral(T) }; };
template <typename T> constexpr __constant bool is_signed_v = __is_signed(T) || is_floating_point_v<T>;
template <typename T> struct is_signed { enum : bool { value = is_signed_v<T> }; };
template <typename T> constexpr __constant bool is_unsigned_v = __is_unsigned(T);
template <typename T> struct is_unsigned { enum : bool { value = __is_unsigned(T) }; };
template <typename T> using make_unsigned_t = __make_unsigned(T);
template <typename T> using make_signed_t = __make_signed(T);
template <typename T> struct make_unsigned { using type = __make_unsigned(T); };
} // namespace metal

// The element type and the width of a vector; a scalar is its own element, of width 0.
template <typename T> struct __msl_shape { using element = T; enum : int { width = 0 }; };
template <typename T, int N> struct __msl_shape<T __attribute__((ext_vector_type(N)))> {
  using element = T;
  enum : int { width = N };
};
template <typename T> using __msl_element = typename __msl_shape<__remove_cv(T)>::element;
template <typename T> constexpr __constant int __msl_width = __msl_shape<__remove_cv(T)>::width;
// half and float, scalar or vector: what the math functions take. bfloat has none of them in Metal.
template <typename T> constexpr __constant bool __msl_real =
    __is_same(__msl_element<T>, float) || __is_same(__msl_element<T>, half);
template <typename T> constexpr __constant bool __msl_whole = __is_integral(__msl_element<T>);
template <typename T> using __msl_if_real = metal::enable_if_t<__msl_real<T>, T>;
template <typename T> using __msl_if_whole = metal::enable_if_t<__msl_whole<T>, T>;
template <typename T> using __msl_if_number = metal::enable_if_t<__msl_real<T> || __msl_whole<T>, T>;
template <typename T> using __msl_if_vector = metal::enable_if_t<(__msl_width<T> > 0), T>;

// `float4(x, y)` in kernel text becomes `__msl_make<float4>(x, y)`: ext_vector types lack Metal's constructors.
template <typename E, typename A> __msl_inline constexpr auto __msl_part(A a) {
  if constexpr (__msl_width<A> == 0) return E(a);
  else {
    static_assert(__is_same(__msl_element<A>, E), "a vector is built from vectors of another element type");
    return a;
  }
}
template <typename T, typename A> __msl_inline constexpr T __msl_convert(A a) {
  if constexpr (__msl_width<T> == 0 || __is_same(T, A)) return T(a);
  else if constexpr (__is_class(A)) return a; // A packed vector.
  else if constexpr (__msl_width<A> == 0) return T(__msl_element<T>(a));
  else {
    static_assert(__msl_width<A> == __msl_width<T>, "conversion between vectors of different widths");
    return __builtin_convertvector(a, T);
  }
}
// Component counts are a constraint, so that a mistake is reported where the constructor is written.
template <typename... A> constexpr __constant int __msl_components = (0 + ... + (__msl_width<A> ? __msl_width<A> : 1));
template <typename T, typename... A>
constexpr __constant bool __msl_fits = __msl_width<T> == 0 || sizeof...(A) == 0 || __msl_components<A...> == __msl_width<T> ||
                                       (sizeof...(A) == 1 && __msl_components<A...> == 1);
template <typename T, typename... A>
__msl_inline constexpr metal::enable_if_t<__msl_fits<T, A...>, T> __msl_make(A... a) {
  if constexpr (__msl_width<T> == 0) return T(a...);
  else if constexpr (sizeof...(A) == 0) return T{};
  else if constexpr (sizeof...(A) == 1) return __msl_convert<T>(a...);
  else return T{__msl_part<__msl_element<T>>(a)...};
}

namespace metal {
template <typename T, typename U> __msl_inline T as_type(U u) {
  static_assert(sizeof(T) == sizeof(U), "as_type between types of different sizes");
  return __builtin_bit_cast(T, u);
}

template <typename T> struct numeric_limits;
#define __msl_limits(T, LO, HI, DIGITS) \
  template <> struct numeric_limits<T> { \
    enum : int { digits = DIGITS }; \
    enum : bool { is_integer = true, is_signed = LO != 0 }; \
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
    enum : bool { is_integer = false, is_signed = true, has_infinity = true }; \
    static constexpr T min() { return __builtin_bit_cast(T, BITS(MIN)); } \
    static constexpr T max() { return __builtin_bit_cast(T, BITS(MAX)); } \
    static constexpr T lowest() { return __builtin_bit_cast(T, BITS(MAX | 1u << (sizeof(T) * 8 - 1))); } \
    static constexpr T epsilon() { return __builtin_bit_cast(T, BITS(EPS)); } \
    static constexpr T infinity() { return __builtin_bit_cast(T, BITS(INF)); } \
    static constexpr T quiet_NaN() { return __builtin_bit_cast(T, BITS(NANBITS)); } \
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
