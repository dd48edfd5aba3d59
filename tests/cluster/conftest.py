"""One Ray cluster for all tests of this folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.cluster.live import Nodes


@pytest.fixture(scope="session")
def nodes() -> Nodes:
    """A cluster with Ray Serve and no application."""
    from tests.cluster.live import shared_nodes

    return shared_nodes()
