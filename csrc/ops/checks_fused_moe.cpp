// Check of fused_moe: from the arguments of the layer to the parameters of its steps, whose intermediate results lie in
// the workspace. Every step writes the half that it does not read:
//
//   pairs by expert (layout indexed) | half 0: x quantised, h quantised | half 1: h, y | workspace of the products
//
// or, where x or h is not quantised, with what follows it in the other half.
#include <algorithm>

#include "ops/checks_gemm.h"
#include "select/select_sm90.h"

namespace humming {
namespace {

constexpr const char* kOp = "humming::fused_moe";
constexpr int64_t kAlign = 128;  // bytes, of every part and every row

int64_t aligned(int64_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }
int64_t row_bytes(int64_t columns, DType dtype) { return aligned((columns * dtype_bits(dtype) + 7) / 8); }

bool takes_quantised(const WeightDesc& desc) { return desc.operand != Operand::bf16 && desc.operand != Operand::fp16; }

// What the sizes of the intermediate results follow from.
struct Layer {
  WeightDesc w13, w2;
  MoeLayout layout;
  bool quantises_x;
  int64_t group;  // columns of a scale of quantised rows; 0: all
  int64_t rows;   // of x
  int64_t top_k;  // experts of a row of x
  int64_t pairs;  // rows of h and y
  DType out_dtype;

