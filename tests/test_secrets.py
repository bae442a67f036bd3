"""A secret put into any field that can hold one is in no byte that is written or printed."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest
from PIL import Image

from orchestrator.cluster.submit import check_no_secrets, job_environment
from orchestrator.config.sweep import make_sweep
from orchestrator.errors import ConfigError
from orchestrator.scrub import scrub
from orchestrator.store.study_record import Study, make_record
from orchestrator.study.run import run_study, write_report
from tests.conftest import tiny_study

SECRET = "Tr0ub4dor"


@pytest.mark.parametrize(
    "text",
    [
        f"http://me:{SECRET}@host:5000",
        f"http://me:a@b{SECRET}@host:5000/x",
        f"http://me:a/{SECRET}/c@host",
        f"http://{SECRET}@host/x",
        f"s3://b/k?X-Amz-Credential={SECRET}&x=1",
        f"s3://b/k?AWSAccessKeyId={SECRET}&Signature=a",
        f"https://b/k?se=1&sig={SECRET}",
        f"https://b/k?X-Amz-Security-Token={SECRET}",
        f"AKIA{'A' * 16}",
        f"ASIA{'Z' * 16}",
        f"password={SECRET}",
        f"--set hub.api_key: '{SECRET} {SECRET}'",
        f"export HF_TOKEN={SECRET}",
        f"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0.{SECRET}",
        f"-----BEGIN RSA PRIVATE KEY-----\n{SECRET}\n-----END RSA PRIVATE KEY-----",
    ],
)
def test_a_credential_is_taken_out_and_scrubbing_again_changes_nothing(text: str) -> None:
    found = scrub(text)
    assert not any(part in found for part in (SECRET, "A" * 16, "Z" * 16))
    assert scrub(found) == found


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/a/b.parquet",
        "http://127.0.0.1:5000",
        "tokens kept: 12, token: <image>",
        "n_tokens=3 tokenizer=x",
        "mail me@example.org",
        "capture.layers=[0, 2]",
        "question: what is the key: red or blue?",
        "finetune.seed=3 https://host/p?page=2&n=3",
    ],
)
def test_what_is_no_credential_stays(text: str) -> None:
    assert scrub(text) == text


def test_values_of_secret_variables_are_hidden_wherever_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRET)
    monkeypatch.setenv("HARMLESS", "capture1234")
    assert scrub(f"a {SECRET} b capture1234") == "a *** b capture1234"


FIELDS = {
    "track.uri": f"http://me:p@ss/{SECRET}@127.0.0.1:9",
    "how.address": f"ray://me:{SECRET}@127.0.0.1:9",
    "description": f"data from https://me:{SECRET}@host/x",
}


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_secret_in_every_field_is_in_no_byte_that_a_study_writes(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.report.build.study_figures", lambda _: ())  # a picture holds no setting
    sweep = tiny_study(
        tmp_path, *(f"{key}={value!r}" for key, value in FIELDS.items()), "data.n_images=6", "stages=[capture]"
    )
    command = "vtsweep run x.yaml " + " ".join(f"{k}={v}" for k, v in FIELDS.items())
    run_study(sweep, command=command)
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or SECRET.encode() not in file.read_bytes(), file
    out, err = capfd.readouterr()
    assert SECRET not in out + err


def test_a_secret_in_the_place_of_the_images_is_in_no_byte_that_a_study_writes(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.report.build.study_figures", lambda _: ())
    root = f"memory://me:{SECRET}@pictures"
    fs, folder = fsspec.core.url_to_fs(root)
    for k in range(6):
        with fs.open(f"{folder}/{k}.png", "wb") as file:
            Image.new("RGB", (112, 112), (40 * k, 9, 9)).save(file, format="png")
    fs.pipe_file(f"{folder}/attributes.csv", b"file,n\n" + b"".join(b"%d.png,%d\n" % (k, k) for k in range(6)))
    run = {
        "model": {"name": "reference-joint"},
        "data": {"source": "folder", "root": root},
        "how": {"backend": "local"},
    }
    sweep = make_sweep({"name": "tiny", "storage": str(tmp_path), "stages": ["capture"], "base": run})
    study, _ = run_study(sweep, command=f"vtsweep run x.yaml data.root={root}")
    fs.rm(folder, recursive=True)
    page = write_report(Study.load(f"{tmp_path}/studies/{study.name}"))  # which needs the tables alone
    assert Path(page[0]).stat().st_size > 10_000
    written = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(written) > 10
    for one in written:
        assert SECRET.encode() not in one.read_bytes(), one
    out, err = capfd.readouterr()
    assert SECRET not in out + err


def test_the_record_of_a_study_hides_what_its_data_is_reached_by(tmp_path: Path) -> None:
    sweep = tiny_study(tmp_path)
    config = {"data": {"root": f"s3://me:{SECRET}@bucket/x", "token": SECRET}}
    record = make_record(
        sweep, ["capture"], [{"label": "a", "axes": {}, "config": config, "stages": {}}], f"x={SECRET}"
    )
    assert SECRET not in str(record["points"])


def test_a_job_with_a_secret_in_its_arguments_file_or_environment_is_refused_without_naming_it() -> None:
    uri = FIELDS["track.uri"]
    for overrides, text in (([f"track.uri={uri}"], ""), ([], f"name: x\ntrack: {{uri: '{uri}'}}")):
        with pytest.raises(ConfigError, match="holds a credential") as refused:
            check_no_secrets(overrides, text)
        assert SECRET not in str(refused.value)
    with pytest.raises(ConfigError, match="looks like a credential"):
        job_environment([f"PLACE={uri}"])
    check_no_secrets(["storage=s3://bucket/x"], "name: x")
