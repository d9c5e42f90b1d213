"""How fast the ops are, beside the peers and the libraries, in one process, each result checked first.

bench       the command line                              cases    what is measured: schemes, shapes, tokens, parts
problem     what is measured has: data, calls, its check  timing   graph replay, ceilings and the floor that follows
product     a problem of one matrix: gemm, moe            layer    a problem of the whole MoE layer
references  what times are compared with; peer_layer      results  rows as JSON lines, tables, the gate, plots
retune      the tables that select reads                  packing  weights from host memory, a command of its own
expert_parallel  the layer divided over GPUs, likewise
targets.toml, results/<gpu>/<part>.jsonl

Needs a source checkout: results are checked against the oracle of tests/. Nothing here may be imported by the package.
"""
