"""Where things lie unless told: models, data and configuration of this user."""

from __future__ import annotations

import os
import shutil
import stat
import sys
from pathlib import Path


def default_models_dir() -> Path:
    """`models/` of the working directory if there is one, else in the per-user data folder."""
    return Path("models").absolute() if is_folder("models") else user_data_dir() / "models"


def user_data_dir() -> Path:
    """Where this user's data of the server lies, by the platform's custom."""
    if sys.platform == "darwin":
        return _home() / "Library" / "Application Support" / "llm-server"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", _home())) / "llm-server"
    # XDG Base Directory Specification: a relative value is to be ignored.
    told = Path(os.environ.get("XDG_DATA_HOME", ""))
    return (told if told.is_absolute() else _home() / ".local" / "share") / "llm-server"


def user_config_dir() -> Path:
    """Where this user's configuration of the server lies, by the platform's custom."""
    if sys.platform in ("darwin", "win32"):
        return user_data_dir()
    told = Path(os.environ.get("XDG_CONFIG_HOME", ""))
    return (told if told.is_absolute() else _home() / ".config") / "llm-server"


def is_file(path: str | Path) -> bool:
    """Whether a file is there, as far as this user may see and the system understands the name."""
    return os.path.isfile(path)


def is_folder(path: str | Path) -> bool:
    """The same of a folder."""
    return os.path.isdir(path)


def is_open_to_all(folder: Path) -> bool:
    """Whether every user of this machine may write to a folder; not where there is none."""
    try:
        return sys.platform != "win32" and bool(folder.stat().st_mode & stat.S_IWOTH)
    except OSError:
        return False


def expanded(path: str | Path) -> Path:
    """A path whose `~` is the home of a user, if there is one. Raises ValueError for no path."""
    if path == "":
        raise ValueError("this is no path")
    return Path(os.path.expanduser(path))


def _home() -> Path:
    """This user's home; `/` of one that has none, as containers do for a user without a name."""
    home = os.path.expanduser("~")
    return Path("/" if home == "~" else home)


def free_bytes(folder: Path) -> int:
    """Free space where `folder` is or will be."""
    for path in (folder, *folder.parents):
        try:
            return shutil.disk_usage(path).free
        except OSError:
            continue
    return 0
