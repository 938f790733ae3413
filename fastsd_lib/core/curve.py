"""A line chart of the loss as SVG: sharp at every zoom, a few kilobytes, and no plotting library."""

from __future__ import annotations

import math
from html import escape

WIDTH, HEIGHT = 860, 210
LEFT, RIGHT, TOP, BOTTOM = 54, 12, 26, 26
POINTS = 240  # drawn per stage; longer runs are averaged into as many bins
SMOOTH = 0.9  # weight of the past in the moving average; one step's loss is mostly noise


class Curve:
    """Losses of one or more stages, drawn one behind the other."""

    def __init__(self) -> None:
        self._stages: dict[str, dict[int, float]] = {}

    def add(self, stage: str, step: int, loss: float) -> None:
        """A step that was done before (a resumed run) replaces its old loss. NaN is left out."""
        if math.isfinite(loss):
            self._stages.setdefault(stage, {})[step] = loss

    def svg(self) -> str:
        """The chart, or "" until two steps are there."""
        stages = {name: sorted(points.items()) for name, points in self._stages.items() if len(points) > 1}
        if not stages:
            return ""
        smooth = {name: _thinned(_smoothed(points)) for name, points in stages.items()}
        raw = {name: _thinned(points) for name, points in stages.items()}
        low, high = _range([loss for points in raw.values() for _, loss in points])
        spans = [max(points[-1][0], 1) for points in stages.values()]
        parts, start = [], float(LEFT)
        usable = WIDTH - LEFT - RIGHT

        def y(loss: float) -> float:
            inside = min(max(loss, low), high)
            return TOP + (HEIGHT - TOP - BOTTOM) * (1 - (inside - low) / (high - low))

        for value in _ticks(low, high):
            parts.append(
                f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}" '
                'stroke="currentColor" stroke-opacity=".14"/>'
                f'<text x="{LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.3g}</text>'
            )
        for name, span in zip(stages, spans, strict=True):
            width = usable * span / sum(spans)

            def line(
                points: list[tuple[float, float]], start: float = start, per: float = width / span
            ) -> str:
                return " ".join(f"{start + step * per:.1f},{y(loss):.1f}" for step, loss in points)

            faint = 'fill="none" stroke="currentColor" stroke-opacity=".28" stroke-width="1"'
            strong = 'fill="none" stroke="var(--fsd-accent)" stroke-width="2.2" stroke-linejoin="round"'
            parts.append(f'<polyline points="{line(raw[name])}" {faint}/>')
            parts.append(f'<polyline points="{line(smooth[name])}" {strong}/>')
            parts.append(_labels(name, start, width, span, first=start == LEFT))
            start += width
        return (
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="100%" role="img" aria-label="Loss by step" '
            'style="display:block;color:var(--fsd-text);overflow:visible" font-size="11.5" '
            f'font-family="system-ui, sans-serif" fill="currentColor">{"".join(parts)}</svg>'
        )


def _labels(name: str, start: float, width: float, span: int, *, first: bool) -> str:
    border = (
        ""
        if first
        else (
            f'<line x1="{start:.1f}" x2="{start:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" '
            'stroke="currentColor" stroke-opacity=".35" stroke-dasharray="3 3"/>'
        )
    )
    title = f'<text class="stage" x="{start + 4:.1f}" y="{TOP - 10}" fill-opacity=".8">loss, {escape(name)}</text>'
    right = f'x="{start + width - 2:.1f}" y="{HEIGHT - 8}" text-anchor="end"'
    end = f'<text {right} fill-opacity=".8">step {span}</text>'
    return border + title + end


def _smoothed(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Exponential moving average, its early values freed of the bias to the first loss (as Adam does)."""
    average, weight, out = 0.0, 0.0, []
    for step, loss in points:
        average = SMOOTH * average + (1 - SMOOTH) * loss
        weight = SMOOTH * weight + (1 - SMOOTH)
        out.append((step, average / weight))
    return out


def _thinned(points: list[tuple[int, float]]) -> list[tuple[float, float]]:
    """At most POINTS points: the mean of each run of neighbours."""
    size = math.ceil(len(points) / POINTS)
    bins = [points[at : at + size] for at in range(0, len(points), size)]
    return [(sum(s for s, _ in b) / len(b), sum(v for _, v in b) / len(b)) for b in bins]


def _range(losses: list[float]) -> tuple[float, float]:
    """From 0 to a little above all but the wildest 2 % of the losses."""
    ordered = sorted(losses)
    high = ordered[min(len(ordered) - 1, int(0.98 * len(ordered)))]
    low = min(0.0, ordered[0])
    return low, max(high * 1.08, low + 1e-6)


def _ticks(low: float, high: float) -> list[float]:
    """Three to six round values between `low` and `high`."""
    rough = (high - low) / 4
    power = 10 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough)
    first = math.ceil(low / step)
    return [n * step for n in range(first, int(high / step) + 1)]
