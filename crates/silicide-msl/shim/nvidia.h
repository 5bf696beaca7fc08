// What NVIDIA GPUs have beside Metal's language, for kernels that are written for these GPUs and run here to be checked.

#ifdef __msl_nvidia
#define __msl_op_multiply_16 6

extern "C" void __msl_rt_copy(ulong to, ulong from, uint bytes, uint size, ulong pc);
extern "C" void __msl_rt_end_copies();
extern "C" void __msl_rt_wait_for_copies(uint more);
__msl_jump(__msl_rt_copy, 32)
__msl_jump(__msl_rt_end_copies, 40)
__msl_jump(__msl_rt_wait_for_copies, 48)

// Its return address names the place in the source.
__msl_hook __attribute__((not_tail_called)) void __msl_copy(ulong to, ulong from, uint bytes, uint size) {
#ifdef __msl_checks
  __msl_rt_copy(to, from, bytes, size, __msl_pc);
#else
  __msl_rt_copy(to, from, bytes, size, 0);
#endif
}

namespace nvidia {
using metal::as_type;
__msl_inline uint lane() { return ::__msl_lane(); }

// The first `bytes` of `size`, and zeros, from device to threadgroup memory. Nothing is written before the thread waits for it.
__msl_inline void copy(ulong to, __attribute__((opencl_global_device)) const void *from, uint bytes, uint size) {
  ::__msl_copy(to, (ulong)from, bytes, size);
}
// Makes a group of the thread's copies since the last.
__msl_inline void end_copies() { ::__msl_rt_end_copies(); }
// Waits for all groups but the last `more`.
__msl_inline void wait_for_copies(uint more) { ::__msl_rt_wait_for_copies(more); }

// sums += a b, 16x8x16, of pairs of T, by a whole simdgroup.
template <typename T> __msl_inline void multiply(__private float *sums, __private const uint *a, __private const uint *b) {
  __msl_request r = {__msl_op_multiply_16, __is_same(T, half) ? 0u : 1u};
  for (int i = 0; i < 4; i++) {
    r.value[i] = a[i];
    r.value[6 + i] = as_type<uint>(sums[i]);
  }
  r.value[4] = b[0];
  r.value[5] = b[1];
  __msl_collective(&r);
  for (int i = 0; i < 4; i++) sums[i] = as_type<float>(r.value[i]);
}
} // namespace nvidia
#endif
