"""Every row of hostile input has its cases or tests, or a reason why not."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.hostile import NOT_HERE, ROWS
from tests.hostile.cases import CASES

TESTS = Path(__file__).parent.parent
CATALOGUE = [
    f"{letter}{n}"
    for letter, count in {"T": 12, "H": 9, "J": 8, "M": 17, "G": 11, "S": 12, "L": 6}.items()
    for n in range(1, count + 1)
]


def test_all_rows_are_there() -> None:
    shown = {case.row for case in CASES} | set(ROWS) | set(NOT_HERE)
    assert shown == set(CATALOGUE)
    assert len({case.id for case in CASES}) == len(CASES)


@pytest.mark.parametrize("row", ROWS)
def test_its_tests_exist(row: str) -> None:
    for test in ROWS[row]:
        file, _, name = test.partition("::")
        tree = ast.parse((TESTS / file).read_text())
        functions = ast.FunctionDef | ast.AsyncFunctionDef
        assert name in {node.name for node in ast.walk(tree) if isinstance(node, functions)}
