// Tiles of codes of keys and values, sixteen rows of DIM elements, that come to threadgroup memory by asynchronous copies and are read as
// matrices; and the scales of rows. For NVIDIA's tensor cores.

#include "nvidia.h"

constant constexpr uint KEYS = 16;

// A chunk of sixteen bytes lies at its place exclusive-or this, so that eight rows at one column lie in different banks.
template <uint CHUNKS>
inline uint swizzle(uint row) {
  return CHUNKS & (CHUNKS - 1) ? 0 : ((row & 1) << 2 | (row & 2) | (row >> 2 & 1)) & (CHUNKS - 1);
}

// A row of what lies `stride` elements apart.
template <typename T>
inline device const T* row_at(device const T* all, uint row, uint stride) {
  return (device const T*)((device const uchar*)all + ulong(row) * (stride * uint(sizeof(T))));
}

// Whether a copy of all lanes has whole rows of codes.
template <uint BITS>
constant constexpr bool WHOLE_ROWS = 32 % (DIM * BITS / 128) == 0;

// Where a lane copies its first chunk of a turn's codes from, where rows are positions.
template <uint BITS>
inline device const uchar* chunk_from(device const uint* codes, uint stride, uint first, uint lane) {
  constexpr uint CHUNKS = DIM * BITS / 128;
  return (device const uchar*)(row_at(codes, first + lane / CHUNKS, stride) + lane % CHUNKS * 4);
}

// Asks for sixteen rows of codes: those from `from` on.
template <uint BITS>
inline void copy_rows(Shared to, device const uchar* from, uint stride, uint lane) {
  constexpr uint CHUNKS = DIM * BITS / 128;
  constexpr uint ROWS_AT_ONCE = 32 / CHUNKS;
#pragma unroll
  for (uint row = 0; row < KEYS; row += ROWS_AT_ONCE) {
    uint mine = row + lane / CHUNKS;
    copy_some(to + (mine * CHUNKS + (lane % CHUNKS ^ swizzle<CHUNKS>(mine))) * 16, from + row * (stride * 4ul), 16);
  }
}

// Asks for sixteen rows of codes: those that `row_of` names.
template <uint BITS, typename F>
inline void copy_tile(Shared to, device const uint* codes, uint stride, uint lane, F row_of) {
  constexpr uint CHUNKS = DIM * BITS / 128;
#pragma unroll 1
  for (uint i = lane; i < KEYS * CHUNKS; i += 32) {
    uint row = i / CHUNKS;
    uint c = i % CHUNKS;
    copy_some(to + (row * CHUNKS + (c ^ swizzle<CHUNKS>(row))) * 16, row_at(codes + c * 4, row_of(row), stride), 16);
  }
}

// Whether codes fill bytes, so that a tile is matrices of 16 bits: of keys a word is codes of one key side by side, of values it is codes
// of one key and those of another.
template <uint BITS>
constant constexpr bool WHOLE = BITS == 4 || BITS == 8;
// Elements of a value that a lane has side by side, besides those that are as many times eight further on.
template <uint BITS>
constant constexpr uint BESIDE = WHOLE<BITS> ? 16 / BITS : 8;

// The place of a lane's row of the first four matrices of a tile: two of rows and two of chunks. Row i of a matrix is key i / 2 + i % 2 * 4
// of eight.
template <uint BITS>
inline uint row_place(uint lane) {
  constexpr uint CHUNKS = DIM * BITS / 128;
  uint row = lane % 8 / 2 + lane % 2 * 4 + lane / 8 % 2 * 8;
  return (row * CHUNKS + (lane / 16 ^ swizzle<CHUNKS>(row))) * 16;
}

// The bits of the eight elements `eighth` of a row of a tile whose codes are not whole.
template <uint BITS>
inline uint2 load_eight(threadgroup const uchar* tile, uint row, uint eighth) {
  uint byte = eighth * BITS;
  threadgroup const uint* from = (threadgroup const uint*)(tile + row * (DIM * BITS / 8)) + byte / 4;
  uint shift = byte % 4 * 8;
  return shift == 0 ? uint2(from[0], from[1]) : uint2(from[0] >> shift | from[1] << (32 - shift), from[1] >> shift);
}

// Two codes as subnormals: codes i and i + 4 of a word of eight, i and i + 2 of a word of four. Of eight, odd ones are times 16.
template <uint BITS>
inline uint two_codes(uint word, uint i) {
  if (BITS == 4) {
    return (i < 2 ? word : word >> 8) & (i % 2 == 0 ? 0x000f000fu : 0x00f000f0u);
  }
  return i == 0 ? word & 0x00ff00ffu : pick_bytes(word, 0, 0x4341);
}

// Words from one level of a lane to the next, so that the place of a level is its lane and its code as two bytes.
constant constexpr uint LEVELS_APART = 64;
// The level of the code whose lowest bit is `bit`. `mine` is the place of the lane's first, a byte.
template <uint BITS>
inline uint level_of(Shared levels, uint mine, uint2 words, uint bit) {
  if (WHOLE<BITS>) {
    uint word = bit < 32 ? words.x : words.y;
    uint bytes = BITS == 8 ? word : (bit % 8 == 0 ? word : word >> 4) & 0x0f0f0f0fu;
    return load_word(levels + pick_bytes(bytes, mine, 0x5504 | bit % 32 / 8 << 4));
  }
  uint code = bit < 8 ? words.x << (8 - bit) : uint((ulong(words.y) << 32 | words.x) >> (bit - 8));
  return load_word(levels + and_or(code, ((1u << BITS) - 1) << 8, mine));
}

// Two of some numbers of 16 bits.
template <typename S>
inline uint pair_of(vec<S, 2> two, uint) { return as_type<uint>(two); }
template <typename S>
inline uint pair_of(vec<S, 4> four, uint i) { return as_type<uint2>(four)[i]; }

// Numbers that are loaded together.
template <typename S, uint N>
struct Together {
  vec<S, N> all;
  float operator[](uint i) const {
    if constexpr (is_same_v<S, bfloat>) {
      uint pair = pair_of(all, i / 2);
      return as_type<float>(i % 2 == 0 ? pair << 16 : pair & 0xffff0000u);
    }
    return float(all[i]);
  }
  void set(uint i, S x) { all[i] = x; }
};
template <typename S>
struct Together<S, 1> {
  S all;
  float operator[](uint) const { return float(all); }
  void set(uint, S x) { all = x; }
};

// The scales and biases of two rows, or scales alone.
template <typename S, uint GROUPS, bool ROTATED>
struct Factors {
  Together<S, GROUPS> scales[2];
  Together<S, ROTATED ? 1 : GROUPS> biases[2];

  void load(uint r, device const S* scale, device const S* bias, uint apart) {
    if constexpr (ROTATED) {
      for (uint i = 0; i < GROUPS; ++i) {
        scales[r].set(i, scale[i * apart]);
      }
    } else {
      scales[r] = *(device const Together<S, GROUPS>*)scale;
      biases[r] = *(device const Together<S, GROUPS>*)bias;
    }
  }
};
