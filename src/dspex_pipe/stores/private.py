"""Files that only their owner may read, and where they live."""

from __future__ import annotations

import os
import stat
import sys
from contextlib import suppress
from pathlib import Path
from threading import Lock

__all__ = ["cache_folder", "cache_path", "private_file", "private_folder", "tighten"]

# another thread must not open a new file before it is closed here, see private_file()
_making = Lock()


def cache_folder() -> Path:
    """The folder ``dspex-pipe`` in the platform's cache directory of this user.

    Linux and the like: ``$XDG_CACHE_HOME`` or ``~/.cache``; macOS: ``~/Library/Caches``; Windows:
    ``%LOCALAPPDATA%`` or ``~/AppData/Local``.

    Raises:
        RuntimeError: The user has no home directory.
    """
    platform: str = sys.platform  # as a plain string, of which checkers do not know the value
    if platform == "win32":
        told, usual = os.environ.get("LOCALAPPDATA", ""), "AppData/Local"
    elif platform == "darwin":
        told, usual = "", "Library/Caches"
    else:
        told, usual = os.environ.get("XDG_CACHE_HOME", ""), ".cache"
    # a relative path is to be ignored, says the XDG Base Directory Specification
    base = Path(told) if Path(told).is_absolute() else Path.home() / usual
    return base / "dspex-pipe"


def cache_path(name: str | os.PathLike[str]) -> Path:
    """Where a file lives: a bare name in the `cache_folder`, a path with a folder where it says.

    Raises:
        ValueError: It names no file, or the user has no home directory.
    """
    text = os.fspath(name)
    if not isinstance(text, str) or "\0" in text or os.path.basename(text) in {"", ".", ".."}:  # noqa: PTH119 - Path drops a final slash
        raise ValueError(f"a store takes a file name or a path, got {name!r}")
    try:
        # told by the text: Path drops the folder of "./run.db"
        return Path(text).expanduser() if os.path.dirname(text) else cache_folder() / text  # noqa: PTH120
    except RuntimeError as exc:
        raise ValueError(
            f"{text!r} needs a home directory, and there is none: give an absolute path"
        ) from exc


def private_folder(path: Path) -> None:
    """Make a folder, and those above it, with 0700; one that exists stays as it is, unless it is our own.

    Raises:
        OSError: It cannot be made.
    """
    for folder in reversed([path, *path.parents]):
        if not folder.is_dir():
            folder.mkdir(mode=0o700, exist_ok=True)
    if path.name == "dspex-pipe" and path == cache_folder():
        tighten(path, 0o700)


def private_file(path: Path) -> None:
    """Make an empty file with 0600, from its first moment on, unless there is one.

    A file that exists is not even opened: closing it again would end the locks that SQLite has on it.

    Raises:
        OSError: It cannot be made.
    """
    with _making, suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        tighten(path, 0o600)


def tighten(path: Path, mode: int) -> None:
    """Give a file or folder this mode, also when a umask has taken our own rights away.

    Raises:
        OSError: There is none, or it belongs to somebody else.
    """
    if stat.S_IMODE(path.stat().st_mode) != mode:
        path.chmod(mode)
