// What lives in csrc/core: checks, bit operations and number codecs with the same bits on host and device. What may
// not: anything that knows a weight format, CUDA headers, torch.
//
// This file: function qualifiers for code that the host and the device share; _CALLED: that the device has once.
#pragma once

// On the host, always_inline keeps shared functions out of the symbol table: the CPU kernels are compiled once per
// instruction set, and a merged inline function from the AVX-512 object would crash an older machine.
#if defined(__CUDACC__)
#define HUMMING_HD __host__ __device__ __forceinline__
#define HUMMING_HD_CALLED __host__ __device__ __noinline__
#else
#define HUMMING_HD inline __attribute__((always_inline))
#define HUMMING_HD_CALLED HUMMING_HD
#endif
