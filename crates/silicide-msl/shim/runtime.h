// What a compiled kernel and the runner share. The layouts are those of `abi.rs`.

// One simdgroup or threadgroup operation of one thread: the runner suspends the thread and writes the result in place.
struct __msl_request {
  uint op;
  uint arg;
  ulong pc;
  uint value[10];
};

// The position of a thread and the addresses that its arguments come from.
struct __msl_thread {
  const ulong *buffers;
  const ulong *shared;
  const ulong *statics;
  ulong *query;
  uint thread_position_in_grid[3];
  uint thread_position_in_threadgroup[3];
  uint threadgroup_position_in_grid[3];
  uint threads_per_threadgroup[3];
  uint threadgroups_per_grid[3];
  uint threads_per_grid[3];
  uint thread_index_in_threadgroup;
  uint thread_index_in_simdgroup;
  uint simdgroup_index_in_threadgroup;
  uint simdgroups_per_threadgroup;
  uint threads_per_simdgroup;
};

// The runner's functions, filled in by the loader. The language has no function pointers, hence the jumps.
extern "C" __attribute__((visibility("hidden"))) __global ulong __msl_rt[7];
__global ulong __msl_rt[7] = {};
extern "C" __attribute__((visibility("default"))) ulong __msl_runtime() { return (ulong)__msl_rt; }
extern "C" void __msl_rt_collective(__msl_request *);
extern "C" void __msl_rt_access(ulong address, ulong size, uint kind, ulong pc);
extern "C" void __msl_rt_fault(uint kind, long value, uint line);
extern "C" uint __msl_rt_lane();
#ifdef __aarch64__
#define __msl_jump(NAME, AT) \
  __asm__(".text\n.hidden " #NAME "\n.globl " #NAME "\n" #NAME ":\n" \
          "adrp x16, __msl_rt+" #AT "\nldr x16, [x16, :lo12:__msl_rt+" #AT "]\nbr x16\n");
#else
#define __msl_jump(NAME, AT) \
  __asm__(".text\n.hidden " #NAME "\n.globl " #NAME "\n" #NAME ":\njmpq *__msl_rt+" #AT "(%rip)\n");
#endif
__msl_jump(__msl_rt_collective, 0)
__msl_jump(__msl_rt_access, 8)
__msl_jump(__msl_rt_fault, 16)
__msl_jump(__msl_rt_lane, 24)
// Changes whenever a layout above does; the loader compares it with its own.
extern "C" __attribute__((visibility("default"))) __global const uint __msl_abi;
__global const uint __msl_abi = 2;

#define __msl_hook extern "C" __attribute__((used, noinline, visibility("hidden"))) __msl_unchecked
#define __msl_pc ((ulong)__builtin_return_address(0))

// A call that must not be copied, merged or moved out of its control flow: its return address names the place in the source.
__msl_hook __attribute__((convergent)) void __msl_collective(__msl_request *r) {
  r->pc = __msl_pc;
  __msl_rt_collective(r);
}

__msl_hook __attribute__((const)) uint __msl_lane() { return __msl_rt_lane(); }

// The calls that clang's address checks make, for each load (kind 0) and store (kind 1).
#define __msl_access_hooks(N) \
  __msl_hook void __asan_load##N##_noabort(ulong a) { __msl_rt_access(a, N, 0, __msl_pc); } \
  __msl_hook void __asan_store##N##_noabort(ulong a) { __msl_rt_access(a, N, 1, __msl_pc); }
__msl_access_hooks(1)
__msl_access_hooks(2)
__msl_access_hooks(4)
__msl_access_hooks(8)
__msl_access_hooks(16)
// Kind 4 is added where the size says nothing about the alignment.
__msl_hook void __asan_loadN_noabort(ulong a, ulong n) { __msl_rt_access(a, n, 4, __msl_pc); }
__msl_hook void __asan_storeN_noabort(ulong a, ulong n) { __msl_rt_access(a, n, 5, __msl_pc); }
__msl_hook void __asan_handle_no_return() {}
__msl_hook void *__asan_memcpy(void *to, const void *from, ulong n) {
  __msl_rt_access((ulong)from, n, 4, __msl_pc);
  __msl_rt_access((ulong)to, n, 5, __msl_pc);
  return __builtin_memcpy(to, from, n);
}
__msl_hook void *__asan_memmove(void *to, const void *from, ulong n) {
  __msl_rt_access((ulong)from, n, 4, __msl_pc);
  __msl_rt_access((ulong)to, n, 5, __msl_pc);
  return __builtin_memmove(to, from, n);
}
__msl_hook void *__asan_memset(void *to, int value, ulong n) {
  __msl_rt_access((ulong)to, n, 5, __msl_pc);
  return __builtin_memset(to, value, n);
}
// Kinds 2 and 3 are an atomic load and an atomic change.
__msl_hook void __msl_atomic_check(ulong a, uint kind) { __msl_rt_access(a, 4, kind, __msl_pc); }

// The calls that clang's checks of array indices and integer division make. They do not return.
struct __msl_location { const char *file; uint line, column; };
__msl_hook void __ubsan_handle_out_of_bounds(const __msl_location *at, long index) { __msl_rt_fault(0, index, at->line); }
__msl_hook void __ubsan_handle_out_of_bounds_abort(const __msl_location *at, long index) { __msl_rt_fault(0, index, at->line); }
__msl_hook void __ubsan_handle_divrem_overflow(const __msl_location *at, long, long by) { __msl_rt_fault(1, by, at->line); }
__msl_hook void __ubsan_handle_divrem_overflow_abort(const __msl_location *at, long, long by) { __msl_rt_fault(1, by, at->line); }

// bfloat rounding and, where the CPU has no half, its conversions: compilers' support libraries do not all have them.
__msl_hook bfloat __truncsfbf2(float f) {
  uint u = __builtin_bit_cast(uint, f);
  uint r = (u & 0x7fffffffu) > 0x7f800000u ? (u | 0x400000u) >> 16 : (u + 0x7fffu + (u >> 16 & 1u)) >> 16;
  return __builtin_bit_cast(bfloat, (ushort)r);
}
