// Vectors of 2, 3 and 4 elements, with swizzles of up to three components and operations element by element.

// Moves a vector by one load or store: element by element the compiler would not always know of its alignment.
template <int BYTES> struct __msl_word;
template <> struct __msl_word<2> { using type = ushort; };
template <> struct __msl_word<4> { using type = uint; };
template <> struct __msl_word<8> { using type = ::uint2; };
template <> struct __msl_word<16> { using type = ::uint4; };
template <typename V> __msl_inline void __msl_move(V *to, const V *from) {
  if constexpr (sizeof(V) <= 16) {
    using W = typename __msl_word<sizeof(V)>::type;
    *reinterpret_cast<W *>(to) = *reinterpret_cast<const W *>(from);
  } else {
    __msl_move(reinterpret_cast<::uint4 *>(to), reinterpret_cast<const ::uint4 *>(from));
    __msl_move(reinterpret_cast<::uint4 *>(to) + 1, reinterpret_cast<const ::uint4 *>(from) + 1);
  }
}

namespace metal {
template <typename T, int N> struct vec;

// Some components of a vector of N, laid over it.
template <typename T, int N, int... I> struct __msl_swizzle {
  T __at[N];
  operator vec<T, int(sizeof...(I))>() const { return {__at[I]...}; }
  __msl_swizzle &operator=(vec<T, int(sizeof...(I))> from) {
    int i = 0;
    ((__at[I] = from[i++]), ...);
    return *this;
  }
  // Another of the same kind holds components that are not these.
  __msl_swizzle &operator=(const __msl_swizzle &from) { return *this = vec<T, int(sizeof...(I))>(from); }
};

#define __msl_pairs2(X, Y) __msl_swizzle<T, 2, 0, 1> X##Y; __msl_swizzle<T, 2, 1, 0> Y##X;
#define __msl_pairs3(X, Y, Z) \
  __msl_swizzle<T, 3, 0, 1> X##Y; __msl_swizzle<T, 3, 1, 2> Y##Z; __msl_swizzle<T, 3, 0, 2> X##Z; __msl_swizzle<T, 3, 1, 0> Y##X;
#define __msl_pairs4(X, Y, Z, W) \
  __msl_swizzle<T, 4, 0, 1> X##Y; __msl_swizzle<T, 4, 2, 3> Z##W; __msl_swizzle<T, 4, 0, 2> X##Z; __msl_swizzle<T, 4, 1, 3> Y##W; \
  __msl_swizzle<T, 4, 1, 2> Y##Z; __msl_swizzle<T, 4, 0, 3> X##W; __msl_swizzle<T, 4, 1, 0> Y##X; __msl_swizzle<T, 4, 3, 2> W##Z; \
  __msl_swizzle<T, 4, 0, 1, 2> X##Y##Z; __msl_swizzle<T, 4, 1, 2, 3> Y##Z##W;

#define __msl_vector_body(N) \
  vec() = default; \
  vec(const vec &from) { __msl_move(this, &from); } \
  vec &operator=(const vec &from) { \
    __msl_move(this, &from); \
    return *this; \
  } \
  vec(T x) { for (int i = 0; i < N; i++) __at[i] = x; } \
  template <typename U, typename = enable_if_t<!is_same_v<T, U>>> explicit vec(vec<U, N> from) { \
    for (int i = 0; i < N; i++) __at[i] = T(from[i]); \
  } \
  T &operator[](int i) { return __at[i]; } \
  T operator[](int i) const { return __at[i]; }

template <typename T> struct alignas(2 * sizeof(T)) vec<T, 2> {
  union {
    T __at[2];
    struct { T x, y; };
    struct { T r, g; };
    __msl_pairs2(x, y)
  };
  __msl_vector_body(2)
  vec(T a, T b) : __at{a, b} {}
};
template <typename T> struct alignas(4 * sizeof(T)) vec<T, 3> {
  union {
    T __at[3];
    struct { T x, y, z; };
    struct { T r, g, b; };
    __msl_pairs3(x, y, z)
  };
  __msl_vector_body(3)
  vec(T a, T b, T c) : __at{a, b, c} {}
  vec(const vec<T, 2> &ab, T c) : __at{ab[0], ab[1], c} {}
  vec(T a, const vec<T, 2> &bc) : __at{a, bc[0], bc[1]} {}
};
template <typename T> struct alignas(4 * sizeof(T)) vec<T, 4> {
  union {
    T __at[4];
    struct { T x, y, z, w; };
    struct { T r, g, b, a; };
    __msl_pairs4(x, y, z, w)
  };
  __msl_vector_body(4)
  vec(T a, T b, T c, T d) : __at{a, b, c, d} {}
  vec(const vec<T, 2> &ab, const vec<T, 2> &cd) : __at{ab[0], ab[1], cd[0], cd[1]} {}
  vec(const vec<T, 2> &ab, T c, T d) : __at{ab[0], ab[1], c, d} {}
  vec(T a, T b, const vec<T, 2> &cd) : __at{a, b, cd[0], cd[1]} {}
  vec(const vec<T, 3> &abc, T d) : __at{abc[0], abc[1], abc[2], d} {}
  vec(T a, const vec<T, 3> &bcd) : __at{a, bcd[0], bcd[1], bcd[2]} {}
};

// A scalar of another type beside a vector becomes one of its element type.
template <typename S> constexpr bool __msl_scalar = is_integral_v<S> || is_floating_point_v<S>;
#define __msl_operator(OP) \
  template <typename T, int N> __msl_inline vec<T, N> operator OP(const vec<T, N> &a, const vec<T, N> &b) { \
    vec<T, N> c; \
    for (int i = 0; i < N; i++) c[i] = T(a[i] OP b[i]); \
    return c; \
  } \
  template <typename T, int N, typename S, typename = enable_if_t<__msl_scalar<S>>> \
  __msl_inline vec<T, N> operator OP(const vec<T, N> &a, S b) { return a OP vec<T, N>(T(b)); } \
  template <typename T, int N, typename S, typename = enable_if_t<__msl_scalar<S>>> \
  __msl_inline vec<T, N> operator OP(S a, const vec<T, N> &b) { return vec<T, N>(T(a)) OP b; } \
  template <typename T, int N, typename B> __msl_inline vec<T, N> &operator OP##=(vec<T, N> &a, const B &b) { return a = a OP b; }
__msl_operator(+)
__msl_operator(-)
__msl_operator(*)
__msl_operator(/)
__msl_operator(%)
__msl_operator(&)
__msl_operator(|)
__msl_operator(^)
__msl_operator(<<)
__msl_operator(>>)

#define __msl_comparison(OP) \
  template <typename T, int N> __msl_inline vec<bool, N> operator OP(const vec<T, N> &a, const vec<T, N> &b) { \
    vec<bool, N> c; \
    for (int i = 0; i < N; i++) c[i] = a[i] OP b[i]; \
    return c; \
  } \
  template <typename T, int N, typename S, typename = enable_if_t<__msl_scalar<S>>> \
  __msl_inline vec<bool, N> operator OP(const vec<T, N> &a, S b) { return a OP vec<T, N>(T(b)); }
__msl_comparison(==)
__msl_comparison(!=)
__msl_comparison(<)
__msl_comparison(<=)
__msl_comparison(>)
__msl_comparison(>=)

#define __msl_prefix(OP) \
  template <typename T, int N> __msl_inline vec<T, N> operator OP(const vec<T, N> &a) { \
    vec<T, N> c; \
    for (int i = 0; i < N; i++) c[i] = T(OP a[i]); \
    return c; \
  }
__msl_prefix(-)
__msl_prefix(~)
__msl_prefix(!)
} // namespace metal

