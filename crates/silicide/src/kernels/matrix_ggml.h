// GGUF formats: blocks that carry their own scales. Each struct reads unit `u` of one block, its codes one a byte, less ZERO:
// all sixteen as a uint4, or as a uint the four from `first` on, or as a ushort two. Rows are whole blocks, so ALIGNMENT, the power of two in a
// block's size, is what loads can rely on. GROUP is how many columns share a scale.

template <typename Block>
struct Blocks {
  static constant constexpr bool HAS_MINIMUM = Block::HAS_MINIMUM;

  device const uchar* row;

  static Blocks at(Stored m, uint row) { return {m.codes + ulong(row) * m.code_stride}; }

  device const uchar* block(uint unit) const { return row + ulong(unit / Block::UNITS) * Block::BYTES; }

  Unit load(uint unit) const {
    uint4 codes = Block::template codes<uint4>(block(unit), unit % Block::UNITS, 0);
    Factors f = factors(unit);
    Unit u;
    for (uint i = 0; i < 4; ++i) {
      u.values[i] = float4(as_type<uchar4>(codes[i])) - float(Block::ZERO);
    }
    u.scale = f.scale;
    u.minimum = f.minimum;
    return u;
  }

  Factors factors(uint unit) const { return Block::factors(block(unit), unit % Block::UNITS); }
};

// Bytes, by loads of no more than ALIGNMENT.
template <uint ALIGNMENT>
inline void load_bytes(device const uchar* at, thread ushort& two) {
  two = *(device const ushort*)at;
}
template <uint ALIGNMENT>
inline void load_bytes(device const uchar* at, thread uint& word) {
  if (ALIGNMENT >= 4) {
    word = *(device const uint*)at;
  } else {
    word = ((device const ushort*)at)[0] | uint(((device const ushort*)at)[1]) << 16;
  }
}
template <uint ALIGNMENT>
inline void load_bytes(device const uchar* at, thread uint4& words) {
  if (ALIGNMENT >= 16) {
    words = *(device const uint4*)at;
  } else if (ALIGNMENT >= 8) {
    words.xy = ((device const uint2*)at)[0];
    words.zw = ((device const uint2*)at)[1];
  } else {
    for (uint i = 0; i < 4; ++i) {
      uint word;
      load_bytes<ALIGNMENT>(at + i * 4, word);
      words[i] = word;
    }
  }
}
template <uint ALIGNMENT, typename W>
inline W bytes_at(device const uchar* at) {
  W bytes;
  load_bytes<ALIGNMENT>(at, bytes);
  return bytes;
}

inline float load_half(device const uchar* at) { return float(*(device const half*)at); }

// Bits, one to each byte.
inline void spread_bits(uint bits, thread ushort& two) { two = (bits & 3u) * 0x0081u & 0x0101u; }
inline void spread_bits(uint bits, thread uint& word) { word = (bits & 15u) * 0x00204081u & 0x01010101u; }
inline void spread_bits(uint bits, thread uint4& words) {
  words = (uint4(bits, bits >> 4, bits >> 8, bits >> 12) & 15u) * 0x00204081u & 0x01010101u;
}
template <typename W>
inline W bits_of(uint bits) {
  W bytes;
  spread_bits(bits, bytes);
  return bytes;
}

// The values that codes of four bits stand for, and 128.
constant constexpr uchar IQ4_CODES[16] = {1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241};

inline uint iq4_codes(uint codes) {
  uint bytes = 0;
  for (uint i = 0; i < 32; i += 8) {
    bytes |= uint(IQ4_CODES[codes >> i & 15]) << i;
  }
  return bytes;
}
inline ushort iq4_codes(ushort codes) { return IQ4_CODES[codes & 15] | IQ4_CODES[codes >> 8 & 15] << 8; }
inline uint4 iq4_codes(uint4 codes) {
  return uint4(iq4_codes(codes.x), iq4_codes(codes.y), iq4_codes(codes.z), iq4_codes(codes.w));
}

// Blocks of 32: the first unit in the low halves of 16 bytes, the second in the high halves.

