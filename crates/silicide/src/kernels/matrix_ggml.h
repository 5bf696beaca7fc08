// GGUF formats: blocks that carry their own scales. Each struct reads unit `u` of one block; rows are whole blocks, so
// ALIGNMENT, the power of two in a block's size, is what loads can rely on.

template <typename Block>
struct Blocks {
  static constant constexpr bool HAS_MINIMUM = Block::HAS_MINIMUM;

  device const uchar* row;

  static Blocks at(Stored m, uint row) { return {m.codes + ulong(row) * m.code_stride}; }

  Unit load(uint unit) const {
    return Block::load(row + ulong(unit / Block::UNITS) * Block::BYTES, unit % Block::UNITS);
  }
};

// Sixteen bytes, by loads of no more than ALIGNMENT.
template <uint ALIGNMENT>
inline uint4 load_bytes(device const uchar* at) {
  if (ALIGNMENT >= 16) {
    return *(device const uint4*)at;
  }
  uint4 words = uint4(0);
  if (ALIGNMENT >= 8) {
    words.xy = ((device const uint2*)at)[0];
    words.zw = ((device const uint2*)at)[1];
  } else if (ALIGNMENT >= 4) {
    for (uint i = 0; i < 4; ++i) {
      words[i] = ((device const uint*)at)[i];
    }
  } else {
    for (uint i = 0; i < 8; ++i) {
      words[i / 2] |= uint(((device const ushort*)at)[i]) << (i % 2 * 16);
    }
  }
  return words;
}

inline float load_half(device const uchar* at) { return float(*(device const half*)at); }

// A unit of codes, one a byte, less `zero`.
inline Unit unit_of(uint4 codes, float zero, float scale, float minimum) {
  Unit u;
  for (uint i = 0; i < 4; ++i) {
    u.values[i] = float4(as_type<uchar4>(codes[i])) - zero;
  }
  u.scale = scale;
  u.minimum = minimum;
  return u;
}

// Bits 0 to 15, one to each byte.
inline uint4 spread_bits(uint bits) {
  return (uint4(bits, bits >> 4, bits >> 8, bits >> 12) & 15u) * 0x00204081u & 0x01010101u;
}

