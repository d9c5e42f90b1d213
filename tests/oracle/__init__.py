"""The reference: numpy in float64, written from the definitions, importing nothing from the package.

formats   value tables of every weight format            rounding  bf16, fp16, fp8, e8m0, int4 and one exact fp32 fma
weights   codes, scales and zeros to real weights        packing   where prepack puts every bit
matmul    gemm and the three layouts of moe_gemm         activations, routing   the four small operations
layer     both products of a MoE layer and the sum
"""
