// The weights that `matmul` takes at once, and the one that a threadgroup works on.

#define PRODUCTS                                \
    device const SCALAR* x [[buffer(0)]],       \
    device const uchar* codes0 [[buffer(1)]],   \
    device const uchar* scales0 [[buffer(2)]],  \
    device const uchar* biases0 [[buffer(3)]],  \
    device SCALAR* out0 [[buffer(4)]],          \
    device const uchar* codes1 [[buffer(5)]],   \
    device const uchar* scales1 [[buffer(6)]],  \
    device const uchar* biases1 [[buffer(7)]],  \
    device SCALAR* out1 [[buffer(8)]],          \
    device const uchar* codes2 [[buffer(9)]],   \
    device const uchar* scales2 [[buffer(10)]], \
    device const uchar* biases2 [[buffer(11)]], \
    device SCALAR* out2 [[buffer(12)]],         \
    constant Params& p [[buffer(13)]]

struct Product {
  Stored weight;
  device SCALAR* out;
  uint n;
  uint out_stride;
  uint block;  // of the threadgroup, along the rows of this weight
};

// The product that threadgroup `at` of a row of threadgroups works on.
#define PICK_PRODUCT(at)                                                                                        \
  pick_product(                                                                                                 \
      at,                                                                                                       \
      p,                                                                                                        \
      {{codes0, scales0, biases0, p.code_stride, p.k, p.group_size}, out0, p.n[0], p.out_stride[0], 0},         \
      {{codes1, scales1, biases1, p.code_stride, p.k, p.group_size}, out1, p.n[1], p.out_stride[1], 0},         \
      {{codes2, scales2, biases2, p.code_stride, p.k, p.group_size}, out2, p.n[2], p.out_stride[2], 0})

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
