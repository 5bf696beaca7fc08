// What the rewritten kernel text uses: arguments, positions, and the words of the language.

struct __msl_none {};

// What a launch gives: the addresses of the bound tensors, and the bytes of the constant reference.
template <uint SLOTS, typename C> struct __msl_arguments {
  ulong buffers[SLOTS];
  C constants;
};
template <typename C> struct __msl_arguments<0, C> {
  ulong buffers[1];
  C constants;
};

struct __msl_constants {
  const void *at;
  const void *operator[](int) const { return at; }
};
struct __msl_thread {
  const ulong *buffers;
  __msl_constants constants;
  __device__ __forceinline__ __msl_thread(const ulong *b, const void *c) : buffers(b), constants{c} {}
};
#define __msl_bound(TABLE, INDEX) __msl_t.TABLE[INDEX]

__msl_inline uint3 __msl_thread_position_in_grid() { return {blockIdx.x * blockDim.x + threadIdx.x, blockIdx.y * blockDim.y + threadIdx.y, blockIdx.z * blockDim.z + threadIdx.z}; }
__msl_inline uint3 __msl_thread_position_in_threadgroup() { return {threadIdx.x, threadIdx.y, threadIdx.z}; }
__msl_inline uint3 __msl_threadgroup_position_in_grid() { return {blockIdx.x, blockIdx.y, blockIdx.z}; }
__msl_inline uint3 __msl_threads_per_threadgroup() { return {blockDim.x, blockDim.y, blockDim.z}; }
__msl_inline uint3 __msl_threadgroups_per_grid() { return {gridDim.x, gridDim.y, gridDim.z}; }
__msl_inline uint3 __msl_threads_per_grid() { return {gridDim.x * blockDim.x, gridDim.y * blockDim.y, gridDim.z * blockDim.z}; }
__msl_inline uint __msl_thread_index_in_threadgroup() { return (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x; }
__msl_inline uint __msl_thread_index_in_simdgroup() { return metal::__msl_lane(); }
__msl_inline uint __msl_simdgroup_index_in_threadgroup() { return __msl_thread_index_in_threadgroup() / 32; }
__msl_inline uint __msl_simdgroups_per_threadgroup() { return (blockDim.x * blockDim.y * blockDim.z + 31) / 32; }
__msl_inline uint __msl_threads_per_simdgroup() { return 32; }
#define __msl_at(NAME) __msl_##NAME()

// A position attribute, as the scalar or vector type that the kernel declares.
template <typename T> __msl_inline T __msl_position(uint3 v) {
  using E = __msl_element<T>;
  static_assert(metal::is_same_v<E, uint> || metal::is_same_v<E, ushort>, "positions are uint or ushort, scalar or of 2 or 3 components");
  if constexpr (__msl_width<T> == 0) return T(v.x);
  else if constexpr (__msl_width<T> == 2) return T(E(v.x), E(v.y));
  else return T(E(v.x), E(v.y), E(v.z));
}
template <typename T> __msl_inline T __msl_index(uint v) {
  static_assert(metal::is_same_v<T, uint> || metal::is_same_v<T, ushort>, "indices are uint or ushort");
  return T(v);
}

// Lets the next kernel's threads come up while this one's still run.
__msl_inline void __msl_begin() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
// Waits for all that the launches before wrote. A kernel that calls it does so before it reads or writes what they may
// write; any other kernel begins with it.
__msl_inline void wait_for_inputs() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

#define __msl_entry(LIMIT) extern "C" __global__ __launch_bounds__(LIMIT) void
#define __msl_kernel static __device__ __forceinline__ void

// NVRTC knows vectors of these names; the text means Metal's.
namespace metal {
#define __msl_named(T) \
  using __msl_##T##2 = vec<T, 2>; \
  using __msl_##T##3 = vec<T, 3>; \
  using __msl_##T##4 = vec<T, 4>;
__msl_named(bool)
__msl_named(char)
__msl_named(uchar)
__msl_named(short)
__msl_named(ushort)
__msl_named(int)
__msl_named(uint)
__msl_named(long)
__msl_named(ulong)
__msl_named(half)
__msl_named(bfloat)
__msl_named(float)
} // namespace metal
#define bool2 metal::__msl_bool2
#define bool3 metal::__msl_bool3
#define bool4 metal::__msl_bool4
#define char2 metal::__msl_char2
#define char3 metal::__msl_char3
#define char4 metal::__msl_char4
#define uchar2 metal::__msl_uchar2
#define uchar3 metal::__msl_uchar3
#define uchar4 metal::__msl_uchar4
#define short2 metal::__msl_short2
#define short3 metal::__msl_short3
#define short4 metal::__msl_short4
#define ushort2 metal::__msl_ushort2
#define ushort3 metal::__msl_ushort3
#define ushort4 metal::__msl_ushort4
#define int2 metal::__msl_int2
#define int3 metal::__msl_int3
#define int4 metal::__msl_int4
#define uint2 metal::__msl_uint2
#define uint3 metal::__msl_uint3
#define uint4 metal::__msl_uint4
#define long2 metal::__msl_long2
#define long3 metal::__msl_long3
#define long4 metal::__msl_long4
#define ulong2 metal::__msl_ulong2
#define ulong3 metal::__msl_ulong3
#define ulong4 metal::__msl_ulong4
#define half2 metal::__msl_half2
#define half3 metal::__msl_half3
#define half4 metal::__msl_half4
#define bfloat2 metal::__msl_bfloat2
#define bfloat3 metal::__msl_bfloat3
#define bfloat4 metal::__msl_bfloat4
#define float2 metal::__msl_float2
#define float3 metal::__msl_float3
#define float4 metal::__msl_float4
// Address spaces are found by the compiler.
#define device
#define constant const
#define threadgroup
#define thread
// What the macros of the Metal headers are made of, as constant expressions.
#define __builtin_inff() __builtin_bit_cast(float, 0x7f800000u)
#define __builtin_nanf(TEXT) __builtin_bit_cast(float, 0x7fc00000u)
