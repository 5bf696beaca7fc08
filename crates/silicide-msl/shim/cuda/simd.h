// Barriers, simdgroup and quad operations, atomics. A simdgroup is a warp; all its threads take part.

namespace metal {
enum class mem_flags : uint { mem_none = 0, mem_device = 1, mem_threadgroup = 2, mem_texture = 4, mem_threadgroup_imageblock = 8 };
__msl_inline constexpr mem_flags operator|(mem_flags a, mem_flags b) { return mem_flags((uint)a | (uint)b); }

// Orders device memory among the threads of the threadgroup as well.
__msl_inline void threadgroup_barrier(mem_flags) { __syncthreads(); }
__msl_inline void simdgroup_barrier(mem_flags) { __syncwarp(); }

__msl_inline uint __msl_lane() {
  uint lane;
  asm("mov.u32 %0, %%laneid;" : "=r"(lane));
  return lane;
}

// Moves the 32-bit words of a scalar or vector through `f`.
template <typename T, typename F> __msl_inline T __msl_words(T x, F f) {
  static_assert(sizeof(T) <= 16 && sizeof(__msl_element<T>) <= 4, "Metal shuffles vectors and scalars of up to 32 bits each");
  constexpr int N = (sizeof(T) + 3) / 4;
  uint words[N] = {};
  memcpy(words, &x, sizeof(T));
  for (int i = 0; i < N; i++) words[i] = f(words[i]);
  memcpy(&x, words, sizeof(T));
  return x;
}
#define __msl_shuffle(NAME, PARAMETER, EXPRESSION) \
  template <typename T> __msl_inline T NAME(T x, ushort PARAMETER) { \
    return __msl_words(x, [=](uint v) { return EXPRESSION; }); \
  }
__msl_shuffle(simd_shuffle, lane, __shfl_sync(~0u, v, lane))
__msl_shuffle(simd_broadcast, lane, __shfl_sync(~0u, v, lane))
__msl_shuffle(simd_shuffle_xor, mask, __shfl_xor_sync(~0u, v, mask))
__msl_shuffle(simd_shuffle_up, delta, __shfl_up_sync(~0u, v, delta))
__msl_shuffle(simd_shuffle_down, delta, __shfl_down_sync(~0u, v, delta))
__msl_shuffle(simd_shuffle_rotate_up, delta, __shfl_sync(~0u, v, (__msl_lane() - delta) % 32))
__msl_shuffle(simd_shuffle_rotate_down, delta, __shfl_sync(~0u, v, (__msl_lane() + delta) % 32))
__msl_shuffle(quad_shuffle, lane, __shfl_sync(~0u, v, lane, 4))
__msl_shuffle(quad_broadcast, lane, __shfl_sync(~0u, v, lane, 4))
__msl_shuffle(quad_shuffle_xor, mask, __shfl_xor_sync(~0u, v, mask, 4))
__msl_shuffle(quad_shuffle_up, delta, __shfl_up_sync(~0u, v, delta, 4))
__msl_shuffle(quad_shuffle_down, delta, __shfl_down_sync(~0u, v, delta, 4))
template <typename T> __msl_inline T simd_broadcast_first(T x) { return simd_broadcast(x, 0); }

template <typename T> __msl_inline T __msl_fold_sum(T a, T b) { return T(a + b); }
template <typename T> __msl_inline T __msl_fold_product(T a, T b) { return T(a * b); }
template <typename T> __msl_inline T __msl_fold_min(T a, T b) { return min(a, b); }
template <typename T> __msl_inline T __msl_fold_max(T a, T b) { return max(a, b); }
template <typename T> __msl_inline T __msl_fold_and(T a, T b) { return a & b; }
template <typename T> __msl_inline T __msl_fold_or(T a, T b) { return a | b; }
template <typename T> __msl_inline T __msl_fold_xor(T a, T b) { return a ^ b; }
#define __msl_reductions(NAME) \
  template <typename T> __msl_inline T simd_##NAME(T x) { \
    for (int mask = 16; mask > 0; mask /= 2) x = __msl_fold_##NAME(x, simd_shuffle_xor(x, mask)); \
    return x; \
  } \
  template <typename T> __msl_inline T quad_##NAME(T x) { \
    for (int mask = 2; mask > 0; mask /= 2) x = __msl_fold_##NAME(x, quad_shuffle_xor(x, mask)); \
    return x; \
  }
__msl_reductions(sum)
__msl_reductions(product)
__msl_reductions(min)
__msl_reductions(max)
__msl_reductions(and)
__msl_reductions(or)
__msl_reductions(xor)
#define __msl_scans(NAME, IDENTITY) \
  template <typename T> __msl_inline T simd_prefix_inclusive_##NAME(T x) { \
    for (int delta = 1; delta < 32; delta *= 2) { \
      T before = simd_shuffle_up(x, delta); \
      if (__msl_lane() >= delta) x = __msl_fold_##NAME(before, x); \
    } \
    return x; \
  } \
  template <typename T> __msl_inline T simd_prefix_exclusive_##NAME(T x) { \
    T before = simd_shuffle_up(simd_prefix_inclusive_##NAME(x), 1); \
    return __msl_lane() == 0 ? T(IDENTITY) : before; \
  }
__msl_scans(sum, 0)
__msl_scans(product, 1)

struct simd_vote {
  using vote_t = ulong;
  vote_t __bits;
  explicit simd_vote(vote_t bits = 0) : __bits(bits) {}
  bool all() const { return __bits == 0xffffffffu; }
  bool any() const { return __bits != 0; }
  explicit operator vote_t() const { return __bits; }
};
__msl_inline simd_vote simd_ballot(bool b) { return simd_vote(__ballot_sync(~0u, b)); }
__msl_inline bool simd_any(bool b) { return __any_sync(~0u, b); }
__msl_inline bool simd_all(bool b) { return __all_sync(~0u, b); }
__msl_inline bool simd_is_first() { return __msl_lane() == 0; }

enum memory_order { memory_order_relaxed };
template <typename T> struct _atomic { T __value; };
template <typename T> using atomic = _atomic<T>;
using atomic_int = _atomic<int>;
using atomic_uint = _atomic<uint>;
using atomic_float = _atomic<float>;
template <typename T> __msl_inline T atomic_load_explicit(const volatile _atomic<T> *a, memory_order) { return a->__value; }
template <typename T> __msl_inline void atomic_store_explicit(volatile _atomic<T> *a, T v, memory_order) { a->__value = v; }
#define __msl_atomic(NAME, FUNCTION, VALUE) \
  template <typename T> __msl_inline T atomic_##NAME##_explicit(volatile _atomic<T> *a, T v, memory_order) { \
    return FUNCTION((T *)&a->__value, VALUE); \
  }
__msl_atomic(exchange, atomicExch, v)
__msl_atomic(fetch_add, atomicAdd, v)
__msl_atomic(fetch_sub, atomicAdd, -v)
__msl_atomic(fetch_and, atomicAnd, v)
__msl_atomic(fetch_or, atomicOr, v)
__msl_atomic(fetch_xor, atomicXor, v)
__msl_atomic(fetch_min, atomicMin, v)
__msl_atomic(fetch_max, atomicMax, v)
template <typename T>
__msl_inline bool atomic_compare_exchange_weak_explicit(volatile _atomic<T> *a, T *expected, T v, memory_order, memory_order) {
  uint want = as_type<uint>(*expected);
  uint got = atomicCAS((uint *)&a->__value, want, as_type<uint>(v));
  *expected = as_type<T>(got);
  return got == want;
}
} // namespace metal
