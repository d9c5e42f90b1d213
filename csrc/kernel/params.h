// What a kernel is given: validated pointers, sizes and strides of one op call, without torch. csrc/ops/checks.h fills
// them for the CPU and the CUDA registrations alike; element strides throughout unless a name ends in _bytes.
#pragma once

#include <cstdint>

#include "core/float_codec.h"
#include "epilogue/activation.h"
#include "formats/format.h"
#include "layout/weight_desc.h"

namespace humming {

// ---- quantize_activation --------------------------------------------------------------------------------------------
// The rows of a matrix that hold something; without `counts` all do.
struct RowsInUse {
  const void* counts;  // [rows / capacity]: of every `capacity` rows the first counts[i]
  DType count_dtype;   // int32, int64
  int64_t capacity;

  HUMMING_HD bool has(int64_t row) const {
    if (counts == nullptr) return true;
    const int64_t i = row / capacity;
    return row - i * capacity < (count_dtype == DType::int64 ? static_cast<const int64_t*>(counts)[i]
                                                             : static_cast<const int32_t*>(counts)[i]);
  }
};

// Where the results of a row go: to itself, or to every one of `count` rows of `limit` that exist.
struct RowCopies {
  const int32_t* to;  // [rows, count], or nullptr
  int64_t count, limit;

  HUMMING_HD bool has(int64_t copy) const { return 0 <= copy && copy < limit; }

  template <class Visit>
  HUMMING_HD void visit(int64_t row, Visit visit) const {
    if (to == nullptr) return visit(row);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t copy = to[row * count + i];
      if (has(copy)) visit(copy);
    }
  }
};

// What a launch reads of what the grid ahead of it writes. The rest has been there since before that grid began, and
// may be read before it ends.
enum class Awaits : int32_t { all, values, copies };

// x [rows, k or 2k] -> out [rows, k], scale [rows, num_groups]. The value of column c is x[row, c], or
// activation(x[row, c], x[row, k + c]) for gated activations. Rows not in use are neither read nor written.
struct QuantizeParams {
  const void* x;
  DType x_dtype;  // fp32, bf16, fp16
  int64_t x_row_stride;
  int64_t rows;
  RowCopies copies;
  int64_t k;  // columns of out, in values (int4: two per byte)
  uint8_t* out;
  DType out_dtype;  // e4m3, e5m2, int8, int4
  int64_t out_row_bytes;
  int64_t group;              // 32, 64, 128; k (one group) for per-token and static scales
  int64_t num_groups;         // ceil(k / group)
  void* scale;                // [rows or copies, num_groups] contiguous; [1] for a static scale
  DType scale_dtype;          // fp32, e8m0
  const float* static_scale;  // device scalar or nullptr
  const float* row_factors;   // [rows], what fp32 scales are multiplied by when they are stored; nullptr: 1
  RowsInUse used;
  Activation activation;
  ActivationArgs activation_args;
  Awaits awaits;  // values: of x
};

// ---- moe_align ------------------------------------------------------------------------------------------------------
struct MoeAlignParams {
  const void* topk_ids;  // contiguous, num_pairs
  DType id_dtype;        // int32, int64
  int64_t num_pairs;
  int64_t num_experts;         // local experts
  const int32_t* expert_map;   // [num_global_experts] -> local id or -1, or nullptr
  int64_t num_global_experts;  // num_experts without a map
  int64_t block;
  int64_t max_blocks;     // rows of `blocks`, 0 without
  int32_t* sorted_pairs;  // [num_pairs]
  int32_t* positions;     // [num_pairs]
  int32_t* blocks;        // [max_blocks, 4] = expert, first_row, rows, 0; or nullptr
  int32_t* num_blocks;    // [1], or nullptr without blocks
  int32_t* offsets;       // [num_experts + 1], in sorted_pairs
};

// ---- moe_reduce -----------------------------------------------------------------------------------------------------
// out[t, h] = scale * sum_j weights[t, j] * y[t, j, h] + add[t, h]
struct MoeReduceParams {
  const void* y;
  bool y_by_id;  // y of a pair is row ids[pair], y_slot_stride apart, instead of y[t, j]
  DType dtype;   // of y, add and out: fp32, bf16, fp16
  int64_t tokens, top_k, hidden;
  int64_t y_token_stride, y_slot_stride;
  const float* weights;  // [tokens, top_k] contiguous, or nullptr: 1
  const void* ids;       // [tokens, top_k] contiguous, or nullptr: id < 0 skips the pair
  DType id_dtype;
  const int32_t* num_valid_tokens;  // device scalar or nullptr
  float scale;
  const void* add;  // [tokens, hidden] or nullptr
  int64_t add_row_stride;
  void* out;
  int64_t out_row_stride;
  Awaits awaits;  // values: of y
};

// ---- prepack --------------------------------------------------------------------------------------------------------
enum class RowOrder : int32_t { plain, gate_up, gate_up_interleaved };

