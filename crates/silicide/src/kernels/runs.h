// Runs of 32 neighbouring columns of a stored row, as sixteen pairs of SCALAR before they are scaled, in whatever order is cheapest.

#include "codes.h"

// Of a format: how pairs of eight columns are ordered, the place among eights of the pairs of four columns, and what is taken off codes
// to be their values.
template <typename R>
struct Run;

// Words that begin on two bytes.
template <uint WORDS>
inline void load_words(device const uchar* at, thread uint* to) {
  ulong address = (ulong)at;
  device const uint* from = (device const uint*)(at - (address & 2));
  uint digits = address & 2 ? 0x5432 : 0x3210;
  uint before = from[0];
  for (uint i = 0; i < WORDS; ++i) {
    uint next = from[i + 1];
    to[i] = pick_bytes(before, next, digits);
    before = next;
  }
}

// Codes of four bits i and i + 4 of a word. In bf16 they are 128 more, in f16 what they are.
inline uint two_of_four(uint word, uint i, Kept kept) {
  uint codes = and_or(word >> (4 * i), 0x000f000fu, kept.above_pairs);
  return HALF ? add_pairs(codes, 0xe400e400u) : codes;
}
constant constexpr uint OF_FOUR = HALF ? 0 : 128;

// Whether codes are the smallest numbers of SCALAR as they are, odd pairs times 16: x is brought near its greatest numbers, by powers of two.
template <typename R>
constant constexpr bool SMALL = false;
template <typename S>
constant constexpr bool SMALL<Affine<4, S>> = true;

// The power of two that brings the greatest of a run of x near the greatest number, and what products with small codes are multiplied by
// then. Exponents are those of floats. Where that is not finite the greatest of x is not, or nearly so.
struct Near {
  float to;
  float back;
  static Near of(float most) {
    constexpr uint TOP = 254 + (HALF ? 14 : 126);
    constexpr uint UNIT = 254 + (HALF ? 24 : 133);
    uint to = min(TOP - (as_type<uint>(most) >> 23), 254u);
    return {as_type<float>(to << 23), as_type<float>(min(UNIT - to, 255u) << 23)};
  }
};

// Parts of a run that have scales of their own.
template <typename R>
constant constexpr uint PARTS = Codes<R>::GROUP == 16 ? 2 : 1;

template <typename B>
struct Run<Blocks<B>> {
  static constant constexpr Order ORDER = Order::NEIGHBOURS;
  static constant constexpr uint OFFSET = 0;
  static uint place(uint four) { return four; }

  static void pairs(Blocks<B> reader, uint run, Kept kept, thread uint* to) {
    for (uint i = 0; i < 2; ++i) {
      uint unit = run * 2 + i;
      uint4 bytes = B::template codes<uint4>(reader.block(unit), unit % B::UNITS, 0);
      for (uint w = 0; w < 4; ++w) {
        four_floats<B::ZERO>(bytes[w], kept, to + i * 8 + w * 2);
      }
    }
  }
};

// The low halves of four bytes are four columns, the high halves those sixteen further on.
template <>
struct Run<Blocks<Q4_0>> {
  static constant constexpr Order ORDER = Order::FOURS;
  static constant constexpr uint OFFSET = OF_FOUR + Q4_0::ZERO;
  static uint place(uint four) { return four % 4 * 2 + four / 4; }

  static void pairs(Blocks<Q4_0> reader, uint run, Kept kept, thread uint* to) {
    uint words[4];
    load_words<4>(reader.block(run * 2) + 2, words);
    for (uint w = 0; w < 4; ++w) {
      to[w * 4] = two_of_four(words[w], 0, kept);
      to[w * 4 + 1] = two_of_four(words[w], 2, kept);
      to[w * 4 + 2] = two_of_four(words[w], 1, kept);
      to[w * 4 + 3] = two_of_four(words[w], 3, kept);
    }
  }
};

