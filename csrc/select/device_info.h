// The facts of a GPU that selection uses.
#pragma once

namespace humming {

struct DeviceInfo {
  int capability;  // major * 10 + minor
  int num_sms;
  int shared_per_block;  // bytes a block may have, opted in
  int shared_per_sm;
};

inline constexpr DeviceInfo kH200{90, 132, 232448, 233472};

}  // namespace humming
