// simdgroup_matrix: 8x8, two neighbouring elements of a row in each of the 32 lanes, as tensor cores have them.

namespace metal {
template <typename T, int R, int C> struct simdgroup_matrix {
  static_assert(R == 8 && C == 8, "Metal has 8x8 simdgroup matrices only");
  static_assert(is_floating_point_v<T>, "simdgroup matrices are of float, half or bfloat");
  vec<T, 2> __elements;
  simdgroup_matrix() = default;
  explicit simdgroup_matrix(T diagonal) {
    __elements = vec<T, 2>(__column() == __row() ? diagonal : T(0), __column() + 1 == __row() ? diagonal : T(0));
  }
  static uint __row() { return __msl_lane() / 4; }
  static uint __column() { return __msl_lane() % 4 * 2; }
  vec<T, 2> &thread_elements() { return __elements; }
};
typedef simdgroup_matrix<float, 8, 8> simdgroup_float8x8;
typedef simdgroup_matrix<half, 8, 8> simdgroup_half8x8;
typedef simdgroup_matrix<bfloat, 8, 8> simdgroup_bfloat8x8;

template <typename T, int R, int C> __msl_inline simdgroup_matrix<T, R, C> make_filled_simdgroup_matrix(T value) {
  simdgroup_matrix<T, R, C> m;
  m.__elements = vec<T, 2>(value);
  return m;
}
template <typename T>
__msl_inline void simdgroup_load(simdgroup_matrix<T, 8, 8> &m, const T *source, ulong elements_per_row = 8,
                                 vec<ulong, 2> origin = vec<ulong, 2>(0, 0), bool transpose = false) {
  const T *p = source + origin.y * elements_per_row + origin.x;
  uint row = m.__row(), column = m.__column();
  m.__elements = transpose ? vec<T, 2>(p[column * elements_per_row + row], p[(column + 1) * elements_per_row + row])
                           : vec<T, 2>(p[row * elements_per_row + column], p[row * elements_per_row + column + 1]);
}
template <typename T>
__msl_inline void simdgroup_store(simdgroup_matrix<T, 8, 8> m, T *target, ulong elements_per_row = 8,
                                  vec<ulong, 2> origin = vec<ulong, 2>(0, 0), bool transpose = false) {
  T *p = target + origin.y * elements_per_row + origin.x;
  uint row = m.__row(), column = m.__column();
  p[transpose ? column * elements_per_row + row : row * elements_per_row + column] = m.__elements.x;
  p[transpose ? (column + 1) * elements_per_row + row : row * elements_per_row + column + 1] = m.__elements.y;
}

// Of 16-bit floats on a tensor core, whose shape is 16x8x8: the upper half of its left side is zero.
#define __msl_tensor_product(T, NAME) \
  __msl_inline vec<float, 2> __msl_product(vec<T, 2> a, vec<T, 2> b, vec<float, 2> c) { \
    uint transposed; \
    float none[2]; \
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(transposed) : "r"(as_type<uint>(b))); \
    asm("mma.sync.aligned.m16n8k8.row.col.f32." NAME "." NAME ".f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%7, %8, %9, %9};" \
        : "=f"(c[0]), "=f"(c[1]), "=f"(none[0]), "=f"(none[1]) \
        : "r"(as_type<uint>(a)), "r"(0u), "r"(transposed), "f"(c[0]), "f"(c[1]), "f"(0.0f)); \
    return c; \
  }
__msl_tensor_product(half, "f16")
__msl_tensor_product(bfloat, "bf16")

// Of floats, for which tensor cores keep too few bits.
template <typename A, typename B> __msl_inline vec<float, 2> __msl_product(vec<A, 2> a, vec<B, 2> b, vec<float, 2> c) {
  vec<float, 2> x = vec<float, 2>(float(a.x), float(a.y)), y = vec<float, 2>(float(b.x), float(b.y));
  uint row = __msl_lane() / 4, pair = __msl_lane() % 4;
  for (uint k = 0; k < 8; k++) {
    float left = __shfl_sync(~0u, k % 2 == 0 ? x.x : x.y, row * 4 + k / 2);
    c.x = fma(left, __shfl_sync(~0u, y.x, k * 4 + pair), c.x);
    c.y = fma(left, __shfl_sync(~0u, y.y, k * 4 + pair), c.y);
  }
  return c;
}

// Products and sums are in float; the result is rounded to its element type once.
template <typename D, typename A, typename B, typename C>
__msl_inline void simdgroup_multiply_accumulate(simdgroup_matrix<D, 8, 8> &d, simdgroup_matrix<A, 8, 8> a,
                                                simdgroup_matrix<B, 8, 8> b, simdgroup_matrix<C, 8, 8> c) {
  vec<float, 2> sum = __msl_product(a.__elements, b.__elements, vec<float, 2>(float(c.__elements.x), float(c.__elements.y)));
  d.__elements = vec<D, 2>(D(sum.x), D(sum.y));
}
template <typename D, typename A, typename B>
__msl_inline void simdgroup_multiply(simdgroup_matrix<D, 8, 8> &d, simdgroup_matrix<A, 8, 8> a, simdgroup_matrix<B, 8, 8> b) {
  simdgroup_multiply_accumulate(d, a, b, make_filled_simdgroup_matrix<D, 8, 8>(D(0)));
}
template <typename A, typename B>
__msl_inline simdgroup_matrix<A, 8, 8> operator*(simdgroup_matrix<A, 8, 8> a, simdgroup_matrix<B, 8, 8> b) {
  simdgroup_matrix<A, 8, 8> d;
  simdgroup_multiply(d, a, b);
  return d;
}
} // namespace metal
