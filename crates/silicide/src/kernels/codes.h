// A stored matrix for NVIDIA's tensor cores before it is scaled: codes as pairs of SCALAR, a type of 16 bits that has them all exactly.
//
// Four lanes share the columns of a group, which have one scale: lane t has its part of the codes, in whatever order is cheapest; it takes
// the same columns of x, and puts them into this order.

#include "matrix.h"
#include "nvidia.h"

constant constexpr bool HALF = is_same_v<SCALAR, half>;

// Constants that are kept in registers, so that an instruction has room for another: `zero` is zero, which the compiler must not see.
struct Kept {
  uint above;        // bytes of codes that become floats
  uint above_pairs;  // of two
  uint sign;         // of two small floats
  uint rest;

  static Kept of(uint zero) {
    return {(HALF ? 0x64646464u : 0x43434343u) | zero, (HALF ? 0x64006400u : 0x43004300u) | zero, 0x80008000u | zero,
            (HALF ? 0x0e000e00u : 0x01c001c0u) | zero};
  }
};

// Codes are the last bits of 128 (bf16) or 1024 (f16), which are taken off again with ZERO.
template <uint ZERO>
inline uint less_zero(uint pair) {
  return add_pairs(pair, (HALF ? 0xe400e400u : 0xc300c300u) + ZERO * 0x10001u);
}

// Four codes, one a byte, less ZERO, which is 128 for codes of eight bits.
template <uint ZERO>
inline void four_floats(uint bytes, Kept kept, thread uint* to) {
  if constexpr (HALF || ZERO < 128) {
    to[0] = less_zero<ZERO>(pick_bytes(bytes, kept.above, 0x4140));
    to[1] = less_zero<ZERO>(pick_bytes(bytes, kept.above, 0x4342));
  } else {
    // 128 and the low seven bits, less 128 where the eighth is set and 256 where it is not.
    uint low = bytes & 0x7f7f7f7fu;
    uint high = ~bytes & 0x80808080u;
    to[0] = add_pairs(pick_bytes(low, kept.above, 0x4140), pick_bytes(high, kept.above | 0x80808080u, 0x4140));
    to[1] = add_pairs(pick_bytes(low, kept.above, 0x4342), pick_bytes(high, kept.above | 0x80808080u, 0x4342));
  }
}

// Codes of eight bits, one a byte: bytes 0 and 2 of a word as a pair, less 128. SIGNED ones are their values.
template <bool SIGNED>
inline uint two_of_eight(uint word, Kept kept) {
  if constexpr (HALF) {
    uint codes = and_or(word, 0x00ff00ffu, 0x64006400u);
    return add_pairs(SIGNED ? codes ^ 0x00800080u : codes, 0xe480e480u);
  } else {
    // 128 and the low seven bits, less 128 or 256 as the eighth says.
    return add_pairs(and_or(word, 0x007f007fu, kept.above_pairs), and_xor(word, 0x00800080u, SIGNED ? 0xc300c300u : 0xc380c380u));
  }
}

// Small floats i and i + 4 of eight: their fields are moved to the places of SCALAR's, and a product with a power of two makes up for the
// other bias of the exponent.
inline uint two_of_e2m1(uint codes, uint i, Kept kept) {
  uint sign = codes << (12 - 4 * i) & kept.sign;
  constexpr uint UP = HALF ? 9 : 6;
  uint moved = 4 * i < UP ? codes << (UP - 4 * i) : codes >> (4 * i - UP);
  return fma_pairs(and_or(moved, kept.rest, sign), HALF ? 0x74007400u : 0x7e807e80u, 0x80008000u);
}

// Two small floats in the low bytes of halves of a word.
inline uint two_of_e4m3(uint pair) {
  uint sign = (pair & 0x00800080u) << 8;
  uint rest = pair & 0x007f007fu;
  // Which are 0x7f.
  uint nan = ((rest + 0x00010001u) & 0x00800080u) * 0xff;
  return nan | fma_pairs(sign | rest << (HALF ? 7 : 4), HALF ? 0x5c005c00u : 0x7b807b80u, 0x80008000u);
}

// Pairs of a lane's columns are neighbours, or 0 and 2, 1 and 3 of each four, or 0 and 4, 1 and 5 ... of eight.
enum class Order { NEIGHBOURS, FOURS, EIGHTS };

// Of a format: the columns that share a scale, 16 or 32 (more are taken as groups of 32), how a lane's are ordered, and whether those of a
// group of 32 are four of each unit, not eight neighbours; and what codes have lost that a minimum makes good.
template <typename R>
struct Codes;

template <typename T>
struct Codes<Dense<T>> {
  static constant constexpr uint GROUP = 32;
  static constant constexpr Order ORDER = Order::NEIGHBOURS;
  static constant constexpr bool APART = false;
  static constant constexpr uint OFFSET = 0;

  static void pairs(Dense<T> reader, uint group, uint t, Kept, thread uint* to) {
    uint4 eight = *(device const uint4*)(reader.row + group * GROUP + t * 8);
    for (uint i = 0; i < 4; ++i) {
      to[i] = eight[i];
    }
  }
};

template <typename B>
struct Codes<Blocks<B>> {
  static constant constexpr uint GROUP = B::GROUP;
  static constant constexpr Order ORDER = Order::NEIGHBOURS;
  static constant constexpr bool APART = true;
  static constant constexpr uint OFFSET = 0;

