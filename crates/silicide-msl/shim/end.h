// What the rewritten kernel text uses: arguments, static threadgroup memory, and the words of the language.

// A position attribute, as the scalar or vector type that the kernel declares.
template <typename T> __msl_inline T __msl_position(const uint *v) {
  static_assert(__is_same(__msl_element<T>, uint) || __is_same(__msl_element<T>, ushort),
                "positions are uint or ushort, scalar or of 2 or 3 components");
  if constexpr (__msl_width<T> == 0) return T(v[0]);
  else {
    using E = __msl_element<T>;
    if constexpr (__msl_width<T> == 2) return T{E(v[0]), E(v[1])};
    else return T{E(v[0]), E(v[1]), E(v[2])};
  }
}
template <typename T> __msl_inline T __msl_index(uint v) {
  static_assert(__is_same(T, uint) || __is_same(T, ushort), "indices are uint or ushort");
  return T(v);
}

// The address of a `threadgroup` variable of a kernel. Its size goes into a table that the loader reads: the place in
// the code tells which kernel it belongs to, as kernels are inlined into their entries.
template <uint ID, ulong BYTES> __msl_inline ulong __msl_static(const __msl_thread &t) {
  __asm__ volatile("771:\n.pushsection msl_statics,\"aw\"\n.quad 771b, %c0, %c1\n.popsection" ::"i"(ID), "i"(BYTES));
  return t.statics[ID];
}
extern "C" __attribute__((visibility("hidden"))) __global const ulong __start_msl_statics[] __attribute__((weak));
extern "C" __attribute__((visibility("hidden"))) __global const ulong __stop_msl_statics[] __attribute__((weak));
extern "C" __attribute__((visibility("hidden"))) __global const char __ehdr_start[];
extern "C" __attribute__((visibility("hidden"))) __global const char _end[];
#define __msl_address(NAME, SYMBOL) \
  extern "C" __attribute__((visibility("default"))) __msl_unchecked ulong NAME() { return (ulong)SYMBOL; }
__msl_address(__msl_statics_begin, __start_msl_statics)
__msl_address(__msl_statics_end, __stop_msl_statics)
__msl_address(__msl_image_begin, __ehdr_start)
__msl_address(__msl_image_end, _end)

// `(float4)x` becomes `__msl_cast<float4>() ->* x`, which binds as a cast does.
template <typename T> struct __msl_cast {
  template <typename A> __attribute__((always_inline)) T operator->*(A a) const { return __msl_convert<T>(a); }
};

#define __msl_at(NAME) __msl_t.NAME
#define __msl_bound(TABLE, INDEX) __msl_t.__msl_table_##TABLE[INDEX]
#define __msl_table_buffers buffers
#define __msl_table_shared shared
#define __msl_table_constants buffers
#define __msl_entry extern "C" __attribute__((visibility("default"))) void
#define __msl_kernel static inline __attribute__((always_inline)) void
// device and constant are distinct, so that Apple's errors are errors here; copies of structs need constant to be __global.
// Keywords of OpenCL that are plain names in Metal.
#define local __msl_name_local
#define global __msl_name_global
#define generic __msl_name_generic
#define pipe __msl_name_pipe
#define read_only __msl_name_read_only
#define write_only __msl_name_write_only
#define read_write __msl_name_read_write
#define vec_step __msl_name_vec_step
#define atomic_int __msl_atomic_int
#define atomic_uint __msl_atomic_uint
#define atomic_float __msl_atomic_float
#define device __attribute__((opencl_global_device))
#define constant const __global
#define threadgroup __local
#define thread __private
