"""What a tuning measured, as a drawing: latency over throughput, a line for each setting."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final
from xml.etree import ElementTree as ET

from headrace.cli.tune import milliseconds, percentile, setting_text

if TYPE_CHECKING:
    from google.protobuf.duration_pb2 import Duration

    from headrace.api.inference.v1 import tuning_pb2 as api

WIDTH, HEIGHT = 900, 560
LEFT, RIGHT, TOP, BOTTOM = 80, 260, 60, 60
PROPOSED, CURRENT, TARGET, INK, FAINT = "#0b7a3b", "#1f5fbf", "#c0392b", "#222222", "#b8b8b8"
# A latency far beyond the target says no more than one that is beyond it.
MOST_TARGETS: Final = 3.0


@dataclass(frozen=True, slots=True)
class _Scale:
    """From answers a second and milliseconds to places in the drawing."""

    most_throughput: float
    most_latency: float

    def x(self, throughput: float) -> float:
        return LEFT + throughput / self.most_throughput * (WIDTH - LEFT - RIGHT)

    def y(self, latency: float) -> float:
        return HEIGHT - BOTTOM - min(latency / self.most_latency, 1.0) * (HEIGHT - TOP - BOTTOM)


def drawn(
    request: api.TuneDeploymentRequest,
    measurements: Sequence[api.TuningMeasurement],
    proposal: api.TuningProposal,
    current: api.TunedSetting,
) -> str:
    """An SVG document."""
    target = _milliseconds(request.target)
    slowest = max((_milliseconds(one.latency) for one in measurements), default=target)
    scale = _Scale(
        1.08 * max((one.throughput for one in measurements), default=1.0) or 1.0,
        1.1 * max(target, min(slowest, MOST_TARGETS * target)),
    )
    svg = ET.Element(
        "svg",
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        width=str(WIDTH),
        height=str(HEIGHT),
    )
    svg.set("font-family", "sans-serif")
    svg.set("font-size", "12")
    ET.SubElement(svg, "rect", width="100%", height="100%", fill="white")
    _text(svg, LEFT, 28, f"{request.deployment}: {percentile(request)} over throughput", size=16)
    _axes(svg, scale, request)
    y = scale.y(target)
    _line(svg, [(LEFT, y), (WIDTH - RIGHT, y)], TARGET, width=1.5, dashes="6 4")
    _text(svg, WIDTH - RIGHT + 6, y + 4, f"target {milliseconds(request.target.ToTimedelta())}", TARGET)
    settings = {setting_text(one.setting): one.setting for one in measurements}
    # What matters last, so that it lies on top.
    ranked = sorted(settings.items(), key=lambda item: (item[1] == proposal.setting, item[1] == current))
    for name, setting in ranked:
        colour = PROPOSED if setting == proposal.setting else CURRENT if setting == current else FAINT
        _curve(svg, scale, name, colour, [one for one in measurements if one.setting == setting])
    _legend(svg, proposal, current)
    return ET.tostring(svg, encoding="unicode", xml_declaration=True) + "\n"


def _curve(
    svg: ET.Element, scale: _Scale, name: str, colour: str, measured: Sequence[api.TuningMeasurement]
) -> None:
    ordered = sorted(measured, key=lambda one: (one.in_flight, one.throughput))
    points = [(scale.x(one.throughput), scale.y(_milliseconds(one.latency))) for one in ordered]
    _line(svg, points, colour, width=1 if colour == FAINT else 2)
    for (x, y), one in zip(points, ordered, strict=True):
        circle = ET.SubElement(
            svg, "circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r="3" if colour == FAINT else "4.5", fill=colour
        )
        load = f"{one.in_flight} in flight" if one.in_flight else "at the rate"
        title = ET.SubElement(circle, "title")
        title.text = f"{name}, {load}: {one.throughput:,.0f}/s, {_milliseconds(one.latency):.2f} ms"


def _axes(svg: ET.Element, scale: _Scale, request: api.TuneDeploymentRequest) -> None:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    _line(svg, [(LEFT, TOP), (LEFT, bottom), (right, bottom)], INK)
    for tick in _ticks(scale.most_throughput):
        _line(svg, [(scale.x(tick), bottom), (scale.x(tick), bottom + 5)], INK)
        _text(svg, scale.x(tick), bottom + 20, f"{tick:,g}", anchor="middle")
    for tick in _ticks(scale.most_latency):
        _line(svg, [(LEFT - 5, scale.y(tick)), (LEFT, scale.y(tick))], INK)
        _text(svg, LEFT - 9, scale.y(tick) + 4, f"{tick:g}", anchor="end")
    _text(svg, (LEFT + right) / 2, HEIGHT - 18, "answers a second", anchor="middle")
    _text(svg, LEFT, TOP - 10, f"{percentile(request)}, ms", anchor="middle")


def _legend(svg: ET.Element, proposal: api.TuningProposal, current: api.TunedSetting) -> None:
    entries = [("proposed", PROPOSED, proposal.setting)]
    if current != proposal.setting:
        entries.append(("current", CURRENT, current))
    x, y = WIDTH - RIGHT + 24, TOP + 10
    for word, colour, setting in entries:
        ET.SubElement(svg, "circle", cx=str(x), cy=str(y - 4), r="4.5", fill=colour)
        _text(svg, x + 12, y, word, colour)
        _text(svg, x + 12, y + 17, setting_text(setting))
        y += 48
    ET.SubElement(svg, "circle", cx=str(x), cy=str(y - 4), r="3", fill=FAINT)
    _text(svg, x + 12, y, "other settings")


def _line(
    svg: ET.Element,
    points: Sequence[tuple[float, float]],
    colour: str,
    *,
    width: float = 1,
    dashes: str = "none",
) -> None:
    places = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    line = ET.SubElement(svg, "polyline", points=places, fill="none", stroke=colour)
    line.set("stroke-width", str(width))
    line.set("stroke-dasharray", dashes)


def _text(
    svg: ET.Element,
    x: float,
    y: float,
    words: str,
    colour: str = INK,
    *,
    anchor: str = "start",
    size: int = 12,
) -> None:
    text = ET.SubElement(svg, "text", x=f"{x:.1f}", y=f"{y:.1f}", fill=colour)
    text.set("text-anchor", anchor)
    text.set("font-size", str(size))
    text.text = words


def _ticks(most: float) -> list[float]:
    """Some five round numbers from zero."""
    rough = most / 5
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * unit for factor in (1, 2, 5, 10) if factor * unit >= rough)
    return [step * index for index in range(int(most / step) + 1)]


def _milliseconds(duration: Duration) -> float:
    return duration.ToTimedelta() / timedelta(milliseconds=1)
