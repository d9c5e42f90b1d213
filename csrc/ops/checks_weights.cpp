// Checks of the ops on packed weights: prepack, decode_packed.
#include <algorithm>

#include "ops/checks.h"
#include "ops/tensor_check.h"

namespace humming {
namespace {

// [experts, ...] or, for a dense weight, [...].
Sizes with_experts(const WeightDesc& desc, Sizes sizes) {
  if (desc.experts) sizes.insert(sizes.begin(), desc.experts);
  return sizes;
}

RowOrder parse_row_order(const char* op, const std::string& name, const WeightDesc& desc) {
  const RowOrder order = name == "gate_up"               ? RowOrder::gate_up
                         : name == "gate_up_interleaved" ? RowOrder::gate_up_interleaved
                                                         : RowOrder::plain;
  HUMMING_CHECK(order != RowOrder::plain || name == "plain", op, ": unknown row_order \"", name,
                "\"; choose plain, gate_up or gate_up_interleaved");
  HUMMING_CHECK((order != RowOrder::plain) == desc.gate_up, op, ": row_order \"", name,
                "\" with desc gate_up = ", static_cast<int>(desc.gate_up), "; ",
                desc.gate_up ? "choose gate_up or gate_up_interleaved" : "choose plain, or set gate_up in desc");
  return order;
}

std::initializer_list<ScalarType> scale_types(ScaleType type) {
  static constexpr std::initializer_list<ScalarType> kFp32 = {ScalarType::Float};
  static constexpr std::initializer_list<ScalarType> kBf16 = {ScalarType::BFloat16};
  static constexpr std::initializer_list<ScalarType> kFp16 = {ScalarType::Half};
  static constexpr std::initializer_list<ScalarType> kE8m0 = {ScalarType::Float8_e8m0fnu, ScalarType::Byte};
  static constexpr std::initializer_list<ScalarType> kE4m3 = {ScalarType::Float8_e4m3fn};
  switch (type) {
    case ScaleType::bf16: return kBf16;
    case ScaleType::fp16: return kFp16;
    case ScaleType::e8m0: return kE8m0;
    case ScaleType::e4m3: return kE4m3;
    case ScaleType::none:
    case ScaleType::fp32: break;
  }
  return kFp32;
}

}  // namespace

RepackParams check_prepack(const Tensor& codes, int64_t code_bits, const OptionalTensor& scale,
                           const OptionalTensor& zero, const std::vector<int64_t>& desc_ints,
                           const std::string& row_order, const Tensor& packed, const Tensor& row_scale,
                           const Tensor& stats) {
  const char* op = "humming::prepack";
  RepackParams params{};
  params.desc = parse_desc(op, desc_ints);
  const WeightDesc& desc = params.desc;
  params.row_order = parse_row_order(op, row_order, desc);

  const int bits = desc.format_traits().bits;
  HUMMING_CHECK(code_bits == bits || code_bits == 8, op, ": code_bits = ", code_bits, "; format ",
                desc.format_traits().name, " takes ", bits, " (a bitstream along k) or 8 (one code per byte)");
  params.code_bits = static_cast<int>(code_bits);
  params.codes_row_bytes = (desc.k * code_bits + 7) / 8;
  Arg(op, "codes", codes)
      .dtype({ScalarType::Byte})
      .shape(with_experts(desc, {desc.n, params.codes_row_bytes}), "[experts?, n, ceil(k * code_bits / 8)]")
      .contiguous();
  params.codes = read_pointer<uint8_t>(codes);

  params.num_groups = desc.num_zero_groups();
  const auto check_groups = [&](const char* name, const OptionalTensor& tensor,
                                std::initializer_list<ScalarType> types) {
    HUMMING_CHECK(tensor.has_value(), op, ": ", name, " is None, but desc has scale_type ",
                  static_cast<int>(desc.scale_type), ", group ", desc.group, " and zero ", static_cast<int>(desc.zero));
    Arg(op, name, *tensor)
        .dtype(types)
        .on_device_of(codes, "codes")
        .shape(with_experts(desc, {desc.n, params.num_groups}), "[experts?, n, groups]")
        .contiguous();
    return read_pointer<void>(tensor);
  };
  if (desc.scale_type != ScaleType::none) {
    params.scale = check_groups("scale", scale, scale_types(desc.scale_type));
  } else {
    HUMMING_CHECK(!scale, op,
                  ": scale is given, but desc has no group scales; channel and tensor scales are not packed, "
                  "pass them to the product as scale2");
  }
  if (desc.zero == ZeroKind::integer) {
    params.zero = check_groups("zero", zero, {ScalarType::Byte});
  } else if (desc.zero == ZeroKind::floating) {
    params.zero = check_groups("zero", zero, scale_types(desc.scale_type));
  } else {
    HUMMING_CHECK(!zero, op,
                  ": zero is given, but desc has zero = 0; set zero to 1 (integer zero points) or 2 (float "
                  "offsets) in desc");
  }

  Arg(op, "packed", packed)
      .dtype({ScalarType::Byte})
      .on_device_of(codes, "codes")
      .shape(desc.packed_shape(), "the packed shape of desc")
      .contiguous();
  params.packed = write_pointer<uint8_t>(packed);
  Arg(op, "row_scale", row_scale)
      .dtype({ScalarType::Float})
      .on_device_of(codes, "codes")
      .shape(desc.row_scale_shape(), desc.rebased() ? "[experts?, n]" : "[0], as the scales are not rebased")
      .contiguous();
  params.row_scale = desc.rebased() ? write_pointer<float>(row_scale) : nullptr;
  Arg(op, "stats", stats).dtype({ScalarType::Long}).on_device_of(codes, "codes").shape({2}, "[2]").contiguous();
  params.stats = write_pointer<int64_t>(stats);
  return params;
}

DecodeParams check_decode_packed(const Tensor& packed, const OptionalTensor& scale2,
                                 const std::vector<int64_t>& desc_ints, bool codes, const Tensor& out) {
  const char* op = "humming::decode_packed";
  DecodeParams params{};
  params.desc = parse_desc(op, desc_ints);
  const WeightDesc& desc = params.desc;
  Arg(op, "packed", packed)
      .dtype({ScalarType::Byte})
      .shape(desc.packed_shape(), "the packed shape of desc")
      .contiguous();
  params.packed = read_pointer<uint8_t>(packed);
  params.scale2 = check_scale2(op, "scale2", scale2, desc, packed, "packed");
  const ScalarType expected = codes ? ScalarType::Byte : ScalarType::Float;
  HUMMING_CHECK(out.scalar_type() == expected, op, ": out has dtype ", to_text(out.scalar_type()),
                " with codes = ", codes ? "True" : "False", "; expected ", to_text(expected));
  Arg(op, "out", out)
      .on_device_of(packed, "packed")
      .shape(with_experts(desc, {desc.n, desc.k}), "[experts?, n, k]")
      .contiguous();
  params.values = codes ? nullptr : write_pointer<float>(out);
  params.codes = codes ? write_pointer<uint8_t>(out) : nullptr;
  return params;
}

}  // namespace humming
