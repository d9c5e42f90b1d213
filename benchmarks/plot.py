"""Time against tokens for every matrix of a part, as one PNG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from .results import Row, compared_us, variant

_CURVES = (
    ("us", "humming_ext", {"marker": "o", "color": "tab:blue"}),
    ("peer_us", "humming-kernels", {"marker": "s", "color": "tab:orange"}),
    ("library_us", "cuBLAS", {"marker": "^", "color": "tab:green"}),
    ("floor_us", "floor", {"linestyle": "--", "color": "black"}),
)


def plot(rows: Sequence[Row], title: str, path: Path) -> None:
    """Writes a PNG with a panel per matrix and pair. Needs matplotlib, the extra `bench`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels: dict[str, list[Row]] = {}
    for row in rows:
        if row.get("error") is None:
            name = f"{row['model']} {row['part']} {row['n']}x{row['k']}\n{row['weight']} x {row['activation']}"
            panels.setdefault(f"{name} {variant(row)}", []).append(row)
    columns = min(4, max(1, len(panels)))
    height = max(1, math.ceil(len(panels) / columns))
    figure, grid = pyplot.subplots(height, columns, figsize=(4 * columns, 3.2 * height), squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, (name, panel) in zip(grid.flat, panels.items(), strict=False):
        for field, label, style in _CURVES:
            values = [(row["tokens"], compared_us(row) if field == "us" else row.get(field)) for row in panel]
            points = sorted(point for point in values if point[1])
            if points:
                axes.loglog(*zip(*points, strict=True), label=label, markersize=4, linewidth=1, **style)
        axes.set_title(name, fontsize=8)
        axes.set_xlabel("tokens", fontsize=8)
        axes.set_ylabel("us", fontsize=8)
        axes.grid(which="major", alpha=0.3)
        axes.legend(fontsize=7)
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
