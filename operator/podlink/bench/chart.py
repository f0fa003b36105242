"""The chart of a run: rates as bars, in SVG that is written here. Its background is its own, so it suits any page."""

from collections.abc import Iterator
from html import escape
from typing import Final

from podlink.bench.figures import FIGURES, Figure, Spread, spread
from podlink.bench.report import Report

_WIDTH: Final = 860
_MARGIN: Final = 20
_BARS_FROM: Final = 360
_BARS_TO: Final = 770
_BAR: Final = 16
_LINE: Final = 24
_GAP: Final = 14
_FONT: Final = 'font-family="system-ui, sans-serif" font-size="14"'
_OURS: Final = "#5b7aa9"
_THEIRS: Final = "#c4c9d1"


def as_svg(found: Report) -> str:
    """Draw the medians of all rates, each with a line from its lowest round to its highest."""
    series = found.series
    rates = {figure: there for figure in FIGURES if (there := spread(series.get(figure.name, ()))) and _is_rate(figure)}
    scale = (_BARS_TO - _BARS_FROM) / max((there.high for there in rates.values()), default=1)
    drawn: list[str] = []
    top, group = _MARGIN, ""
    for figure, there in rates.items():
        if figure.group != group:
            top += _GAP if group else 0
            group = figure.group
            drawn.append(_text(_MARGIN, top, group, 'font-weight="600"'))
            top += _LINE
        drawn += _bar(figure, there, top, scale)
        top += _LINE
    drawn.append(_text(_MARGIN, top + _GAP, _caption(found), 'font-size="12" fill="#555555"'))
    height = top + _GAP + _LINE + _MARGIN
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" {_FONT} fill="#222222">',
            "  <title>Links and reads a second: PodLink, redis-py, redis-benchmark and plain sockets</title>",
            f'  <rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
            *(f"  {element}" for element in drawn),
            "</svg>\n",
        ]
    )


def _is_rate(figure: Figure) -> bool:
    return figure.unit == "calls/s"


def _bar(figure: Figure, there: Spread, top: int, scale: float) -> Iterator[str]:
    ours = figure.name.startswith("podlink")
    median, low, high = (round(value * scale, 1) for value in (there.median, there.low, there.high))
    middle = top + _BAR // 2
    fill = _OURS if ours else _THEIRS
    yield _text(_BARS_FROM - 10, top, figure.title, f'text-anchor="end" font-size="13"{_bold(ours=ours)}')
    yield f'<rect x="{_BARS_FROM}" y="{top}" width="{median}" height="{_BAR}" rx="2" fill="{fill}"/>'
    yield (
        f'<path d="M{_BARS_FROM + low:.1f} {middle} H{_BARS_FROM + high:.1f}" fill="none" stroke="#222222"'
        ' stroke-width="1.5"/>'
    )
    yield _text(_BARS_FROM + max(median, high) + 8, top, f"{there.median:,.0f}", f'font-size="13"{_bold(ours=ours)}')


def _bold(*, ours: bool) -> str:
    return ' font-weight="600"' if ours else ""


def _text(x: float, top: int, text: str, style: str) -> str:
    return f'<text x="{x:g}" y="{top + 13}" {style}>{escape(text)}</text>'


def _caption(found: Report) -> str:
    server, machine = found.server, found.machine
    return (
        f"{server.name} {server.version}, {machine.python}, {machine.cores} cores."
        " Bar: median of the rounds; line: lowest to highest."
    )
