// What selection thinks of an instance, of whatever family: for messages, never on the way to a launch.
#pragma once

#include <string>
#include <vector>

#include "instances/instances.h"
#include "select/tuned.h"

namespace humming {

struct Candidate {
  const KernelEntry* entry;
  bool is_for;            // the weight's format in its operand type
  const char* rejection;  // why it cannot run the problem; nullptr if it can
  double cycles;          // the estimate, if it can
};

// Every line of these texts begins with a line break.

// The candidates that cannot run a problem, by reason; those for other formats and operands as a number.
std::string rejections(const std::vector<Candidate>& candidates);

// Why `chosen`, which may be nullptr, the estimates of all that can run the problem, and the rejections. `row`: the
// tuned row that decided, or nullptr. `detail` follows the reason.
std::string explain(const std::vector<Candidate>& candidates, const KernelEntry* chosen, const TunedRow* row,
                    const std::string& detail = "");

// That no instance has this name, and which of `names` are near it.
[[noreturn]] void throw_unknown_instance(const std::string& name, const std::vector<const char*>& names);

}  // namespace humming
