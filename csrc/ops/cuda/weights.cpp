// CUDA registration of prepack and decode_packed.
#include <torch/csrc/stable/library.h>

#include "ops/checks.h"
#include "ops/cuda/launch.h"

namespace humming {
namespace {

// The instances of both families are told apart by where the bits of a code lie.
template <class Columns>
void launch_layout(const char* op, const Tensor& tensor, const typename Columns::Params& params) {
  const FormatTraits& format = params.desc.format_traits();
  launch<Columns>(op, tensor, params, [&](const Columns& columns) {
    return columns.codec == codec_of(format) && columns.order == params.desc.order() && columns.bits == format.bits;
  });
}

void prepack_cuda(const Tensor& codes, int64_t code_bits, const OptionalTensor& scale, const OptionalTensor& zero,
                  std::vector<int64_t> desc, std::string row_order, Tensor packed, Tensor row_scale, Tensor stats) {
  const RepackParams params = check_prepack(codes, code_bits, scale, zero, desc, row_order, packed, row_scale, stats);
  launch_layout<RepackColumns>("humming::prepack", codes, params);
}

void decode_packed_cuda(const Tensor& packed, const OptionalTensor& scale2, std::vector<int64_t> desc, bool codes,
                        Tensor out) {
  const DecodeParams params = check_decode_packed(packed, scale2, desc, codes, out);
  launch_layout<DecodeColumns>("humming::decode_packed", packed, params);
}

}  // namespace
}  // namespace humming

STABLE_TORCH_LIBRARY_IMPL(humming, CUDA, m) {
  m.impl("prepack.out", TORCH_BOX(&humming::prepack_cuda));
  m.impl("decode_packed.out", TORCH_BOX(&humming::decode_packed_cuda));
}
