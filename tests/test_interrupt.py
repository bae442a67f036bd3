"""SIGINT and SIGTERM: exit codes of their own, and no way for a library to lose them."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import pytest

from orchestrator import interrupt
from orchestrator.cli import app
from orchestrator.progress import Progress
from orchestrator.store.filesystem import Storage
from orchestrator.store.stage_folder import SUCCESS, Stage


@pytest.fixture(autouse=True)
def _forgotten():
    yield
    interrupt._State.number = None


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("becomes", ["itself", "an error", "nothing"])
def test_the_exit_code_names_the_signal_whatever_a_library_makes_of_it(
    number: signal.Signals, code: int, becomes: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(*_: object, **__: object) -> int:
        try:
            os.kill(os.getpid(), number)
        except KeyboardInterrupt:
            if becomes == "itself":
                raise
            if becomes == "an error":
                raise RuntimeError("worker was cancelled") from None
        return 0

    monkeypatch.setattr(app, "app", work)
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as ended:
        app.main(["run", "x"])
    assert ended.value.code == code
    assert "Run the same command again to resume" in capsys.readouterr().err
    assert signal.getsignal(number) is before


def test_a_lost_interrupt_is_raised_again_before_anything_is_counted_or_marked_done(tmp_path: Path) -> None:
    stage = Stage(Storage(str(tmp_path)), "capture", {})
    stage.open()
    with interrupt.handled():
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(interrupt.Interrupted), Progress("x", 2, "units", quiet=True) as progress:
            progress.advance()
        with pytest.raises(interrupt.Interrupted):
            stage.mark_done({})
    assert not stage.store.exists(SUCCESS)


def test_signals_that_a_library_took_are_handled_again_but_not_outside_a_command() -> None:
    """As Ray's core takes SIGTERM: it would abort the process."""
    before = signal.getsignal(signal.SIGTERM)
    interrupt.restore()
    assert signal.getsignal(signal.SIGTERM) is before
    with interrupt.handled():
        signal.signal(signal.SIGTERM, lambda *_: None)
        interrupt.restore()
        with pytest.raises(interrupt.Interrupted):
            os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before
