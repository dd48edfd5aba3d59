"""One Ray cluster for all tests of this folder; the slow ones by `make test-cluster` alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.cluster.live import Nodes


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the slow ones out, unless marks were chosen."""
    if not config.option.markexpr:
        items[:] = [item for item in items if item.get_closest_marker("slow") is None]


@pytest.fixture(scope="session")
def nodes() -> Nodes:
    """A cluster with Ray Serve and no application."""
    from tests.cluster.live import shared_nodes

    return shared_nodes()
