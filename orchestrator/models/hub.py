"""Whether the model hub can be reached, asked once: without a network nobody should wait for minutes of retries."""

from __future__ import annotations

import os
import socket
import sys
from urllib.parse import urlsplit

_PATIENCE_S = 3.0


def use_cache_where_unreachable() -> None:
    """Take models from the local cache alone where no connection to the hub can be made. Behind a proxy, nothing."""
    if "HF_HUB_OFFLINE" in os.environ or os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy"):
        return
    hub = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    try:
        socket.create_connection((hub.hostname or "", hub.port or 443), timeout=_PATIENCE_S).close()
    except OSError:
        os.environ["HF_HUB_OFFLINE"] = "1"  # also for the processes that Ray starts
        if constants := sys.modules.get("huggingface_hub.constants"):
            constants.HF_HUB_OFFLINE = True  # type: ignore[attr-defined]