struct Q4_0 {
  static constant constexpr bool HAS_MINIMUM = false;
  static constant constexpr uint UNITS = 2, BYTES = 18, GROUP = 32, ZERO = 8;

  template <typename W>
  static W codes(device const uchar* block, uint u, uint first) {
    return bytes_at<2, W>(block + 2 + first) >> (4 * u) & W(0x0f0f0f0fu);
  }
  static Factors factors(device const uchar* block, uint) { return {load_half(block), 0.0f}; }
};

struct Q4_1 {
  static constant constexpr bool HAS_MINIMUM = true;
  static constant constexpr uint UNITS = 2, BYTES = 20, GROUP = 32, ZERO = 0;

  template <typename W>
  static W codes(device const uchar* block, uint u, uint first) {
    return bytes_at<4, W>(block + 4 + first) >> (4 * u) & W(0x0f0f0f0fu);
  }
  static Factors factors(device const uchar* block, uint) { return {load_half(block), load_half(block + 2)}; }
};

struct Q5_0 {
  static constant constexpr bool HAS_MINIMUM = false;
  static constant constexpr uint UNITS = 2, BYTES = 22, GROUP = 32, ZERO = 16;

  template <typename W>
  static W codes(device const uchar* block, uint u, uint first) {
    W low = bytes_at<2, W>(block + 6 + first) >> (4 * u) & W(0x0f0f0f0fu);
    return low | bits_of<W>(((device const ushort*)(block + 2))[u] >> first) << 4;
  }
  static Factors factors(device const uchar* block, uint) { return {load_half(block), 0.0f}; }
};

struct Q5_1 {
  static constant constexpr bool HAS_MINIMUM = true;
  static constant constexpr uint UNITS = 2, BYTES = 24, GROUP = 32, ZERO = 0;

  template <typename W>
  static W codes(device const uchar* block, uint u, uint first) {
    W low = bytes_at<8, W>(block + 8 + first) >> (4 * u) & W(0x0f0f0f0fu);
    return low | bits_of<W>(((device const ushort*)(block + 4))[u] >> first) << 4;
  }
  static Factors factors(device const uchar* block, uint) { return {load_half(block), load_half(block + 2)}; }
};

struct Q8_0 {
  static constant constexpr bool HAS_MINIMUM = false;
  static constant constexpr uint UNITS = 2, BYTES = 34, GROUP = 32, ZERO = 128;

  // Signed bytes, as codes above 128.
  template <typename W>
  static W codes(device const uchar* block, uint u, uint first) {
    return bytes_at<2, W>(block + 2 + 16 * u + first) ^ W(0x80808080u);
  }
  static Factors factors(device const uchar* block, uint) { return {load_half(block), 0.0f}; }
};

struct IQ4_NL {
  static constant constexpr bool HAS_MINIMUM = false;
  static constant constexpr uint UNITS = 2, BYTES = 18, GROUP = 32, ZERO = 128;

  template <typename W>
  static W codes(device const uchar* block, uint u, uint first) {
    return iq4_codes(W(bytes_at<2, W>(block + 2 + first) >> (4 * u) & W(0x0f0f0f0fu)));
  }
  static Factors factors(device const uchar* block, uint) { return {load_half(block), 0.0f}; }
};

// Blocks of 256. Pairs of bits: 128 elements in 32 bytes, each 32 two bits above the last; the same for nibbles (64 in
// 32 bytes) and single bits (256 in 32 bytes).

template <uint ALIGNMENT, typename W>
inline W load_pairs(device const uchar* at, uint u) {
  return bytes_at<ALIGNMENT, W>(at + u / 8 * 32 + u % 2 * 16) >> (u % 8 / 2 * 2) & W(0x03030303u);
}

template <uint ALIGNMENT, typename W>
inline W load_nibbles(device const uchar* at, uint u) {
  return bytes_at<ALIGNMENT, W>(at + u / 4 * 32 + u % 2 * 16) >> (u % 4 / 2 * 4) & W(0x0f0f0f0fu);
}

