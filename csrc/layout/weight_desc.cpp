#include "layout/weight_desc.h"

#include "core/check.h"
#include "layout/record.h"

namespace humming {
namespace {

constexpr int64_t kMaxExtent = (int64_t{1} << 31) - 1;
constexpr int64_t kMaxIntegerK = 131071;  // one more product of -128 and -128 would pass the largest s32

// The legal combinations: what a tensor core of this operand type multiplies exactly, and where its scales can go.
void check_pair(const WeightDesc& desc) {
  const FormatTraits& format = desc.format_traits();
  const char* operand = operand_name(desc.operand);
  HUMMING_CHECK(format.operands & operand_bit(desc.operand), "desc: operand ", operand,
                " does not hold every value of ", format.name, "; pack for operand bf16 or fp16");
  HUMMING_CHECK(desc.zero == ZeroKind::none || format.kind == Kind::unsigned_int, "desc: zero is set for format ",
                format.name, "; only the uint formats take a zero point or an offset");

  if (desc.operand == Operand::bf16 || desc.operand == Operand::fp16) {
    const bool offset_type =
        desc.scale_type == ScaleType::fp32 || desc.scale_type == ScaleType::bf16 || desc.scale_type == ScaleType::fp16;
    HUMMING_CHECK(desc.zero != ZeroKind::floating || offset_type,
                  "desc: a float offset needs group scales of fp32, bf16 or fp16, got scale_type ",
                  static_cast<int>(desc.scale_type), "; expand the channel scale to groups of 128");
    HUMMING_CHECK(desc.scale_type != ScaleType::e8m0 || desc.operand == Operand::bf16 || format.kind == Kind::floating,
                  "desc: e8m0 scales with format ", format.name,
                  " have a wider range than operand fp16; pack for operand bf16");
    return;
  }
  HUMMING_CHECK(desc.zero != ZeroKind::floating, "desc: a float offset has no exact form in operand ", operand,
                "; pack for operand bf16 or fp16");
  if (desc.scale_type == ScaleType::none) return;
  if (desc.scale_type == ScaleType::e8m0) {
    HUMMING_CHECK(desc.operand == Operand::e4m3 && format.kind == Kind::floating, "desc: e8m0 scales with format ",
                  format.name, " cannot be folded into operand ", operand, "; pack for operand bf16");
    return;
  }
  HUMMING_CHECK(desc.group == 128 && desc.scale_type != ScaleType::e4m3, "desc: operand ", operand,
                " takes channel scales, or groups of 128 with fp32, bf16 or fp16 scales, got group ", desc.group,
                " with scale_type ", static_cast<int>(desc.scale_type), "; pack for operand bf16 or fp16");
}

}  // namespace

WeightDesc WeightDesc::parse(const int64_t* ints, size_t count) {
  HUMMING_CHECK(count == kInts, "desc: expected ", kInts, " integers, got ", count, "; take it from PackedWeight.desc");
  HUMMING_CHECK(ints[0] == kLayoutVersion, "desc: layout version ", ints[0], " is not version ", kLayoutVersion,
                " of this build; pack the weight again from the checkpoint");
  const auto in_range = [&](size_t index, const char* name, int64_t low, int64_t high) {
    HUMMING_CHECK(low <= ints[index] && ints[index] <= high, "desc: ", name, " = ", ints[index], " is not in [", low,
                  ", ", high, "]");
    return ints[index];
  };
  HUMMING_CHECK(find_format(ints[1]), "desc: unknown format ", ints[1], "; see humming_ext.WeightFormat");

  WeightDesc desc;
  desc.format = static_cast<Format>(ints[1]);
  desc.operand = static_cast<Operand>(in_range(2, "operand", 1, 5));
  desc.n = in_range(3, "n", 1, kMaxExtent);
  desc.k = in_range(4, "k", 1, kMaxExtent);
  desc.experts = in_range(5, "experts", 0, kMaxExtent);
  desc.scale_type = static_cast<ScaleType>(in_range(6, "scale_type", 0, 5));
  desc.group = static_cast<int>(in_range(7, "group", 0, 128));
  desc.zero = static_cast<ZeroKind>(in_range(8, "zero", 0, 2));
  desc.gate_up = in_range(9, "gate_up", 0, 1) != 0;

  const int group = desc.group;
  HUMMING_CHECK(group == 0 || group == 16 || group == 32 || group == 64 || group == 128, "desc: group = ", group,
                " is not 0, 16, 32, 64 or 128; expand the scales to the greatest common divisor with 128");
  HUMMING_CHECK((group == 0) == (desc.scale_type == ScaleType::none), "desc: group = ", group, " with scale_type ",
                static_cast<int>(desc.scale_type), ": group scales need both, channel and tensor scales neither");
  HUMMING_CHECK(!desc.gate_up || desc.n % 2 == 0, "desc: n = ", desc.n,
                " is odd, but gate_up needs as many gate rows as up");
  const bool integer = desc.operand == Operand::s8 || desc.operand == Operand::s4;
  HUMMING_CHECK(!integer || desc.k <= kMaxIntegerK, "desc: k = ", desc.k,
                " may overflow the s32 sum; the limit of operand ", operand_name(desc.operand), " is ", kMaxIntegerK);
  check_pair(desc);

  // Byte counts stay far below 2^63: at most 2^31 experts of 2^31 x 2^31 codes would not, so bound the product.
  const double bytes = static_cast<double>(desc.experts ? desc.experts : 1) * desc.packed_rows() * (desc.k + 128.0) * 8;
  HUMMING_CHECK(bytes < 9e18, "desc: experts * n * k = ", desc.experts, " * ", desc.n, " * ", desc.k, " is too large");
  return desc;
}

std::vector<int64_t> WeightDesc::packed_shape() const {
  if (experts) return {experts, num_strips(), strip_bytes()};
  return {num_strips(), strip_bytes()};
}

std::vector<int64_t> WeightDesc::row_scale_shape() const {
  if (!rebased()) return {0};
  if (experts) return {experts, n};
  return {n};
}

}  // namespace humming
