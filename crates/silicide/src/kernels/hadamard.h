// Walsh-Hadamard transforms: unscaled butterflies over the bits of an element's index. Those over all bits, in any
// order, make the transform.

// Over the lowest bits of the number of a register, of which `count` differ.
template <uint N>
inline void hadamard_registers(thread float (&values)[N], uint count) {
  for (uint step = 1; step < count; step *= 2) {
    for (uint i = 0; i < N; ++i) {
      if ((i & step) == 0) {
        float a = values[i];
        float b = values[i + step];
        values[i] = a + b;
        values[i + step] = a - b;
      }
    }
  }
}

// Over the bits of the lane below `width`.
template <uint N>
inline void hadamard_lanes(thread float (&values)[N], uint lane, uint width) {
  for (uint step = 1; step < width; step *= 2) {
    float sign = lane & step ? -1.0f : 1.0f;
    for (uint i = 0; i < N; ++i) {
      float other = simd_shuffle_xor(values[i], ushort(step));
      values[i] = fma(values[i], sign, other);
    }
  }
}

// Of packed signs, whether that of element `i` is negative.
inline bool negative_sign(device const uint* signs, uint i) { return signs[i / 32] >> i % 32 & 1; }
