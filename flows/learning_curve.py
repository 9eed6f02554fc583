"""A run's metrics over its epochs, drawn as SVG, which notebooks show without a plotting library."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape
from math import isfinite

Points = Sequence[tuple[int, float]]
"""Step and value, in the order of the steps."""

_WIDTH, _HEIGHT, _LEFT, _TOP = 420, 200, 60, 24
_COLOURS = ("#1f6fb4", "#d2691e", "#2e8b57", "#8b3a8b", "#666666")


def learning_curve(metrics: Mapping[str, Points]) -> str:
    """Markdown with a drawing for losses and one for the rest; empty if no metric has two finite points."""
    drawn = {name: [point for point in points if isfinite(point[1])] for name, points in metrics.items()}
    drawn = {name: points for name, points in drawn.items() if len(points) > 1}
    losses = {name: points for name, points in drawn.items() if "loss" in name}
    others = {name: points for name, points in drawn.items() if name not in losses}
    return " ".join(_image(_drawing(one)) for one in (losses, others) if one)


def _image(svg: str) -> str:
    return f'<img alt="learning curve" src="data:image/svg+xml;base64,{b64encode(svg.encode()).decode()}"/>'


def _drawing(metrics: Mapping[str, Points]) -> str:
    steps = [step for points in metrics.values() for step, _ in points]
    values = [value for points in metrics.values() for _, value in points]
    first, last, low, high = min(steps), max(steps), min(values), max(values)
    width, height = _WIDTH - _LEFT - 10, _HEIGHT - _TOP - 24

    def place(step: int, value: float) -> str:
        x = _LEFT + width * (step - first) / ((last - first) or 1)
        y = _TOP + height * (1 - (value - low) / ((high - low) or 1))
        return f"{x:.1f},{y:.1f}"

    parts = [f'<rect x="{_LEFT}" y="{_TOP}" width="{width}" height="{height}" fill="none" stroke="#bbbbbb"/>']
    for number, (name, points) in enumerate(metrics.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        line = " ".join(place(step, value) for step, value in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        parts.append(f'<text x="{_LEFT + 100 * number}" y="{_TOP - 8}" fill="{colour}">{escape(name)}</text>')
    for value, y in ((high, _TOP + 10), (low, _TOP + height)):
        parts.append(f'<text x="{_LEFT - 4}" y="{y}" text-anchor="end" fill="#444444">{value:.4g}</text>')
    for step, x, anchor in ((first, _LEFT, "start"), (last, _LEFT + width, "end")):
        parts.append(f'<text x="{x}" y="{_HEIGHT - 8}" text-anchor="{anchor}" fill="#444444">{step}</text>')
    size = f'width="{_WIDTH}" height="{_HEIGHT}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="11">{"".join(parts)}</svg>'
    )
