// CUDA registration of prepack and decode_packed.
#include <torch/csrc/stable/library.h>

#include "ops/checked.h"
#include "ops/cuda/launch.h"

namespace humming {
namespace {

// The instances are told apart by where the bits of a code lie.
void prepack_cuda(const Tensor& codes, const RepackParams& params) {
  const FormatTraits& format = params.desc.format_traits();
  launch<RepackColumns>("humming::prepack", codes, params, [&](const RepackColumns& columns) {
    return columns.codec == codec_of(format) && columns.order == params.desc.order() && columns.bits == format.bits;
  });
}

void decode_packed_cuda(const Tensor& packed, const DecodeParams& params) {
  launch<DecodeColumns>("humming::decode_packed", packed, params);
}

}  // namespace
}  // namespace humming

STABLE_TORCH_LIBRARY_IMPL(humming, CUDA, m) {
  m.impl("prepack.out", HUMMING_CHECKED(check_prepack, prepack_cuda));
  m.impl("decode_packed.out", HUMMING_CHECKED(check_decode_packed, decode_packed_cuda));
}
