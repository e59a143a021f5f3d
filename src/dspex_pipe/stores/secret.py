"""A random secret in a file, the same for all processes that use a store."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

from .private import private_folder

__all__ = ["load_secret"]

_SIZE = 32


def secret_path(store: Path) -> Path:
    """Where the secret of a store in a file is kept: beside it."""
    return store.with_name(f"{store.name}.key")


def is_secret(file: Path) -> bool:
    """Whether a file looks like a secret of ours."""
    return file.is_file() and file.stat().st_size == _SIZE


def load_secret(path: str | os.PathLike[str]) -> bytes:
    """Read the secret in a file, or make one if there is none.

    The file has the mode 0600 and its folder, if it is made here, 0700; a looser file is tightened.
    Processes that start at once agree on one secret.

    Args:
        path: The file, used as it is.

    Returns:
        32 random bytes.

    Raises:
        ValueError: The file cannot be made or read, or holds something else.
    """
    file = Path(path)
    try:
        if not file.exists():
            _make(file)
        if file.stat().st_mode & 0o077:
            file.chmod(0o600)
        with file.open("rb") as opened:
            secret = opened.read(_SIZE + 1)
    except OSError as exc:
        raise ValueError(f"the secret in {str(file)!r} cannot be read: {exc}") from exc
    if len(secret) != _SIZE:
        raise ValueError(
            f"{str(file)!r} does not hold a secret of {_SIZE} bytes: delete it, and lose what was cached "
            "with it, or name another file"
        )
    return secret


def _make(file: Path) -> None:
    """Write a secret, unless another process is faster; nobody ever sees half of one."""
    private_folder(file.parent)
    draft = file.with_name(f"{file.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        draft.chmod(0o600)  # whatever the umask has taken away
        with os.fdopen(descriptor, "wb") as opened:
            opened.write(secrets.token_bytes(_SIZE))
            opened.flush()
            os.fsync(opened.fileno())
        # unlike a rename, a link does not replace what is there
        with suppress(FileExistsError):
            os.link(draft, file)
    finally:
        draft.unlink()
