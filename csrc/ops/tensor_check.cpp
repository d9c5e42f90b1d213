#include "ops/tensor_check.h"

#include <algorithm>

namespace humming {

std::string to_text(const Sizes& sizes) {
  std::string text = "[";
  for (size_t i = 0; i < sizes.size(); ++i) text += (i ? ", " : "") + std::to_string(sizes[i]);
  return text + "]";
}

std::string to_text(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float: return "float32";
    case ScalarType::Double: return "float64";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Half: return "float16";
    case ScalarType::Char: return "int8";
    case ScalarType::Byte: return "uint8";
    case ScalarType::Short: return "int16";
    case ScalarType::Int: return "int32";
    case ScalarType::Long: return "int64";
    case ScalarType::Bool: return "bool";
    case ScalarType::Float8_e4m3fn: return "float8_e4m3fn";
    case ScalarType::Float8_e5m2: return "float8_e5m2";
    case ScalarType::Float8_e8m0fnu: return "float8_e8m0fnu";
    default: return torch::headeronly::toString(dtype);
  }
}

Sizes sizes_of(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  return Sizes(sizes.begin(), sizes.end());
}

std::optional<DType> storage_type(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float: return DType::fp32;
    case ScalarType::BFloat16: return DType::bf16;
    case ScalarType::Half: return DType::fp16;
    case ScalarType::Char: return DType::int8;
    case ScalarType::Byte: return DType::int4;
    case ScalarType::Int: return DType::int32;
    case ScalarType::Long: return DType::int64;
    case ScalarType::Float8_e4m3fn: return DType::e4m3;
    case ScalarType::Float8_e5m2: return DType::e5m2;
    case ScalarType::Float8_e8m0fnu: return DType::e8m0;
    default: return std::nullopt;
  }
}

WeightDesc parse_desc(const char* op, const std::vector<int64_t>& ints) {
  try {
    return WeightDesc::parse(ints.data(), ints.size());
  } catch (const std::runtime_error& error) {
    throw std::runtime_error(concat(op, ": ", error.what()));
  }
}

Scale2View check_scale2(const char* op, const char* name, const OptionalTensor& scale2, const WeightDesc& desc,
                        const Tensor& reference, const char* reference_name) {
  if (!scale2) return {nullptr, 0, 0};
  Arg(op, name, *scale2).dtype({ScalarType::Float}).on_device_of(reference, reference_name).contiguous();
  const int64_t experts = std::max<int64_t>(desc.experts, 1);
  const bool per_channel = scale2->numel() == experts * desc.n;
  HUMMING_CHECK(per_channel || scale2->numel() == experts, op, ": ", name, " has shape ", to_text(sizes_of(*scale2)),
                "; expected ", experts, " elements (one per ", desc.experts ? "expert" : "tensor", ") or ",
                experts * desc.n, " (one per ", desc.experts ? "expert and " : "", "output channel)");
  return {read_pointer<float>(scale2), per_channel ? desc.n : 1, per_channel ? 1 : 0};
}

const Arg& Arg::dtype(std::initializer_list<ScalarType> allowed) const {
  const ScalarType actual = tensor_.scalar_type();
  std::string names;
  for (const ScalarType type : allowed) names += (names.empty() ? "" : " or ") + to_text(type);
  HUMMING_CHECK(std::find(allowed.begin(), allowed.end(), actual) != allowed.end(), where(), " has dtype ",
                to_text(actual), "; expected ", names);
  return *this;
}

const Arg& Arg::dim(int64_t dims, const char* meaning) const {
  HUMMING_CHECK(tensor_.dim() == dims, where(), " has shape ", to_text(sizes_of(tensor_)), "; expected ", dims,
                " dimensions ", meaning);
  return *this;
}

const Arg& Arg::shape(const Sizes& sizes, const char* meaning) const {
  HUMMING_CHECK(sizes_of(tensor_) == sizes, where(), " has shape ", to_text(sizes_of(tensor_)), "; expected ", meaning,
                " = ", to_text(sizes));
  return *this;
}

const Arg& Arg::numel(int64_t count, const char* meaning) const {
  HUMMING_CHECK(tensor_.numel() == count, where(), " has shape ", to_text(sizes_of(tensor_)), "; expected ", count,
                " elements, ", meaning);
  return *this;
}

const Arg& Arg::contiguous() const {
  HUMMING_CHECK(tensor_.is_contiguous(), where(), " is not contiguous; call .contiguous() first");
  return *this;
}

const Arg& Arg::matrix_rows() const {
  const Sizes sizes = sizes_of(tensor_);
  const auto strides = tensor_.strides();
  const int64_t dims = tensor_.dim();
  const auto text = [&] { return to_text(Sizes(strides.begin(), strides.end())); };
  if (tensor_.numel() == 0) return *this;
  HUMMING_CHECK(sizes[dims - 1] <= 1 || strides[dims - 1] == 1, where(), " has strides ", text(),
                "; the last must be 1, call .contiguous() first");
  HUMMING_CHECK(row_stride() >= sizes[dims - 1], where(), " has strides ", text(), " and shape ", to_text(sizes),
                ": its rows overlap; call .contiguous() first");
  int64_t rows = dims >= 2 ? sizes[dims - 2] : 1;
  for (int64_t i = dims - 3; i >= 0; --i) {
    HUMMING_CHECK(sizes[i] == 1 || strides[i] == rows * row_stride(), where(), " has strides ", text(),
                  ", which are not those of a matrix of rows; call .contiguous() first");
    rows *= sizes[i];
  }
  return *this;
}

int64_t Arg::row_stride() const {
  // Strides of dimensions of size one, or of an empty tensor, mean nothing.
  const Sizes sizes = sizes_of(tensor_);
  if (tensor_.numel() == 0) return sizes.back();
  int64_t inner = 1;
  for (int64_t i = tensor_.dim() - 2; i >= 0; --i) {
    if (sizes[i] > 1) return tensor_.stride(i) / inner;
    inner *= sizes[i];
  }
  return sizes.back();
}

const Arg& Arg::on_device_of(const Tensor& reference, const char* reference_name) const {
  const bool same = tensor_.is_cuda() == reference.is_cuda() && tensor_.is_cpu() == reference.is_cpu() &&
                    tensor_.get_device_index() == reference.get_device_index();
  const auto device = [](const Tensor& tensor) {
    return tensor.is_cpu() ? std::string("cpu")
                           : (tensor.is_cuda() ? "cuda:" : "device ") + std::to_string(tensor.get_device_index());
  };
  HUMMING_CHECK(same, where(), " is on ", device(tensor_), ", but ", reference_name, " is on ", device(reference),
                "; move them to one device");
  return *this;
}

}  // namespace humming
