// The arithmetic of moe_reduce for one output element, shared so that CPU and GPU give the same bits: start from 0, one
// accumulate per valid pair in slot order, then finish.
#pragma once

#include "core/math.h"

namespace humming {

HUMMING_HD float reduce_accumulate(float sum, float weight, float y) { return math::fma(weight, y, sum); }
HUMMING_HD float reduce_finish(float sum, float scale) { return scale * sum; }
HUMMING_HD float reduce_finish(float sum, float scale, float add) { return scale * sum + add; }

}  // namespace humming