// The element type and the width of a vector; a scalar is its own element, of width 0.
template <typename T> struct __msl_shape { using element = T; enum : int { width = 0 }; };
template <typename T, int N> struct __msl_shape<metal::vec<T, N>> { using element = T; enum : int { width = N }; };
template <typename T> using __msl_element = typename __msl_shape<metal::remove_cv_t<T>>::element;
template <typename T> constexpr int __msl_width = __msl_shape<metal::remove_cv_t<T>>::width;
template <typename T> constexpr bool __msl_real = metal::is_same_v<__msl_element<T>, float> || metal::is_same_v<__msl_element<T>, half>;
template <typename T> constexpr bool __msl_whole = metal::is_integral_v<__msl_element<T>>;
template <typename T> using __msl_if_real = metal::enable_if_t<__msl_real<T>, T>;
template <typename T> using __msl_if_whole = metal::enable_if_t<__msl_whole<T>, T>;
template <typename T> using __msl_if_number = metal::enable_if_t<__msl_real<T> || __msl_whole<T>, T>;
template <typename T> using __msl_if_vector = metal::enable_if_t<(__msl_width<T> > 0), T>;

// `f` of the elements of one, two or three scalars or vectors.
template <typename R, typename F, typename T, typename... A> __msl_inline R __msl_map(F f, const T &x, const A &...more) {
  if constexpr (__msl_width<T> == 0) return R(f(x, more...));
  else {
    R r;
    for (int i = 0; i < __msl_width<T>; i++) r[i] = __msl_element<R>(f(x[i], more[i]...));
    return r;
  }
}
