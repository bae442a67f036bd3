"""Attacks drawn from seeds, and how each one gets at its victim."""

from __future__ import annotations

import errno
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from orchestrator.store import filesystem
from orchestrator.store.filesystem import Storage

Kind = Literal["kill", "interrupt", "corrupt", "truncate", "delay", "refuse", "fill", "worker"]
KINDS: tuple[Kind, ...] = ("kill", "interrupt", "corrupt", "truncate", "delay", "refuse", "fill")
RAY_KINDS: dict[str, tuple[Kind, ...]] = {
    "local": ("kill", "interrupt", "worker", "corrupt", "truncate"),
    "s3": ("kill", "interrupt", "worker", "corrupt", "truncate", "delay", "refuse"),
}
"""On Ray operations are other processes' too: a worker is killed, and the server refuses and delays all of them."""
STORES = ("local", "local", "s3", "memory")
"""Where results lie, each as often as it is named. Of memory only its own process knows: it cannot be killed."""
STAGES = ("capture", "correlate", "probe", "finetune", "ablate", "studies")
FRESH = 0.3
"""Share of attacks into an empty place; where the stages before are done, an attack takes a fraction of the time."""
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
    fresh: bool = True
    """Into an empty place, else where the stages before the attack's are done."""

    @classmethod
    def draw(cls, seed: int, ray_share: float) -> Attack:
        """The attack of a seed."""
        dice = random.Random(seed)
        kind = dice.choice(KINDS)
        backend = "ray" if dice.random() < ray_share else "local"
        if backend == "ray":
            store = dice.choice(tuple(RAY_KINDS))
            kind, stage = dice.choice(RAY_KINDS[store]), dice.choice(STAGES)
            return cls(seed, kind, store, backend, stage, dice.random() < 0.2, dice.random() < FRESH)
        stores = [store for store in STORES if store != "memory" or kind != "kill"]
        stage = dice.choice(STAGES)
        return cls(seed, kind, dice.choice(stores), backend, stage, dice.random() < 0.2, dice.random() < FRESH)

    def dice(self) -> random.Random:
        """Chance of all that comes after the draw."""
        return random.Random(self.seed + 10**9)

    def __str__(self) -> str:
        where = "a fresh" if self.fresh else "a begun"
        return f"{self.kind} in {self.stage} of {where} study on {self.store}, {self.backend} (seed {self.seed})"


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
    """The attack in its victim's process, from the operation on that it was drawn for."""

    attack: Attack
    at: int
    """Number, from 1, of an operation on files of the attack's stage."""
    uri: str

    def __call__(self) -> None:
        dice = self.attack.dice()
        after = dice.random() < 0.5
        lasting = dice.random() < 0.5
        length = 10**9 if lasting else dice.randint(1, 3)
        pause, code = dice.uniform(0.05, 0.4), dice.choice(REFUSALS)
        number = dice.choice((signal.SIGINT, signal.SIGTERM))
        then_killed = self.attack.store != "memory" and dice.random() < 0.5
        own: list[int] = []
        done: list[int] = []

        def struck(n: int, operation: Operation) -> None:
            kind = self.attack.kind
            writes = operation[0] in {"write", "create"}
            if f"/{self.attack.stage}/" in operation[1]:
                own.append(n)
            since = n - own[self.at - 1] if len(own) >= self.at else -1
            if since < 0:
                return
            if kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if kind == "interrupt" and not done:
                done.append(n)
                os.kill(os.getpid(), number)
            if kind in {"corrupt", "truncate"} and not done and damage(self.uri, dice, kind):
                done.append(n)
                if then_killed:
                    os.kill(os.getpid(), signal.SIGKILL)
            if kind == "delay" and since < 10:
                time.sleep(pause)
            if kind == "refuse" and since < length:
                raise OSError(code, os.strerror(code))
            if kind == "fill" and writes and since < length:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        late = after and self.attack.kind in {"kill", "interrupt", "corrupt", "truncate"}
        Operations(_nothing if late else struck, struck if late else _nothing).install()


@dataclass(frozen=True)
class Timed:
    """A signal after some seconds, wherever the victim is then: to itself, or to one of its workers on Ray."""

    seconds: float
    number: int
    to_worker: bool = False

    def __call__(self) -> None:
        timer = threading.Timer(self.seconds, self._strike)
        timer.daemon = True
        timer.start()

    def _strike(self) -> None:
        import psutil

        while self.to_worker:
            below = psutil.Process().children(recursive=True)
            workers = sorted(child.pid for child in below if "".join(child.cmdline()).startswith("ray::"))
            if workers:
                os.kill(random.Random(self.seconds).choice(workers), self.number)
                return
            time.sleep(0.2)
        os.kill(os.getpid(), self.number)


@dataclass(frozen=True)
class Planted:
    """A fault of the program itself, by which the laboratory is tested."""

    fault: Literal["nothing is checked", "done before written"]

    def __call__(self) -> None:
        from orchestrator.store import stage_folder

        if self.fault == "nothing is checked":
            stage_folder.read_against = lambda *_: None  # type: ignore[assignment]
            return

        def write_shard(stage: stage_folder.Stage, *_: Any, **__: Any) -> None:
            stage.mark_done()
            os.kill(os.getpid(), signal.SIGKILL)

        stage_folder.Stage.write_shard = write_shard  # type: ignore[method-assign]


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
    """Number, from 1, of one of a stage's own operations in an undisturbed run."""
    return dice.randint(1, sum(f"/{stage}/" in name for _, name in operations))


def put_files(uri: str, files: Mapping[str, bytes]) -> None:
    """Write files as a stage writes them: a shard's record after its files, `_SUCCESS` last."""
    storage = Storage(uri)

    def late(name: str) -> int:
        return 2 * name.endswith("_SUCCESS") + ("/shards/" in name)

    for name in sorted(files, key=late):
        storage.write(name, files[name])
