// What the kernels of expert_matmul are given: x, which experts its pairs have, and a stack of weights, or two for a gate.

#include "sums.h"

#define STACKED_BUFFERS                       \
    device const SCALAR* x [[buffer(0)]],     \
    device const uint* ids [[buffer(1)]],     \
    device const uint* order [[buffer(2)]],   \
    device const uint* tiles [[buffer(3)]],   \
    device const uchar* codes [[buffer(4)]],  \
    device const uchar* scales [[buffer(5)]], \
    device const uchar* biases [[buffer(6)]], \
    device const SCALAR* bias [[buffer(7)]],  \
    device SCALAR* out [[buffer(8)]]
#define STACKED(codes, scales, biases) {codes, scales, biases, p.code_stride, p.k, p.group_size}

// Row r of expert e is row `e * p.n * SUMS + r` of WEIGHT.
#ifdef FUNCTION
#define BUFFERS                                 \
    STACKED_BUFFERS,                            \
    device const uchar* codes1 [[buffer(9)]],   \
    device const uchar* scales1 [[buffer(10)]], \
    device const uchar* biases1 [[buffer(11)]], \
    constant Params& p [[buffer(12)]]
#define WEIGHT {STACKED(codes, scales, biases), STACKED(codes1, scales1, biases1), p.k}
#else
#define BUFFERS STACKED_BUFFERS, constant Params& p [[buffer(9)]]
#define WEIGHT STACKED(codes, scales, biases)
#endif

#define EXPERTS                                        \
    BUFFERS,                                           \
    uint3 group [[threadgroup_position_in_grid]],      \
    uint thread_index [[thread_index_in_threadgroup]], \
    uint lane [[thread_index_in_simdgroup]],           \
    uint simdgroup [[simdgroup_index_in_threadgroup]]
