// Checks of the row-wise ops: quantize_activation, moe_align, moe_reduce.
#include <algorithm>

#include "epilogue/activation_name.h"
#include "ops/checks.h"
#include "ops/tensor_check.h"

namespace humming {

QuantizeParams check_quantize_activation(const Tensor& x, int64_t group, const std::string& activation,
                                         const std::vector<double>& activation_args, const OptionalTensor& static_scale,
                                         const OptionalTensor& positions, const Tensor& out, const Tensor& scale) {
  const char* op = "humming::quantize_activation";
  QuantizeParams params{};
  const Arg x_arg(op, "x", x);
  x_arg.dtype({ScalarType::BFloat16, ScalarType::Half, ScalarType::Float}).dim(2, "[M, K]").matrix_rows();
  params.x = read_pointer<void>(x);
  params.x_dtype = x_arg.storage();
  params.x_row_stride = x_arg.row_stride();
  params.rows = x.size(0);

  const ActivationSpec spec = parse_activation(op, activation, activation_args);
  params.activation = spec.activation;
  params.activation_args = spec.args;
  const bool gated = is_gated(spec.activation);
  HUMMING_CHECK(x.size(1) > 0, op, ": x has shape ", to_text(sizes_of(x)), "; it needs at least one column");
  HUMMING_CHECK(!gated || x.size(1) % 2 == 0, op, ": x has ", x.size(1), " columns, but activation \"", activation,
                "\" needs as many gate as up columns");
  params.k = gated ? x.size(1) / 2 : x.size(1);

  int64_t results = params.rows;
  if (positions) {
    Arg(op, "positions", *positions)
        .dtype({ScalarType::Int})
        .on_device_of(x, "x")
        .dim(1, "[M * top_k] of moe_align")
        .contiguous();
    results = positions->numel();
    HUMMING_CHECK(params.rows > 0 ? results % params.rows == 0 : results == 0, op, ": positions has ", results,
                  " elements, which ", params.rows, " rows of x do not divide; pass what moe_align returned for them");
    params.copies = {read_pointer<int32_t>(positions), params.rows > 0 ? results / params.rows : 0, results};
  }

  const Arg out_arg(op, "out", out);
  out_arg.dtype({ScalarType::Float8_e4m3fn, ScalarType::Float8_e5m2, ScalarType::Char, ScalarType::Byte})
      .on_device_of(x, "x");
  params.out_dtype = out_arg.storage();
  const bool int4 = params.out_dtype == DType::int4;
  HUMMING_CHECK(!int4 || params.k % 2 == 0, op, ": ", params.k,
                " columns are odd; int4 (uint8 out) packs two per byte");
  out_arg.shape({results, int4 ? params.k / 2 : params.k}, int4 ? "[M, K / 2]" : "[M, K]").matrix_rows();
  params.out = write_pointer<uint8_t>(out);
  params.out_row_bytes = out_arg.row_stride();

  HUMMING_CHECK(group == 0 || group == 32 || group == 64 || group == 128, op, ": group = ", group,
                " is not 0 (per token), 32, 64 or 128");
  HUMMING_CHECK(!static_scale || group == 0, op, ": static_scale with group = ", group, "; pass group = 0");
  params.group = group ? group : params.k;
  params.num_groups = (params.k + params.group - 1) / params.group;
  const Arg scale_arg(op, "scale", scale);
  scale_arg.dtype({ScalarType::Float, ScalarType::Float8_e8m0fnu}).on_device_of(x, "x").contiguous();
  params.scale_dtype = scale_arg.storage();
  HUMMING_CHECK(params.scale_dtype == DType::fp32 || group > 0, op,
                ": scale is float8_e8m0fnu, which needs a group of 32, 64 or 128, got group = 0");
  if (static_scale) {
    Arg(op, "static_scale", *static_scale).dtype({ScalarType::Float}).on_device_of(x, "x").numel(1, "one scale");
    scale_arg.shape({1, 1}, "[1, 1] of a static scale");
  } else {
    scale_arg.shape({results, params.num_groups}, "[M, groups]");
  }
  params.scale = write_pointer<void>(scale);
  params.static_scale = read_pointer<float>(static_scale);
  return params;
}

MoeAlignParams check_moe_align(const Tensor& topk_ids, int64_t num_experts, int64_t block,
                               const OptionalTensor& expert_map, const Tensor& sorted_pairs, const Tensor& positions,
                               const Tensor& blocks, const Tensor& num_blocks, const Tensor& expert_offsets) {
  const char* op = "humming::moe_align";
  MoeAlignParams params{};
  const Arg ids(op, "topk_ids", topk_ids);
  ids.dtype({ScalarType::Int, ScalarType::Long}).contiguous();
  params.topk_ids = read_pointer<void>(topk_ids);
  params.id_dtype = ids.storage();
  params.num_pairs = topk_ids.numel();
  HUMMING_CHECK(params.num_pairs <= kMaxIndex, op, ": topk_ids has ", params.num_pairs, " pairs; at most ", kMaxIndex,
                ", split the call");
  HUMMING_CHECK(num_experts >= 1 && num_experts <= kMaxIndex, op, ": num_experts = ", num_experts,
                " must be at least 1");
  HUMMING_CHECK(block >= 1 && block <= kMaxIndex, op, ": block = ", block, " must be at least 1");
  params.num_experts = num_experts;
  params.num_global_experts = num_experts;
  params.block = block;
  if (expert_map) {
    Arg(op, "expert_map", *expert_map)
        .dtype({ScalarType::Int})
        .on_device_of(topk_ids, "topk_ids")
        .dim(1, "[global experts]")
        .contiguous();
    params.num_global_experts = expert_map->numel();
  }
  params.expert_map = read_pointer<int32_t>(expert_map);

  // Every expert with pairs has at most one block that is not full.
  params.max_blocks = std::max<int64_t>(1, std::min(params.num_pairs, params.num_pairs / block + num_experts));
  const auto output = [&](const char* name, const Tensor& tensor, const Sizes& shape, const char* meaning) {
    Arg(op, name, tensor)
        .dtype({ScalarType::Int})
        .on_device_of(topk_ids, "topk_ids")
        .shape(shape, meaning)
        .contiguous();
    return write_pointer<int32_t>(tensor);
  };
  params.sorted_pairs = output("sorted_pairs", sorted_pairs, {params.num_pairs}, "[pairs]");
  params.positions = output("positions", positions, {params.num_pairs}, "[pairs]");
  params.blocks =
      output("blocks", blocks, {params.max_blocks, 4}, "[max(1, min(pairs, pairs / block + num_experts)), 4]");
  params.num_blocks = output("num_blocks", num_blocks, {1}, "[1]");
  params.offsets = output("expert_offsets", expert_offsets, {num_experts + 1}, "[num_experts + 1]");
  return params;
}

MoeReduceParams check_moe_reduce(const Tensor& y, const Tensor& topk_weights, const OptionalTensor& topk_ids,
                                 const OptionalTensor& num_valid_tokens, double scale, const OptionalTensor& add,
                                 const Tensor& out) {
  const char* op = "humming::moe_reduce";
  MoeReduceParams params{};
  const Arg y_arg(op, "y", y);
  y_arg.dtype({ScalarType::BFloat16, ScalarType::Half, ScalarType::Float}).dim(3, "[tokens, top_k, hidden]");
  HUMMING_CHECK(y.numel() == 0 || y.size(2) == 1 || y.stride(2) == 1, op, ": y has last stride ", y.stride(2),
                "; it must be 1, call .contiguous() first");
  params.y = read_pointer<void>(y);
  params.dtype = y_arg.storage();
  params.tokens = y.size(0);
  params.top_k = y.size(1);
  params.hidden = y.size(2);
  params.y_token_stride = y.stride(0);
  params.y_slot_stride = y.stride(1);
  HUMMING_CHECK(params.tokens <= kMaxIndex && params.hidden <= kMaxIndex, op, ": y has shape ", to_text(sizes_of(y)),
                "; at most ", kMaxIndex, " tokens and columns, split the call");

  const Sizes pairs = {params.tokens, params.top_k};
  Arg(op, "topk_weights", topk_weights)
      .dtype({ScalarType::Float})
      .on_device_of(y, "y")
      .shape(pairs, "[tokens, top_k]")
      .contiguous();
  params.weights = read_pointer<float>(topk_weights);
  params.id_dtype = DType::int32;
  if (topk_ids) {
    const Arg ids(op, "topk_ids", *topk_ids);
    ids.dtype({ScalarType::Int, ScalarType::Long}).on_device_of(y, "y").shape(pairs, "[tokens, top_k]").contiguous();
    params.id_dtype = ids.storage();
  }
  params.ids = read_pointer<void>(topk_ids);
  if (num_valid_tokens) {
    Arg(op, "num_valid_tokens", *num_valid_tokens)
        .dtype({ScalarType::Int})
        .on_device_of(y, "y")
        .numel(1, "the number of valid tokens");
  }
  params.num_valid_tokens = read_pointer<int32_t>(num_valid_tokens);
  params.scale = static_cast<float>(scale);

  const Sizes shape = {params.tokens, params.hidden};
  if (add) {
    const Arg arg(op, "add", *add);
    arg.dtype({y.scalar_type()}).on_device_of(y, "y").shape(shape, "[tokens, hidden]").matrix_rows();
    params.add_row_stride = arg.row_stride();
  }
  params.add = read_pointer<void>(add);
  const Arg out_arg(op, "out", out);
  out_arg.dtype({y.scalar_type()}).on_device_of(y, "y").shape(shape, "[tokens, hidden]").matrix_rows();
  params.out = write_pointer<void>(out);
  params.out_row_stride = out_arg.row_stride();
  return params;
}

}  // namespace humming
