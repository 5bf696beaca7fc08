// Barriers, simdgroup and quad operations, atomics. Every one that threads do together is a request to the runner.

namespace metal {
enum class mem_flags : uint { mem_none = 0, mem_device = 1, mem_threadgroup = 2, mem_texture = 4, mem_threadgroup_imageblock = 8 };
__msl_inline constexpr mem_flags operator|(mem_flags a, mem_flags b) { return mem_flags((uint)a | (uint)b); }

#define __msl_op_barrier 0
#define __msl_op_simdgroup_barrier 1
#define __msl_op_reduce 2
#define __msl_op_shuffle 3
#define __msl_op_ballot 4
#define __msl_op_multiply 5

__msl_inline void threadgroup_barrier(mem_flags flags) {
  __msl_request r = {__msl_op_barrier, (uint)flags};
  __msl_collective(&r);
}
__msl_inline void simdgroup_barrier(mem_flags flags) {
  __msl_request r = {__msl_op_simdgroup_barrier, (uint)flags};
  __msl_collective(&r);
}

// Reductions are done in 32 bits: float for the floating types, int or uint for the others.
template <typename T> struct __msl_wide { using type = metal::conditional_t<__is_signed(T), int, uint>; enum : uint { code = __is_signed(T) ? 1 : 2 }; };
template <> struct __msl_wide<float> { using type = float; enum : uint { code = 0 }; };
template <> struct __msl_wide<half> { using type = float; enum : uint { code = 0 }; };
template <> struct __msl_wide<bfloat> { using type = float; enum : uint { code = 0 }; };

template <uint OP, typename T> __msl_inline T __msl_reduce(T x) {
  if constexpr (__msl_width<T> == 0) {
    static_assert(sizeof(T) <= 4 && !__is_same(T, bool), "Metal reduces types of up to 32 bits over a simdgroup");
    using W = typename __msl_wide<T>::type;
    __msl_request r = {__msl_op_reduce, OP << 8 | __msl_wide<T>::code, 0, {as_type<uint>(W(x))}};
    __msl_collective(&r);
    return T(as_type<W>(r.value[0]));
  } else {
    T y;
    for (int i = 0; i < __msl_width<T>; i++) y[i] = __msl_reduce<OP>(__msl_element<T>(x[i]));
    return y;
  }
}
// The low four bits name the operation, the rest the kind: whole, exclusive, inclusive, quad.
#define __msl_reductions(NAME, OP) \
  template <typename T> __msl_inline T simd_##NAME(T x) { return __msl_reduce<OP>(x); } \
  template <typename T> __msl_inline T quad_##NAME(T x) { return __msl_reduce<OP | 0x30>(x); }
__msl_reductions(sum, 0)
__msl_reductions(product, 1)
__msl_reductions(min, 2)
__msl_reductions(max, 3)
__msl_reductions(and, 4)
__msl_reductions(or, 5)
__msl_reductions(xor, 6)
#define __msl_scans(NAME, OP) \
  template <typename T> __msl_inline T simd_prefix_exclusive_##NAME(T x) { return __msl_reduce<OP | 0x10>(x); } \
  template <typename T> __msl_inline T simd_prefix_inclusive_##NAME(T x) { return __msl_reduce<OP | 0x20>(x); }
__msl_scans(sum, 0)
__msl_scans(product, 1)

template <uint MODE, typename T> __msl_inline T __msl_shuffle(T x, uint arg) {
  static_assert(sizeof(T) <= 16 && sizeof(__msl_element<T>) <= 4, "Metal shuffles vectors and scalars of up to 32 bits each");
  __msl_request r = {__msl_op_shuffle, MODE << 8 | (arg & 255u)};
  __builtin_memcpy(r.value, &x, sizeof(T));
  __msl_collective(&r);
  __builtin_memcpy(&x, r.value, sizeof(T));
  return x;
}
template <typename T> __msl_inline T simd_shuffle(T x, ushort lane) { return __msl_shuffle<0>(x, lane); }
template <typename T> __msl_inline T simd_broadcast(T x, ushort lane) { return __msl_shuffle<0>(x, lane); }
template <typename T> __msl_inline T simd_shuffle_xor(T x, ushort mask) { return __msl_shuffle<1>(x, mask); }
template <typename T> __msl_inline T simd_shuffle_up(T x, ushort delta) { return __msl_shuffle<2>(x, delta); }
template <typename T> __msl_inline T simd_shuffle_down(T x, ushort delta) { return __msl_shuffle<3>(x, delta); }
template <typename T> __msl_inline T simd_shuffle_rotate_up(T x, ushort delta) { return __msl_shuffle<4>(x, delta); }
template <typename T> __msl_inline T simd_shuffle_rotate_down(T x, ushort delta) { return __msl_shuffle<5>(x, delta); }
template <typename T> __msl_inline T simd_broadcast_first(T x) { return __msl_shuffle<6>(x, 0); }
template <typename T> __msl_inline T quad_shuffle(T x, ushort lane) { return __msl_shuffle<8>(x, lane); }
template <typename T> __msl_inline T quad_broadcast(T x, ushort lane) { return __msl_shuffle<8>(x, lane); }
template <typename T> __msl_inline T quad_shuffle_xor(T x, ushort mask) { return __msl_shuffle<9>(x, mask); }
template <typename T> __msl_inline T quad_shuffle_up(T x, ushort delta) { return __msl_shuffle<10>(x, delta); }
template <typename T> __msl_inline T quad_shuffle_down(T x, ushort delta) { return __msl_shuffle<11>(x, delta); }

struct simd_vote {
  using vote_t = ulong;
  vote_t __bits;
  explicit simd_vote(vote_t bits = 0) : __bits(bits) {}
  bool all() const { return __bits == 0xffffffffu; }
  bool any() const { return __bits != 0; }
  explicit operator vote_t() const { return __bits; }
};
__msl_inline uint2 __msl_ballot(bool b) {
  __msl_request r = {__msl_op_ballot, 0, 0, {(uint)b}};
  __msl_collective(&r);
  return uint2{r.value[0], r.value[1]}; // who voted yes, who voted
}
__msl_inline simd_vote simd_ballot(bool b) { return simd_vote(__msl_ballot(b).x); }
__msl_inline simd_vote simd_active_threads_mask() { return simd_vote(__msl_ballot(true).y); }
__msl_inline bool simd_any(bool b) { return __msl_ballot(b).x != 0; }
__msl_inline bool simd_all(bool b) { uint2 v = __msl_ballot(b); return v.x == v.y; }
__msl_inline bool simd_is_first() { return simd_broadcast_first(__msl_lane()) == __msl_lane(); }

enum memory_order { memory_order_relaxed };
template <typename T> struct _atomic { T __value; };
template <typename T> using atomic = _atomic<T>;
} // namespace metal
typedef metal::_atomic<int> __msl_atomic_int;
typedef metal::_atomic<uint> __msl_atomic_uint;
typedef metal::_atomic<float> __msl_atomic_float;
// OpenCL has the names atomic_int and so on: kernel text gets these by macro.
namespace metal {
using ::__msl_atomic_float;
using ::__msl_atomic_int;
using ::__msl_atomic_uint;
} // namespace metal

