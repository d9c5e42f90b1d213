// Checks of one tensor argument; the building blocks of checks_*.cpp and nobody else's.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include "core/check.h"
#include "core/float_codec.h"
#include "layout/weight_desc.h"
#include "ops/checks.h"

namespace humming {

using torch::headeronly::ScalarType;
using Sizes = std::vector<int64_t>;

inline constexpr int64_t kMaxIndex = (int64_t{1} << 31) - 1;

std::string to_text(const Sizes& sizes);
std::string to_text(ScalarType dtype);
Sizes sizes_of(const Tensor& tensor);

// Storage type of a torch dtype that our kernels know; uint8 is int4, two per byte.
std::optional<DType> storage_type(ScalarType dtype);

// WeightDesc::parse with the op's name in front of its errors.
WeightDesc parse_desc(const char* op, const std::vector<int64_t>& ints);

// One tensor argument of an op. Each check throws "<op>: <name> ..." or returns the argument, so that checks chain:
// Arg("humming::gemm", "x", x).dtype({...}).dim(2).unit_stride_rows().
class Arg {
 public:
  Arg(const char* op, const char* name, const Tensor& tensor) : op_(op), name_(name), tensor_(tensor) {}

  const Arg& dtype(std::initializer_list<ScalarType> allowed) const;
  const Arg& dim(int64_t dims, const char* meaning) const;
  // Exactly `sizes`; `meaning` says what they are, such as "[M, N]".
  const Arg& shape(const Sizes& sizes, const char* meaning) const;
  const Arg& numel(int64_t count, const char* meaning) const;
  const Arg& contiguous() const;
  // The last dimension is contiguous and rows do not overlap; leading dimensions collapse into one, so that the tensor
  // is a matrix with one row stride.
  const Arg& matrix_rows() const;
  const Arg& on_device_of(const Tensor& reference, const char* reference_name) const;

  DType storage() const { return *storage_type(tensor_.scalar_type()); }
  // Elements between rows, after matrix_rows().
  int64_t row_stride() const;

 private:
  std::string where() const { return std::string(op_) + ": " + name_; }

  const char* op_;
  const char* name_;
  const Tensor& tensor_;
};

// scale2 of a packed weight: fp32, one per tensor or channel (dense), one per expert or per expert and channel.
Scale2View check_scale2(const char* op, const char* name, const OptionalTensor& scale2, const WeightDesc& desc,
                        const Tensor& reference, const char* reference_name);

// Read and write pointers; nullptr for no tensor.
template <class T>
const T* read_pointer(const OptionalTensor& tensor) {
  return tensor ? static_cast<const T*>(tensor->const_data_ptr()) : nullptr;
}
template <class T>
const T* read_pointer(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}
template <class T>
T* write_pointer(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

}  // namespace humming
