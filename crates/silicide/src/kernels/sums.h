// The weight of a product, and how many of its sums make an element.
//
// Where the host names the FUNCTION of a gate, the weight has rows of two in turn, and two neighbouring sums make an element:
// FUNCTION of the first times the second.

#include "gate.h"
#include "matrix.h"

#ifdef FUNCTION
constant constexpr uint SUMS = 2;
typedef InTurn Weight;
inline float element_of(thread const float* sums) { return activate(Gate::FUNCTION, sums[0]) * sums[1]; }
#else
constant constexpr uint SUMS = 1;
typedef Stored Weight;
inline float element_of(thread const float* sums) { return sums[0]; }
#endif
