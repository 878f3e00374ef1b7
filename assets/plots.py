"""The few kinds of picture that assets show."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
