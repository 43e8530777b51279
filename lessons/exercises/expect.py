"""How a test of an exercise says what is wrong: what was asked, what came, and the idea that was missed.

    close(asked, got, want, idea)      a tensor, or numbers, up to rounding
    same(asked, got, want, idea)       anything made of plain Python values, exactly
    holds(asked, came, true, idea)     a property: came says in words what was seen instead

Form comes before value: first the type, then the shape, then numbers. Everything is compared as plain Python or numpy
values, by functions that are bound here before any student's code is loaded; objects with an == of their own and
subclasses of Tensor are refused.
"""

import numpy as np
from numpy import abs as absolute, asarray, float64, isfinite, isnan
from torch import Tensor, nn

PARAMETER, numpy_of, detach, to_float = nn.Parameter, Tensor.numpy, Tensor.detach, Tensor.double


class Wrong(AssertionError):
    """A test's verdict, in three lines."""

    def __init__(self, asked, came, idea):
        super().__init__(f"asked  {asked}\ncame   {came}\nidea   {idea}")


def holds(asked, came, true, idea):
    """A property: true must be a plain True."""
    if true is not True and type(true) is not np.bool_ or not true:
        raise Wrong(asked, came, idea)


def plain(value):
    """A value of plain Python types, a copy; TypeError for anything else, a subclass included."""
    kind = type(value)
    if kind in (int, float, bool, str, bytes, type(None)):
        return value
    if kind in (list, tuple, set, frozenset):
        return kind(map(plain, value))
    if kind is dict:
        return {plain(key): plain(item) for key, item in value.items()}
    raise TypeError(kind.__name__)


def same(asked, got, want, idea):
    """Equality of plain values: numbers, strings, lists, tuples, dictionaries of them."""
    try:
        got = plain(got)
    except TypeError as error:
        raise Wrong(asked, f"something of type {error}", f"{type(want).__name__} was expected here") from None
    if type(got) is not type(want):
        raise Wrong(asked, f"{type(got).__name__}: {short(got)}", f"{type(want).__name__} was expected here")
    if got != want:
        raise Wrong(asked, f"{short(got)}, not {short(want)}", idea)


def short(value):
    text = repr(value)
    return text if len(text) < 200 else text[:200] + " …"


def array(asked, value):
    """A tensor, a number or a list of numbers as a float64 array."""
    if type(value) in (Tensor, PARAMETER):
        value = detach(value)
        return numpy_of(to_float(value.cpu()))
    try:
        return asarray(plain(value), dtype=float64)
    except (TypeError, ValueError):
        raise Wrong(asked, f"something of type {type(value).__name__}", "a tensor was expected here") from None


def close(asked, got, want, idea, *, tolerance=1e-4):
    """Equality up to rounding: |got - want| ≤ tolerance·max(1, the largest |want|), everywhere.

    The default leaves room for float32, bfloat16-free arithmetic in any order; use a larger one after many steps.
    """
    got, want = array(asked, got), array(asked, want)
    if got.shape != want.shape:
        raise Wrong(asked, f"shape {list(got.shape)}, not {list(want.shape)}", f"form comes first: {idea}")
    if not want.size:
        return
    if not isfinite(got[isfinite(want)]).all():
        raise Wrong(asked, "numbers that are not finite (NaN or infinity)", idea)
    difference = asarray(absolute(got - want))
    difference[(got == want) | (isnan(got) & isnan(want))] = 0.0
    finite = absolute(want[isfinite(want)])
    if difference.max() > tolerance * max(1.0, finite.max(initial=0.0)):
        place = [int(i) for i in np.unravel_index(difference.argmax(), difference.shape)]
        raise Wrong(asked, f"{got.item(*place):.6g}, not {want.item(*place):.6g}" + f", at {place}" * bool(place), idea)
