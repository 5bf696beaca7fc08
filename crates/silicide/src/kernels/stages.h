// Stages of rows of a stored matrix for NVIDIA's tensor cores: some columns of each row, copied to threadgroup memory as bytes, whatever
// the format, and read there by its reader.

#include "nvidia.h"
#include "products.h"

// How a row lies in memory: the bytes that codes of 256 columns take, and of a scale that lies apart, 0 where none does; whether biases do
// so too; and the columns that share them.
template <typename R>
struct Layout;
template <uint BITS, typename S>
struct Layout<Affine<BITS, S>> {
  static constant constexpr uint CODES = 32 * BITS, SCALE = sizeof(S), LEAST = 32;
  static constant constexpr bool BIASES = true;
  static uint group(uint group) { return group; }
};
template <typename C, typename S, uint GROUP>
struct Layout<SmallFloats<C, S, GROUP>> {
  static constant constexpr uint CODES = 16 * C::BYTES, SCALE = 1, LEAST = GROUP;
  static constant constexpr bool BIASES = false;
  static uint group(uint) { return GROUP; }
};
template <typename B>
struct Layout<Blocks<B>> {
  static constant constexpr uint CODES = 16 / B::UNITS * B::BYTES, SCALE = 0, LEAST = 256;
  static constant constexpr bool BIASES = false;
  static uint group(uint) { return 256; }
};
template <typename T>
struct Layout<Dense<T>> {
  static constant constexpr uint CODES = 256 * sizeof(T), SCALE = 0, LEAST = 256;
  static constant constexpr bool BIASES = false;
  static uint group(uint) { return 256; }
};

// Where a lane copies the next stage of some rows from, and how it is laid down: rows of codes, then those of scales, then of biases. All
// lanes of a simdgroup copy together. Chunks of rows are an odd number, so that eight rows lie in different banks, or GAP more than there
// are.
template <uint ROWS, uint COLUMNS, uint GAP = 0>
struct Stages {
  typedef Layout<Reader> L;
  static constant constexpr uint CODES = L::CODES * COLUMNS / 256;
  static constant constexpr bool EVEN = CODES % 16 == 0;  // rows begin on 16 bytes
  static constant constexpr uint CHUNKS = EVEN ? CODES / 16 : (CODES + 32) / 16;
  static constant constexpr uint PITCH = (GAP != 0 ? CHUNKS + GAP : CHUNKS | 1) * 16;
  static constant constexpr uint SCALES = ROWS * PITCH;
  // Lanes that share a row of codes, side by side, and rows that a copy of all lanes has; or lanes take one chunk after the other, whatever
  // the row, where that is fewer copies.
  static constant constexpr uint LANES = EVEN ? 8 : 4;
  static constant constexpr uint AT_ONCE = 32 / LANES;
  static constant constexpr uint COPIES = (ROWS * CHUNKS + 31) / 32;
  static constant constexpr bool IN_ORDER = EVEN && COPIES + 1 < ROWS / AT_ONCE * ((CHUNKS + LANES - 1) / LANES);

  device const uchar* codes[SUMS];  // of the first row, and of the second where rows are of two weights in turn
  device const uchar* scales;       // of the lane's row, or its biases
  uint rows;                        // that there are
  bool ends;                        // whether the last of these is its weight's

  // An index that is not known would have the compiler keep them in memory.
  device const uchar* codes_of(uint row) const { return row % SUMS == 0 ? codes[0] : codes[SUMS - 1]; }

  // Bytes of a row of scales.
  static uint scale_row(uint k, uint group) { return k / group * L::SCALE; }

  // Bytes of a row of a stage's. Where rows begin anywhere they are copied by words, from the one that their first lies in.
  static uint factors(uint k, uint group) {
    return L::SCALE == 0 ? 0 : (COLUMNS / group * L::SCALE + (k % COLUMNS == 0 ? 0 : 4) + 15) / 16 * 16;
  }

  // Bytes of a stage.
  static uint bytes(uint k, uint group) { return SCALES + (L::BIASES ? 2 : 1) * ROWS * factors(k, group); }

  void enter(Product product, uint k, uint group, uint stage, uint lane) {
    uint first = product.block * ROWS;
    rows = min(product.rows() - first, ROWS);
    ends = first + rows == product.rows();
    for (uint i = 0; i < SUMS; ++i) {
      Stored holder = holder_of(product.weight, first + i);
      codes[i] = holder.codes + ulong(first / SUMS) * holder.code_stride + stage * CODES;
    }
    if constexpr (L::SCALE != 0) {
      uint row = first + min(lane % ROWS, rows - 1);
      Stored holder = holder_of(product.weight, row);
      scales = (lane < ROWS ? holder.scales : holder.biases) + ulong(row / SUMS) * scale_row(k, group) + stage * (COLUMNS / group * L::SCALE);
    }
  }

  void skip(uint stages, uint group) {
    for (uint i = 0; i < SUMS; ++i) {
      codes[i] += stages * CODES;
    }
    if constexpr (L::SCALE != 0) {
      scales += stages * (COLUMNS / group * L::SCALE);
    }
  }

