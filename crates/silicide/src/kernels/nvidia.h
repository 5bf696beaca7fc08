// The instructions of NVIDIA's tensor cores, and of what feeds them, for SCALAR, a type of 16 bits.

inline uint shared_address(threadgroup const void* at) { return uint(__cvta_generic_to_shared(at)); }

// Sixteen bytes from device to threadgroup memory, or zeros.
inline void copy_sixteen(uint to, device const void* from, bool there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(there ? 16 : 0));
}

// Four 8x8 matrices, whose rows begin at the addresses of lanes 0 to 7, 8 to 15 ...
inline void load_matrices(thread uint* m, uint row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(row));
}

// As above, each transposed.
inline void load_transposed(thread uint* m, uint row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(row));
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
inline uint pack_two(float low, float high) {
  uint packed;
  if constexpr (is_same_v<SCALAR, half>) {
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

// (a & b) | c, as one operation.
inline uint and_or(uint a, uint b, uint c) {
  uint d;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}

// 2^x, to some 2 units in the last place; 0 for negative infinity.
inline float power_of_two(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
