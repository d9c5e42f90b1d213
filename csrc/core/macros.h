// Function qualifiers for code that the host and the device share.
#pragma once

// On the host, always_inline keeps shared functions out of the symbol table: the CPU kernels are compiled once per
// instruction set, and a merged inline function from the AVX-512 object would crash an older machine.
#if defined(__CUDACC__)
#define HUMMING_HD __host__ __device__ __forceinline__
#else
#define HUMMING_HD inline __attribute__((always_inline))
#endif
