// Walking tensors of one shape together; the struct Walk is declared by Rust.

// The element at which a row starts, for one operand.
inline ulong walk_start(constant Walk& walk, uint operand, uint row) {
  ulong at = 0;
  for (int axis = int(walk.outer) - 1; axis > 0; --axis) {
    at += ulong(row % walk.dims[axis]) * walk.strides[operand * 8 + axis];
    row /= walk.dims[axis];
  }
  return at + ulong(row) * walk.strides[operand * 8];
}

// The row of a thread, and the elements of it that the thread takes: `first`, `first + step` ...
struct Lane {
  uint row;
  ulong first;
  ulong step;
  Lane(uint3 group, uint3 groups, uint3 thread_index, uint3 threads)
      : row(group.y * threads.y + thread_index.y),
        first(ulong(group.x) * threads.x + thread_index.x),
        step(ulong(groups.x) * threads.x) {}
};

// Packets of a row that a thread takes, a threadgroup apart: it loads them all before it uses the first.
constant constexpr uint EACH = 2;

// The row of a thread, and the first elements of its packets of N.
template <uint N>
struct Steps {
  uint row;
  ulong first;
  ulong step;
  Steps(uint3 group, uint3 thread_index, uint3 threads)
      : row(group.y * threads.y + thread_index.y),
        first((ulong(group.x) * EACH * threads.x + thread_index.x) * N),
        step(ulong(threads.x) * N) {}
  ulong at(uint i) const { return first + i * step; }
};