template <>
struct Run<Blocks<Q8_0>> {
  static constant constexpr Order ORDER = Order::FOURS;
  static constant constexpr uint OFFSET = 0;
  static uint place(uint four) { return four; }

  static void pairs(Blocks<Q8_0> reader, uint run, Kept kept, thread uint* to) {
    uint words[8];
    load_words<8>(reader.block(run * 2) + 2, words);
    for (uint w = 0; w < 8; ++w) {
      to[w * 2] = two_of_eight<true>(words[w], kept);
      to[w * 2 + 1] = two_of_eight<true>(words[w] >> 8, kept);
    }
  }
};

template <uint BITS, typename S>
struct Run<Affine<BITS, S>> {
  static constant constexpr Order ORDER = BITS == 8 ? Order::FOURS : Order::EIGHTS;
  static constant constexpr uint OFFSET = BITS == 8 ? -128 : 0;
  static uint place(uint four) { return four; }

  static void pairs(Affine<BITS, S> reader, uint run, Kept kept, thread uint* to) {
    if constexpr (BITS == 4) {
      uint4 words = ((device const uint4*)reader.codes)[run];
      for (uint w = 0; w < 4; ++w) {
        for (uint i = 0; i < 4; ++i) {
          to[w * 4 + i] = (i < 2 ? words[w] : words[w] >> 8) & (i % 2 == 0 ? 0x000f000fu : 0x00f000f0u);
        }
      }
    } else if constexpr (BITS == 8) {
      for (uint h = 0; h < 2; ++h) {
        uint4 words = ((device const uint4*)reader.codes)[run * 2 + h];
        for (uint w = 0; w < 4; ++w) {
          to[h * 8 + w * 2] = two_of_eight<false>(words[w], kept);
          to[h * 8 + w * 2 + 1] = two_of_eight<false>(words[w] >> 8, kept);
        }
      }
    } else {
      for (uint t = 0; t < 4; ++t) {
        Codes<Affine<BITS, S>>::pairs(reader, run, t, kept, to + t * 4);
      }
    }
  }
};

template <typename C, typename S, uint GROUP>
struct Run<SmallFloats<C, S, GROUP>> {
  static constant constexpr Order ORDER = is_same_v<C, E2m1> ? Order::EIGHTS : Order::FOURS;
  static constant constexpr uint OFFSET = 0;
  static uint place(uint four) { return four; }

  static void pairs(SmallFloats<C, S, GROUP> reader, uint run, Kept kept, thread uint* to) {
    if constexpr (is_same_v<C, E2m1>) {
      for (uint h = 0; h < 2; ++h) {
        uint2 words = ((device const uint2*)reader.codes)[run * 2 + h];
        for (uint w = 0; w < 2; ++w) {
          for (uint i = 0; i < 4; ++i) {
            to[h * 8 + w * 4 + i] = two_of_e2m1(words[w], i, kept);
          }
        }
      }
    } else {
      for (uint h = 0; h < 2; ++h) {
        uint4 words = ((device const uint4*)reader.codes)[run * 2 + h];
        for (uint w = 0; w < 4; ++w) {
          to[h * 8 + w * 2] = two_of_e4m3(words[w]);
          to[h * 8 + w * 2 + 1] = two_of_e4m3(words[w] >> 8);
        }
      }
    }
  }
};

// 64 columns share 32 bytes, those of the first run in the low halves.
template <>
struct Run<Blocks<Q4_K>> {
  static constant constexpr Order ORDER = Order::FOURS;
  static constant constexpr uint OFFSET = OF_FOUR;
  static uint place(uint four) { return four; }

  static void pairs(Blocks<Q4_K> reader, uint run, Kept kept, thread uint* to) {
    device const uint4* from = (device const uint4*)(reader.block(run * 2) + 16) + run % 8 / 2 * 2;
    for (uint h = 0; h < 2; ++h) {
      uint4 words = from[h] >> run % 2 * 4;
      for (uint w = 0; w < 4; ++w) {
        to[h * 8 + w * 2] = two_of_four(words[w], 0, kept);
        to[h * 8 + w * 2 + 1] = two_of_four(words[w], 2, kept);
      }
    }
  }
};

