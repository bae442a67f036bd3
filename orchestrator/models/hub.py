"""The model hub: reachability (checked once), and the current commit of a repository."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from urllib.parse import urlsplit

from orchestrator.config import ModelConfig
from orchestrator.models.catalogue import resolve

_PATIENCE_S = 3.0


def use_cache_where_unreachable() -> None:
    """Use the local cache only if the hub is unreachable. No effect behind a proxy."""
    if "HF_HUB_OFFLINE" in os.environ or os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy"):
        return
    hub = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    try:
        socket.create_connection((hub.hostname or "", hub.port or 443), timeout=_PATIENCE_S).close()
    except OSError:
        os.environ["HF_HUB_OFFLINE"] = "1"  # also for the processes that Ray starts
        if constants := sys.modules.get("huggingface_hub.constants"):
            constants.HF_HUB_OFFLINE = True  # type: ignore[attr-defined]


def pinned(config: ModelConfig) -> ModelConfig:
    """The configuration with the current commit of its repository, so that all workers load the same weights.

    Unchanged for a folder, a pinned revision, and if neither the hub nor the local cache has the repository.
    """
    entry = resolve(config)
    if entry.pinned:
        return config
    use_cache_where_unreachable()
    commit = _newest_commit(str(entry.repository), entry.revision)
    return config.model_copy(update={"revision": commit}) if commit else config


def _newest_commit(repository: str, revision: str | None) -> str | None:
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return HfApi().model_info(repository, revision=revision, timeout=10.0).sha
    except (OSError, HfHubHTTPError):
        cached = try_to_load_from_cache(repository, "config.json", revision=revision)
        return Path(cached).parent.name if isinstance(cached, str) else None