template <uint ALIGNMENT, typename W>
inline W load_bits(device const uchar* at, uint u) {
  return bytes_at<ALIGNMENT, W>(at + u % 2 * 16) >> (u / 2) & W(0x01010101u);
}

struct Q2_K {
  static constant constexpr bool HAS_MINIMUM = true;
  static constant constexpr uint UNITS = 16, BYTES = 84, GROUP = 16, ZERO = 0;

  template <typename W>
  static W codes(device const uchar* block, uint u, uint first) {
    return load_pairs<4, W>(block + 16 + first, u);
  }
  static Factors factors(device const uchar* block, uint u) {
    uchar group = block[u];
    return {load_half(block + 80) * float(group & 15), -load_half(block + 82) * float(group >> 4)};
  }
};

struct Q3_K {
  static constant constexpr bool HAS_MINIMUM = false;
  static constant constexpr uint UNITS = 16, BYTES = 110, GROUP = 16, ZERO = 4;

  template <typename W>
  static W codes(device const uchar* block, uint u, uint first) {
    return load_pairs<2, W>(block + 32 + first, u) | load_bits<2, W>(block + first, u) << 2;
  }
  static Factors factors(device const uchar* block, uint u) {
    uint low = block[96 + u % 8] >> (u / 8 * 4) & 15;
    uint high = block[104 + u % 4] >> (u / 4 * 2) & 3;
    return {load_half(block + 108) * (float(low | high << 4) - 32.0f), 0.0f};
  }
};

// Scale and minimum of each 32, 6 bits each: whole for the first four, for the others in the bits that these leave.
inline Factors factors_of_32(device const uchar* block, uint u) {
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
  return {load_half(block) * float(scale), -load_half(block + 2) * float(minimum)};
}

struct Q4_K {
  static constant constexpr bool HAS_MINIMUM = true;
  static constant constexpr uint UNITS = 16, BYTES = 144, GROUP = 32, ZERO = 0;

  template <typename W>
  static W codes(device const uchar* block, uint u, uint first) {
    return load_nibbles<16, W>(block + 16 + first, u);
  }
  static Factors factors(device const uchar* block, uint u) { return factors_of_32(block, u); }
};

struct Q5_K {
  static constant constexpr bool HAS_MINIMUM = true;
  static constant constexpr uint UNITS = 16, BYTES = 176, GROUP = 32, ZERO = 0;

  template <typename W>
  static W codes(device const uchar* block, uint u, uint first) {
    return load_nibbles<16, W>(block + 48 + first, u) | load_bits<16, W>(block + 16 + first, u) << 4;
  }
  static Factors factors(device const uchar* block, uint u) { return factors_of_32(block, u); }
};

struct Q6_K {
  static constant constexpr bool HAS_MINIMUM = false;
  static constant constexpr uint UNITS = 16, BYTES = 210, GROUP = 16, ZERO = 32;

  template <typename W>
  static W codes(device const uchar* block, uint u, uint first) {
    W low = bytes_at<2, W>(block + u / 8 * 64 + u % 4 * 16 + first) >> (u % 8 / 4 * 4) & W(0x0f0f0f0fu);
    return low | load_pairs<2, W>(block + 128 + first, u) << 4;
  }
  static Factors factors(device const uchar* block, uint u) {
    return {load_half(block + 208) * float(((device const char*)block)[192 + u]), 0.0f};
  }
};

struct IQ4_XS {
  static constant constexpr bool HAS_MINIMUM = false;
  static constant constexpr uint UNITS = 16, BYTES = 136, GROUP = 32, ZERO = 128;

  template <typename W>
  static W codes(device const uchar* block, uint u, uint first) {
    return iq4_codes(W(bytes_at<8, W>(block + 8 + u / 2 * 16 + first) >> (u % 2 * 4) & W(0x0f0f0f0fu)));
  }
  static Factors factors(device const uchar* block, uint u) {
    uint g = u / 2;
    uint low = block[4 + g / 2] >> (g % 2 * 4) & 15;
    uint high = *(device const ushort*)(block + 2) >> (2 * g) & 3;
    return {load_half(block) * (float(low | high << 4) - 32.0f), 0.0f};
  }
};
