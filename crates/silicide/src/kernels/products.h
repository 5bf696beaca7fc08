// The weights that `matmul` takes at once, the one that a threadgroup works on, and what becomes of its sums.
//
// For a gate there is one product, with rows of two weights in turn. Elsewhere a sum and what is added to it make an element.

#include "sums.h"

#define PRODUCT_BUFFERS                            \
    device const SCALAR* x [[buffer(0)]],          \
    device const uchar* codes0 [[buffer(1)]],      \
    device const uchar* scales0 [[buffer(2)]],     \
    device const uchar* biases0 [[buffer(3)]],     \
    device const SCALAR* bias0 [[buffer(4)]],      \
    device const SCALAR* residual0 [[buffer(5)]],  \
    device SCALAR* out0 [[buffer(6)]],             \
    device const uchar* codes1 [[buffer(7)]],      \
    device const uchar* scales1 [[buffer(8)]],     \
    device const uchar* biases1 [[buffer(9)]],     \
    device const SCALAR* bias1 [[buffer(10)]],     \
    device const SCALAR* residual1 [[buffer(11)]], \
    device SCALAR* out1 [[buffer(12)]],            \
    device const uchar* codes2 [[buffer(13)]],     \
    device const uchar* scales2 [[buffer(14)]],    \
    device const uchar* biases2 [[buffer(15)]],    \
    device const SCALAR* bias2 [[buffer(16)]],     \
    device const SCALAR* residual2 [[buffer(17)]], \
    device SCALAR* out2 [[buffer(18)]]
#define PRODUCTS PRODUCT_BUFFERS, constant Params& p [[buffer(19)]]

// What is added to a sum before it is rounded. It is picked where sums are stored: loops before that have no registers for it.
struct Added {
  device const SCALAR* bias;
  device const SCALAR* residual;
  uint residual_stride;
  bool has_bias;
  bool has_residual;
};

struct Product {
  Weight weight;
  device SCALAR* out;
  uint n;  // elements of a row of the result
  uint out_stride;
  uint which;
  uint block;  // of the threadgroup, along the rows of this weight

  // Rows of the weight.
  uint rows() const { return n * SUMS; }

  // An element that is not rounded yet.
  float element(uint i, uint column, thread const float* sums, Added added) const {
    float sum = element_of(sums);
#ifndef FUNCTION
    if (added.has_bias) {
      sum += float(added.bias[column]);
    }
    if (added.has_residual) {
      sum += float(added.residual[ulong(i) * added.residual_stride + column]);
    }
#endif
    return sum;
  }

  void store(uint i, uint column, thread const float* sums, Added added) const {
    out[ulong(i) * out_stride + column] = SCALAR(element(i, column, sums, added));
  }
};

// Operands of kernels/product.h.
struct ProductRows {
  static constant constexpr uint EACH = SUMS;

  device const SCALAR* x;
  ulong x_stride;
  Product product;
  Added added;

  device const SCALAR* x_row(uint i) const { return x + i * x_stride; }
  void store(uint i, uint column, thread const float* sums) const { product.store(i, column, sums, added); }
};

#define STORED(i) {codes##i, scales##i, biases##i, p.code_stride, p.k, p.group_size}
#define PRODUCT(weight, i) {weight, out##i, p.n[i], p.out_stride[i], i, 0}
#define ADDED(i) {bias##i, residual##i, p.residual_stride[i], bool(p.has_bias[i]), bool(p.has_residual[i])}
#define PICK_ADDED(product) pick_added(product.which, ADDED(0), ADDED(1), ADDED(2))

inline Added pick_added(uint which, Added first, Added second, Added third) {
  return which == 0 ? first : which == 1 ? second : third;
}

// The product that threadgroup `at` of a row of threadgroups works on.
#ifdef FUNCTION
#define IN_TURN {STORED(0), STORED(1), p.k}
#define PICK_PRODUCT(at) only_product(at, PRODUCT(IN_TURN, 0))

inline Product only_product(uint block, Product product) {
  product.block = block;
  return product;
}
#else
#define PICK_PRODUCT(at) pick_product(at, p, PRODUCT(STORED(0), 0), PRODUCT(STORED(1), 1), PRODUCT(STORED(2), 2))

inline Product pick_product(uint block, constant Params& p, Product first, Product second, Product third) {
  Product picked = first;
  if (block >= p.blocks[0]) {
    block -= p.blocks[0];
    picked = second;
    if (block >= p.blocks[1]) {
      block -= p.blocks[1];
      picked = third;
    }
  }
  picked.block = block;
  return picked;
}
#endif
