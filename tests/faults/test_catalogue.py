"""Every fault has its tests, or a reason why not."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.faults import NOT_HERE, ROWS

TESTS = Path(__file__).parent.parent


def test_all_rows_are_there() -> None:
    assert [row.split()[0] for row in ROWS] == [f"F{n}" for n in range(1, 21)]
    assert set(NOT_HERE) <= set(ROWS)


@pytest.mark.parametrize("row", ROWS)
def test_its_tests_exist(row: str) -> None:
    assert ROWS[row]
    for test in ROWS[row]:
        file, _, name = test.partition("::")
        tree = ast.parse((TESTS / file).read_text())
        assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
