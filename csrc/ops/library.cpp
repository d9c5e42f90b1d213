// The schemas of all ops. A FRAGMENT, because another package registers the same namespace and may be in the process.
//
// Each functional op allocates in Python and calls its .out form, which is what C++ implements, per device.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_FRAGMENT(humming, m) {
  m.def(
      "gemm(Tensor x, Tensor? x_scale, Tensor packed, Tensor? scale2, Tensor? bias, int[] desc, *, "
      "ScalarType? out_dtype=None) -> Tensor");
  m.def(
      "gemm.out(Tensor x, Tensor? x_scale, Tensor packed, Tensor? scale2, Tensor? bias, int[] desc, *, "
      "Tensor(a!) out, Tensor(b!) workspace) -> ()");
  m.def(  // CUDA only: the named kernel instance instead of the one that selection chooses
      "gemm.instance(Tensor x, Tensor? x_scale, Tensor packed, Tensor? scale2, Tensor? bias, int[] desc, *, "
      "str instance, Tensor(a!) out, Tensor(b!) workspace) -> ()");
  m.def(
      "moe_gemm(Tensor x, Tensor? x_scale, Tensor packed, Tensor? scale2, Tensor? bias, int[] desc, str layout, "
      "Tensor? sorted_token_ids, Tensor? expert_ids, Tensor? num_tokens_post_padded, Tensor? expert_offsets, "
      "Tensor? expert_counts, Tensor? topk_weights, int top_k, str activation=\"none\", float[] activation_args=[], *, "
      "int? expected_tokens=None, ScalarType? out_dtype=None) -> Tensor");
  m.def(
      "moe_gemm.out(Tensor x, Tensor? x_scale, Tensor packed, Tensor? scale2, Tensor? bias, int[] desc, str layout, "
      "Tensor? sorted_token_ids, Tensor? expert_ids, Tensor? num_tokens_post_padded, Tensor? expert_offsets, "
      "Tensor? expert_counts, Tensor? topk_weights, int top_k, str activation=\"none\", float[] activation_args=[], *, "
      "int? expected_tokens=None, Tensor(a!) out, Tensor(b!) workspace) -> ()");
  m.def(  // CUDA only, as gemm.instance
      "moe_gemm.instance(Tensor x, Tensor? x_scale, Tensor packed, Tensor? scale2, Tensor? bias, int[] desc, "
      "str layout, Tensor? sorted_token_ids, Tensor? expert_ids, Tensor? num_tokens_post_padded, "
      "Tensor? expert_offsets, Tensor? expert_counts, Tensor? topk_weights, int top_k, str activation=\"none\", "
      "float[] activation_args=[], *, str instance, Tensor(a!) out, Tensor(b!) workspace) -> ()");
  m.def(
      "quantize_activation(Tensor x, ScalarType dtype, int group, *, str activation=\"none\", "
      "float[] activation_args=[], Tensor? static_scale=None, Tensor? positions=None, ScalarType? scale_dtype=None) -> "
      "(Tensor, Tensor)");
  m.def(
      "quantize_activation.out(Tensor x, int group, *, str activation=\"none\", float[] activation_args=[], "
      "Tensor? static_scale=None, Tensor? positions=None, Tensor(a!) out, Tensor(b!) scale) -> ()");
  m.def(
      "moe_align(Tensor topk_ids, int num_experts, int block, Tensor? expert_map) -> "
      "(Tensor sorted_pairs, Tensor positions, Tensor blocks, Tensor num_blocks, Tensor expert_offsets)");
  m.def(
      "moe_align.out(Tensor topk_ids, int num_experts, int block, Tensor? expert_map, *, Tensor(a!) sorted_pairs, "
      "Tensor(b!) positions, Tensor(c!) blocks, Tensor(d!) num_blocks, Tensor(e!) expert_offsets) -> ()");
  m.def(
      "moe_reduce(Tensor y, Tensor topk_weights, Tensor? topk_ids, Tensor? num_valid_tokens, float scale=1.0, "
      "Tensor? add=None) -> Tensor");
  m.def(
      "moe_reduce.out(Tensor y, Tensor topk_weights, Tensor? topk_ids, Tensor? num_valid_tokens, float scale=1.0, "
      "Tensor? add=None, *, Tensor(a!) out) -> ()");
  // group: columns per scale of what the layer quantises, 0: all. scale, add: of the sum over a token's pairs. The
  // workspace has fused_moe_workspace bytes, followed by those of moe_gemm's.
  m.def(
      "fused_moe(Tensor x, Tensor? x_scale, Tensor w13, Tensor? w13_scale2, Tensor? w13_bias, int[] w13_desc, "
      "Tensor w2, Tensor? w2_scale2, Tensor? w2_bias, int[] w2_desc, str layout, Tensor? topk_weights, "
      "Tensor? topk_ids, Tensor? expert_map=None, Tensor? expert_offsets=None, Tensor? expert_counts=None, "
      "str activation=\"silu\", float[] activation_args=[], *, int group=0, float scale=1.0, Tensor? add=None, "
      "bool apply_router_weight_on_input=False, int? expected_tokens=None, ScalarType? out_dtype=None) -> "
      "Tensor");
  m.def(
      "fused_moe.out(Tensor x, Tensor? x_scale, Tensor w13, Tensor? w13_scale2, Tensor? w13_bias, int[] w13_desc, "
      "Tensor w2, Tensor? w2_scale2, Tensor? w2_bias, int[] w2_desc, str layout, Tensor? topk_weights, "
      "Tensor? topk_ids, Tensor? expert_map=None, Tensor? expert_offsets=None, Tensor? expert_counts=None, "
      "str activation=\"silu\", float[] activation_args=[], *, int group=0, float scale=1.0, Tensor? add=None, "
      "bool apply_router_weight_on_input=False, int? expected_tokens=None, Tensor(a!) out, "
      "Tensor(b!) workspace) -> ()");
  m.def(
      "prepack(Tensor codes, int code_bits, Tensor? scale, Tensor? zero, int[] desc, str row_order=\"plain\") -> "
      "(Tensor packed, Tensor row_scale, Tensor stats)");
  m.def(
      "prepack.out(Tensor codes, int code_bits, Tensor? scale, Tensor? zero, int[] desc, str row_order=\"plain\", *, "
      "Tensor(a!) packed, Tensor(b!) row_scale, Tensor(c!) stats) -> ()");
  m.def("decode_packed(Tensor packed, Tensor? scale2, int[] desc, *, bool codes=False) -> Tensor");
  m.def("decode_packed.out(Tensor packed, Tensor? scale2, int[] desc, *, bool codes=False, Tensor(a!) out) -> ()");
  m.def("packed_shape(int[] desc) -> int[]");
  m.def("row_scale_shape(int[] desc) -> int[]");
  m.def("widened_bytes(int[] desc, ScalarType x_dtype, int rows) -> int");
  m.def("moe_gemm_workspace(int experts, int pairs) -> int");
  m.def(
      "fused_moe_workspace(int rows, int top_k, ScalarType x_dtype, ScalarType out_dtype, int[] w13_desc, "
      "int[] w2_desc, str layout, int group) -> int");
  m.def("plan(int[] desc, ScalarType x_dtype, int tokens, bool cuda) -> str");
  m.def("gemm_plan(int[] desc, ScalarType x_dtype, int tokens) -> str");
  m.def("build_info() -> str");
}
