// The module `_host`: formats, layout, codecs, dequantisers and selection for the tests, which check them without a GPU
// and without torch. Built for development only; nothing of it is in the wheel.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <iterator>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/bits.h"
#include "core/check.h"
#include "core/float_codec.h"
#include "dequant/dequant.h"
#include "formats/format.h"
#include "layout/rebase.h"
#include "layout/record.h"
#include "layout/tile_codec.h"
#include "layout/weight_desc.h"
#include "layout/word_codec.h"
#include "mainloop/any_view.h"
#include "mainloop/any_weight_tile.cuh"

namespace py = pybind11;

namespace humming {

void bind_selection(py::module_& m);  // selection.cpp

namespace {

using Bytes = py::array_t<uint8_t, py::array::c_style | py::array::forcecast>;

const FormatTraits& format_of(int64_t id) {
  const FormatTraits* format = find_format(id);
  HUMMING_CHECK(format, "unknown format ", id);
  return *format;
}

WeightDesc desc_of(const std::vector<int64_t>& ints) { return WeightDesc::parse(ints.data(), ints.size()); }

Order order_from(int operand) { return order_of(static_cast<Operand>(operand)); }

// ---- core -----------------------------------------------------------------------------------------------------------

// lop3 takes its table at compile time: one instance per table.
template <size_t... kLuts>
constexpr auto lop3_instances(std::index_sequence<kLuts...>) {
  return std::array{+[](uint32_t a, uint32_t b, uint32_t c) { return lop3<kLuts>(a, b, c); }...};
}

uint32_t lop3_by_table(uint32_t table, uint32_t a, uint32_t b, uint32_t c) {
  static constexpr auto kInstances = lop3_instances(std::make_index_sequence<256>());
  return kInstances.at(table)(a, b, c);
}

void bind_core(py::module_& m) {
  m.def("lop3", py::vectorize(&lop3_by_table));
  m.def("and_or", py::vectorize([](uint32_t a, uint32_t b, uint32_t c) { return and_or(a, b, c); }));
  m.def("and_xor", py::vectorize([](uint32_t a, uint32_t b, uint32_t c) { return and_xor(a, b, c); }));
  m.def("prmt", py::vectorize([](uint32_t a, uint32_t b, uint32_t selector) { return prmt(a, b, selector); }));
  m.def("fma_bf16x2", py::vectorize([](uint32_t a, uint32_t b, uint32_t c) { return fma_bf16x2(a, b, c); }));
  m.def("fma_f16x2", py::vectorize([](uint32_t a, uint32_t b, uint32_t c) { return fma_f16x2(a, b, c); }));
  m.def("mul_bf16x2", py::vectorize([](uint32_t a, uint32_t b) { return mul_bf16x2(a, b); }));
  m.def("mul_f16x2", py::vectorize([](uint32_t a, uint32_t b) { return mul_f16x2(a, b); }));
  m.def("add_bf16x2", py::vectorize([](uint32_t a, uint32_t b) { return add_bf16x2(a, b); }));
  m.def("add_f16x2", py::vectorize([](uint32_t a, uint32_t b) { return add_f16x2(a, b); }));
  m.def("bf16x2_from_floats", py::vectorize([](float low, float high) { return bf16x2_from_floats(low, high); }));
  m.def("f16x2_from_floats", py::vectorize([](float low, float high) { return f16x2_from_floats(low, high); }));
  m.attr("INTEGER_ORIGIN") = kIntegerOrigin;
  m.def("float_from_origin", py::vectorize([](int32_t sum) { return float_from_origin(sum); }));
  m.def("float_from_f16", py::vectorize([](uint16_t a) { return float_from_f16(a); }));
  m.def("f16x2_from_e4m3x2", py::vectorize([](uint32_t a) { return f16x2_from_e4m3x2(a); }));
  m.def("e4m3x2_from_f16x2", py::vectorize([](uint32_t a) { return e4m3x2_from_f16x2(a); }));

  m.def("bf16_to_float", py::vectorize([](uint16_t code) { return bf16_to_float(code); }));
  m.def("fp16_to_float", py::vectorize([](uint16_t code) { return fp16_to_float(code); }));
  m.def("e4m3_to_float", py::vectorize([](uint8_t code) { return e4m3_to_float(code); }));
  m.def("e5m2_to_float", py::vectorize([](uint8_t code) { return e5m2_to_float(code); }));
  m.def("e8m0_to_float", py::vectorize([](uint8_t code) { return e8m0_to_float(code); }));
  m.def("float_to_bf16", py::vectorize([](float value) { return float_to_bf16(value); }));
  m.def("float_to_fp16", py::vectorize([](float value) { return float_to_fp16(value); }));
  m.def("float_to_e4m3", py::vectorize([](float value) { return float_to_e4m3(value); }));
  m.def("float_to_e5m2", py::vectorize([](float value) { return float_to_e5m2(value); }));
  m.def("float_to_e8m0_ceil", py::vectorize([](float value) { return float_to_e8m0_ceil(value); }));
}

// ---- formats --------------------------------------------------------------------------------------------------------

py::dict format_row(const FormatTraits& format) {
  static constexpr const char* kKinds[] = {"int", "uint", "float", "table"};
  py::list operands;
  for (int operand = 1; operand <= 5; ++operand) {
    if (format.operands & operand_bit(static_cast<Operand>(operand))) operands.append(operand);
  }
  py::dict row;
  row["name"] = format.name;
  row["id"] = format.id;
  row["kind"] = kKinds[static_cast<int>(format.kind)];
  row["bits"] = format.bits;
  row["exponent_bits"] = format.exponent_bits;
  row["mantissa_bits"] = format.mantissa_bits;
  row["operands"] = operands;
  return row;
}

void bind_formats(py::module_& m) {
  m.def("formats", [] {
    py::list rows;
    for (const FormatTraits& format : kFormats) rows.append(format_row(format));
    return rows;
  });
  m.def("code_value", [](int64_t id, uint32_t code) { return code_value(format_of(id), code); });
  m.def("is_finite_code", [](int64_t id, uint32_t code) { return is_finite_code(format_of(id), code); });
}

// ---- layout ---------------------------------------------------------------------------------------------------------

py::dict desc_facts(const std::vector<int64_t>& ints) {
  const WeightDesc desc = desc_of(ints);
  py::dict facts;
  facts["packed_rows"] = desc.packed_rows();
  facts["num_strips"] = desc.num_strips();
  facts["strip_bytes"] = desc.strip_bytes();
  facts["packed_bytes"] = desc.packed_bytes();
  facts["packed_shape"] = desc.packed_shape();
  facts["num_k_tiles"] = desc.num_k_tiles();
  facts["num_groups"] = desc.num_groups();
  facts["num_zero_groups"] = desc.num_zero_groups();
  facts["rebased"] = desc.rebased();
  return facts;
}

py::dict record_facts(const std::vector<int64_t>& ints, int halves) {
  const RecordGeometry record(desc_of(ints), halves);
  py::dict facts;
  facts["groups"] = record.groups;
  facts["zero_groups"] = record.zero_groups;
  facts["codes_bytes"] = record.codes_bytes;
  facts["scale_offset"] = record.scale_offset;
  facts["zero_offset"] = record.zero_offset;
  facts["bytes"] = record.bytes;
  return facts;
}

std::vector<std::array<int, 3>> fields_of(int64_t id, int operand, int n, int v) {
  const FormatTraits& format = format_of(id);
  const CodeFields fields = code_fields(codec_of(format), order_from(operand), format.bits, n, v);
  std::vector<std::array<int, 3>> out;
  for (int i = 0; i < fields.count; ++i)
    out.push_back({fields.field[i].word, fields.field[i].bit, fields.field[i].width});
  return out;
}

int record_code_bytes(const FormatTraits& format, int halves) { return kStripRows * kHalfK * halves * format.bits / 8; }

void expect_size(const Bytes& array, int64_t size) {
  HUMMING_CHECK(array.size() == size, "expected ", size, " bytes, got ", array.size());
}

// Code bytes of a record from codes [64 * halves columns, 64 rows].
Bytes encode(const Bytes& codes, int64_t id, int operand, int halves) {
  const FormatTraits& format = format_of(id);
  expect_size(codes, kStripRows * kHalfK * halves);
  Bytes record(record_code_bytes(format, halves));
  RecordCodec(format, order_from(operand)).encode(codes.data(), halves, record.mutable_data());
  return record;
}

Bytes decode(const Bytes& record, int64_t id, int operand, int halves) {
  const FormatTraits& format = format_of(id);
  expect_size(record, record_code_bytes(format, halves));
  Bytes codes({kHalfK * halves, kStripRows});
  RecordCodec(format, order_from(operand)).decode(record.data(), halves, codes.mutable_data());
  return codes;
}

// As decode(), by the lanes of the kernel for weights of any format.
Bytes decode_any(const Bytes& record, const std::vector<int64_t>& desc, int halves) {
  const AnyView view = any_view(desc_of(desc), RecordView{});
  expect_size(record, record_code_bytes(view.format, halves));
  std::vector<uint32_t> words(record.size() / sizeof(uint32_t));
  std::copy_n(record.data(), record.size(), reinterpret_cast<uint8_t*>(words.data()));
  Bytes codes({kHalfK * halves, kStripRows});
  for (int patch = 0; patch < 4 * halves; ++patch) {
    for (int lane = 0; lane < kLanes; ++lane) {
      for (int index = 0; index < kCodesPerLane; ++index) {
        const PatchCoord at = view.coord_of(lane, index);
        const int half = patch / 4, warp = patch % 4;
        const uint32_t code = view.code_at(words.data(), half, kLanes * warp + lane, index);
        codes.mutable_at(kHalfK * half + at.k, 16 * warp + at.row) = static_cast<uint8_t>(code);
      }
    }
  }
  return codes;
}

template <Operand kType>
struct AnyConfig {
  static constexpr Operand kOperand = kType;
};

// The number that value v of a register of MMA operands stands for.
template <Operand kType>
float operand_value(uint32_t bits, int v) {
  if constexpr (kType == Operand::bf16) return bf16_to_float(static_cast<uint16_t>(bits >> 16 * v));
  if constexpr (kType == Operand::fp16) return fp16_to_float(static_cast<uint16_t>(bits >> 16 * v));
  if constexpr (kType == Operand::e4m3) return e4m3_to_float(static_cast<uint8_t>(bits >> 8 * v));
  return static_cast<int8_t>(bits >> 8 * v);
}

template <class Tile, int kStep>
void put_fragment(const Tile& tile, const AnyView& view, typename Tile::Row (&rows)[2], int warp, int lane,
                  float* values) {
  constexpr int kHalf = kStep / Tile::kSteps, kOfHalf = kStep % Tile::kSteps;
  uint32_t registers[4];
  tile.template begin_group<kStep * Tile::kStepK>(view, rows);
  tile.template fragment<kHalf, kOfHalf>(rows, registers);
  for (int i = 0; i < 4; ++i) {
    for (int v = 0; v < Tile::kValues; ++v) {
      const PatchCoord at = patch_coord(Tile::kOrder, lane, 4 * kOfHalf + i, v);
      values[(16 * warp + at.row) * kTileK + kHalf * kHalfK + at.k] = operand_value<Tile::kOperand>(registers[i], v);
    }
  }
}

template <class Tile, int... kSteps>
void put_fragments(const Tile& tile, const AnyView& view, int warp, int lane, float* values,
                   std::integer_sequence<int, kSteps...>) {
  typename Tile::Row rows[2];
  (put_fragment<Tile, kSteps>(tile, view, rows, warp, lane, values), ...);
}

// What the kernel for weights of any format multiplies: operands [64, 128] of a whole record as numbers, and the factor
// of their sums.
template <Operand kType>
py::tuple operands_of(const Bytes& record, const WeightDesc& desc) {
  using Tile = AnyWeightTile<AnyConfig<kType>>;
  const RecordGeometry geometry(desc, 2);
  expect_size(record, geometry.bytes);
  const AnyView view =
      any_view(desc, {geometry.groups, geometry.zero_groups, geometry.scale_offset, geometry.zero_offset, false});
  std::vector<uint32_t> words(record.size() / sizeof(uint32_t));
  std::copy_n(record.data(), record.size(), reinterpret_cast<uint8_t*>(words.data()));
  py::array_t<float> values({kStripRows, kTileK});
  for (int warp = 0; warp < 4; ++warp) {
    for (int lane = 0; lane < kLanes; ++lane) {
      Tile tile;
      tile.load(view, reinterpret_cast<const uint8_t*>(words.data()), warp, lane);
      put_fragments(tile, view, warp, lane, values.mutable_data(), std::make_integer_sequence<int, 2 * Tile::kSteps>{});
    }
  }
  return py::make_tuple(values, view.unit);
}

py::tuple operands_of_any(const Bytes& record, const std::vector<int64_t>& ints) {
  const WeightDesc desc = desc_of(ints);
  switch (desc.operand) {
    case Operand::bf16: return operands_of<Operand::bf16>(record, desc);
    case Operand::fp16: return operands_of<Operand::fp16>(record, desc);
    case Operand::e4m3: return operands_of<Operand::e4m3>(record, desc);
    default: return operands_of<Operand::s8>(record, desc);
  }
}

// Of each value; without a divisor that works, none.
py::object quotients_of(const py::array_t<float, py::array::c_style>& values, float divisor) {
  const math::Divisor by(divisor);
  if (!by.works) return py::none();
  py::array_t<float> quotients(values.size());
  for (int64_t i = 0; i < values.size(); ++i) quotients.mutable_data()[i] = by.quotient(values.data()[i]);
  return quotients;
}

void bind_layout(py::module_& m) {
  m.attr("LAYOUT_VERSION") = kLayoutVersion;
  m.def("desc_facts", &desc_facts);
  m.def("record_facts", &record_facts);
  m.def("record_offset",
        [](const std::vector<int64_t>& ints, int64_t k_tile) { return desc_of(ints).record_offset(k_tile); });
  m.def("k_tile_halves",
        [](const std::vector<int64_t>& ints, int64_t k_tile) { return desc_of(ints).k_tile_halves(k_tile); });
  m.def("packed_row",
        [](const std::vector<int64_t>& ints, int64_t channel) { return desc_of(ints).packed_row(channel); });
  m.def("logical_row", [](const std::vector<int64_t>& ints, int64_t row) { return desc_of(ints).logical_row(row); });
  m.def("group_index", [](int row, int group, int groups) { return RecordGeometry::group_index(row, group, groups); });
  m.def("patch_coord", [](int operand, int lane, int n, int v) {
    const PatchCoord at = patch_coord(order_from(operand), lane, n, v);
    return std::pair(at.row, at.k);
  });
  m.def("code_fields", &fields_of);
  m.def("word_index",
        [](int bits, int half, int warp, int lane, int word) { return word_index(bits, half, warp, lane, word); });
  m.def("rebase_range", [](int64_t id, int operand) {
    const RebaseRange range = rebase_range(format_of(id), static_cast<Operand>(operand));
    return std::pair(range.window, range.shift);
  });
  m.def("rebase_row_scale", [](int largest) { return rebase_row_scale(largest); });
  m.def("rebased_scale", [](int window, int scale, int largest) { return rebased_scale({window, 0}, scale, largest); });
  m.def("rebase_shift_down",
        [](int window, int scale, int largest) { return rebase_shift_down({window, 0}, scale, largest); });
  m.def("rebase_code", [](int64_t id, uint32_t code, int down) { return rebase_code(format_of(id), code, down); });
  m.def("encode_record", &encode);
  m.def("decode_record", &decode);
  m.def("decode_record_of_any", &decode_any);
  m.def("operands_of_any", &operands_of_any);
  m.def("quotients", &quotients_of);
}

// ---- dequantisers ---------------------------------------------------------------------------------------------------

using Words = py::array_t<uint32_t, py::array::c_style | py::array::forcecast>;

// (registers, kExponent) of one sequence over a batch of patches: words [patches, bits] -> registers [patches, count].
template <class Sequence, size_t... kRegisters>
py::tuple run_sequence(const Words& words, int bits, uint32_t param, std::index_sequence<kRegisters...>) {
  HUMMING_CHECK(words.ndim() == 2 && words.shape(1) == bits, "expected words of shape [patches, ", bits, "]");
  py::array_t<uint32_t> registers(
      {static_cast<py::ssize_t>(words.shape(0)), static_cast<py::ssize_t>(sizeof...(kRegisters))});
  const auto prepared = Sequence::param(param);
  const uint32_t* in = words.data();
  uint32_t* out = registers.mutable_data();
  for (py::ssize_t patch = 0; patch < words.shape(0); ++patch, in += bits) {
    ((*out++ = Sequence::template reg<static_cast<int>(kRegisters)>(in, prepared)), ...);
  }
  return py::make_tuple(registers, Sequence::kExponent);
}

constexpr bool has_dequant(const FormatTraits& format, Operand operand, bool zero_point) {
  if (format.kind == Kind::table) return false;
  return format.operands & operand_bit(operand) && (!zero_point || format.kind == Kind::unsigned_int);
}

template <Operand kOperand>
using Registers = std::make_index_sequence<registers_per_patch(order_of(kOperand))>;

// Calls `visit(std::integral_constant<Format, f>)` for the format of this number.
template <class Visit, size_t... kRows>
py::tuple visit_format(int64_t id, const Visit& visit, std::index_sequence<kRows...>) {
  py::tuple result;
  (void)((kFormats[kRows].id == id &&
          (result = visit(std::integral_constant<Format, static_cast<Format>(kFormats[kRows].id)>()), true)) ||
         ...);
  return result;
}

template <Operand kOperand, bool kZeroPoint>
py::tuple dequantise(int64_t id, const Words& words, uint32_t zero) {
  return visit_format(
      id,
      [&](auto format) {
        constexpr FormatTraits kRow = traits(format());
        if constexpr (has_dequant(kRow, kOperand, kZeroPoint)) {
          const uint32_t param = kZeroPoint ? zero : dequant::implied_zero(kRow);
          return run_sequence<Dequant<format(), kOperand, kZeroPoint>>(words, kRow.bits, param, Registers<kOperand>());
        } else {
          HUMMING_CHECK(false, kRow.name, " has no such dequantiser");
          return py::tuple();
        }
      },
      std::make_index_sequence<std::size(kFormats)>());
}

py::tuple dequantise_any(int64_t id, int operand, const Words& words, std::optional<uint32_t> zero) {
  const auto run = [&](auto constant) {
    constexpr Operand kOperand = constant();
    return zero ? dequantise<kOperand, true>(id, words, *zero) : dequantise<kOperand, false>(id, words, 0);
  };
  switch (static_cast<Operand>(operand)) {
    case Operand::bf16: return run(std::integral_constant<Operand, Operand::bf16>());
    case Operand::fp16: return run(std::integral_constant<Operand, Operand::fp16>());
    case Operand::e4m3: return run(std::integral_constant<Operand, Operand::e4m3>());
    case Operand::s8: return run(std::integral_constant<Operand, Operand::s8>());
    case Operand::s4: return run(std::integral_constant<Operand, Operand::s4>());
  }
  HUMMING_CHECK(false, "unknown operand ", operand);
  return py::tuple();
}

template <Operand kOperand>
py::tuple dequantise_folded_to(int64_t id, const Words& words, uint32_t stored_scale) {
  return visit_format(
      id,
      [&](auto format) {
        constexpr FormatTraits kRow = traits(format());
        if constexpr (kRow.kind == Kind::floating && has_dequant(kRow, kOperand, false)) {
          return run_sequence<FoldedDequant<format(), kOperand>>(words, kRow.bits, stored_scale, Registers<kOperand>());
        } else {
          HUMMING_CHECK(false, kRow.name, " has no folded dequantiser");
          return py::tuple();
        }
      },
      std::make_index_sequence<std::size(kFormats)>());
}

py::tuple dequantise_folded(int64_t id, int operand, const Words& words, uint32_t stored_scale) {
  return static_cast<Operand>(operand) == Operand::bf16 ? dequantise_folded_to<Operand::bf16>(id, words, stored_scale)
                                                        : dequantise_folded_to<Operand::e4m3>(id, words, stored_scale);
}

// RawDequant as run_sequence wants it.
template <class Raw>
struct RawSequence {
  static constexpr int kExponent = Raw::kExponent;
  static uint32_t param(uint32_t) { return 0; }
  template <int n>
  static uint32_t reg(const uint32_t* words, uint32_t) {
    return Raw::template reg<n>(words);
  }
};

// (registers, kExponent, per register the exponent of its tokens, what they meet in their sum, and its row's factor,
// centre).
template <class Raw, size_t... kRegisters>
py::tuple run_raw(const Words& words, int bits, uint32_t zero, std::index_sequence<kRegisters...> all) {
  py::list exponents, ones, factors;
  (exponents.append(Raw::token_exponent(kRegisters)), ...);
  (ones.append(Raw::one(kRegisters)), ...);
  (factors.append(Raw::row_factor(kRegisters % 2)), ...);
  const py::tuple sequence = run_sequence<RawSequence<Raw>>(words, bits, 0, all);
  return py::make_tuple(sequence[0], sequence[1], exponents, ones, factors, Raw::kHasCentre ? Raw::centre(zero) : 0.0f);
}

template <Operand kOperand>
py::tuple dequantise_raw_to(int64_t id, const Words& words, std::optional<uint32_t> zero) {
  return visit_format(
      id,
      [&](auto format) {
        constexpr FormatTraits kRow = traits(format());
        constexpr bool kWidened = kOperand == Operand::e4m3;
        if constexpr (has_dequant(kRow, kOperand, false) &&
                      (!kWidened || (kRow.bits == 4 && kRow.kind != Kind::floating))) {
          const uint32_t code_zero = zero.value_or(dequant::implied_zero(kRow));
          return run_raw<RawDequant<format(), kOperand>>(words, kRow.bits, code_zero,
                                                         Registers<kWidened ? Operand::fp16 : kOperand>());
        } else {
          HUMMING_CHECK(false, kRow.name, " has no such dequantiser");
          return py::tuple();
        }
      },
      std::make_index_sequence<std::size(kFormats)>());
}

py::tuple dequantise_raw(int64_t id, int operand, const Words& words, std::optional<uint32_t> zero) {
  switch (static_cast<Operand>(operand)) {
    case Operand::bf16: return dequantise_raw_to<Operand::bf16>(id, words, zero);
    case Operand::fp16: return dequantise_raw_to<Operand::fp16>(id, words, zero);
    case Operand::e4m3: return dequantise_raw_to<Operand::e4m3>(id, words, zero);
    default: break;
  }
  HUMMING_CHECK(false, "operand ", operand, " has no such dequantiser");
  return py::tuple();
}

void bind_dequant(py::module_& m) {
  m.def("dequantise", &dequantise_any, py::arg("format"), py::arg("operand"), py::arg("words"),
        py::arg("zero") = py::none());
  m.def("dequantise_folded", &dequantise_folded);
  m.def("dequantise_raw", &dequantise_raw, py::arg("format"), py::arg("operand"), py::arg("words"),
        py::arg("zero") = py::none());
}

}  // namespace
}  // namespace humming

PYBIND11_MODULE(_host, m) {
  humming::bind_core(m);
  humming::bind_formats(m);
  humming::bind_layout(m);
  humming::bind_dequant(m);
  humming::bind_selection(m);
}
