"""Parameters of a recipe: a scalar is fixed, a two-element list is a range that is drawn once per sample."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from numbers import Real

import numpy as np

Range = float | Sequence[float]


def check_range(name: str, value: Range, low: float, high: float, unit: str = "") -> Range:
    """Return ``value`` as a float or a (low, high) tuple after checking it against closed bounds.

    Args:
        name: the argument's name, for the message.
        value: a number, or two numbers in rising order.
        low, high: the smallest and the largest value allowed.
        unit: unit of the value, for the message.

    Raises:
        ValueError: not a number or a rising pair, or outside the bounds; names the nearest valid choice.
    """
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    good = len(values) in (1, 2) and all(
        isinstance(v, Real) and not isinstance(v, bool) and math.isfinite(v) for v in values
    )
    if not good or values[0] > values[-1]:
        raise ValueError(f"{name}={value!r} must be a number or a rising pair [low, high]")
    for v in values:
        if not low <= v <= high:
            nearest = min(max(v, low), high)
            raise ValueError(
                f"{name}={value!r} must lie in [{low:g}, {high:g}]{unit and ' ' + unit}; nearest valid: {nearest:g}"
            )
    return float(values[0]) if len(values) == 1 else (float(values[0]), float(values[1]))


def check_ranges(recipe, bounds: Iterable[tuple]) -> None:
    """``check_range`` on several arguments of a frozen dataclass, which keeps them as floats or tuples.

    Args:
        recipe: the dataclass's instance, in its ``__post_init__``.
        bounds: for each argument (name, low, high[, unit]).
    """
    for name, *limits in bounds:
        object.__setattr__(recipe, name, check_range(name, getattr(recipe, name), *limits))


def check_number(name: str, value: float, low: float, high: float, unit: str = "") -> float:
    """As ``check_range``, for an argument that is never drawn: a single number."""
    if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"{name}={value!r} must be one number in [{low:g}, {high:g}]{unit and ' ' + unit}")
    return check_range(name, value, low, high, unit)


def upper(value: Range) -> float:
    """Largest value that a checked range can give."""
    return value[1] if isinstance(value, tuple) else value


def lower(value: Range) -> float:
    """Smallest value that a checked range can give."""
    return value[0] if isinstance(value, tuple) else value


def draw(value: Range, rng: np.random.Generator) -> float:
    """One value of a checked range: itself where it is fixed, uniform between its ends where it is not."""
    return float(rng.uniform(*value)) if isinstance(value, tuple) else value


def draw_ranges(recipe, names: Iterable[str], rng: np.random.Generator) -> dict[str, float]:
    """``draw`` on several checked arguments of a recipe, in that order."""
    return {name: draw(getattr(recipe, name), rng) for name in names}
