// resize: one thread a pixel and up to four of its elements, which share the weights. Weights are made where they are
// used: a tap costs a division, a load of four elements more.

#include "silicide.h"

constant constexpr uint per_thread = 4;

inline long floor_of(long a, long b) {
  long q = a / b;
  return q * b > a ? q - 1 : q;
}

// The elements of an axis that count for one of the result.
struct Taps {
  long at;
  long first;
  long end;

  Taps(constant Axis& axis, uint i, bool antialias) {
    at = long(i) * axis.step + axis.start;
    first = floor_of(at - axis.reach * axis.width, axis.divisor) + 1;
    end = -floor_of(-(at + axis.reach * axis.width), axis.divisor);
    if (antialias) {
      first = max(first, 0l);
      end = min(end, long(axis.from));
    }
  }

  float weight(constant Axis& axis, constant Params& p, long tap) const {
    long distance = tap * axis.divisor - at;
    float d = float(distance < 0 ? -distance : distance) / float(axis.width);
    if (!p.cubic) {
      return 1.0f - d;
    }
    float a = p.antialias ? -0.5f : -0.75f;
    return d <= 1.0f ? 1.0f - d * d * ((a + 3.0f) - (a + 2.0f) * d) : a * (d - 1.0f) * (2.0f - d) * (2.0f - d);
  }
};

// The edge stands for what is past it.
inline ulong inside(constant Axis& axis, long tap) {
  return ulong(min(max(tap, 0l), long(axis.from) - 1));
}

template <typename T>
kernel void resize(
    device const T* x [[buffer(0)]],
    device T* out [[buffer(1)]],
    constant Params& p [[buffer(2)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint3 thread_index [[thread_position_in_threadgroup]],
    uint3 threads [[threads_per_threadgroup]]) {
  uint pixel = group.x * threads.y + thread_index.y;
  uint first = group.y * (per_thread * threads.x) + thread_index.x;
  if (pixel >= p.pixels || first >= p.dim) {
    return;
  }
  uint row = pixel / p.x.to;
  uint column = pixel % p.x.to;
  Taps rows(p.y, row, p.antialias);
  Taps columns(p.x, column, p.antialias);

  float sums[per_thread] = {0.0f, 0.0f, 0.0f, 0.0f};
  float total = 0.0f;
  for (long y = rows.first; y < rows.end; ++y) {
    float row_weight = rows.weight(p.y, p, y);
    for (long k = columns.first; k < columns.end; ++k) {
      float weight = row_weight * columns.weight(p.x, p, k);
      if (weight == 0.0f) {
        continue;
      }
      total += weight;
      device const T* source = x + inside(p.y, y) * p.x_strides[0] + inside(p.x, k) * p.x_strides[1];
      for (uint i = 0; i < per_thread; ++i) {
        uint element = first + i * threads.x;
        if (element < p.dim) {
          sums[i] += weight * float(source[element * p.x_strides[2]]);
        }
      }
    }
  }
  device T* target = out + row * p.out_strides[0] + column * p.out_strides[1];
  for (uint i = 0; i < per_thread; ++i) {
    uint element = first + i * threads.x;
    if (element < p.dim) {
      target[element * p.out_strides[2]] = T(p.antialias ? sums[i] / total : sums[i]);
    }
  }
}

instantiate_floats("resize", resize)
