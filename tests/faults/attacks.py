"""Attacks drawn from seeds, and how each one gets at its victim."""

from __future__ import annotations

import errno
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from orchestrator.store import filesystem
from orchestrator.store.filesystem import Storage

Kind = Literal["kill", "interrupt", "corrupt", "truncate", "delay", "refuse", "fill"]
KINDS: tuple[Kind, ...] = ("kill", "interrupt", "corrupt", "truncate", "delay", "refuse", "fill")
STORES = ("local", "local", "s3", "memory")
"""Where results lie, each as often as it is named. Of memory only its own process knows: it cannot be killed."""
REFUSALS = (errno.EIO, errno.EMFILE, errno.ESTALE, errno.EACCES, errno.ETIMEDOUT)
SPARED = ("mlflow", "studies/victim/report")
"""Not altered: MLflow's own files and pages, which a study writes and never reads."""

_METHODS = ("write", "create", "remove", "read", "exists", "files", "states", "read_array")

Operation = tuple[str, str]
"""What is done to storage, `read` or `write`, and the file."""


@dataclass(frozen=True)
class Attack:
    """One attack; equal seeds are equal attacks."""

    seed: int
    kind: Kind
    store: str
    backend: str
    stage: str
    """At one of this stage's operations on storage."""
    track: bool

    @classmethod
    def draw(cls, seed: int, ray_share: float) -> Attack:
        """The attack of a seed. On Ray, where operations are other processes' too, it comes by the clock."""
        dice = random.Random(seed)
        kind = dice.choice(KINDS)
        backend = "ray" if dice.random() < ray_share else "local"
        stores = [store for store in STORES if store != "memory" or (backend == "local" and kind != "kill")]
        if backend == "ray":
            kind = dice.choice(("kill", "interrupt"))
        stage = dice.choice(("capture", "correlate", "probe", "finetune", "ablate", "studies"))
        return cls(seed, kind, dice.choice(stores), backend, stage, dice.random() < 0.2)

    def dice(self) -> random.Random:
        """Chance of all that comes after the draw."""
        return random.Random(self.seed + 10**9)

    def __str__(self) -> str:
        return f"{self.kind} in {self.stage} on {self.store}, {self.backend} (seed {self.seed})"


class Operations:
    """Every operation on storage of this process, in order, with a hook before and after each attempt.

    It stands below the retries of `Storage`, so that what it raises is what a file system raises.
    """

    def __init__(self, before: Callable[[int, Operation], None], after: Callable[[int, Operation], None]) -> None:
        self.before, self.after = before, after
        self.n = 0
        self.lock = threading.Lock()
        self.now = threading.local()

    def install(self) -> None:
        for name in _METHODS:
            setattr(Storage, name, self._named(getattr(Storage, name), name))
        retried = filesystem.retried

        def attacked(call: Callable[[], Any], *options: Any) -> Any:
            operation = getattr(self.now, "operation", None) or ("?", "?")

            def attempt() -> Any:
                with self.lock:
                    self.n += 1
                    n = self.n
                self.before(n, operation)
                result = call()
                self.after(n, operation)
                return result

            return retried(attempt, *options)

        filesystem.retried = attacked  # type: ignore[assignment]

    @staticmethod
    @contextmanager
    def none_left() -> Iterator[None]:
        """Take all hooks away again at the end of a `with` block."""
        retried, methods = filesystem.retried, {name: getattr(Storage, name) for name in _METHODS}
        try:
            yield
        finally:
            filesystem.retried = retried
            for name, method in methods.items():
                setattr(Storage, name, method)

    def _named(self, method: Callable[..., Any], what: str) -> Callable[..., Any]:
        def named(storage: Storage, name: str, *rest: Any, **options: Any) -> Any:
            outer = getattr(self.now, "operation", None)
            self.now.operation = (what, storage.locate(name))
            try:
                return method(storage, name, *rest, **options)
            finally:
                self.now.operation = outer

        return named


def _nothing(_: int, __: Operation) -> None:
    pass


@dataclass(frozen=True)
class Recording:
    """Notes every operation of an undisturbed run in a file."""

    file: str

    def __call__(self) -> None:
        handle = Path(self.file).open("a", buffering=1)  # noqa: SIM115  # for the life of the process
        Operations(_nothing, lambda _, operation: print(*operation, sep="\t", file=handle)).install()


@dataclass(frozen=True)
class Armed:
    """The attack in its victim's process, at the operation it was drawn for."""

    attack: Attack
    at: int
    uri: str

    def __call__(self) -> None:
        dice = self.attack.dice()
        after = dice.random() < 0.5
        lasting = dice.random() < 0.5
        length = 10**9 if lasting else dice.randint(1, 3)
        pause, code = dice.uniform(0.05, 0.4), dice.choice(REFUSALS)
        number = dice.choice((signal.SIGINT, signal.SIGTERM))
        then_killed = self.attack.store != "memory" and dice.random() < 0.5
        done: list[int] = []

        def struck(n: int, operation: Operation) -> None:
            kind = self.attack.kind
            writes = operation[0] in {"write", "create"}
            if kind == "kill" and n == self.at:
                os.kill(os.getpid(), signal.SIGKILL)
            if kind == "interrupt" and n == self.at:
                os.kill(os.getpid(), number)
            if kind in {"corrupt", "truncate"} and n >= self.at and not done and damage(self.uri, dice, kind):
                done.append(n)
                if then_killed:
                    os.kill(os.getpid(), signal.SIGKILL)
            if kind == "delay" and self.at <= n < self.at + 10:
                time.sleep(pause)
            if kind == "refuse" and self.at <= n < self.at + length:
                raise OSError(code, os.strerror(code))
            if kind == "fill" and writes and self.at <= n < self.at + length:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        late = after and self.attack.kind in {"kill", "interrupt", "corrupt", "truncate"}
        Operations(_nothing if late else struck, struck if late else _nothing).install()


@dataclass(frozen=True)
class Timed:
    """A signal after some seconds, wherever the victim is then."""

    seconds: float
    number: int

    def __call__(self) -> None:
        timer = threading.Timer(self.seconds, lambda: os.kill(os.getpid(), self.number))
        timer.daemon = True
        timer.start()


def damage(uri: str, dice: random.Random, kind: str) -> str | None:
    """Change one bit of one file of a study's results, or cut the file short; returns its name, None for no file."""
    storage = Storage(uri)
    names = [name for name in files_of(storage) if not name.startswith(SPARED)]
    if not names:
        return None
    name = dice.choice(sorted(names))
    data = bytearray(storage.fs.cat_file(storage.path(name)))
    if kind == "truncate" or not data:
        del data[dice.randint(0, max(len(data) - 1, 0)) :]
    else:
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    if storage.is_local:
        Path(storage.path(name)).write_bytes(data)
    else:
        storage.fs.pipe_file(storage.path(name), bytes(data))
    return name


def files_of(storage: Storage) -> list[str]:
    """Names of all files of a storage."""
    storage.fs.invalidate_cache()
    root = storage.path("")
    try:
        found = storage.fs.find(root)
    except FileNotFoundError:
        return []
    return [str(path).removeprefix(root).lstrip("/") for path in found]


def place_of(operations: Sequence[Operation], stage: str, dice: random.Random) -> int:
    """Number, from 1, of one of a stage's operations in an undisturbed run."""
    own = [k for k, (_, name) in enumerate(operations, 1) if f"/{stage}/" in name]
    return dice.choice(own)