  // `columns` of them, which are the last of their rows or not.
  void copy(threadgroup uchar* stage, uint columns, bool last, uint code_stride, uint k, uint group, uint lane) const {
    uint first = lane % LANES * 16;
    uint first_row = lane / LANES;
    device const uchar* lane_from = codes_of(first_row) + first_row / SUMS * code_stride;
    Shared lane_to = shared_address(stage) + first_row * PITCH + first;
    ulong step = ulong(AT_ONCE / SUMS) * code_stride;
    if (IN_ORDER && columns == COLUMNS && rows == ROWS) {
#pragma unroll
      for (uint i = 0; i < COPIES; ++i) {
        uint row = (i * 32 + lane) / CHUNKS;
        uint at = (i * 32 + lane) % CHUNKS * 16;
        if (ROWS * CHUNKS % 32 == 0 || row < ROWS) {
          copy_sixteen(shared_address(stage) + row * PITCH + at, codes_of(row) + row / SUMS * code_stride + at, true);
        }
      }
    } else if (EVEN && columns == COLUMNS && rows == ROWS) {
#pragma unroll
      for (uint i = 0; i < ROWS / AT_ONCE; ++i) {
#pragma unroll
        for (uint at = 0; at < CODES; at += LANES * 16) {
          if (CHUNKS % LANES == 0 || first + at < CODES) {
            copy_sixteen(lane_to + i * AT_ONCE * PITCH + at, lane_from + i * step + first + at, true);
          }
        }
      }
    } else {
      uint bytes = columns * CODES / COLUMNS;
      // Chunks of sixteen bytes may reach past the end of a row, but not of the weight.
      bool is_end = !EVEN && ends && last;
#pragma unroll
      for (uint i = 0; i < ROWS / AT_ONCE; ++i) {
        uint row = i * AT_ONCE + first_row;
        if (row < rows) {
          device const uchar* from = lane_from + i * step;
          uint before = EVEN ? 0 : uint(ulong(from)) & 15;
          uint past = before + bytes;
          past = is_end && row + SUMS >= rows ? past & ~15u : past;
          from = from - before + first;
          Shared to = lane_to + i * AT_ONCE * PITCH;
#pragma unroll
          for (uint at = 0; at < CHUNKS * 16; at += LANES * 16) {
            bool inside = first + at < past;
            // Of whole chunks products of what is past the end are zero.
            if (EVEN ? first + at < CODES : inside) {
              copy_sixteen(to + at, from + at, inside);
            }
          }
          if (is_end && row + SUMS >= rows) {
            // The rest of the row, two bytes at a time: blocks have even sizes.
            for (uint at = past + lane % LANES * 2; at < before + bytes; at += LANES * 2) {
              *(threadgroup ushort*)(stage + row * PITCH + at) = *(device const ushort*)(from - first + at);
            }
          }
        }
      }
    }
    if constexpr (L::SCALE != 0) {
      if (lane < (L::BIASES ? 2 : 1) * ROWS) {
        uint place = SCALES + lane * factors(k, group);
        Shared to = shared_address(stage) + place;
        if (k % COLUMNS == 0) {
          uint mine = COLUMNS / group * L::SCALE;
          if (mine % 16 == 0) {
#pragma unroll
            for (uint at = 0; at < COLUMNS / L::LEAST * L::SCALE; at += 16) {
              if (at < mine) {
                copy_sixteen(to + at, scales + at, true);
              }
            }
          } else if (mine == 8) {
            copy_cached<8>(to, scales);
          } else {
            copy_cached<4>(to, scales);
          }
        } else {
          uint before = uint(ulong(scales)) & 3;
          uint past = before + columns / group * L::SCALE;
          for (uint at = 0; at + 4 <= past; at += 4) {
            copy_cached<4>(to + at, scales - before + at);
          }
          for (uint at = past & ~3u; at < past; ++at) {
            (stage + place)[at] = (scales - before)[at];
          }
        }
      }
    }
  }
};

// Where a lane reads a row of a tile in its stages.
template <typename S>
struct Staged {
  uint row;
  uint code_offset;  // of the row in its weight, modulo 16
  uint scales;       // where its scales lie in a stage
  uint biases;

  static Staged of(Product product, uint tile_rows, uint row, uint k, uint group) {
    uint of_weight = (product.block * tile_rows + row) / SUMS;
    uint code_offset = S::EVEN ? 0 : of_weight * holder_of(product.weight, row).code_stride & 15;
    uint pitch = S::factors(k, group);
    uint scales = S::SCALES + row * pitch + (of_weight * S::scale_row(k, group) & 3);
    return {row, code_offset, scales, scales + tile_rows * pitch};
  }

  Reader reader(threadgroup const uchar* stage, uint at, uint group, uint columns) const {
    uint before = S::EVEN ? 0 : (code_offset + at * S::CODES) & 15;
    Stored here = {as_device(stage + row * S::PITCH + before), as_device(stage + scales), as_device(stage + biases), 0, columns, group};
    return Reader::at(here, 0);
  }
};
