// simdgroup_matrix: 8x8, two neighbouring elements of a row in each of the 32 lanes.

namespace metal {
template <typename T, int R, int C> struct simdgroup_matrix {
  static_assert(R == 8 && C == 8, "Metal has 8x8 simdgroup matrices only");
  static_assert(is_floating_point_v<T>, "simdgroup matrices are of float, half or bfloat");
  vec<T, 2> __elements;
  simdgroup_matrix() = default;
  // A diagonal matrix, as in Metal.
  explicit simdgroup_matrix(T diagonal) {
    uint2 at = __position();
    __elements = vec<T, 2>{at.x == at.y ? diagonal : T(0), at.x + 1 == at.y ? diagonal : T(0)};
  }
  // Column and row of the first of the lane's two elements.
  static uint2 __position() {
    uint lane = ::__msl_lane();
    return uint2{(lane >> 3 & 1) * 4 + (lane & 1) * 2, (lane >> 4 & 1) * 4 + (lane >> 1 & 3)};
  }
  __private vec<T, 2> &thread_elements() { return *(__private vec<T, 2> *)(ulong)&__elements; }
};
// References to matrices are generic, as the members of an object are in its constructors.
typedef simdgroup_matrix<float, 8, 8> simdgroup_float8x8;
typedef simdgroup_matrix<half, 8, 8> simdgroup_half8x8;
typedef simdgroup_matrix<bfloat, 8, 8> simdgroup_bfloat8x8;

template <typename T, int R, int C> __msl_inline simdgroup_matrix<T, R, C> make_filled_simdgroup_matrix(T value) {
  simdgroup_matrix<T, R, C> m;
  m.__elements = vec<T, 2>{value, value};
  return m;
}
#define __msl_matrix_memory(SPACE) \
  template <typename T> \
  __msl_inline void simdgroup_load(simdgroup_matrix<T, 8, 8> &m, const SPACE T *source, ulong elements_per_row = 8, \
                                   ulong2 origin = ulong2{0, 0}, bool transpose = false) { \
    uint2 at = m.__position(); \
    const SPACE T *p = source + origin.y * elements_per_row + origin.x; \
    m.__elements = transpose ? vec<T, 2>{p[at.x * elements_per_row + at.y], p[(at.x + 1) * elements_per_row + at.y]} \
                             : vec<T, 2>{p[at.y * elements_per_row + at.x], p[at.y * elements_per_row + at.x + 1]}; \
  } \
  template <typename T> \
  __msl_inline void simdgroup_store(simdgroup_matrix<T, 8, 8> m, SPACE T *target, ulong elements_per_row = 8, \
                                    ulong2 origin = ulong2{0, 0}, bool transpose = false) { \
    uint2 at = m.__position(); \
    SPACE T *p = target + origin.y * elements_per_row + origin.x; \
    p[transpose ? at.x * elements_per_row + at.y : at.y * elements_per_row + at.x] = m.__elements.x; \
    p[transpose ? (at.x + 1) * elements_per_row + at.y : at.y * elements_per_row + at.x + 1] = m.__elements.y; \
  }
__msl_matrix_memory(__attribute__((opencl_global_device)))
__msl_matrix_memory(__local)

// Products and sums are in float; the result is rounded to its element type once.
template <typename D, typename A, typename B, typename C>
__msl_inline void simdgroup_multiply_accumulate(simdgroup_matrix<D, 8, 8> &d, simdgroup_matrix<A, 8, 8> a,
                                                simdgroup_matrix<B, 8, 8> b, simdgroup_matrix<C, 8, 8> c) {
  __msl_request r = {__msl_op_multiply, 0, 0,
                     {as_type<uint>(float(a.__elements.x)), as_type<uint>(float(a.__elements.y)),
                      as_type<uint>(float(b.__elements.x)), as_type<uint>(float(b.__elements.y)),
                      as_type<uint>(float(c.__elements.x)), as_type<uint>(float(c.__elements.y))}};
  __msl_collective(&r);
  d.__elements = vec<D, 2>{D(as_type<float>(r.value[0])), D(as_type<float>(r.value[1]))};
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