  static void pairs(Blocks<B> reader, uint group, uint t, Kept kept, thread uint* to) {
    for (uint i = 0; i < GROUP / UNIT; ++i) {
      uint unit = group * (GROUP / UNIT) + i;
      uint bytes = B::template codes<uint>(reader.block(unit), unit % B::UNITS, t * 4);
      four_floats<B::ZERO>(bytes, kept, to + i * 2);
    }
  }
};

template <uint BITS, typename S>
struct Codes<Affine<BITS, S>> {
  static constant constexpr uint GROUP = 32;
  static constant constexpr Order ORDER = BITS == 8 ? Order::NEIGHBOURS : Order::EIGHTS;
  static constant constexpr bool APART = false;
  static constant constexpr uint OFFSET = BITS == 8 ? 128 : 0;

  static void pairs(Affine<BITS, S> reader, uint group, uint t, Kept kept, thread uint* to) {
    if constexpr (BITS == 8) {
      uint2 codes = ((device const uint2*)reader.codes)[group * 4 + t];
      four_floats<OFFSET>(codes.x, kept, to);
      four_floats<OFFSET>(codes.y, kept, to + 2);
      return;
    }
    // Eight codes are BITS bytes, which two words hold.
    uint byte = (group * 4 + t) * BITS;
    device const uint* at = (device const uint*)reader.codes + byte / 4;
    ulong codes = at[0];
    if constexpr (BITS != 2 && BITS != 4) {
      codes |= ulong(at[1]) << 32;
    }
    codes >>= byte % 4 * 8;
    constexpr uint CODE = (1u << BITS) - 1;
    constexpr uint TWO = (1u << (2 * BITS)) - 1;
    for (uint i = 0; i < 2; ++i) {
      uint four = (uint(codes >> (i * 2 * BITS)) & TWO) | (uint(codes >> ((i + 2) * 2 * BITS)) & TWO) << 16;
      for (uint j = 0; j < 2; ++j) {
        to[i * 2 + j] = less_zero<OFFSET>((four >> (j * BITS) & CODE * 0x10001u) | (HALF ? 0x64006400u : 0x43004300u));
      }
    }
  }
};

template <typename S, uint GROUP_>
struct Codes<SmallFloats<E2m1, S, GROUP_>> {
  static constant constexpr uint GROUP = GROUP_;
  static constant constexpr Order ORDER = GROUP == 32 ? Order::EIGHTS : Order::FOURS;
  static constant constexpr bool APART = false;
  static constant constexpr uint OFFSET = 0;

  static void pairs(SmallFloats<E2m1, S, GROUP_> reader, uint group, uint t, Kept kept, thread uint* to) {
    if constexpr (GROUP == 32) {
      uint codes = ((device const uint*)reader.codes)[group * 4 + t];
      for (uint i = 0; i < 4; ++i) {
        to[i] = two_of_e2m1(codes, i, kept);
      }
    } else {
      uint codes = ((device const ushort*)reader.codes)[group * 4 + t];
      codes |= codes << 8;
      to[0] = two_of_e2m1(codes, 0, kept);
      to[1] = two_of_e2m1(codes, 1, kept);
    }
  }
};

template <typename S, uint GROUP_>
struct Codes<SmallFloats<E4m3, S, GROUP_>> {
  static constant constexpr uint GROUP = 32;
  static constant constexpr Order ORDER = Order::FOURS;
  static constant constexpr bool APART = false;
  static constant constexpr uint OFFSET = 0;

  static void pairs(SmallFloats<E4m3, S, GROUP_> reader, uint group, uint t, Kept, thread uint* to) {
    uint2 codes = ((device const uint2*)reader.codes)[group * 4 + t];
    for (uint i = 0; i < 2; ++i) {
      to[i * 2] = two_of_e4m3(codes[i]);
      to[i * 2 + 1] = two_of_e4m3(codes[i] >> 8);
    }
  }
};

// The columns of x that stand beside pairs of a lane, of a group of 32 or 16.
template <typename R>
inline void columns_beside(device const SCALAR* group, uint t, thread uint* to) {
  typedef Codes<R> C;
  if constexpr (C::GROUP == 32 && !C::APART) {
    uint4 eight = *(device const uint4*)(group + t * 8);
    for (uint i = 0; i < 4; ++i) {
      to[i] = eight[i];
    }
  } else {
    for (uint i = 0; i < C::GROUP / UNIT; ++i) {
      uint2 four = *(device const uint2*)(group + i * UNIT + t * 4);
      to[i * 2] = four.x;
      to[i * 2 + 1] = four.y;
    }
  }
}

// Puts pairs of neighbours, four or two, into an order.
template <Order ORDER, uint PAIRS>
inline void put_in_order(thread uint* pairs) {
  if constexpr (ORDER != Order::NEIGHBOURS) {
    constexpr uint STEP = ORDER == Order::EIGHTS ? 2 : 1;
    uint apart[PAIRS];
    for (uint i = 0; i < PAIRS / 2; ++i) {
      uint first = STEP == 2 ? pairs[i] : pairs[i * 2];
      uint second = STEP == 2 ? pairs[i + 2] : pairs[i * 2 + 1];
      apart[i * 2] = low_halves(first, second);
      apart[i * 2 + 1] = high_halves(first, second);
    }
    for (uint i = 0; i < PAIRS; ++i) {
      pairs[i] = apart[i];
    }
  }
}
