"""The arithmetic of drawing: how numbers are written, where ticks lie, which points a pixel shows."""

import bisect
import math
from collections.abc import Iterable

from .figures import Line

__all__ = ["finite", "format_number", "nice_ticks", "padded", "path", "span", "tenths", "thin", "value_at"]


def format_number(value: float, digits: int = 3) -> str:
    """A number as people write it: 0.0002 → 2e-4, 1234567 → 1.23M, 0.5 → 0.5."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    size = abs(value)
    if size < 1e-3:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= limit:
            return _trim(f"{value / (limit if unit != 'k' else 1e3):.{digits}g}") + unit
    if size >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    return _trim(f"{value:.{digits}g}")


def _trim(number: str) -> str:
    if "e" in number:
        number = f"{float(number):.0f}"
    return number.rstrip("0").rstrip(".") if "." in number else number


def nice_ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) between two values, about so many."""
    raw = (high - low) / max(1, about)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def finite(line: Line) -> tuple[list[float], list[float]]:
    """The line's points whose value is a number."""
    pairs = [(float(x), float(y)) for x, y in zip(line.x, line.y, strict=True) if math.isfinite(y)]
    return [x for x, _ in pairs], [y for _, y in pairs]


def span(low: float, high: float) -> tuple[float, float]:
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def padded(low: float, high: float) -> tuple[float, float]:
    """A little air around; down to zero where the values are near it, and some height for a flat line."""
    if high == low:
        air = abs(high) * 0.1 or 1.0
        return low - air, high + air
    air = (high - low) * 0.06
    return (0.0 if 0 <= low < (high - low) * 0.3 else low - air), high + air


def thin(x: list[float], y: list[float], columns: int) -> tuple[list[float], list[float]]:
    """At most first, lowest, highest and last of each column: what is drawn looks the same."""
    if len(x) <= 2 * columns:
        return x, y
    low, high = x[0], x[-1]
    kept: list[int] = []
    start = 0
    for column in range(columns):
        edge = low + (high - low) * (column + 1) / columns
        end = start
        while end < len(x) and (x[end] <= edge or column == columns - 1):
            end += 1
        if end > start:
            members = range(start, end)
            kept += sorted({start, min(members, key=y.__getitem__), max(members, key=y.__getitem__), end - 1})
        start = end
    return [x[i] for i in kept], [y[i] for i in kept]


def path(x: Iterable[float], y: Iterable[float]) -> str:
    """Relative moves in tenths of a pixel: a third of the bytes of absolute ones."""
    written, at = [], (0, 0)
    for px, py in zip(x, y, strict=True):
        here = (round(px * 10), round(py * 10))
        dx, dy = here[0] - at[0], here[1] - at[1]
        written.append(f"{'l' if written else 'M'}{_written(dx)}{'' if dy < 0 else ' '}{_written(dy)}")
        at = here
    return "".join(written)


def _written(value: int) -> str:
    whole, rest = divmod(abs(value), 10)
    sign = "-" if value < 0 else ""
    if not rest:
        return f"{sign}{whole}"
    return f"{sign}{whole or ''}.{rest}"


def tenths(pixels: float) -> str:
    """A coordinate to a tenth of a pixel, as short as SVG reads it: 12, .5, -3.2."""
    return _written(round(pixels * 10))


def value_at(x: list[float], y: list[float], where: float) -> float:
    """The value at the last point not right of ``where``, or the first."""
    return y[max(0, bisect.bisect_right(x, where) - 1)]
