// cast: some 4 elements a thread; one kernel a source type, the target chosen by a uniform branch.

#include "silicide.h"
#include "walk.h"

// The byte of a bool.
struct Flag {
  uchar byte;
};

// The value of an element as V: float, or long.
template <typename V, typename S>
inline V widened(S x) { return V(x); }
template <>
inline long widened<long, Flag>(Flag x) { return x.byte != 0; }

// An integer of D's range from a float: the fraction dropped, the ends held, 0 for NaN.
template <typename D>
inline D clamped(float x) {
  constexpr D low = metal::numeric_limits<D>::min();
  constexpr D high = metal::numeric_limits<D>::max();
  if (x != x) {
    return D(0);
  }
  // float(high) may be one past high, which no float between could be.
  return x >= float(high) ? high : x <= float(low) ? low : D(x);
}

template <typename D>
inline D whole(float x) { return clamped<D>(x); }
template <typename D>
inline D whole(long x) { return D(x); }
inline uchar truth(float x) { return x != 0.0f; }
inline uchar truth(long x) { return x != 0; }

// Writes a value that is a float, or a long between integers.
template <typename V>
inline void put(device uchar* out, ulong at, DType to, V x) {
  switch (to) {
    case DType::F32: ((device float*)out)[at] = float(x); break;
    case DType::F16: ((device half*)out)[at] = half(float(x)); break;
    case DType::BF16: ((device bfloat*)out)[at] = bfloat(float(x)); break;
    case DType::U8: ((device uchar*)out)[at] = whole<uchar>(x); break;
    case DType::I8: ((device char*)out)[at] = whole<char>(x); break;
    case DType::U16: ((device ushort*)out)[at] = whole<ushort>(x); break;
    case DType::U32: ((device uint*)out)[at] = whole<uint>(x); break;
    case DType::I32: ((device int*)out)[at] = whole<int>(x); break;
    case DType::I64: ((device long*)out)[at] = whole<long>(x); break;
    case DType::Bool: out[at] = truth(x); break;
  }
}

// V is float for floats, long for integers and bools.
template <typename S, typename V>
kernel void cast(
    device const S* x [[buffer(0)]],
    device uchar* out [[buffer(1)]],
    constant Params& p [[buffer(2)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint3 groups [[threadgroups_per_grid]],
    uint3 thread_index [[thread_position_in_threadgroup]],
    uint3 threads [[threads_per_threadgroup]]) {
  Lane lane(group, groups, thread_index, threads);
  if (lane.row >= p.walk.rows) {
    return;
  }
  x += walk_start(p.walk, 0, lane.row);
  ulong start = walk_start(p.walk, 1, lane.row);
  for (ulong i = lane.first; i < p.walk.len; i += lane.step) {
    put(out, start + i * p.walk.inner[1], DType(p.to), widened<V>(x[i * p.walk.inner[0]]));
  }
}

instantiate_kernel("cast_f32", cast, float, float)
instantiate_kernel("cast_f16", cast, half, float)
instantiate_kernel("cast_bf16", cast, bfloat, float)
instantiate_kernel("cast_u8", cast, uchar, long)
instantiate_kernel("cast_i8", cast, char, long)
instantiate_kernel("cast_u16", cast, ushort, long)
instantiate_kernel("cast_u32", cast, uint, long)
instantiate_kernel("cast_i32", cast, int, long)
instantiate_kernel("cast_i64", cast, long, long)
instantiate_kernel("cast_bool", cast, Flag, long)
