"""Two revisions of the source, measured by this one harness: their processes take turns, block by block.

Each revision runs in a process of its own, which makes a block of calls when it is told to, and tells how
long they took. Both take part in every round, in random order, so a ratio is as good as between two layers in
one process. The processes are started anew several times: where a process happens to lie in memory is luck.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from attrs import frozen

from .cost import BARE, GET, HITS, Group, open_blocks, stacks
from .measure import Block, Ratio, Samples, Tick, interleave

__all__ = ["Change", "changes", "compare", "groups", "worktree"]

_ROOT = Path(__file__).parent.parent
_BASE, _HEAD = "base: ", "head: "
# So many things are compared that one in twenty would be wrong in every run: one in a thousand may be.
_SURE = 3.3


@frozen
class Change:
    """What has become of the cost of a call.

    Args:
        name: Of what, and where.
        ratio: The new cost to the old.
        tolerance: The ratio up to which it is no change.
    """

    name: str
    ratio: Ratio
    tolerance: float

    @property
    def word(self) -> str:
        """``slower``, ``faster``, or nothing: only what is beyond the tolerance, and beyond all doubt."""
        if self.ratio.value > self.tolerance and self.ratio.low > 1:
            return "slower"
        return "faster" if self.ratio.value < 1 / self.tolerance and self.ratio.high < 1 else ""


def groups(*, quick: bool) -> list[Group]:
    """What is compared: all of ours, with one library, over MockTransport."""
    ours = {BARE, GET, *stacks(), *HITS}
    rounds, calls = (10, 10) if quick else (20, 20)
    return [Group("mock", "httpx", mode, rounds, calls, ours) for mode in ("blocking", "asyncio")]


def compare(
    base: Path, head: Path, group: Group, *, processes: int, tick: Tick | None = None
) -> tuple[Samples, dict[str, str]]:
    """The samples of both, and what only one of them has.

    Args:
        base: The source of the one: a folder with ``dspex_pipe`` in it.
        head: That of the other.
        group: What is measured.
        processes: How many times both are started.
        tick: Called after each round.
    """
    samples, missing = Samples([]), dict[str, str]()
    for number in range(processes):
        with _blocks(base, group) as (olds, lacks), _blocks(head, group) as (news, lack):
            missing |= lacks | lack
            shared = [name for name in olds if name in news]
            blocks = {_BASE + name: olds[name] for name in shared}
            blocks |= {_HEAD + name: news[name] for name in shared}
            samples.add(interleave(blocks, rounds=group.rounds, calls=group.calls, tick=tick, seed=number))
    return samples, missing


def changes(samples: Samples, where: str, tolerance: float) -> list[Change]:
    """What has become of each candidate."""
    names = [name.removeprefix(_BASE) for name in samples.rounds if name.startswith(_BASE)]
    return [
        Change(f"{where}.{name}", samples.ratio(_HEAD + name, _BASE + name, sure=_SURE), tolerance)
        for name in names
    ]


@contextmanager
def worktree(revision: str) -> Iterator[Path]:
    """The source of a revision, checked out beside everything else."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "tree"
        _git("worktree", "add", "--quiet", "--detach", str(place), revision)
        try:
            yield place / "src"
        finally:
            _git("worktree", "remove", "--force", str(place))


def _git(*arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=_ROOT, check=True)  # noqa: S603, S607 - the user's own git


@contextmanager
def _blocks(source: Path, group: Group) -> Iterator[tuple[dict[str, Block], dict[str, str]]]:
    """The candidates of a process that runs with this source."""
    told = json.dumps([group.wire, group.http, group.mode, group.rounds, group.calls, sorted(group.only)])
    with ExitStack() as stack:
        process: Any = stack.enter_context(
            subprocess.Popen(  # noqa: S603 - ourselves
                [sys.executable, "-m", f"{__package__}.compare", told],
                cwd=_ROOT,
                env={**os.environ, "PYTHONPATH": str(source)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        stack.callback(process.stdin.close)
        names, missing = _answer(process)

        def block(name: str) -> Block:
            def run(calls: int) -> float:
                print(json.dumps([name, calls]), file=process.stdin, flush=True)
                return float(_answer(process))

            return run

        yield {name: block(name) for name in names}, missing


def _answer(process: Any) -> Any:
    line = process.stdout.readline()
    if not line:
        raise RuntimeError("the process of a revision has ended; what it said stands above")
    return json.loads(line)


def _serve(group: Group) -> None:
    """What the process of a revision does: make blocks of calls as it is told, until nobody tells it more."""
    with open_blocks(group) as (blocks, missing):
        able: dict[str, Block] = {}
        for name, block in blocks.items():
            try:
                block(1)
            except (AttributeError, ImportError, TypeError) as exc:  # what this revision does not have
                missing[name] = f"{type(exc).__name__}: {exc}"
            else:
                able[name] = block
        print(json.dumps([list(able), missing]), flush=True)
        for line in sys.stdin:
            name, calls = json.loads(line)
            print(json.dumps(able[name](calls)), flush=True)


if __name__ == "__main__":
    _serve(Group(*json.loads(sys.argv[1])))
