"""Samples of what goes on: one that cannot be taken whole is taken as far as it can."""

from __future__ import annotations

import os
import resource

from llm_server.api.journal import resident_bytes


def test_a_moment_without_free_files_ends_no_samples() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        sizes = resident_bytes([os.getpid()])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert sizes == (0, 0)
    assert all(resident_bytes([os.getpid()]))
