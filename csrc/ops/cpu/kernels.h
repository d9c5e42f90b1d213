// The CPU kernels, one set per instruction-set level. The same sources are compiled up to three times, each with its
// own -march and its own HUMMING_CPU_NAMESPACE; ops/cpu_dispatch.h picks one set per process. What the sources define
// lies in that namespace or is always inlined, so that the linker cannot merge code of different levels.
//
// Every function computes a part of an op, from validated parameters, and neither allocates nor throws nor calls torch;
// the caller spreads the parts over threads.
#pragma once

#include <cstdint>

#include "kernel/params.h"

namespace humming {

// Most rows of one call of the gemm kernel. Decoding a record costs as much as multiplying it by ten tokens; this many
// make that small, and the tile's buffers (about 300 KiB of stack) stay in the L2 cache.
inline constexpr int64_t kMaxGemmRows = 192;

// The rows p of one task: ids[0 .. count) or, without ids, first .. first + count - 1; x_row = p / top_k. Results go to
// the rows p, or, `in_order`, to first .. first + count - 1.
struct GemmRows {
  int64_t expert;
  const int32_t* ids;
  int64_t first;
  int64_t count;
  int64_t top_k;
  bool in_order;
};

struct CpuKernels {
  // "x86-64-v4", "x86-64-v3" or "baseline".
  const char* name;
  // All outputs of the given rows for one strip of 64 packed weight rows.
  void (*gemm)(const GemmParams& params, const GemmRows& rows, int64_t strip);
  // Rows [begin, end).
  void (*quantize)(const QuantizeParams& params, int64_t begin, int64_t end);
  // Tokens [begin, end).
  void (*moe_reduce)(const MoeReduceParams& params, int64_t begin, int64_t end);
  // Strips [begin, end), counted through all experts. prepack adds to params.stats[0..1] of its own.
  void (*prepack)(const RepackParams& params, int64_t begin, int64_t end, int64_t* stats);
  void (*decode)(const DecodeParams& params, int64_t begin, int64_t end);
};

}  // namespace humming