  bool indexed() const { return layout == MoeLayout::indexed; }
  // Quantised tokens are written in the order of their experts, once for each: a product brings rows that lie side by
  // side in fewer and larger copies.
  bool sorts_x() const { return indexed() && quantises_x; }
  int64_t groups(int64_t k) const { return group ? (k + group - 1) / group : 1; }
  DType h_dtype() const { return w2.operand == Operand::fp16 ? DType::fp16 : DType::bf16; }
};

Layer check_layer(const std::vector<int64_t>& w13_desc, const std::vector<int64_t>& w2_desc, const std::string& layout,
                  int64_t group, ScalarType x_dtype) {
  Layer layer{};
  layer.w13 = parse_desc("humming::fused_moe: w13_desc", w13_desc);
  layer.w2 = parse_desc("humming::fused_moe: w2_desc", w2_desc);
  HUMMING_CHECK(layer.w13.experts > 0 && layer.w13.experts == layer.w2.experts, kOp, ": w13_desc and w2_desc have ",
                layer.w13.experts, " and ", layer.w2.experts, " experts; pass two weights of the same experts");
  layer.layout = parse_layout(kOp, layout);
  const bool is_float = x_dtype == ScalarType::BFloat16 || x_dtype == ScalarType::Half || x_dtype == ScalarType::Float;
  layer.quantises_x = is_float && takes_quantised(layer.w13);
  HUMMING_CHECK(group == 0 || group == 128, kOp, ": group = ", group, " is not 0 (a scale per token) or 128");
  HUMMING_CHECK(
      group == 0 || layer.quantises_x || takes_quantised(layer.w2), kOp, ": group = ", group,
      ", but neither x nor the activated rows are quantised; pass 0, or weights packed for operand e4m3 or s8");
  layer.group = group;
  layer.top_k = 1;
  for (const WeightDesc* desc : {&layer.w13, &layer.w2}) {
    HUMMING_CHECK(desc->operand != Operand::s4 || desc->k % 2 == 0, kOp, ": ",
                  desc == &layer.w13 ? "w13_desc" : "w2_desc", ": desc: k = ", desc->k,
                  " is odd; int4 rows need an even k");
  }
  return layer;
}

// Where in the workspace everything is, in bytes.
struct Parts {
  int64_t sorted_pairs, positions, offsets;
  int64_t x, h, h_quantised, y;
  int64_t products;  // the rest
};

Parts parts_of(const Layer& layer) {
  int64_t used = 0;
  const auto take = [&](int64_t bytes) {
    const int64_t begin = used;
    used += aligned(bytes);
    return begin;
  };
  const auto quantised_bytes = [&](const WeightDesc& desc, int64_t rows) {
    const int64_t scales = rows * layer.groups(desc.k) * static_cast<int64_t>(sizeof(float));
    return rows * row_bytes(desc.k, own_dtype(desc.operand)) + aligned(scales);
  };
  Parts parts{};
  if (layer.indexed()) {
    const int64_t bytes = layer.pairs * static_cast<int64_t>(sizeof(int32_t));
    parts.sorted_pairs = take(bytes);
    parts.positions = take(bytes);
    parts.offsets = take((layer.w13.experts + 1) * static_cast<int64_t>(sizeof(int32_t)));
  }
  struct Step {
    int64_t* part;
    int64_t bytes;  // 0: there is none
  };
  const Step steps[] = {
      {&parts.x, layer.quantises_x ? quantised_bytes(layer.w13, layer.sorts_x() ? layer.pairs : layer.rows) : 0},
      {&parts.h, layer.pairs * row_bytes(layer.w2.k, layer.h_dtype())},
      {&parts.h_quantised, takes_quantised(layer.w2) ? quantised_bytes(layer.w2, layer.pairs) : 0},
      {&parts.y, layer.indexed() ? layer.pairs * row_bytes(layer.w2.n, layer.out_dtype) : 0},
  };
  int64_t half_bytes[2] = {0, 0};
  int half = 0;
  for (const Step& step : steps) {
    *step.part = half;
    half_bytes[half] = std::max(half_bytes[half], step.bytes);
    if (step.bytes > 0) half = 1 - half;
  }
  const int64_t halves[2] = {take(half_bytes[0]), take(half_bytes[1])};
  for (const Step& step : steps) *step.part = halves[*step.part];
  parts.products = used;
  return parts;
}

// The quantisation to `to` of the rows that `product` takes; it then takes them from there.
QuantizeParams quantise(const Layer& layer, const RowsInUse& used, const RowCopies& copies, Awaits awaits, uint8_t* to,
                        GemmParams* product) {
  const int64_t k = product->desc.k, groups = layer.groups(k);
  QuantizeParams params{};
  params.x = product->x;
  params.x_dtype = product->x_dtype;
  params.x_row_stride = product->x_row_bytes * 8 / dtype_bits(product->x_dtype);
  params.rows = product->rows;
  params.copies = copies;
  params.k = k;
  params.out = to;
  params.out_dtype = own_dtype(product->desc.operand);
  params.out_row_bytes = row_bytes(k, params.out_dtype);
  params.group = layer.group ? layer.group : k;
  params.num_groups = groups;
  const int64_t results = copies.to != nullptr ? layer.pairs : params.rows;
  params.scale = to + results * params.out_row_bytes;
  params.scale_dtype = DType::fp32;
  params.used = used;
  params.activation = Activation::none;
  params.awaits = awaits;

  product->rows = results;
  product->x = to;
  product->x_dtype = params.out_dtype;
  product->x_row_bytes = params.out_row_bytes;
  product->x_scale = {params.scale, DType::fp32, groups > 1 ? layer.group : 0, groups, groups > 1 ? 1 : 0};
  return params;
}

// What the steps after the weights need of the op's arguments.
struct Arguments {
  const Tensor& x;
  const OptionalTensor& x_scale;
  const std::string& layout;
  const OptionalTensor &topk_weights, &topk_ids, &expert_map, &expert_offsets, &expert_counts;
  double scale;
  const OptionalTensor& add;
  bool weight_on_input;
  const Tensor &out, &workspace;
};

// x, and where its rows are; returns those that hold something.
RowsInUse check_rows(const Arguments& a, Layer* layer, FusedMoeParams* params) {
  GemmParams& gate_up = params->gate_up.gemm;
  const int64_t dims = layer->layout == MoeLayout::masked ? 3 : 2;
  if (layer->quantises_x) {
    HUMMING_CHECK(!a.x_scale, kOp, ": x_scale is given, but x is ", to_text(a.x.scalar_type()),
                  ", which the layer quantises; pass None, or quantised x");
    gate_up.x_dtype = *storage_type(a.x.scalar_type());
    check_x_rows(kOp, a.x, dims, x_meaning(layer->layout), &gate_up);
  } else {
    check_x(kOp, a.x, dims, x_meaning(layer->layout), &gate_up);
    check_x_scale(kOp, a.x_scale, a.x, &gate_up);
  }
  layer->rows = layer->pairs = gate_up.rows;
  MoeParams& rows = params->gate_up;
  const bool offsets = layer->layout == MoeLayout::contiguous;
  check_expert_rows(kOp, a.layout, offsets, a.expert_offsets, a.expert_counts, a.x, &rows);
  params->down.expert_offsets = rows.expert_offsets;
  params->down.offset_dtype = rows.offset_dtype;
  params->down.expert_counts = rows.expert_counts;
  params->down.capacity = rows.capacity;
  switch (layer->layout) {
    case MoeLayout::masked: return {rows.expert_counts, DType::int32, rows.capacity};
    case MoeLayout::contiguous: {
      const int64_t last = layer->w13.experts * dtype_bits(rows.offset_dtype) / 8;
      return {static_cast<const uint8_t*>(rows.expert_offsets) + last, rows.offset_dtype, layer->rows};
    }
    case MoeLayout::indexed: break;
  }
  return {};
}

// The routing of the layout indexed, and what only it has.
void check_routing(const Arguments& a, Layer* layer, FusedMoeParams* params) {
  if (!layer->indexed()) {
    forbidden(kOp, "topk_ids", a.topk_ids, a.layout);
    forbidden(kOp, "expert_map", a.expert_map, a.layout);
    forbidden(kOp, "add", a.add, a.layout);
    HUMMING_CHECK(a.scale == 1, kOp, ": layout \"", a.layout, "\" takes no scale, got ", a.scale,
                  "; multiply topk_weights by it, or the sum over a token's rows");
    return;
  }
  required(kOp, "topk_weights", a.topk_weights, a.layout, a.x);
  const Tensor& ids = required(kOp, "topk_ids", a.topk_ids, a.layout, a.x);
  Arg(kOp, "topk_ids", ids).dtype({ScalarType::Int, ScalarType::Long}).dim(2, "[tokens, top_k]");
  const int64_t top_k = ids.size(1);
  HUMMING_CHECK(ids.size(0) == layer->rows && top_k >= 1, kOp, ": topk_ids has shape ", to_text(sizes_of(ids)),
                "; expected [tokens, top_k] with the ", layer->rows, " tokens of x");
  HUMMING_CHECK(layer->rows <= kMaxIndex / top_k, kOp, ": ", layer->rows, " tokens * top_k = ", top_k, " exceed ",
                kMaxIndex, " pairs; split the call");
  Arg(kOp, "topk_weights", *a.topk_weights).dtype({ScalarType::Float}).shape(sizes_of(ids), "[tokens, top_k]");
  layer->pairs = layer->rows * top_k;
  layer->top_k = top_k;

  MoeAlignParams& align = params->align;
  align.topk_ids = read_pointer<void>(ids);
  align.id_dtype = *storage_type(ids.scalar_type());
  align.num_pairs = layer->pairs;
  align.num_experts = align.num_global_experts = layer->w13.experts;
  align.block = 1;  // as there are no descriptors of blocks, any number
  if (a.expert_map) {
    const Arg map(kOp, "expert_map", *a.expert_map);
    map.dtype({ScalarType::Int}).on_device_of(a.x, "x").dim(1, "[global experts]").contiguous();
    align.expert_map = read_pointer<int32_t>(a.expert_map);
    align.num_global_experts = a.expert_map->numel();
  }
}

// out, and the workspace with the rows of h and y: where the products write.
Parts check_results(const Arguments& a, Layer* layer, FusedMoeParams* params) {
  GemmParams &gate_up = params->gate_up.gemm, &down = params->down.gemm;
  const bool masked = layer->layout == MoeLayout::masked;
  const Sizes shape =
      masked ? Sizes{layer->w2.experts, params->down.capacity, layer->w2.n} : Sizes{layer->rows, layer->w2.n};
  check_out(kOp, a.out, shape, masked ? "[experts, capacity, N]" : "[tokens, N]", a.workspace, a.x, &down);
  layer->out_dtype = down.out_dtype;
  const Parts parts = parts_of(*layer);
  uint8_t* const base = write_pointer<uint8_t>(a.workspace);
  const int64_t bytes = a.workspace.numel();
  HUMMING_CHECK(bytes >= parts.products, kOp, ": workspace has ", bytes, " bytes; the layer takes ", parts.products,
                " beside what its products take; allocate FusedMoE.workspace_shape");
  HUMMING_CHECK(!a.x.is_cuda() || reinterpret_cast<uintptr_t>(base) % kAlign == 0, kOp,
                ": workspace does not begin at a multiple of ", kAlign, " bytes; allocate it with torch.empty");
  gate_up.workspace = down.workspace = base + parts.products;
  gate_up.workspace_bytes = down.workspace_bytes = bytes - parts.products;

  const auto row_stride = [](int64_t columns, DType dtype) {
    return row_bytes(columns, dtype) * 8 / dtype_bits(dtype);
  };
  gate_up.out = base + parts.h;
  gate_up.out_dtype = layer->h_dtype();
  gate_up.out_row_stride = row_stride(layer->w2.k, gate_up.out_dtype);
  gate_up.out_columns = layer->w2.k;
  gate_up.out_rows = down.out_rows = layer->pairs;
  if (layer->indexed()) {
    down.out = base + parts.y;
    down.out_row_stride = row_stride(layer->w2.n, down.out_dtype);
  } else {
    check_topk_weights(kOp, a.topk_weights, a.x, &down);
  }
  return parts;
}

// The layout indexed: the first product takes x by pairs, the second its rows in the order of their experts, and the
// sum over the pairs of a token comes out.
void connect_pairs(const Arguments& a, const Layer& layer, const Parts& parts, FusedMoeParams* params) {
  const auto part = [&](int64_t begin) {
    return reinterpret_cast<int32_t*>(write_pointer<uint8_t>(a.workspace) + begin);
  };
  MoeAlignParams& align = params->align;
  align.sorted_pairs = part(parts.sorted_pairs);
  align.positions = part(parts.positions);
  align.offsets = part(parts.offsets);
  for (MoeParams* product : {&params->gate_up, &params->down}) {
    product->expert_offsets = align.offsets;
    product->offset_dtype = DType::int32;
  }
  if (layer.sorts_x()) {
    params->gate_up.layout = MoeLayout::contiguous;
  } else {
    params->gate_up.sorted_token_ids = align.sorted_pairs;
    params->gate_up.num_sorted = layer.pairs;
    params->gate_up.top_k = layer.top_k;
    params->gate_up.in_order = true;
  }
  params->down.layout = MoeLayout::contiguous;

  const GemmParams& down = params->down.gemm;
  MoeReduceParams& reduce = params->reduce;
  reduce.y = down.out;
  reduce.dtype = layer.out_dtype;
  reduce.tokens = layer.rows;
  reduce.top_k = layer.top_k;
  reduce.hidden = layer.w2.n;
  reduce.y_by_id = true;
  reduce.y_slot_stride = down.out_row_stride;
  reduce.weights = a.weight_on_input ? nullptr : read_pointer<float>(a.topk_weights);
  reduce.ids = align.positions;  // -1: no expert here takes the pair
  reduce.id_dtype = DType::int32;
  reduce.scale = static_cast<float>(a.scale);
  reduce.awaits = Awaits::values;
  if (a.add) {
    const Arg arg(kOp, "add", *a.add);
    arg.dtype({a.out.scalar_type()}).on_device_of(a.x, "x").shape(sizes_of(a.out), "[tokens, N]").matrix_rows();
    reduce.add = read_pointer<void>(a.add);
    reduce.add_row_stride = arg.row_stride();
  }
  reduce.out = write_pointer<void>(a.out);
  reduce.out_row_stride = Arg(kOp, "out", a.out).row_stride();
}

// From x to gate_up and from h to down, through a quantisation where the weight takes quantised rows.
void connect_rows(const Arguments& a, const Layer& layer, const Parts& parts, const RowsInUse& x_rows,
                  FusedMoeParams* params) {
  GemmParams &gate_up = params->gate_up.gemm, &down = params->down.gemm;
  uint8_t* const base = write_pointer<uint8_t>(a.workspace);
  if (layer.quantises_x) {
    // Between x and its quantisation is the alignment.
    const bool sorts = layer.sorts_x();
    const RowCopies copies = sorts ? RowCopies{params->align.positions, layer.top_k, layer.pairs} : RowCopies{};
    params->quantize_x =
        quantise(layer, x_rows, copies, sorts ? Awaits::copies : Awaits::all, base + parts.x, &gate_up);
  }
  down.x = gate_up.out;
  down.x_dtype = gate_up.out_dtype;
  down.x_row_bytes = gate_up.out_row_stride * dtype_bits(gate_up.out_dtype) / 8;
  down.rows = layer.pairs;
  down.x_scale = {nullptr, DType::fp32, 0, 0, 0};
  if (takes_quantised(layer.w2)) {
    const RowsInUse sorted = {params->align.offsets + layer.w2.experts, DType::int32, layer.pairs};
    params->quantize_h =
        quantise(layer, layer.indexed() ? sorted : x_rows, {}, Awaits::values, base + parts.h_quantised, &down);
  }
}

// Weights as factors of the scales of x: exact where the product of x and a weight may not be.
void weigh_input(const Arguments& a, const Layer& layer, FusedMoeParams* params) {
  HUMMING_CHECK(a.topk_weights.has_value() && layer.top_k == 1, kOp,
                ": apply_router_weight_on_input needs topk_weights with one weight per row of x (top_k = 1)");
  HUMMING_CHECK(!a.x_scale, kOp,
                ": apply_router_weight_on_input with quantised x; multiply x_scale by topk_weights, and pass ones");
  const float* weights = read_pointer<float>(a.topk_weights);
  params->down.gemm.topk_weights = nullptr;
  if (layer.quantises_x) {
    params->quantize_x.row_factors = weights;
  } else {
    params->gate_up.gemm.x_scale = {weights, DType::fp32, 0, 1, 0};
  }
}

}  // namespace

FusedMoeParams check_fused_moe(const Tensor& x, const OptionalTensor& x_scale, const Tensor& w13,
                               const OptionalTensor& w13_scale2, const OptionalTensor& w13_bias,
                               const std::vector<int64_t>& w13_desc, const Tensor& w2, const OptionalTensor& w2_scale2,
                               const OptionalTensor& w2_bias, const std::vector<int64_t>& w2_desc,
                               const std::string& layout, const OptionalTensor& topk_weights,
                               const OptionalTensor& topk_ids, const OptionalTensor& expert_map,
                               const OptionalTensor& expert_offsets, const OptionalTensor& expert_counts,
                               const std::string& activation, const std::vector<double>& activation_args, int64_t group,
                               double scale, const OptionalTensor& add, bool apply_router_weight_on_input,
                               std::optional<int64_t> expected_tokens, const Tensor& out, const Tensor& workspace) {
  const Arguments a = {x,
                       x_scale,
                       layout,
                       topk_weights,
                       topk_ids,
                       expert_map,
                       expert_offsets,
                       expert_counts,
                       scale,
                       add,
                       apply_router_weight_on_input,
                       out,
                       workspace};
  Layer layer = check_layer(w13_desc, w2_desc, layout, group, x.scalar_type());
  FusedMoeParams params{};
  GemmParams &gate_up = params.gate_up.gemm, &down = params.down.gemm;
  gate_up.desc = layer.w13;
  down.desc = layer.w2;
  params.gate_up.layout = params.down.layout = layer.layout;
  params.gate_up.top_k = params.down.top_k = 1;
  HUMMING_CHECK(!expected_tokens || *expected_tokens >= 0, kOp, ": expected_tokens = ", expected_tokens.value_or(0),
                " is negative; pass an estimate or None");
  params.gate_up.expected_tokens = params.down.expected_tokens = expected_tokens.value_or(0);
  // A quantisation waits for what is ahead of it, as does the first product.
  params.gate_up.known_routing = layer.quantises_x;
  params.down.known_routing = true;

  const RowsInUse x_rows = check_rows(a, &layer, &params);
  check_weight(kOp, w13, w13_scale2, w13_bias, x, &gate_up, {"w13", "w13_scale2", "w13_bias"});
  check_weight(kOp, w2, w2_scale2, w2_bias, x, &down, {"w2", "w2_scale2", "w2_bias"});
  const int64_t inner = check_activation(kOp, activation, activation_args, &gate_up);
  HUMMING_CHECK(layer.w2.k == inner, kOp, ": w2_desc has k = ", layer.w2.k, ", but w13 with activation \"", activation,
                "\" gives ", inner, " columns");
  check_routing(a, &layer, &params);
  const Parts parts = check_results(a, &layer, &params);
  if (layer.indexed()) connect_pairs(a, layer, parts, &params);
  connect_rows(a, layer, parts, x_rows, &params);
  if (apply_router_weight_on_input) weigh_input(a, layer, &params);
  return params;
}

int64_t fused_moe_workspace(int64_t rows, int64_t top_k, ScalarType x_dtype, ScalarType out_dtype,
                            std::vector<int64_t> w13_desc, std::vector<int64_t> w2_desc, std::string layout,
                            int64_t group) {
  Layer layer = check_layer(w13_desc, w2_desc, layout, group, x_dtype);
  HUMMING_CHECK(rows >= 0 && top_k >= 1, kOp, ": rows = ", rows, " and top_k = ", top_k, " must be at least 0 and 1");
  HUMMING_CHECK(storage_type(out_dtype).has_value(), kOp, ": out has dtype ", to_text(out_dtype),
                "; expected bfloat16, float16 or float32");
  layer.rows = rows;
  layer.pairs = layer.indexed() ? rows * top_k : rows;
  layer.out_dtype = *storage_type(out_dtype);
  return parts_of(layer).products;
}

}  // namespace humming
