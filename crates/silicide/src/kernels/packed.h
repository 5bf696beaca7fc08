// A stored matrix for NVIDIA's tensor cores: two neighbouring units, of which the first is even, as pairs of SCALAR, a type of 16 bits,
// scaled and rounded. What was loaded stays as it is until pairs() is asked for a unit, so that loads run ahead in few registers. Past the
// last of a row's `units` all is zero.

#include "matrix.h"
#include "nvidia.h"

inline uint twice(SCALAR x) { return uint(as_type<ushort>(x)) * 0x10001u; }

// From pairs of elements i and i + 4 of eight to pairs of neighbours.
inline void store_neighbours(thread const uint* apart, thread uint* to) {
  to[0] = low_halves(apart[0], apart[1]);
  to[1] = low_halves(apart[2], apart[3]);
  to[2] = high_halves(apart[0], apart[1]);
  to[3] = high_halves(apart[2], apart[3]);
}

template <typename R>
struct Packed {
  // Whether what is kept is what was loaded.
  static constant constexpr bool RAW = false;
  Unit two[2];

  static Packed load(R reader, uint unit, uint units) {
    Packed packed = {};
    for (uint i = 0; i < 2; ++i) {
      if (unit + i < units) {
        packed.two[i] = reader.load(unit + i);
      }
    }
    return packed;
  }

  void pairs(uint i, thread uint* to) const {
    float4 elements[4];
    dequantize(two[i], elements);
    for (uint e = 0; e < 4; ++e) {
      to[e * 2] = pack_two(elements[e].x, elements[e].y);
      to[e * 2 + 1] = pack_two(elements[e].z, elements[e].w);
    }
  }
};

template <>
struct Packed<Dense<SCALAR>> {
  static constant constexpr bool RAW = true;
  uint4 words[4];

  static Packed load(Dense<SCALAR> reader, uint unit, uint units) {
    Packed packed = {};
    device const uint4* at = (device const uint4*)(reader.row + unit * UNIT);
    for (uint i = 0; i < 4; ++i) {
      if (unit + i / 2 < units) {
        packed.words[i] = at[i];
      }
    }
    return packed;
  }

  void pairs(uint i, thread uint* to) const {
    for (uint e = 0; e < 8; ++e) {
      to[e] = words[i * 2 + e / 4][e % 4];
    }
  }
};

// Codes become floats as the last bits of 128 (bf16) or 1024 (f16), which is taken off again. Groups are of 32 and more.
template <>
struct Packed<Affine<4, SCALAR>> {
  static constant constexpr bool RAW = true;
  uint4 words;
  SCALAR scale;
  SCALAR minimum;

  static Packed load(Affine<4, SCALAR> reader, uint unit, uint units) {
    Packed packed = {};
    if (unit < units) {
      uint group = unit >> reader.shift;
      packed = {*(device const uint4*)(reader.codes + unit * 8), reader.scales[group], reader.biases[group]};
    }
    return packed;
  }

  void pairs(uint i, thread uint* to) const {
    constexpr bool HALF = is_same_v<SCALAR, half>;
    for (uint w = 0; w < 2; ++w) {
      uint apart[4];
      for (uint e = 0; e < 4; ++e) {
        uint codes = (words[i * 2 + w] >> (4 * e) & 0x000f000fu) | (HALF ? 0x64006400u : 0x43004300u);
        codes = fma_pairs(codes, ONES, HALF ? 0xe400e400u : 0xc300c300u);
        apart[e] = fma_pairs(codes, twice(scale), twice(minimum));
      }
      store_neighbours(apart, to + w * 4);
    }
  }
};

// bf16 has the exponents of a scale, and codes moved to its places want another bias of the exponent.
template <>
struct Packed<Mxfp4> {
  static constant constexpr bool RAW = true;
  uint4 words;
  uchar exponent;

  static Packed load(Mxfp4 reader, uint unit, uint units) {
    Packed packed = {};
    if (unit < units) {
      packed = {*(device const uint4*)(reader.codes + unit * 8), reader.scales[unit / 2]};
    }
    return packed;
  }

  void pairs(uint i, thread uint* to) const {
    float scale = E8m0::scale(exponent);
    for (uint w = 0; w < 2; ++w) {
      uint apart[4];
      for (uint e = 0; e < 4; ++e) {
        uint pair = words[i * 2 + w] >> (4 * e);
        uint sign = (pair & 0x00080008u) << 12;
        if constexpr (is_same_v<SCALAR, half>) {
          half2 two = as_type<half2>(sign | (pair & 0x00070007u) << 9) * half2(16384.0h);
          apart[e] = pack_two(scale * float(two.x), scale * float(two.y));
        } else {
          uint codes = fma_pairs(sign | (pair & 0x00070007u) << 6, 0x7e807e80u, 0x80008000u);
          apart[e] = fma_pairs(codes, twice(SCALAR(scale)), 0x80008000u);
        }
      }
      store_neighbours(apart, to + w * 4);
    }
  }
};
