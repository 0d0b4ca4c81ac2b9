"""The errors a user of trustbench can meet, and one way to word them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class TrustbenchError(Exception):
    """Base of every error that trustbench raises on purpose."""


class InputError(TrustbenchError, ValueError):
    """An argument is wrong; the message names it, its value and what was expected."""


class DataError(TrustbenchError):
    """A data source is missing, empty or unreadable."""


class CheckpointError(TrustbenchError):
    """A saved file is missing, truncated, corrupt or belongs to another configuration."""


class NonFiniteError(TrustbenchError):
    """Activations hold NaN or Inf; the message says in which layer and at which token."""


def bad(argument: str, value: Any, expected: str) -> InputError:
    """Word an `InputError` the one way this project does: name, value, expectation."""
    return InputError(f"{argument}={value!r}: expected {expected}")


def nearest(name: Any, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: "; did you mean 'so'?", or nothing."""
    near = difflib.get_close_matches(name, list(known), n=1) if isinstance(name, str) else []
    return f"; did you mean {near[0]!r}?" if near else ""
