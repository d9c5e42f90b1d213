"""The commands of `python -m humming_ext`, one module per group. Each has `add`, which adds its parsers."""
