"""Charts of the report as SVG, drawn by matplotlib; the same data give the same bytes."""

import io
import re
import warnings
from typing import Any

from eval.findings import Chart

_INK = "#010203"
"""Stands for the page's own text colour until the SVG is written."""
_COLOURS = ("#8a8f98", "#2f6fde", "#c2571a")
_SETTINGS: dict[Any, Any] = {
    "svg.hashsalt": "plumbline",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.parse_math": False,
    "axes.titlesize": 10,
}


def draw(chart: Chart) -> str:
    """One chart as an inline SVG that takes the page's colours, with its title for screen readers."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_SETTINGS), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a letter that the font lacks: the browser has it
        figure = Figure(figsize=(7, 2.6 if chart.kind == "lines" else 0.9 + 0.32 * len(chart.labels)))
        axes = figure.subplots()
        _bars(axes, chart) if chart.kind == "bars" else _lines(axes, chart)
        if len(chart.series) > 1:
            axes.legend(frameon=False, loc="best")
        figure.tight_layout()
        written = io.StringIO()
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = written.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="\w+_\w+"', "", svg)  # of groups: equal in every chart, and named by nothing
    return (
        svg.replace("<svg ", f'<svg role="img" aria-label="{_attribute(chart.title)}" ', 1)
        .replace(' xmlns:xlink="http://www.w3.org/1999/xlink"', "")
        .replace("xlink:href", "href")
        .replace(' xmlns="http://www.w3.org/2000/svg"', "")
    )


def _bars(axes: Any, chart: Chart) -> None:
    width = 0.8 / len(chart.series)
    for number, (name, values) in enumerate(chart.series.items()):
        places = [place + width * (number - (len(chart.series) - 1) / 2) for place in range(len(values))]
        axes.barh(places, [value or 0.0 for value in values], width, label=name, color=_colour(number, chart))
    axes.set_yticks(range(len(chart.labels)), chart.labels)
    axes.invert_yaxis()


def _lines(axes: Any, chart: Chart) -> None:
    places = range(len(chart.labels))
    for number, (name, values) in enumerate(chart.series.items()):
        drawn = [float("nan") if value is None else value for value in values]
        axes.plot(places, drawn, label=name, color=_colour(number, chart), marker="." if number == 0 else "")
    for limit in (chart.low, chart.high):
        if limit is not None:
            axes.axhline(limit, color=_INK, linewidth=0.8, linestyle="--")
    step = max(1, len(chart.labels) // 10)
    axes.set_xticks(list(places)[::step], chart.labels[::step])


def _colour(number: int, chart: Chart) -> str:
    return _COLOURS[(number if len(chart.series) > 1 else 1) % len(_COLOURS)]


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
