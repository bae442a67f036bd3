"""A packed study: what is in the folder, and that nothing is sent unless asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from safetensors import safe_open

from orchestrator.cli.publish import pack_study, push_study
from orchestrator.errors import ConfigError, StorageError
from orchestrator.store.study_record import Study
from orchestrator.study.run import run_study
from tests.conftest import tiny_study


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return run_study(tiny_study(tmp_path_factory.mktemp("results"), "track.enabled=false"), quiet=True)[0]


@pytest.fixture(scope="module")
def packed(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    pack_study(study, str(folder), licence="cc-by-4.0", quiet=True)
    return folder


class Hub:
    """Stands for `huggingface_hub.HfApi`."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def create_repo(self, repo: str, **how: Any) -> None:
        self.calls.append(("create", {"repo": repo, **how}))

    def upload_folder(self, **how: Any) -> None:
        self.calls.append(("upload", how))


def test_tables_are_those_of_the_study(study: Study, packed: Path) -> None:
    assert pl.read_parquet(packed / "tables" / "layer_metrics.parquet").equals(study.layer_metrics.collect())
    assert (packed / "tables" / "correlations.parquet").is_file()
    assert (packed / "report" / "report.html").is_file()


def test_features_are_those_of_the_capture_with_their_axes(study: Study, packed: Path) -> None:
    stage = study.views("capture")[0].stage
    (file,) = (packed / "features").glob("*/decoder-00000.safetensors")
    with safe_open(file, "numpy") as opened:
        features, about = opened.get_tensor("features"), opened.metadata()
    assert features.shape[0] == 12
    assert (features[:5] == stage.arrays("features/decoder")[0]).all()
    assert len(json.loads(about["axes"])["positions"]) == features.shape[2]


def test_the_card_says_what_how_findings_and_licence(packed: Path) -> None:
    text = (packed / "README.md").read_text()
    head = yaml.safe_load(text.split("---")[1])
    assert head["license"] == "cc-by-4.0"
    assert {c["data_files"] for c in head["configs"]} >= {"tables/layer_metrics.parquet"}
    for part in ("## How it was measured", "## Findings", "## Licence", "reference-joint"):
        assert part in text


def test_pictures_of_others_are_left_out_unless_asked(study: Study, tmp_path: Path) -> None:
    made = pack_study(study, str(tmp_path / "a"), features=False, pictures=False, quiet=True)
    assert not any(name.startswith(("report/", "features/")) for name in made.files)


def test_a_folder_with_other_files_is_left_alone(study: Study, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ConfigError, match="other files"):
        pack_study(study, str(tmp_path), quiet=True)
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_push_sends_the_packed_folder_privately_and_nothing_else(packed: Path) -> None:
    hub = Hub()
    assert push_study(str(packed), "me/tiny", api=hub).endswith("/me/tiny")
    (create, upload) = hub.calls
    assert create[1]["private"] is True
    assert upload[1]["folder_path"] == str(packed)


@pytest.mark.parametrize("repo", ["tiny", "a/b/c", "/x", "x/"])
def test_a_name_that_is_no_repository_is_refused_before_anything_is_sent(packed: Path, repo: str) -> None:
    hub = Hub()
    with pytest.raises(ConfigError, match="OWNER/NAME"):
        push_study(str(packed), repo, api=hub)
    assert hub.calls == []


def test_what_was_not_packed_is_not_sent(tmp_path: Path) -> None:
    hub = Hub()
    with pytest.raises(ConfigError, match="packed"):
        push_study(str(tmp_path), "me/tiny", api=hub)
    assert hub.calls == []


def test_a_hub_that_refuses_is_an_error_of_ours(packed: Path) -> None:
    class Refusing(Hub):
        def create_repo(self, repo: str, **how: Any) -> None:
            raise OSError("401 Unauthorized: token=hf_abcdefghijklmnopqrstuv")

    with pytest.raises(StorageError, match="does not take it") as refused:
        push_study(str(packed), "me/tiny", api=Refusing())
    assert "hf_abc" not in str(refused.value)


def test_push_asks_first_and_no_sends_nothing(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    import orchestrator.cli.app  # noqa: F401 - registers the commands
    from orchestrator.cli.common import app

    monkeypatch.setattr("orchestrator.cli.publish.push_study", lambda *_, **__: pytest.fail("sent without being asked"))
    found = CliRunner().invoke(app, ["push", str(packed), "me/tiny"], input="n\n")
    assert "Send" in found.output
    assert found.exit_code == 1
