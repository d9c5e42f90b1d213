"""Readers of checkpoint files, one module per format."""
