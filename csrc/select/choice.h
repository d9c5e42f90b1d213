// What selection chooses, and why.
#pragma once

#include "instances/instances.h"
#include "select/tuned.h"

namespace humming {

// The instance of the nearest tuned row among those whose instance can run the problem: the nearest n and k, there the
// smallest token count, with experts that of one, not below the problem's, else the largest. The lowest estimate where
// none is near.
template <class Columns>
struct Choice {
  const Instance<Columns>* instance;  // nullptr if none can run the problem
  const TunedRow* row;                // that decided; nullptr: the lowest estimate did
};

}  // namespace humming
