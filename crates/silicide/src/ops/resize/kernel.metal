// resize: a thread takes four packets of a pixel, or elements where WHOLE says that these do not pack, which share the weights. Weights
// are made where they are used: a tap costs a division, a load of four packets more. PLACE is a type that holds every place.

#include "silicide.h"
#include "packet.h"

constant constexpr uint EACH = 4;

inline PLACE floor_of(PLACE a, PLACE b) {
  PLACE q = a / b;
  return q * b > a ? q - 1 : q;
}

// The elements of an axis that count for one of the result.
struct Taps {
  PLACE at;
  PLACE first;
  PLACE end;

  Taps(constant Axis& axis, uint i, bool antialias) {
    at = PLACE(i) * PLACE(axis.step) + PLACE(axis.start);
    PLACE reach = PLACE(axis.reach) * PLACE(axis.width);
    first = floor_of(at - reach, PLACE(axis.divisor)) + 1;
    end = -floor_of(-(at + reach), PLACE(axis.divisor));
    if (antialias) {
      first = max(first, PLACE(0));
      end = min(end, PLACE(axis.from));
    }
  }

  float weight(constant Axis& axis, constant Params& p, PLACE tap) const {
    PLACE distance = tap * PLACE(axis.divisor) - at;
    float d = float(distance < 0 ? -distance : distance) / float(axis.width);
    if (!p.cubic) {
      return 1.0f - d;
    }
    float a = p.antialias ? -0.5f : -0.75f;
    return d <= 1.0f ? 1.0f - d * d * ((a + 3.0f) - (a + 2.0f) * d) : a * (d - 1.0f) * (2.0f - d) * (2.0f - d);
  }
};

// The edge stands for what is past it.
inline ulong inside(constant Axis& axis, PLACE tap) {
  return ulong(min(max(tap, PLACE(0)), PLACE(axis.from) - 1));
}

template <typename T>
kernel void resize(
    device const T* x [[buffer(0)]],
    device T* out [[buffer(1)]],
    constant Params& p [[buffer(2)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint3 thread_index [[thread_position_in_threadgroup]],
    uint3 threads [[threads_per_threadgroup]]) {
  constexpr uint N = WHOLE ? Wide<T>::COUNT : 1;
  uint pixel = group.x * threads.y + thread_index.y;
  uint first = (group.y * EACH * threads.x + thread_index.x) * N;
  uint step = threads.x * N;
  if (pixel >= p.pixels || first >= p.dim) {
    return;
  }
  uint row = pixel / p.x.to;
  uint column = pixel % p.x.to;
  Taps rows(p.y, row, p.antialias);
  Taps columns(p.x, column, p.antialias);

  float sums[EACH][N];
  for (uint v = 0; v < EACH; ++v) {
    for (uint i = 0; i < N; ++i) {
      sums[v][i] = 0.0f;
    }
  }
  float total = 0.0f;
  for (PLACE y = rows.first; y < rows.end; ++y) {
    float row_weight = rows.weight(p.y, p, y);
    for (PLACE k = columns.first; k < columns.end; ++k) {
      float weight = row_weight * columns.weight(p.x, p, k);
      if (weight == 0.0f) {
        continue;
      }
      total += weight;
      device const T* source = x + inside(p.y, y) * p.x_strides[0] + inside(p.x, k) * p.x_strides[1];
      for (uint v = 0; v < EACH; ++v) {
        uint at = first + v * step;
        if (at < p.dim) {
          Packet<T, N> elements = Packet<T, N>::load(source + at * p.x_strides[2]);
          for (uint i = 0; i < N; ++i) {
            sums[v][i] += weight * float(elements.get(i));
          }
        }
      }
    }
  }
  device T* target = out + row * p.out_strides[0] + column * p.out_strides[1];
  for (uint v = 0; v < EACH; ++v) {
    uint at = first + v * step;
    if (at < p.dim) {
      Packet<T, N> elements = Packet<T, N>::zeros();
      for (uint i = 0; i < N; ++i) {
        elements.put(i, T(p.antialias ? sums[v][i] / total : sums[v][i]));
      }
      elements.store(target + at * p.out_strides[2]);
    }
  }
}

instantiate_floats("resize", resize)