// 128 columns share 64 bytes for their low bits, those of the first two runs in the low halves, and 32 for the two bits above.
template <>
struct Run<Blocks<Q6_K>> {
  static constant constexpr Order ORDER = Order::FOURS;
  static constant constexpr uint OFFSET = HALF ? 0 : 128 + Q6_K::ZERO;
  static uint place(uint four) { return four; }

  static void pairs(Blocks<Q6_K> reader, uint run, Kept kept, thread uint* to) {
    device const uchar* block = reader.block(run * 2);
    uint low[8];
    uint high[8];
    load_words<8>(block + run % 8 / 4 * 64 + run % 2 * 32, low);
    load_words<8>(block + 128 + run % 8 / 4 * 32, high);
    for (uint w = 0; w < 8; ++w) {
      uint codes = and_or(low[w] >> run % 4 / 2 * 4, 0x0f0f0f0fu, (high[w] >> run % 4 * 2 & 0x03030303u) << 4);
      for (uint i = 0; i < 2; ++i) {
        uint two = and_or(codes >> 8 * i, 0x003f003fu, kept.above_pairs);
        to[w * 2 + i] = HALF ? less_zero<Q6_K::ZERO>(two) : two;
      }
    }
  }
};

// Factors of the parts of two neighbouring runs, the first of an even number.
template <typename R>
inline void factors_of_two(R reader, uint run, thread Factors* to) {
  for (uint i = 0; i < 2 * PARTS<R>; ++i) {
    to[i] = reader.factors(run * 2 + i * (2 / PARTS<R>));
  }
}

// Groups of 64 and more have both runs.
template <uint BITS, typename S>
inline void factors_of_two(Affine<BITS, S> reader, uint run, thread Factors* to) {
  to[0] = reader.factors(run * 2);
  to[1] = to[0];
  if (reader.shift == 1) {
    to[1] = reader.factors(run * 2 + 2);
  }
}

// Scales and minimums of six bits of two runs at once: see factors_of_32.
inline void factors_of_64(device const uchar* block, uint run, thread Factors* to) {
  uint4 words = *(device const uint4*)block;
  uint shift = run % 4 * 8;
  uint3 two = uint3(words.y, words.z, words.w) >> shift;
  bool whole = run < 4;
  uint scales = whole ? two.x & 0x3f3f : (two.z & 0x0f0f) | (two.x >> 2 & 0x3030);
  uint minimums = whole ? two.y & 0x3f3f : (two.z >> 4 & 0x0f0f) | (two.y >> 2 & 0x3030);
  half2 both = as_type<half2>(words.x);
  for (uint i = 0; i < 2; ++i) {
    to[i] = {float(both.x) * float(scales >> 8 * i & 0xff), -float(both.y) * float(minimums >> 8 * i & 0xff)};
  }
}
inline void factors_of_two(Blocks<Q4_K> reader, uint run, thread Factors* to) { factors_of_64(reader.block(run * 2), run % 8, to); }
inline void factors_of_two(Blocks<Q5_K> reader, uint run, thread Factors* to) { factors_of_64(reader.block(run * 2), run % 8, to); }

// The pairs of columns of x that stand beside those of a run: eight columns, as two fours.
template <typename R>
inline void beside_run(uint4 eight, float scale, thread uint2* fours) {
  uint pairs[4] = {eight.x, eight.y, eight.z, eight.w};
  put_in_order<Run<R>::ORDER, 4>(pairs);
  if constexpr (SMALL<R>) {
    for (uint i = 0; i < 4; ++i) {
      float2 two = unpack_two(pairs[i]) * (i % 2 == 0 ? scale : scale * 0.0625f);
      pairs[i] = pack_two(two.x, two.y);
    }
  }
  fours[0] = uint2(pairs[0], pairs[1]);
  fours[1] = uint2(pairs[2], pairs[3]);
}
