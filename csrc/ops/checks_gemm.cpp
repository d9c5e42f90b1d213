// Checks of gemm and moe_gemm.
#include "ops/checks_gemm.h"

#include <algorithm>

#include "epilogue/activation_name.h"
#include "select/selection.h"

namespace humming {
namespace {

// 4-bit x and weights travel two per byte.
int64_t values_per_element(DType dtype) { return dtype == DType::int4 ? 2 : 1; }

bool is_16_bit(DType dtype) { return dtype == DType::bf16 || dtype == DType::fp16; }

}  // namespace

void check_x(const char* op, const Tensor& x, int64_t dims, const char* meaning, GemmParams* params) {
  params->x_dtype = check_x_dtype(op, params->desc, x.scalar_type());
  check_x_rows(op, x, dims, meaning, params);
}

void check_x_rows(const char* op, const Tensor& x, int64_t dims, const char* meaning, GemmParams* params) {
  const WeightDesc& desc = params->desc;
  const Arg arg(op, "x", x);
  arg.dim(dims, meaning);
  const int64_t per_element = values_per_element(params->x_dtype);
  HUMMING_CHECK(desc.k % per_element == 0, op, ": desc: k = ", desc.k, " is odd; int4 x needs an even k");
  HUMMING_CHECK(x.size(dims - 1) * per_element == desc.k, op, ": x has shape ", to_text(sizes_of(x)),
                ", that is k = ", x.size(dims - 1) * per_element, ", but the weight has k = ", desc.k);
  arg.matrix_rows();
  params->rows = x.numel() / x.size(dims - 1);
  HUMMING_CHECK(params->rows <= kMaxIndex, op, ": x has ", params->rows, " rows; at most ", kMaxIndex,
                ", split the call");
  params->x = read_pointer<void>(x);
  params->x_row_bytes = arg.row_stride() * per_element * dtype_bits(params->x_dtype) / 8;
  if (params->rows == 1) {
    // One row has no stride: let it be one that every kernel takes.
    constexpr int64_t kAlign = selection::kRowAlign;
    params->x_row_bytes = (params->x_row_bytes + kAlign - 1) / kAlign * kAlign;
  }
}

// x_scale has the shape of x's rows: none of them (one element), one per row, or one per row and group along k.
void check_x_scale(const char* op, const OptionalTensor& x_scale, const Tensor& x, GemmParams* params) {
  XScaleView& view = params->x_scale;
  view = {nullptr, DType::fp32, 0, 0, 0};
  if (is_16_bit(params->x_dtype)) {
    HUMMING_CHECK(!x_scale, op, ": x_scale is given, but x is ", to_text(x.scalar_type()),
                  "; pass None, or multiply x by it");
    return;
  }
  HUMMING_CHECK(x_scale.has_value(), op, ": x_scale is None, but x is ", to_text(x.scalar_type()),
                "; pass the scale that quantize_activation returned");
  Arg(op, "x_scale", *x_scale).dtype({ScalarType::Float, ScalarType::Float8_e8m0fnu}).on_device_of(x, "x").contiguous();
  view.data = read_pointer<void>(x_scale);
  view.dtype = *storage_type(x_scale->scalar_type());

  const int64_t k = params->desc.k;
  Sizes rows = sizes_of(x);
  rows.pop_back();
  Sizes shape = sizes_of(*x_scale);
  int64_t groups = 1;
  if (x_scale->numel() != 1 || params->rows == 1) {
    if (shape.size() == rows.size() + 1) {
      groups = shape.back();
      shape.pop_back();
    }
    const bool tensor_scale = x_scale->numel() == 1;
    HUMMING_CHECK(tensor_scale || shape == rows, op, ": x_scale has shape ", to_text(sizes_of(*x_scale)),
                  "; expected one element, ", to_text(rows), " or ", to_text(rows),
                  " and a last dimension of groups along k");
    view.row_stride = tensor_scale ? 0 : groups;
  }
  if (groups > 1) {
    for (const int64_t group : {32, 64, 128}) {
      if ((k + group - 1) / group == groups) view.group = group;
    }
    HUMMING_CHECK(view.group, op, ": x_scale has ", groups, " groups; with k = ", k, " expected ", (k + 31) / 32, ", ",
                  (k + 63) / 64, " or ", (k + 127) / 128, " (groups of 32, 64 or 128)");
    const bool bf16 = params->desc.operand == Operand::bf16;
    HUMMING_CHECK(bf16 || view.group == 128, op, ": x_scale has groups of ", view.group,
                  ", but the weight is packed for an 8- or 4-bit operand, which takes groups of 128; quantise with "
                  "group=128 or pack the weight for operand bf16");
    view.row_stride = groups;
    view.group_stride = 1;
  }
  HUMMING_CHECK(view.dtype == DType::fp32 || groups > 1 || k <= 128, op,
                ": x_scale is float8_e8m0fnu, which is for groups of 32, 64 or 128 along k; pass float32");
}

void check_weight(const char* op, const Tensor& packed, const OptionalTensor& scale2, const OptionalTensor& bias,
                  const Tensor& x, GemmParams* params, const WeightNames& names) {
  const WeightDesc& desc = params->desc;
  Arg(op, names.packed, packed)
      .dtype({ScalarType::Byte})
      .on_device_of(x, "x")
      .shape(desc.packed_shape(), "the packed shape of desc")
      .contiguous();
  params->packed = read_pointer<uint8_t>(packed);

  params->scale2 = check_scale2(op, names.scale2, scale2, desc, x, "x");
  params->bias = {nullptr, DType::fp32, 0};
  if (bias) {
    Arg(op, names.bias, *bias)
        .dtype({ScalarType::BFloat16, ScalarType::Half, ScalarType::Float})
        .on_device_of(x, "x")
        .contiguous()
        .shape(desc.experts ? Sizes{desc.experts, desc.n} : Sizes{desc.n}, desc.experts ? "[experts, n]" : "[n]");
    params->bias = {read_pointer<void>(bias), *storage_type(bias->scalar_type()), desc.n};
  }
}

void check_out(const char* op, const Tensor& out, const Sizes& shape, const char* meaning, const Tensor& workspace,
               const Tensor& x, GemmParams* params) {
  const Arg arg(op, "out", out);
  arg.dtype({ScalarType::BFloat16, ScalarType::Half, ScalarType::Float})
      .on_device_of(x, "x")
      .shape(shape, meaning)
      .matrix_rows();
  params->out = write_pointer<void>(out);
  params->out_dtype = arg.storage();
  params->out_row_stride = arg.row_stride();
  params->out_columns = shape.back();
  params->out_rows = out.numel() / std::max<int64_t>(shape.back(), 1);
  Arg(op, "workspace", workspace).dtype({ScalarType::Byte}).on_device_of(x, "x").contiguous();
  params->workspace = write_pointer<void>(workspace);
  params->workspace_bytes = workspace.numel();
}

MoeLayout parse_layout(const char* op, const std::string& name) {
  if (name == "indexed") return MoeLayout::indexed;
  if (name == "contiguous") return MoeLayout::contiguous;
  HUMMING_CHECK(name == "masked", op, ": unknown layout \"", name, "\"; choose indexed, contiguous or masked");
  return MoeLayout::masked;
}

const Tensor& required(const char* op, const char* name, const OptionalTensor& tensor, const std::string& layout,
                       const Tensor& x) {
  HUMMING_CHECK(tensor.has_value(), op, ": layout \"", layout, "\" needs ", name, ", got None");
  Arg(op, name, *tensor).on_device_of(x, "x").contiguous();
  return *tensor;
}

void forbidden(const char* op, const char* name, const OptionalTensor& tensor, const std::string& layout) {
  HUMMING_CHECK(!tensor, op, ": layout \"", layout, "\" takes no ", name, "; pass None");
}

int64_t check_activation(const char* op, const std::string& name, const std::vector<double>& args, GemmParams* params) {
  const ActivationSpec spec = parse_activation(op, name, args);
  params->activation = spec.activation;
  params->activation_args = spec.args;
  HUMMING_CHECK(!is_gated(spec.activation) || params->desc.gate_up, op, ": activation \"", name,
                "\" is gated, but the weight was not packed with gate and up; pack it with gate_up, or apply the "
                "activation to the output");
  return is_gated(spec.activation) ? params->desc.n / 2 : params->desc.n;
}

void check_topk_weights(const char* op, const OptionalTensor& topk_weights, const Tensor& x, GemmParams* params) {
  if (topk_weights) {
    Arg(op, "topk_weights", *topk_weights)
        .dtype({ScalarType::Float})
        .on_device_of(x, "x")
        .contiguous()
        .numel(params->out_rows, "one per row of out");
  }
  params->topk_weights = read_pointer<float>(topk_weights);
}

void check_expert_rows(const char* op, const std::string& layout, bool offsets, const OptionalTensor& expert_offsets,
                       const OptionalTensor& expert_counts, const Tensor& x, MoeParams* params) {
  const int64_t experts = params->gemm.desc.experts;
  if (offsets) {
    Arg(op, "expert_offsets", required(op, "expert_offsets", expert_offsets, layout, x))
        .dtype({ScalarType::Int, ScalarType::Long})
        .shape({experts + 1}, "[experts + 1]");
    params->expert_offsets = read_pointer<void>(expert_offsets);
    params->offset_dtype = *storage_type(expert_offsets->scalar_type());
  } else {
    forbidden(op, "expert_offsets", expert_offsets, layout);
  }
  if (params->layout == MoeLayout::masked) {
    HUMMING_CHECK(x.size(0) == experts, op, ": x has shape ", to_text(sizes_of(x)), "; the first dimension must be ",
                  experts, ", the experts of the weight");
    Arg(op, "expert_counts", required(op, "expert_counts", expert_counts, layout, x))
        .dtype({ScalarType::Int})
        .shape({experts}, "[experts]");
    params->expert_counts = read_pointer<int32_t>(expert_counts);
    params->capacity = x.size(1);
  } else {
    forbidden(op, "expert_counts", expert_counts, layout);
  }
}

DType check_x_dtype(const char* op, const WeightDesc& desc, ScalarType x_dtype) {
  using S = ScalarType;
  struct Row {
    Operand operand;
    std::vector<ScalarType> types;
  };
  static const std::vector<Row> rows = {
      {Operand::bf16, {S::BFloat16, S::Float8_e4m3fn, S::Float8_e5m2, S::Char, S::Byte}},
      {Operand::fp16, {S::Half}},
      {Operand::e4m3, {S::Float8_e4m3fn}},
      {Operand::s8, {S::Char, S::Byte}},
      {Operand::s4, {S::Byte}},
  };
  for (const Row& row : rows) {
    if (row.operand != desc.operand) continue;
    std::string names;
    for (const ScalarType type : row.types) {
      names += (names.empty() ? "" : ", ") + to_text(type) + (type == S::Byte ? " (two int4 per byte)" : "");
    }
    HUMMING_CHECK(std::find(row.types.begin(), row.types.end(), x_dtype) != row.types.end(), op, ": x has dtype ",
                  to_text(x_dtype), ", but the weight is packed for operand ", operand_name(row.operand),
                  ", which takes ", names, "; convert x or pack the weight for another operand");
  }
  return *storage_type(x_dtype);
}

GemmParams check_gemm(const Tensor& x, const OptionalTensor& x_scale, const Tensor& packed,
                      const OptionalTensor& scale2, const OptionalTensor& bias, const std::vector<int64_t>& desc,
                      const Tensor& out, const Tensor& workspace) {
  const char* op = "humming::gemm";
  GemmParams params{};
  params.desc = parse_desc(op, desc);
  HUMMING_CHECK(params.desc.experts == 0, op, ": desc has experts = ", params.desc.experts, "; use moe_gemm");
  check_x(op, x, 2, "[M, K]", &params);
  check_x_scale(op, x_scale, x, &params);
  check_weight(op, packed, scale2, bias, x, &params);
  check_out(op, out, {params.rows, params.desc.n}, "[M, N]", workspace, x, &params);
  params.activation = Activation::none;
  params.topk_weights = nullptr;
  return params;
}

namespace {

// Of the layout indexed with blocks, as engines pad them.
void check_blocks(const char* op, const std::string& layout, const Tensor& sorted_token_ids,
                  const OptionalTensor& expert_ids, const OptionalTensor& num_tokens_post_padded, const Tensor& x,
                  MoeParams* params) {
  Arg(op, "expert_ids", required(op, "expert_ids", expert_ids, layout, x)).dtype({ScalarType::Int}).dim(1, "[B]");
  Arg(op, "num_tokens_post_padded", required(op, "num_tokens_post_padded", num_tokens_post_padded, layout, x))
      .dtype({ScalarType::Int})
      .numel(1, "the length of sorted_token_ids in use");
  const int64_t num_ids = sorted_token_ids.numel(), num_blocks = expert_ids->numel();
  HUMMING_CHECK(num_blocks ? num_ids % num_blocks == 0 : num_ids == 0, op, ": sorted_token_ids has ", num_ids,
                " elements, which is no multiple of the ", num_blocks,
                " of expert_ids; every block must have as many rows");
  params->expert_ids = read_pointer<int32_t>(expert_ids);
  params->block = num_blocks ? num_ids / num_blocks : 0;
  params->num_post_padded = read_pointer<int32_t>(num_tokens_post_padded);
}

}  // namespace

MoeParams check_moe_gemm(const Tensor& x, const OptionalTensor& x_scale, const Tensor& packed,
                         const OptionalTensor& scale2, const OptionalTensor& bias,
                         const std::vector<int64_t>& desc_ints, const std::string& layout,
                         const OptionalTensor& sorted_token_ids, const OptionalTensor& expert_ids,
                         const OptionalTensor& num_tokens_post_padded, const OptionalTensor& expert_offsets,
                         const OptionalTensor& expert_counts, const OptionalTensor& topk_weights, int64_t top_k,
                         const std::string& activation, const std::vector<double>& activation_args,
                         std::optional<int64_t> expected_tokens, const Tensor& out, const Tensor& workspace) {
  const char* op = "humming::moe_gemm";
  MoeParams params{};
  GemmParams& gemm = params.gemm;
  gemm.desc = parse_desc(op, desc_ints);
  const WeightDesc& desc = gemm.desc;
  HUMMING_CHECK(desc.experts > 0, op, ": desc is of a dense weight (experts = 0); use gemm");
  params.layout = parse_layout(op, layout);
  const bool indexed = params.layout == MoeLayout::indexed, masked = params.layout == MoeLayout::masked;
  check_x(op, x, masked ? 3 : 2, x_meaning(params.layout), &gemm);
  check_x_scale(op, x_scale, x, &gemm);
  check_weight(op, packed, scale2, bias, x, &gemm);

  const int64_t columns = check_activation(op, activation, activation_args, &gemm);
  HUMMING_CHECK(top_k >= 1, op, ": top_k = ", top_k, " must be at least 1");
  HUMMING_CHECK(!expected_tokens || *expected_tokens >= 0, op, ": expected_tokens = ", expected_tokens.value_or(0),
                " is negative; pass an estimate or None");
  params.top_k = indexed ? top_k : 1;
  params.expected_tokens = expected_tokens.value_or(0);

  if (indexed) {
    const Arg ids(op, "sorted_token_ids", required(op, "sorted_token_ids", sorted_token_ids, layout, x));
    ids.dtype({ScalarType::Int}).dim(1, "[P]");
    HUMMING_CHECK(gemm.rows <= kMaxIndex / top_k, op, ": ", gemm.rows, " tokens * top_k = ", top_k, " exceed ",
                  kMaxIndex, " pairs; split the call");
    params.sorted_token_ids = read_pointer<int32_t>(sorted_token_ids);
    params.num_sorted = sorted_token_ids->numel();
    HUMMING_CHECK(expert_ids.has_value() || expert_offsets.has_value(), op, ": layout \"", layout,
                  "\" needs expert_ids and num_tokens_post_padded, or expert_offsets; all are None");
    HUMMING_CHECK(params.num_sorted <= kMaxIndex, op, ": sorted_token_ids has ", params.num_sorted,
                  " elements; at most ", kMaxIndex, ", split the call");
    params.in_blocks = expert_ids.has_value();
    if (params.in_blocks) {
      check_blocks(op, layout, *sorted_token_ids, expert_ids, num_tokens_post_padded, x, &params);
    } else {
      forbidden(op, "num_tokens_post_padded", num_tokens_post_padded, layout);
    }
  } else {
    forbidden(op, "sorted_token_ids", sorted_token_ids, layout);
    forbidden(op, "expert_ids", expert_ids, layout);
    forbidden(op, "num_tokens_post_padded", num_tokens_post_padded, layout);
  }
  const bool offsets = params.layout == MoeLayout::contiguous || (indexed && !params.in_blocks);
  check_expert_rows(op, layout, offsets, expert_offsets, expert_counts, x, &params);

  const Sizes out_shape =
      masked ? Sizes{desc.experts, params.capacity, columns} : Sizes{gemm.rows * params.top_k, columns};
  check_out(op, out, out_shape,
            masked    ? "[experts, capacity, N']"
            : indexed ? "[tokens * top_k, N']"
                      : "[rows, N']",
            workspace, x, &gemm);
  check_topk_weights(op, topk_weights, x, &gemm);
  return params;
}

}  // namespace humming
