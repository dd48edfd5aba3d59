"""Power fails between any two operations on the cache folder: what is there is right, or a miss."""

from __future__ import annotations

import os
from pathlib import Path

from tests.cache.test_faults import FaultyFiles, count_operations, healthy_again, scenario


def test_a_death_at_any_operation_leaves_hits_or_misses(tmp_path: Path) -> None:
    """Each life ends without a word at its n-th operation, in whatever thread that is."""
    total = count_operations(tmp_path / "count")
    for number in range(1, total + 1, 3):
        folder = tmp_path / str(number)
        child = os.fork()
        if child == 0:
            try:
                scenario(folder, _Mortal(number))
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 9, "it died where it was to die"
        healthy_again(folder)


class _Mortal(FaultyFiles):
    """Ends its process at one operation; a write is half done by then."""

    def __init__(self, number: int) -> None:
        super().__init__(lambda name, n: n == number)
        self.number = number

    def failing(self, name: str) -> bool:
        if super().failing(name) and name != "write":
            os._exit(9)
        return self.n == self.number

    def write(self, descriptor: int, data: bytes | memoryview) -> int:
        try:
            return super().write(descriptor, data)  # type: ignore[no-any-return]
        except OSError:
            os._exit(9)
