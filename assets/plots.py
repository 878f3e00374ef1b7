"""The few kinds of picture that assets show."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

Point = tuple[float, float]


def _figure() -> tuple["Figure", Any]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot.subplots(figsize=(6.4, 3.6))


def lines(series: Mapping[str, Sequence[Point]], x: str, y: str) -> "Figure":
    """One line a name."""
    figure, axes = _figure()
    for name, points in series.items():
        axes.plot([point[0] for point in points], [point[1] for point in points], label=name, marker="." if len(points) < 40 else None)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    if len(series) > 1:
        axes.legend(fontsize=8)
    return figure


def losses(rows: Sequence[Mapping[str, Any]]) -> "Figure":
    """Loss rows of a training (step, metric, value): a line a metric whose name ends in `loss`."""
    names = sorted({str(row["metric"]) for row in rows if str(row["metric"]).endswith("loss")})
    series = {name: [(row["step"], row["value"]) for row in rows if row["metric"] == name] for name in names}
    return lines(series, "step", "loss (nats)")


def bars(values: Mapping[str, float], label: str, *, intervals: Mapping[str, Point] | None = None, line: float | None = None) -> "Figure":
    """Horizontal bars in the order given, with 95 % intervals where there are any, and a line to compare with."""
    figure, axes = _figure()
    names = list(values)
    place = range(len(names))
    axes.barh(place, [values[name] for name in names], color="#5b8fb9", height=0.6)
    for index, name in enumerate(names):
        if intervals and name in intervals:
            axes.plot(intervals[name], [index, index], color="#222222", linewidth=1.5)
    axes.set_yticks(list(place), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(label)
    if line is not None:
        axes.axvline(line, color="#b33939", linestyle="--", linewidth=1)
    axes.grid(axis="x", alpha=0.3)
    return figure


def panels(names: Sequence[str], values: Mapping[str, Mapping[str, Sequence[float]]]) -> "Figure":
    """A panel a measure side by side, in each a line a name of the inner mapping over the places `names`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, all_axes = pyplot.subplots(1, len(values), figsize=(3.6 * len(values), 3.4), squeeze=False)
    for axes, (title, series) in zip(all_axes[0], values.items(), strict=True):
        for name, points in series.items():
            axes.plot(range(len(names)), points, label=name, marker="o", markersize=4)
        axes.set_title(title, fontsize=9)
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=7)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    figure.tight_layout()
    return figure


def histograms(values: Mapping[str, "Sequence[float] | np.ndarray"], x: str, *, bins: int = 30) -> "Figure":
    """One outlined histogram a name on common bins, as shares of its own values."""
    import numpy as np

    figure, axes = _figure()
    together = np.concatenate([np.asarray(one, dtype=float) for one in values.values()])
    edges = np.histogram_bin_edges(together, bins=bins)
    for name, one in values.items():
        counts, _ = np.histogram(one, bins=edges)
        axes.stairs(counts / max(1, len(one)), edges, label=f"{name} ({len(one):,})", fill=True, alpha=0.35)
    axes.set_xlabel(x)
    axes.set_ylabel("share")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def calibration(curves: Mapping[str, Sequence[tuple[float, float, int]]], x: str, y: str) -> "Figure":
    """Reliability curves of (mean prediction, observed share, count) beside the diagonal; a point's size grows with its count."""
    figure, axes = _figure()
    axes.plot([0, 1], [0, 1], color="#888888", linestyle="--", linewidth=1, label="perfect")
    for name, points in curves.items():
        most = max((count for _, _, count in points), default=1)
        line = axes.plot([p for p, _, _ in points], [share for _, share, _ in points], label=name, linewidth=1)[0]
        axes.scatter(
            [p for p, _, _ in points], [share for _, share, _ in points], s=[8 + 50 * n / most for *_, n in points], color=line.get_color()
        )
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def paths(series: Mapping[str, Sequence[tuple[float, float, str]]], x: str, y: str, *, centre: float) -> "Figure":
    """A path of labelled points a name, as in the paper's Fig. 11, with lines through `centre` on both axes."""
    figure, axes = _figure()
    for name, points in series.items():
        axes.plot([point[0] for point in points], [point[1] for point in points], marker="o", markersize=4, label=name, alpha=0.8)
        for across, up, label in points:
            axes.annotate(label, (across, up), textcoords="offset points", xytext=(4, 4), fontsize=7)
    axes.axvline(centre, color="#999999", linewidth=0.8)
    axes.axhline(centre, color="#999999", linewidth=0.8)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def grid(rows: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[float]]) -> "Figure":
    """Shares in [0, 1] as a table of coloured cells with their numbers; not-a-number stays empty."""
    import math

    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(1.6 + 1.1 * len(columns), 0.9 + 0.45 * len(rows)))
    axes.imshow(values, vmin=0.4, vmax=1.0, cmap="Blues", aspect="auto")
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            if not math.isnan(value):
                axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=8, color="white" if value > 0.75 else "black")
    axes.set_xticks(range(len(columns)), columns, fontsize=7, rotation=20, ha="right")
    axes.set_yticks(range(len(rows)), rows, fontsize=7)
    return figure