// Done in one place that the address checks skip, after a check that knows the access to be atomic.
enum __msl_atomic_op : uint { __msl_load, __msl_store, __msl_exchange, __msl_add, __msl_sub, __msl_and, __msl_or, __msl_xor,
  __msl_min_int, __msl_max_int, __msl_min_uint, __msl_max_uint, __msl_add_float, __msl_sub_float };
__msl_inline uint __msl_apply(uint op, uint old, uint v) {
  float f = __builtin_bit_cast(float, old), g = __builtin_bit_cast(float, v);
  switch (op) {
  case __msl_load: return old;
  case __msl_add: return old + v;
  case __msl_sub: return old - v;
  case __msl_and: return old & v;
  case __msl_or: return old | v;
  case __msl_xor: return old ^ v;
  case __msl_min_int: return (int)old < (int)v ? old : v;
  case __msl_max_int: return (int)old > (int)v ? old : v;
  case __msl_min_uint: return old < v ? old : v;
  case __msl_max_uint: return old > v ? old : v;
  case __msl_add_float: return __builtin_bit_cast(uint, f + g);
  case __msl_sub_float: return __builtin_bit_cast(uint, f - g);
  default: return v;
  }
}
__msl_hook uint __msl_atomic(uint op, __private uint *p, uint v) {
  if (op == __msl_load) return __atomic_load_n(p, __ATOMIC_RELAXED);
  uint old = __atomic_load_n(p, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(p, &old, __msl_apply(op, old, v), true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}
  return old;
}
__msl_hook bool __msl_compare_exchange(__private uint *p, __private uint *expected, uint v) {
  return __atomic_compare_exchange_n(p, expected, v, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
}

#ifdef __msl_checks
#define __msl_check_atomic(a, kind) ::__msl_atomic_check((ulong)(a), kind)
#else
#define __msl_check_atomic(a, kind)
#endif
namespace metal {
template <typename T> __msl_inline T __msl_atomic_do(uint op, const volatile _atomic<T> *a, T v) {
  static_assert(sizeof(T) == 4, "atomics of this type are not supported");
  __msl_check_atomic(a, op == __msl_load ? 2 : 3);
  return as_type<T>(::__msl_atomic(op, (__private uint *)(ulong)a, as_type<uint>(v)));
}
template <typename T> __msl_inline T atomic_load_explicit(const volatile _atomic<T> *a, memory_order) {
  return __msl_atomic_do(__msl_load, a, T(0));
}
template <typename T> __msl_inline void atomic_store_explicit(volatile _atomic<T> *a, __msl_element<T> v, memory_order) {
  __msl_atomic_do(__msl_exchange, a, v);
}
template <typename T> __msl_inline T atomic_exchange_explicit(volatile _atomic<T> *a, __msl_element<T> v, memory_order) {
  return __msl_atomic_do(__msl_exchange, a, v);
}
template <typename T>
__msl_inline bool atomic_compare_exchange_weak_explicit(volatile _atomic<T> *a, __private T *expected, __msl_element<T> v,
                                                        memory_order, memory_order) {
  __msl_check_atomic(a, 3);
  return ::__msl_compare_exchange((__private uint *)(ulong)a, (__private uint *)(ulong)expected, as_type<uint>(v));
}
#define __msl_fetch(NAME, OP_INT, OP_UINT) \
  __msl_inline int atomic_fetch_##NAME##_explicit(volatile __msl_atomic_int *a, int v, memory_order) { return __msl_atomic_do(OP_INT, a, v); } \
  __msl_inline uint atomic_fetch_##NAME##_explicit(volatile __msl_atomic_uint *a, uint v, memory_order) { return __msl_atomic_do(OP_UINT, a, v); }
__msl_fetch(add, __msl_add, __msl_add)
__msl_fetch(sub, __msl_sub, __msl_sub)
__msl_fetch(and, __msl_and, __msl_and)
__msl_fetch(or, __msl_or, __msl_or)
__msl_fetch(xor, __msl_xor, __msl_xor)
__msl_fetch(min, __msl_min_int, __msl_min_uint)
__msl_fetch(max, __msl_max_int, __msl_max_uint)
// Metal has these for device memory only.
__msl_inline float atomic_fetch_add_explicit(volatile __global __msl_atomic_float *a, float v, memory_order) {
  return __msl_atomic_do(__msl_add_float, a, v);
}
__msl_inline float atomic_fetch_sub_explicit(volatile __global __msl_atomic_float *a, float v, memory_order) {
  return __msl_atomic_do(__msl_sub_float, a, v);
}
} // namespace metal
