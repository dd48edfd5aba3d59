"""Families of cases that differ little: some of them by default, all by `make exhaustive`."""

from __future__ import annotations

import os
from collections.abc import Iterable
from itertools import product
from typing import Any

EXHAUSTIVE = "EXHAUSTIVE" in os.environ


def rotated(*families: Iterable[Any]) -> list[tuple[Any, ...]]:
    """Every combination; by default each case of the first family once, with turns of the others.

    As many turns are taken as needed for each case of the others to occur, too. None where the
    first family has none: there may be no published templates beside the checkout.
    """
    first, *others = [list(family) for family in families]
    if EXHAUSTIVE:
        return list(product(first, *others))
    combinations = list(product(*others))
    n = max(len(first), len(combinations)) if first else 0
    return [(first[i % len(first)], *combinations[i % len(combinations)]) for i in range(n)]