// All tensors contiguous; row counts are experts * n source rows, in `row_order`.
struct RepackParams {
  WeightDesc desc;
  RowOrder row_order;
  const uint8_t* codes;  // [rows, codes_row_bytes]
  int code_bits;         // 8, or the bits of the format: a little-endian bitstream along k, every row byte aligned
  int64_t codes_row_bytes;
  const void* scale;   // [rows, num_groups] of desc.scale_type, or nullptr
  const void* zero;    // [rows, num_groups]: uint8, or the scale's type for offsets; nullptr
  int64_t num_groups;  // of scale and zero; at least 1
  uint8_t* packed;
  float* row_scale;  // [rows] in logical order if the scales are rebased, else nullptr
  int64_t* stats;    // [2]: groups with rounded codes; rejected values
};

// ---- decode_packed --------------------------------------------------------------------------------------------------
// scale2[expert, row] is at expert * expert_stride + row * row_stride; nullptr means 1.
struct Scale2View {
  const float* data;
  int64_t expert_stride, row_stride;
};

struct DecodeParams {
  WeightDesc desc;
  const uint8_t* packed;
  Scale2View scale2;
  float* values;   // [experts, n, k] logical order, or nullptr
  uint8_t* codes;  // the same shape, raw codes that no scale applies to, or nullptr; exactly one is set
};

// ---- gemm and moe_gemm ----------------------------------------------------------------------------------------------
// Scale of x row r, group g at r * row_stride + g * group_stride (both 0 for one scale per tensor); nullptr means 1.
struct XScaleView {
  const void* data;
  DType dtype;    // fp32, e8m0
  int64_t group;  // 32, 64, 128; 0 = one scale for the whole row
  int64_t row_stride, group_stride;
};

// ---- widen ----------------------------------------------------------------------------------------------------------
// Tokens in a type that holds them exactly.
struct WidenParams {
  const void* x;
  DType x_dtype;  // e4m3, e5m2, int8, int4
  int64_t x_row_bytes;
  int64_t rows, k;
  XScaleView scale;  // powers of two that the values are multiplied by on the way; no data: none
  uint8_t* out;
  DType out_dtype;        // bf16, int8
  int64_t out_row_bytes;  // a multiple of 16, with room for whole vectors
};

struct BiasView {
  const void* data;  // [n] or [experts, n], logical channel order; nullptr means 0
  DType dtype;       // fp32, bf16, fp16
  int64_t expert_stride;
};

// out[out_row(p), :] = epilogue(x[x_row(p), :] @ weight[expert(p)]^T) for the rows p that MoeParams lists; without MoE
// p = x_row = out_row in [0, rows).
struct GemmParams {
  WeightDesc desc;
  const uint8_t* packed;
  const void* x;
  DType x_dtype;
  int64_t x_row_bytes;
  int64_t rows;  // rows of x (masked: experts * capacity)
  XScaleView x_scale;
  Scale2View scale2;
  BiasView bias;
  void* out;
  DType out_dtype;  // fp32, bf16, fp16
  int64_t out_row_stride;
  int64_t out_rows, out_columns;
  Activation activation;
  ActivationArgs activation_args;
  const float* topk_weights;  // per p, contiguous; nullptr means 1
  void* workspace;
  int64_t workspace_bytes;
};

enum class MoeLayout : int32_t { indexed, contiguous, masked };

// indexed: p = sorted_token_ids[i]; x_row = p / top_k, out_row = p, or i if `in_order`.
//   In blocks: i < *num_post_padded, of expert_ids[i / block], -1 skips the block; p is one if 0 <= p < out_rows.
//   Sorted: of expert e, offsets[e] <= i < offsets[e + 1].
// contiguous: p = x_row = out_row; expert e has rows offsets[e] .. offsets[e + 1] - 1.
// masked: p = x_row = out_row = e * capacity + i, i < counts[e].
struct MoeParams {
  GemmParams gemm;
  MoeLayout layout;
  int64_t top_k;
  const int32_t* sorted_token_ids;  // [num_sorted]
  int64_t num_sorted;
  bool in_blocks;
  const int32_t* expert_ids;  // [num_sorted / block]
  int64_t block;
  const int32_t* num_post_padded;  // [1]
  bool in_order;
  const void* expert_offsets;    // [experts + 1]
  DType offset_dtype;            // int32, int64
  const int32_t* expert_counts;  // [experts]
  int64_t capacity;
  int64_t expected_tokens;  // host estimate of the rows per call; 0 = unknown
  bool known_routing;       // what tells the rows of experts was written before the grid ahead began
};

// ---- fused_moe ------------------------------------------------------------------------------------------------------
// The steps of a layer, in this order. A quantisation of no rows is none; only the layout indexed aligns and reduces.
struct FusedMoeParams {
  QuantizeParams quantize_x;
  MoeAlignParams align;
  MoeParams gate_up;
  QuantizeParams quantize_h;
  MoeParams down;
  MoeReduceParams reduce;
};

}  // namespace humming
