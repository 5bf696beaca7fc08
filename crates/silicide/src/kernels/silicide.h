// What every kernel uses: reductions over a threadgroup of any size, and the instantiation macro.

// Entry points for one type each: `instantiate_kernel("op_f32", op, float)`.
#define instantiate_kernel(name, func, ...) \
  template [[host_name(name)]] [[kernel]] decltype(func<__VA_ARGS__>) func<__VA_ARGS__>;

#define instantiate_floats(name, func)            \
  instantiate_kernel(name "_f32", func, float)    \
  instantiate_kernel(name "_f16", func, half)     \
  instantiate_kernel(name "_bf16", func, bfloat)

struct Sum {
  using type = float;
  static constant constexpr float identity = 0.0f;
  static float combine(float a, float b) { return a + b; }
  static float simd(float x) { return simd_sum(x); }
};

struct Max {
  using type = float;
  static constant constexpr float identity = -INFINITY;
  static float combine(float a, float b) { return max(a, b); }
  static float simd(float x) { return simd_max(x); }
};

// Combines `x` over the threads of a threadgroup and gives every thread the result. `scratch` holds 32 values. Any
// number of threads will do; ends with a barrier, so `scratch` may be used again at once.
template <typename Op>
inline typename Op::type threadgroup_reduce(
    typename Op::type x, threadgroup typename Op::type* scratch, uint lane, uint simdgroup, uint simdgroups) {
  x = Op::simd(x);
  if (lane == 0) {
    scratch[simdgroup] = x;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  typename Op::type all = Op::identity;
  for (uint i = 0; i < simdgroups; ++i) {
    all = Op::combine(all, scratch[i]);
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  return all;
}
