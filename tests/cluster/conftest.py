"""One Ray cluster for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.cluster.live import Nodes


@pytest.fixture(scope="session")
def nodes() -> Iterator[Nodes]:
    """A cluster with Ray Serve and no application."""
    from tests.cluster.live import Nodes

    running = Nodes()
    yield running
    running.close()
