// What the forms of quantized_attention share, beside what seen.h has: how codes lie.

#include "seen.h"

// Code `i` of eight.
template <uint BITS>
inline uint code_of(uint2 words, uint i) {
  uint bit = i * BITS;
  uint code = bit < 32 ? words.x >> bit : words.y >> (bit - 32);
  if (bit < 32 && bit + BITS > 32) {
    code |= words.y << (32 - bit);
  }
  return code & ((1u << BITS) - 1);
}