constant constexpr char IQ4_VALUES[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

inline Unit iq4_unit(uint4 codes, float scale) {
  Unit u;
  for (uint i = 0; i < UNIT; ++i) {
    u.values[i / 4][i % 4] = float(IQ4_VALUES[codes[i / 4] >> (i % 4 * 8) & 15]);
  }
  u.scale = scale;
  u.minimum = 0.0f;
  return u;
}

// Blocks of 32: the first unit in the low halves of 16 bytes, the second in the high halves.

struct Q4_0 {
  static constant constexpr bool HAS_MINIMUM = false;
  static constant constexpr uint UNITS = 2, BYTES = 18;

  static Unit load(device const uchar* block, uint u) {
    uint4 codes = load_bytes<2>(block + 2) >> (4 * u) & 0x0f0f0f0fu;
    return unit_of(codes, 8.0f, load_half(block), 0.0f);
  }
};

struct Q4_1 {
  static constant constexpr bool HAS_MINIMUM = true;
  static constant constexpr uint UNITS = 2, BYTES = 20;

  static Unit load(device const uchar* block, uint u) {
    uint4 codes = load_bytes<4>(block + 4) >> (4 * u) & 0x0f0f0f0fu;
    return unit_of(codes, 0.0f, load_half(block), load_half(block + 2));
  }
};

struct Q5_0 {
  static constant constexpr bool HAS_MINIMUM = false;
  static constant constexpr uint UNITS = 2, BYTES = 22;

  static Unit load(device const uchar* block, uint u) {
    uint4 low = load_bytes<2>(block + 6) >> (4 * u) & 0x0f0f0f0fu;
    uint high = ((device const ushort*)(block + 2))[u];
    return unit_of(low | spread_bits(high) << 4, 16.0f, load_half(block), 0.0f);
  }
};

struct Q5_1 {
  static constant constexpr bool HAS_MINIMUM = true;
  static constant constexpr uint UNITS = 2, BYTES = 24;

  static Unit load(device const uchar* block, uint u) {
    uint4 low = load_bytes<8>(block + 8) >> (4 * u) & 0x0f0f0f0fu;
    uint high = ((device const ushort*)(block + 4))[u];
    return unit_of(low | spread_bits(high) << 4, 0.0f, load_half(block), load_half(block + 2));
  }
};

struct Q8_0 {
  static constant constexpr bool HAS_MINIMUM = false;
  static constant constexpr uint UNITS = 2, BYTES = 34;

  static Unit load(device const uchar* block, uint u) {
    // Signed bytes, as codes above 128.
    uint4 codes = load_bytes<2>(block + 2 + 16 * u) ^ 0x80808080u;
    return unit_of(codes, 128.0f, load_half(block), 0.0f);
  }
};

struct IQ4_NL {
  static constant constexpr bool HAS_MINIMUM = false;
  static constant constexpr uint UNITS = 2, BYTES = 18;

  static Unit load(device const uchar* block, uint u) {
    return iq4_unit(load_bytes<2>(block + 2) >> (4 * u) & 0x0f0f0f0fu, load_half(block));
  }
};

// Blocks of 256. Pairs of bits: 128 elements in 32 bytes, each 32 two bits above the last; the same for nibbles (64 in
// 32 bytes) and single bits (256 in 32 bytes).

template <uint ALIGNMENT>
inline uint4 load_pairs(device const uchar* at, uint u) {
  return load_bytes<ALIGNMENT>(at + u / 8 * 32 + u % 2 * 16) >> (u % 8 / 2 * 2) & 0x03030303u;
}

template <uint ALIGNMENT>
inline uint4 load_nibbles(device const uchar* at, uint u) {
  return load_bytes<ALIGNMENT>(at + u / 4 * 32 + u % 2 * 16) >> (u % 4 / 2 * 4) & 0x0f0f0f0fu;
}

template <uint ALIGNMENT>
inline uint4 load_bits(device const uchar* at, uint u) {
  return load_bytes<ALIGNMENT>(at + u % 2 * 16) >> (u / 2) & 0x01010101u;
}

struct Q2_K {
  static constant constexpr bool HAS_MINIMUM = true;
  static constant constexpr uint UNITS = 16, BYTES = 84;

  static Unit load(device const uchar* block, uint u) {
    uchar group = block[u];
    return unit_of(
        load_pairs<4>(block + 16, u), 0.0f, load_half(block + 80) * float(group & 15),
        -load_half(block + 82) * float(group >> 4));
  }
};

struct Q3_K {
  static constant constexpr bool HAS_MINIMUM = false;
  static constant constexpr uint UNITS = 16, BYTES = 110;

  static Unit load(device const uchar* block, uint u) {
    uint low = block[96 + u % 8] >> (u / 8 * 4) & 15;
    uint high = block[104 + u % 4] >> (u / 4 * 2) & 3;
    float scale = load_half(block + 108) * (float(low | high << 4) - 32.0f);
    return unit_of(load_pairs<2>(block + 32, u) | load_bits<2>(block, u) << 2, 4.0f, scale, 0.0f);
  }
};

// Scale and minimum of each 32, 6 bits each: whole for the first four, for the others in the bits that these leave.
inline Unit unit_of_32(uint4 codes, device const uchar* block, uint u) {
  device const uchar* q = block + 4;
  uint g = u / 2;
  uint scale;
  uint minimum;
  if (g < 4) {
    scale = q[g] & 63;
    minimum = q[g + 4] & 63;
  } else {
    scale = (q[g + 4] & 15) | q[g - 4] >> 6 << 4;
    minimum = q[g + 4] >> 4 | q[g] >> 6 << 4;
  }
  return unit_of(codes, 0.0f, load_half(block) * float(scale), -load_half(block + 2) * float(minimum));
}

struct Q4_K {
  static constant constexpr bool HAS_MINIMUM = true;
  static constant constexpr uint UNITS = 16, BYTES = 144;

  static Unit load(device const uchar* block, uint u) {
    return unit_of_32(load_nibbles<16>(block + 16, u), block, u);
  }
};

struct Q5_K {
  static constant constexpr bool HAS_MINIMUM = true;
  static constant constexpr uint UNITS = 16, BYTES = 176;

  static Unit load(device const uchar* block, uint u) {
    return unit_of_32(load_nibbles<16>(block + 48, u) | load_bits<16>(block + 16, u) << 4, block, u);
  }
};

struct Q6_K {
  static constant constexpr bool HAS_MINIMUM = false;
  static constant constexpr uint UNITS = 16, BYTES = 210;

  static Unit load(device const uchar* block, uint u) {
    uint4 low = load_bytes<2>(block + u / 8 * 64 + u % 4 * 16) >> (u % 8 / 4 * 4) & 0x0f0f0f0fu;
    float scale = load_half(block + 208) * float(((device const char*)block)[192 + u]);
    return unit_of(low | load_pairs<2>(block + 128, u) << 4, 32.0f, scale, 0.0f);
  }
};

struct IQ4_XS {
  static constant constexpr bool HAS_MINIMUM = false;
  static constant constexpr uint UNITS = 16, BYTES = 136;

  static Unit load(device const uchar* block, uint u) {
    uint g = u / 2;
    uint low = block[4 + g / 2] >> (g % 2 * 4) & 15;
    uint high = *(device const ushort*)(block + 2) >> (2 * g) & 3;
    float scale = load_half(block) * (float(low | high << 4) - 32.0f);
    return iq4_unit(load_bytes<8>(block + 8 + g * 16) >> (u % 2 * 4) & 0x0f0f0f0fu, scale);
  }
};
