"""`docs/architecture.md` names each file once, and the processes keep apart what they must."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "llm_server"


def test_every_file_is_named_in_one_line() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    named = re.findall(r"^\| `([\w/]+\.py)` \| .+ \|$", text, re.MULTILINE)
    assert len(named) == len(set(named))
    with_code = (PACKAGE, PACKAGE / "cluster", PACKAGE / "demo")
    files = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if path.name != "__init__.py" or path.parent in with_code
    }
    assert set(named) == files


def imports(module: str) -> set[str]:
    """What is loaded after importing `module` in a fresh interpreter."""
    script = f"import sys, {module}; print(*sys.modules)"
    output = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return set(output.stdout.split())


def test_a_worker_loads_no_web_server_and_no_pickling_cache() -> None:
    loaded = imports("llm_server.worker.main")
    assert "llama_cpp.llama_cpp" in loaded
    assert loaded.isdisjoint({"fastapi", "uvicorn", "diskcache", "llama_cpp.llama"})


def test_the_api_process_loads_no_native_model_code() -> None:
    loaded = imports("llm_server.api.app")
    assert loaded.isdisjoint({"llama_cpp", "llama_cpp.llama_cpp", "numpy", "llguidance"})
    # Nor anything that could make an outgoing request.
    assert loaded.isdisjoint({"httpx2", "huggingface_hub"})


def test_only_one_folder_imports_llama_cpp() -> None:
    pattern = re.compile(r"^\s*(import llama_cpp|from llama_cpp)", re.MULTILINE)
    users = [p for p in PACKAGE.rglob("*.py") if pattern.search(p.read_text())]
    assert users == []
    lib = (PACKAGE / "llama" / "lib.py").read_text()
    assert 'import_module("llama_cpp.llama_cpp")' in lib


def test_the_single_machine_knows_no_ray() -> None:
    pattern = re.compile(r"^(?P<indent>\s*)(import|from) (ray|llm_server\.cluster)\b", re.MULTILINE)
    users = {
        str(path.relative_to(PACKAGE)): found.group("indent")
        for path in PACKAGE.rglob("*.py")
        if path.parent != PACKAGE / "cluster" and (found := pattern.search(path.read_text()))
    }
    # The command imports it when it is called.
    assert users == {"commands/cluster.py": "        "}
    loaded = imports("llm_server.cli") | imports("llm_server.running")
    assert not any(name.partition(".")[0] == "ray" for name in loaded)


def test_nothing_is_ever_unpickled() -> None:
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            roots = {name.partition(".")[0] for name in names}
            assert roots.isdisjoint({"pickle", "marshal", "shelve", "multiprocessing"}), path
