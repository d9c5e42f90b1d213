// CUDA registration of prepack and decode_packed.
#include <torch/csrc/stable/library.h>

#include "ops/checked.h"
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

void prepack_cuda(const Tensor& codes, const RepackParams& params) {
  launch_layout<RepackColumns>("humming::prepack", codes, params);
}

void decode_packed_cuda(const Tensor& packed, const DecodeParams& params) {
  launch_layout<DecodeColumns>("humming::decode_packed", packed, params);
}

}  // namespace
}  // namespace humming

STABLE_TORCH_LIBRARY_IMPL(humming, CUDA, m) {
  m.impl("prepack.out", HUMMING_CHECKED(check_prepack, prepack_cuda));
  m.impl("decode_packed.out", HUMMING_CHECKED(check_decode_packed, decode_packed_cuda));
}
