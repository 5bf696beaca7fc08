// What nvidia.h has, where the emulator runs it: the same functions, by the emulator's own.

typedef ulong Shared;
inline Shared shared_address(threadgroup const void* at) { return (ulong)at; }
inline Shared kept(Shared address) { return address; }
inline uint load_word(Shared at) { return *(threadgroup const uint*)at; }
inline uint hidden(uint x) { return x; }

inline device const uchar* as_device(threadgroup const uchar* at) { return (device const uchar*)(ulong)at; }

inline void copy_some(Shared to, device const void* from, uint bytes) { nvidia::copy(to, from, bytes, 16); }
inline void copy_sixteen(Shared to, device const void* from, bool there) { copy_some(to, from, there ? 16 : 0); }
template <uint BYTES>
inline void copy_cached(Shared to, device const void* from) {
  nvidia::copy(to, from, BYTES, BYTES);
}
inline void end_copies() { nvidia::end_copies(); }
template <uint MORE>
inline void wait_for_copies() {
  nvidia::wait_for_copies(MORE);
}

// Nothing runs before the launches before it have ended.
inline void wait_for_inputs() {}
inline void prefetch(device const void*) {}
constant constexpr uint LINE = 128;
inline uint peek(device const uint* at) { return *at; }

inline threadgroup const ushort* matrix_row(Shared row, uint lane) {
  uint2 words = simd_shuffle(as_type<uint2>(row), ushort(lane));
  return (threadgroup const ushort*)as_type<ulong>(words);
}
inline void load_matrices(thread uint* m, Shared row) {
  uint lane = nvidia::lane();
  for (uint i = 0; i < 4; ++i) {
    m[i] = ((threadgroup const uint*)matrix_row(row, i * 8 + lane / 4))[lane % 4];
  }
}
inline void load_transposed(thread uint* m, Shared row) {
  uint lane = nvidia::lane();
  for (uint i = 0; i < 4; ++i) {
    uint low = matrix_row(row, i * 8 + lane % 4 * 2)[lane / 4];
    uint high = matrix_row(row, i * 8 + lane % 4 * 2 + 1)[lane / 4];
    m[i] = low | high << 16;
  }
}
inline uint transpose(uint rows) {
  uint lane = nvidia::lane();
  uint from = lane % 4 * 8 + lane / 8;
  uint shift = lane / 4 % 2 * 16;
  uint low = simd_shuffle(rows, ushort(from)) >> shift & 0xffff;
  uint high = simd_shuffle(rows, ushort(from + 4)) >> shift & 0xffff;
  return low | high << 16;
}
inline void multiply(thread float* sums, thread const uint* a, thread const uint* b) { nvidia::multiply<SCALAR>(sums, a, b); }

template <typename T = SCALAR>
inline uint pack_two(float low, float high) { return as_type<uint>(vec<T, 2>(T(low), T(high))); }
inline float2 unpack_two(uint packed) { return float2(as_type<vec<SCALAR, 2>>(packed)); }
constant constexpr uint ONES = is_same_v<SCALAR, half> ? 0x3c003c00u : 0x3f803f80u;
inline uint fma_pairs(uint a, uint b, uint c) {
  float2 sum = fma(unpack_two(a), unpack_two(b), unpack_two(c));
  return pack_two(sum.x, sum.y);
}
inline uint add_pairs(uint a, uint b) { return fma_pairs(a, ONES, b); }
inline uint and_or(uint a, uint b, uint c) { return (a & b) | c; }
inline uint and_xor(uint a, uint b, uint c) { return (a & b) ^ c; }
inline uint pick_bytes(uint a, uint b, uint digits) {
  uint picked = 0;
  for (uint i = 0; i < 4; ++i) {
    uint digit = digits >> (4 * i) & 7;
    picked |= ((digit < 4 ? a : b) >> (digit % 4 * 8) & 0xff) << (8 * i);
  }
  return picked;
}
inline float saturated(float x) { return min(max(x, 0.0f), 1.0f); }
inline float power_of_two(float x) { return exp2(x); }
