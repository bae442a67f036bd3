"""Without a network, nobody waits for the hub."""

import os
import socket

import pytest

from orchestrator.models.hub import use_cache_where_unreachable


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_OFFLINE", "HTTPS_PROXY", "https_proxy"):
        monkeypatch.delenv(name, raising=False)


def test_a_hub_that_answers_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        use_cache_where_unreachable()
    assert "HF_HUB_OFFLINE" not in os.environ


def test_without_a_hub_the_cache_alone_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = server.getsockname()[1]
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free}")
    monkeypatch.setenv("HF_HUB_OFFLINE", "")  # so that the change is undone after the test
    monkeypatch.delenv("HF_HUB_OFFLINE")
    use_cache_where_unreachable()
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert huggingface_hub.constants.HF_HUB_OFFLINE is True
