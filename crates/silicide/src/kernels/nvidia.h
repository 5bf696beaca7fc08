// The instructions of NVIDIA's tensor cores, and of what feeds them, for SCALAR, a type of 16 bits.

#ifdef EMULATED_NVIDIA
#include "nvidia_emulated.h"
#else
// An address in threadgroup memory.
typedef uint Shared;
inline Shared shared_address(threadgroup const void* at) { return uint(__cvta_generic_to_shared(at)); }

// An address that is found once and not again and again.
inline Shared kept(Shared address) {
  Shared same;
  asm volatile("mov.u32 %0, %1;" : "=r"(same) : "r"(address));
  return same;
}

// What lies there. Nothing may write it meanwhile: the compiler is free to load it earlier.
inline uint load_word(Shared at) {
  uint word;
  asm("ld.shared.u32 %0, [%1];" : "=r"(word) : "r"(at));
  return word;
}

// The same number, of which the compiler knows nothing.
inline uint hidden(uint x) {
  asm("" : "+r"(x));
  return x;
}

// Threadgroup memory for what reads device memory: loads find out what they read.
inline device const uchar* as_device(threadgroup const uchar* at) { return at; }

// Copies from device to threadgroup memory that run on beside the thread: the first `bytes` of sixteen, and zeros.
inline void copy_some(Shared to, device const void* from, uint bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes));
}
// Sixteen bytes, or zeros.
inline void copy_sixteen(Shared to, device const void* from, bool there) { copy_some(to, from, there ? 16 : 0); }
// 4, 8 or 16 bytes, which the first cache keeps.
template <uint BYTES>
inline void copy_cached(Shared to, device const void* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(to), "l"(from), "n"(BYTES));
}
// Makes a group of the thread's copies since the last.
inline void end_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits for all groups but the last MORE.
template <uint MORE>
inline void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(MORE) : "memory");
}

// For use before wait_for_inputs, while launches before may still write what lies there. Asks the second cache for a line of it.
constant constexpr uint LINE = 128;
inline void prefetch(device const void* at) { asm volatile("prefetch.global.L2 [%0];" ::"l"(at)); }
// The number that lies there so far, past the first cache.
inline uint peek(device const uint* at) {
  uint x;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(x) : "l"(at));
  return x;
}

// Four 8x8 matrices, whose rows begin at the addresses of lanes 0 to 7, 8 to 15 ...
inline void load_matrices(thread uint* m, Shared row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(row));
}

// As above, each transposed.
inline void load_transposed(thread uint* m, Shared row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(row));
}

// The transpose of an 8x8 matrix of 16 bits.
inline uint transpose(uint rows) {
  uint columns;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(columns) : "r"(rows));
  return columns;
}

// sums += a b, 16x8x16.
inline void multiply(thread float* sums, thread const uint* a, thread const uint* b) {
  if constexpr (is_same_v<SCALAR, half>) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
}

// Two floats, rounded; the first in the low half.
template <typename T = SCALAR>
inline uint pack_two(float low, float high) {
  uint packed;
  if constexpr (is_same_v<T, half>) {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  }
  return packed;
}

// What pack_two has packed.
inline float2 unpack_two(uint packed) {
  vec<SCALAR, 2> two = as_type<vec<SCALAR, 2>>(packed);
  return float2(two);
}

// Two ones.
constant constexpr uint ONES = is_same_v<SCALAR, half> ? 0x3c003c00u : 0x3f803f80u;

// a * b + c of each of two SCALAR, rounded once.
inline uint fma_pairs(uint a, uint b, uint c) {
  uint d;
  if constexpr (is_same_v<SCALAR, half>) {
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  } else {
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  }
  return d;
}

// Two sums, each of two SCALAR.
inline uint add_pairs(uint a, uint b) {
  if constexpr (is_same_v<SCALAR, half>) {
    uint sum;
    asm("add.f16x2 %0, %1, %2;" : "=r"(sum) : "r"(a), "r"(b));
    return sum;
  } else {
    return fma_pairs(a, ONES, b);
  }
}

// (a & b) | c, as one operation.
inline uint and_or(uint a, uint b, uint c) {
  uint d;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}

// (a & b) ^ c.
inline uint and_xor(uint a, uint b, uint c) {
  uint d;
  asm("lop3.b32 %0, %1, %2, %3, 0x6a;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}

// The bytes of a, then those of b, that four hexadecimal digits name, the lowest first.
inline uint pick_bytes(uint a, uint b, uint digits) { return __byte_perm(a, b, digits); }

// The nearest number from 0 to 1; 0 for NaN.
inline float saturated(float x) { return __saturatef(x); }

// 2^x, to some 2 units in the last place; 0 for negative infinity.
inline float power_of_two(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
#endif

// The place of a chunk of sixteen bytes in a tile whose rows have PITCH of them, a multiple of eight: so that eight rows at one column lie in
// different banks. Tiles begin where eight chunks may.
template <uint PITCH>
inline uint chunk_at(uint row, uint chunk) {
  return (row * PITCH + (chunk ^ row % 8)) * 16;
}
inline Shared align_chunks(Shared address) { return (address + 127) / 128 * 128; }
// From the place of chunk 0 or 1 of a row to that of the chunk 2 * i further on.
inline Shared beside(Shared place, uint i) { return (place ^ i % 4 * 32) + i / 4 * 128; }

// Bytes 0 and 1 of both, and bytes 2 and 3 of both.
inline uint low_halves(uint a, uint b) { return pick_bytes(a, b, 0x5410); }
inline uint high_halves(uint a, uint b) { return pick_bytes(a, b, 0x7632); }
