// Host errors: one macro that names what was wrong, with values, and throws.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace humming {

// Joins the arguments with operator<<, for error messages.
template <class... Args>
std::string concat(const Args&... args) {
  std::ostringstream stream;
  (stream << ... << args);
  return stream.str();
}

}  // namespace humming

// Throws std::runtime_error with the joined message if `condition` is false. The message names the argument, its value
// and the way out; the expression itself means nothing to a user and is left out.
#define HUMMING_CHECK(condition, ...)                                           \
  do {                                                                          \
    if (!(condition)) throw std::runtime_error(::humming::concat(__VA_ARGS__)); \
  } while (0)
