// How kernels read a stored matrix, whatever its format.
//
// A reader stands for one row. `Reader::at(matrix, row)` makes it, `load(unit)` gives elements 16 * unit to 16 * unit + 15,
// which in every format share a scale and a minimum. The host names the reader of a format in the macro MATRIX,
// and says in WHOLE that rows are whole units and that vectors of four lie aligned, in the matrix and beside it.

#include "silicide.h"

constant constexpr uint UNIT = 16;

// Sixteen elements: element i is `scale * values[i / 4][i % 4] + minimum`.
struct Unit {
  float4 values[4];
  float scale;
  float minimum;
};

struct Factors {
  float scale;
  float minimum;
};

// What the host binds and passes. Codes start on 16 bytes.
struct Stored {
  device const uchar* codes;
  device const uchar* scales;
  device const uchar* biases;
  uint code_stride;  // bytes from row to row
  uint columns;
  uint group_size;
};

// Elements first to first + 3 of a row, those past its end as zeros.
template <typename T>
inline float4 load_four(device const T* row, uint first, uint columns) {
  device const T* at = row + first;
  if (WHOLE) {
    return float4(*(device const vec<T, 4>*)at);
  }
  float4 four = float4(0.0f);
  for (uint i = 0; i < 4; ++i) {
    if (first + i < columns) {
      four[i] = float(at[i]);
    }
  }
  return four;
}

// Elements as they are. Only here may a row end within a unit; what is past it reads as zero.
template <typename T>
struct Dense {
  static constant constexpr bool HAS_MINIMUM = false;

  device const T* row;
  uint columns;

  static Dense at(Stored m, uint row) {
    return {(device const T*)(m.codes + ulong(row) * m.code_stride), m.columns};
  }

  Unit load(uint unit) const {
    Unit u;
    for (uint i = 0; i < 4; ++i) {
      u.values[i] = load_four(row, unit * UNIT + i * 4, columns);
    }
    u.scale = 1.0f;
    u.minimum = 0.0f;
    return u;
  }

  Factors factors(uint) const { return {1.0f, 0.0f}; }
};

// Rows of two matrices of one shape in turn, as of one with twice as many.
struct InTurn {
  Stored first;
  Stored second;
  uint columns;
};

// The matrix that a row lies in.
inline Stored holder_of(Stored matrix, uint row) { return matrix; }
inline Stored holder_of(InTurn matrices, uint row) { return row % 2 == 0 ? matrices.first : matrices.second; }

#include "matrix_mlx.h"
#include "matrix_ggml.h"

typedef MATRIX Reader;

inline Reader reader_of(Stored matrix, uint row) { return Reader::at(matrix, row); }
inline Reader reader_of(InTurn matrices, uint row) { return Reader::at(holder_of(matrices, row), row / 2); }

// The elements of a unit.
inline void dequantize(Unit u, thread float4* elements) {
  for (uint i = 0; i < 4; ++i) {
    elements[i] = u.scale * u.values[i];
    // No minimum is not the same as a minimum of zero: infinity and NaN stay what they are.
    if (Reader::HAS_MINIMUM) {
      elements[i] += u.minimum;
    }
  }
}
