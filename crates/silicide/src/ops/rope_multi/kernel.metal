#include "silicide.h"
#include "rope.h"

instantiate_floats("rope_multi", rotary)
