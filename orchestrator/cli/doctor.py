"""`vtsweep doctor`: checks whether this machine and a model are ready; each check reports its finding and the fix."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from orchestrator.config import HowConfig, ModelConfig
from orchestrator.config.sweep import make_sweep
from orchestrator.errors import ConfigError
from orchestrator.models.examine import Finding, examine
from orchestrator.models.hub import use_cache_where_unreachable
from orchestrator.store.memory import free_memory, memory_cap, object_store_gb
from orchestrator.store.provenance import hardware
from orchestrator.study.estimate import LIBRARIES_GB, RAY_GB

_EXTRAS = {"s3": "s3fs", "gcs": "gcsfs", "molmo": "einops", "optuna": "optuna"}
_MIN_FREE_GB = 5.0


def model_of(name: str | None, overrides: Sequence[str], flags: Mapping[str, Any]) -> ModelConfig | None:
    """The model that a command line names; None if it names none.

    Args:
        name: the model, or the first of the overrides.
        overrides: `model.KEY=VALUE`.
        flags: settings of the model that have their own command-line option.

    Raises:
        ConfigError: a setting is unknown, of another section, or several values of one are given.
    """
    if name is not None and "=" in name:
        overrides, name = [name, *overrides], None
    if name is None and not overrides and not flags:
        return None
    for override in overrides:
        if not override.startswith("model."):
            raise ConfigError(f"doctor: {override!r}: expected a setting of the model, such as model.adapter=FOLDER")
    model = {**({} if name is None else {"name": name}), **flags}
    sweep = make_sweep({"name": "doctor", "stages": ["capture"], "base": {"model": model}}, overrides)
    if len(sweep.points) != 1:
        raise ConfigError(f"doctor: expected one model, found {len(sweep.points)}")
    return sweep.points[0].run.model


def diagnose(model: ModelConfig | None) -> list[Finding]:
    """Check the model, or the machine if no model is given."""
    if model is None:
        return list(_machine())
    use_cache_where_unreachable()
    return examine(model)


def _machine() -> Iterator[Finding]:
    yield Finding("python", "ok", platform.python_version())
    machine = hardware()
    yield Finding(
        "machine", "ok", f"{machine['cores']} cores, {machine.get('memory_gb', '?')} GB, {machine['platform']}"
    )
    yield _memory()
    yield _attempt("packages", _packages)
    yield _attempt("torch", _torch)
    yield _disk()
    present = [name for name, module in _EXTRAS.items() if importlib.util.find_spec(module)]
    absent = [name for name in _EXTRAS if name not in present]
    hint = f"pip install 'vtsweep[{','.join(absent)}]' if you need them" if absent else ""
    yield Finding("extras", "ok", f"installed: {', '.join(present) or 'none'}", hint)
    yield _ray_address()
    yield _attempt("reference model", _reference)


def _memory() -> Finding:
    """Memory available to a study, and the amounts that a process and Ray take."""
    cap, free = memory_cap(), free_memory() / 1e9
    ray = RAY_GB + object_store_gb(HowConfig(), cap.gb)
    summary = f"{cap.gb:.1f} GB ({cap.of}), {free:.1f} GB free; a process takes {LIBRARIES_GB} GB beside its model"
    if free < ray + LIBRARIES_GB:
        return Finding("memory", "warn", f"{summary}, Ray {ray:.1f} GB", "set how.backend=local, which needs no Ray")
    return Finding("memory", "ok", f"{summary}, Ray {ray:.1f} GB")


def _attempt(check: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(check, "ok", look())
    except Exception as error:  # whatever is wrong is what the user wants to know
        return Finding(check, "fail", f"{type(error).__name__}: {error}", "install again: pip install -e .")


def _packages() -> str:
    names = ("ray", "transformers", "peft", "mlflow", "polars")
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)


def _torch() -> str:
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return f"{torch.__version__}, {', '.join(gpus) if gpus else 'no GPU: models run on the CPU in float32'}"


def _disk() -> Finding:
    free = shutil.disk_usage(".").free / 1e9
    if free < _MIN_FREE_GB:
        return Finding("disk", "warn", f"{free:.1f} GB free here", "use storage=DIR on a larger disk")
    return Finding("disk", "ok", f"{free:.0f} GB free here")


def _ray_address() -> Finding:
    address = os.environ.get("RAY_ADDRESS")
    if address:
        return Finding("ray", "ok", f"RAY_ADDRESS={address}: studies join that cluster")
    return Finding("ray", "ok", "no RAY_ADDRESS: studies start a local Ray")


def _reference() -> str:
    failed = [f for f in examine(ModelConfig()) if f.status == "fail"]
    if failed:
        raise RuntimeError(f"{failed[0].check}: {failed[0].found}")
    return "reference-joint loads and answers"
