// MLX formats: codes apart from their scales. A row of codes is one little-endian stream of bits.

// Unsigned codes times a scale plus a bias, both of type S.
template <uint BITS, typename S>
struct Affine {
  static constant constexpr bool HAS_MINIMUM = true;

  device const uchar* codes;
  device const S* scales;
  device const S* biases;
  uint shift;  // 2^shift units share a scale

  static Affine at(Stored m, uint row) {
    uint shift = ctz(m.group_size);
    ulong group = ulong(row) * (m.columns >> shift);
    return {
        m.codes + ulong(row) * m.code_stride,
        (device const S*)m.scales + group,
        (device const S*)m.biases + group,
        shift - 4,
    };
  }

  Unit load(uint unit) const {
    uint4 words = load_words(codes + ulong(unit) * (2 * BITS));
    Unit u;
    for (uint i = 0; i < UNIT; ++i) {
      uint word = i * BITS / 32;
      uint bit = i * BITS % 32;
      uint code = words[word] >> bit;
      if (bit + BITS > 32) {
        code |= words[word + 1] << (32 - bit);
      }
      u.values[i / 4][i % 4] = float(code & ((1u << BITS) - 1));
    }
    Factors f = factors(unit);
    u.scale = f.scale;
    u.minimum = f.minimum;
    return u;
  }

  Factors factors(uint unit) const { return {float(scales[unit >> shift]), float(biases[unit >> shift])}; }

  // Groups are of 32 and more, so a unit of an even width starts on as many bytes as its loads want.
  static uint4 load_words(device const uchar* at) {
    uint4 words = uint4(0);
    if (BITS == 8) {
      words = *(device const uint4*)at;
    } else if (BITS == 4) {
      words.xy = *(device const uint2*)at;
    } else if (BITS % 2 == 0) {
      for (uint i = 0; i < BITS / 2; ++i) {
        words[i] = ((device const uint*)at)[i];
      }
    } else {
      for (uint i = 0; i < BITS; ++i) {
        words[i / 2] |= uint(((device const ushort*)at)[i]) << (i % 2 * 16);
      }
    }
    return words;
  }
};

// Codes and scales that are small floats become halves, whose wider exponent holds them all: the fields are moved to
// half's places, and a product with a power of two makes up for the other bias of the exponent.

// 2 bits of exponent, 1 of mantissa.
struct E2m1 {
  static constant constexpr uint BYTES = 8;  // of a unit

  static void load(device const uchar* at, thread float4* values) {
    uint2 words = *(device const uint2*)at;
    for (uint h = 0; h < 2; ++h) {
      for (uint i = 0; i < 4; ++i) {
        // Codes i and i + 4 of a word.
        uint pair = words[h] >> (4 * i);
        half2 two = as_type<half2>((pair & 0x00080008) << 12 | (pair & 0x00070007) << 9) * half2(16384.0h);
        values[2 * h][i] = float(two.x);
        values[2 * h + 1][i] = float(two.y);
      }
    }
  }
};

// 4 bits of exponent, 3 of mantissa, no infinity; 0x7f and 0xff are NaN.
struct E4m3 {
  static constant constexpr uint BYTES = 16;

  // The first and third byte of a word.
  static half2 two(uint word) {
    half2 two = as_type<half2>((word & 0x00800080) << 8 | (word & 0x007f007f) << 7) * half2(256.0h);
    return select(two, half2(NAN), fabs(two) > half2(448.0h));
  }

  static void load(device const uchar* at, thread float4* values) {
    uint4 words = *(device const uint4*)at;
    for (uint i = 0; i < 4; ++i) {
      half2 even = two(words[i]);
      half2 odd = two(words[i] >> 8);
      values[i] = float4(float(even.x), float(odd.x), float(even.y), float(odd.y));
    }
  }

  static float scale(uchar code) { return float(two(code).x); }
};

// A power of two; 255 is NaN.
struct E8m0 {
  static float scale(uchar code) {
    return code == 255 ? NAN : as_type<float>(code == 0 ? 1u << 22 : uint(code) << 23);
  }
};

// Small floats that share a scale for each GROUP.
template <typename Code, typename Scale, uint GROUP>
struct SmallFloats {
  static constant constexpr bool HAS_MINIMUM = false;

  device const uchar* codes;
  device const uchar* scales;

  static SmallFloats at(Stored m, uint row) {
    return {m.codes + ulong(row) * m.code_stride, m.scales + ulong(row) * (m.columns / GROUP)};
  }

  Unit load(uint unit) const {
    Unit u;
    Code::load(codes + ulong(unit) * Code::BYTES, u.values);
    u.scale = factors(unit).scale;
    u.minimum = 0.0f;
    return u;
  }

  Factors factors(uint unit) const { return {Scale::scale(scales[unit / (GROUP / UNIT)]), 0.0f}; }
};

typedef SmallFloats<E2m1, E8m0, 32> Mxfp4;
typedef SmallFloats<E4m3, E8m0, 32> Mxfp8;
typedef SmallFloats<E2m1, E4m3, 16> Nvfp4;
