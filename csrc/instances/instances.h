// The table of compiled kernels: which instances this binary holds, and how to find and launch one.
//
// manifest.toml lists the instances; cmake/generate_instances.py turns it into
//   instances/instances_generated.h   one `<Family>Columns` struct per family (the manifest's columns, in its order)
//   instances_table.cpp               the table itself (empty in a build without CUDA)
//   instances_sm<arch>_<i>.cu         the instances; per instance a Config struct and a launch function
// A family `repack` supplies
//   kernel/params.h     free of CUDA headers: `struct RepackParams` and the types of the columns
//   kernel/repack.cuh   `template <class Config> void launch_repack(const RepackParams&, cudaStream_t)`
// where Config has one `static constexpr` member per column (`bits` -> `Config::kBits`) and `Config::kArch` (80, 86,
// 89, 90). Every __global__ function must be a template on Config: its name then tells the instance (the build report
// relies on it), and the same kernel compiled for two archs does not collide at link time.
//
// This header needs neither torch nor CUDA, so selection is testable with g++ alone.
#pragma once

struct CUstream_st;  // cudaStream_t is CUstream_st*

namespace humming {

struct KernelEntry {
  const char* family;
  const char* name;  // unique within an arch, e.g. "repack_plain_k16_bits4"
  int arch;          // the SASS it is compiled for: 80, 86, 89, 90 (sm_90a)
};

template <class Columns>
struct Instance {
  KernelEntry entry;
  Columns columns;
  void (*launch)(const typename Columns::Params& params, CUstream_st* stream);
};

template <class T>
struct Table {
  const T* first;
  int size;

  const T* begin() const { return first; }
  const T* end() const { return first + size; }
};

// The compiled instances of one family: `instances<RepackColumns>()`.
template <class Columns>
Table<Instance<Columns>> instances();

// All compiled instances of all families.
Table<KernelEntry> all_instances();

extern const char kPreset[];     // "ci", "serving" or "full"
extern const char kCudaArchs[];  // "80;90a"; "" in a build without CUDA

}  // namespace humming

#include "instances/instances_generated.h"  // the Columns structs; needs the templates above

namespace humming {

// Whether a device of compute capability `device` (major * 10 + minor) runs code compiled for `arch`. SASS runs on
// later minor versions of its major: sm_86 runs sm_80 code, sm_89 runs both; sm_90a code runs on 9.0 only, which is the
// only 9.x there is.
constexpr bool runs_on(int arch, int device) { return arch / 10 == device / 10 && arch <= device; }

// The instance of a family for which `match(columns)` holds, compiled for the arch nearest to the device's; nullptr if
// this binary has none.
template <class Columns, class Match>
const Instance<Columns>* find_instance(int device, Match&& match) {
  const Instance<Columns>* best = nullptr;
  for (const Instance<Columns>& instance : instances<Columns>()) {
    const int arch = instance.entry.arch;
    if (runs_on(arch, device) && (best == nullptr || arch > best->entry.arch) && match(instance.columns)) {
      best = &instance;
    }
  }
  return best;
}

}  // namespace humming
