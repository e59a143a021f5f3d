"""A secret in a file."""

from __future__ import annotations

import multiprocessing
import os
import stat
from concurrent.futures import ProcessPoolExecutor

import pytest

from dspex_pipe.stores.secret import load_secret


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_it_is_made_once_private_and_alone(tmp_path):
    path = tmp_path / "new" / "secret"
    secret = load_secret(path)
    assert len(secret) == 32
    assert load_secret(str(path)) == secret == path.read_bytes()
    assert (mode(path), mode(path.parent)) == (0o600, 0o700)
    assert [file.name for file in path.parent.iterdir()] == ["secret"]
    assert load_secret(tmp_path / "another") != secret


@pytest.mark.parametrize("umask", [0o000, 0o077, 0o777])
def test_no_umask_makes_it_looser_or_useless(tmp_path, umask):
    before = os.umask(umask)
    try:
        load_secret(tmp_path / "secret")
    finally:
        os.umask(before)
    assert mode(tmp_path / "secret") == 0o600


@pytest.mark.parametrize(("given", "then"), [(0o644, 0o600), (0o666, 0o600), (0o600, 0o600), (0o400, 0o400)])
def test_a_looser_file_is_tightened_and_a_tighter_one_left(tmp_path, given, then):
    path = tmp_path / "secret"
    path.write_bytes(b"s" * 32)
    path.chmod(given)
    assert load_secret(path) == b"s" * 32
    assert mode(path) == then


@pytest.mark.parametrize("size", [0, 31, 33, 100_000])
def test_another_size_is_an_error_and_the_file_stays(tmp_path, size):
    path = tmp_path / "secret"
    path.write_bytes(b"s" * size)
    with pytest.raises(ValueError, match="does not hold a secret of 32 bytes: delete it") as caught:
        load_secret(path)
    assert str(path) in str(caught.value)
    assert path.stat().st_size == size


def test_what_cannot_be_read_is_an_error_that_names_it(tmp_path):
    with pytest.raises(ValueError, match=r"secret in '.*' cannot be read: .*Is a directory"):
        load_secret(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"cannot be read: .*(Not a directory|File exists): .*file'"):
        load_secret(tmp_path / "file" / "secret")


def test_a_failure_to_make_it_leaves_nothing(tmp_path, monkeypatch):
    def link(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(ValueError, match="Operation not permitted"):
        load_secret(tmp_path / "secret")
    assert list(tmp_path.iterdir()) == []


def test_the_loser_of_a_race_reads_the_winners(tmp_path, monkeypatch):
    path, real = tmp_path / "secret", os.link

    def link(source, target):
        path.write_bytes(b"w" * 32)
        real(source, target)

    monkeypatch.setattr(os, "link", link)
    assert load_secret(path) == b"w" * 32
    assert [file.name for file in tmp_path.iterdir()] == ["secret"]


def test_processes_that_start_at_once_agree(tmp_path):
    paths = [tmp_path / str(number) for number in range(10)]
    with ProcessPoolExecutor(4, multiprocessing.get_context("spawn")) as pool:
        found = [set(pool.map(load_secret, [path] * 8)) for path in paths]
    assert [len(secrets) for secrets in found] == [1] * 10
