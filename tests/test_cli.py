"""The command line as a user meets it: help, exit codes, JSON, errors on standard error."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.cli.app import main
from orchestrator.cli.common import app
from orchestrator.errors import StorageError
from orchestrator.progress import format_number

HEAVY = ("torch", "ray", "mlflow", "transformers", "matplotlib", "scipy.stats", "sklearn")
COMMANDS = [c.name or c.callback.__name__ for c in app.registered_commands if c.callback]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    found = capsys.readouterr()
    return int(stopped.value.code or 0), found.out, found.err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(capsys: pytest.CaptureFixture[str], command: str) -> None:
    code, out, _ = run(capsys, command, "--help")
    assert code == 0
    assert "Example" in out
    assert f"vtsweep {command}" in out


def test_help_needs_no_heavy_import() -> None:
    heavy = ("torch", "ray", "mlflow", "transformers", "polars", "pydantic")
    code = (
        "import sys\nfrom orchestrator.cli.app import main\n"
        f"try: main(['--help'])\nfinally: print([m for m in {heavy} if m in sys.modules], file=sys.stderr)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stderr.strip() == "[]"


@pytest.mark.parametrize(
    "command",
    [
        ["run", "no-such.yaml"],
        ["plan", "sweeps/quickstart.yaml", "data.n_imges=3"],
        ["evaluate", "no-such.yaml", "--policy", "p.yaml"],
        ["status", "no-such-study"],
        ["report", "no-such-study"],
        ["compare", "no-such-study", "other"],
        ["ui", "no-such-folder"],
        ["--version"],
        ["run", "sweeps/coco.yaml", "data.root=/no-such-folder"],
        ["evaluate", "sweeps/ablation.yaml", "--policy", "no-such-policy.yaml"],
    ],
)
def test_a_slip_is_answered_before_anything_heavy_is_imported(command: list[str]) -> None:
    code = (
        "import sys\nfrom orchestrator.cli.app import main\n"
        f"try: main({command})\nfinally: print('imported', [m for m in {HEAVY} if m in sys.modules], file=sys.stderr)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.stderr.splitlines()[-1] == "imported []"


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    import vtsweep

    assert run(capsys, "--version") == (0, f"vtsweep {vtsweep.__version__}\n", "")


def test_studies_are_listed_and_found_by_name(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, _ = run(capsys, "status", str(tmp_path), "--json")
    assert code == 5  # no storage of studies, and no study either
    (tmp_path / "studies").mkdir()
    code, out, _ = run(capsys, "status", str(tmp_path), "--json")
    assert (code, json.loads(out)) == (0, {"studies": []})


def test_a_run_that_finished_says_nothing_to_do_and_prints_its_results(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = ["correlate", "sweeps/quickstart.yaml", f"storage={tmp_path}", "how.backend=local", "data.n_images=12"]
    arguments += ["correlate.n_bootstrap=20", "finetune.complexity_ratio=0.0", "track.enabled=false"]
    code, out, err = run(capsys, *arguments)
    assert code == 0
    assert "nothing to do" not in err
    code, again, err = run(capsys, *arguments)
    assert code == 0
    assert "nothing to do" in err
    assert again == out
    code = (
        "import sys\nfrom orchestrator.cli.app import app\napp(args=sys.argv[1:], standalone_mode=False)\n"
        f"print('imported', [m for m in {HEAVY} if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert found.stdout == f"{out}imported []\n"
    code, _, err = run(capsys, *arguments, "data.seed=1")
    assert "kept as quickstart.v2" in err


def test_a_wrong_key_ends_with_code_2_and_the_nearest_name(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "plan", "sweeps/quickstart.yaml", "data.n_imges=3")
    assert code == 2
    assert "'n_images'" in err
    assert out == ""


def test_errors_are_json_where_asked(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "plan", "no-such.yaml", "--json")
    assert code == 2
    assert json.loads(out)["error"] == "ConfigError"


def test_an_unknown_option_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "run", "--nope")
    assert code == 2
    assert "No such option" in err


def test_plan_names_digests_and_starts_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, _ = run(capsys, "plan", "sweeps/quickstart.yaml", f"storage={tmp_path}/r", "--json")
    plan = json.loads(out)
    assert code == 0
    assert {s["stage"] for s in plan["stages"]} == {"capture", "correlate", "probe", "finetune"}
    assert plan["models"][0]["vision_tokens"] == 64
    assert not (tmp_path / "r").exists()


def test_plan_refuses_pools_that_would_wait_for_ever(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _, err = run(capsys, "plan", "sweeps/quickstart.yaml", f"storage={tmp_path}/r", "how.n_actors=500")
    assert code == 6
    assert "how.n_actors" in err


def test_job_modules_take_the_same_arguments() -> None:
    found = subprocess.run(
        [sys.executable, "-m", "jobs.study", "sweeps/absent.yaml"], capture_output=True, text=True, check=False
    )
    assert found.returncode == 2
    assert "sweeps/absent.yaml" in found.stderr


def test_a_terminated_background_job_ends_cleanly_and_says_how_to_resume(tmp_path: Path) -> None:
    # As `nohup vtsweep ... &` does, the job is started with SIGINT ignored.
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "from orchestrator.cli.app import main\n"
        f"main(['capture', 'sweeps/quickstart.yaml', 'storage={tmp_path}', 'how.backend=local', 'how.batch_size=1'])"
    )
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) as job:
        assert job.stderr is not None
        for line in job.stderr:
            if line.startswith("capture"):
                break
        job.terminate()
        said = job.stderr.read()
    assert job.returncode == 143
    assert "Run the same command again to resume" in said


@pytest.mark.parametrize("command", ["run", "correlate"])
def test_the_record_holds_a_command_that_can_be_pasted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str
) -> None:
    def told(*_: object, command: str, **__: object) -> None:
        raise StorageError(command)

    monkeypatch.setattr("orchestrator.study.run.run_study", told)
    file = tmp_path / "my study.yaml"
    file.write_text("name: mine")
    code, _, err = run(capsys, command, str(file), "capture.layers=[0, 2]")
    assert code == 5
    assert shlex.split(err.splitlines()[-1].removeprefix("error: ")) == [
        "vtsweep",
        command,
        str(file),
        "capture.layers=[0, 2]",
    ]


def test_tables_of_plan_and_models_keep_names_whole_in_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = run(capsys, "plan", "sweeps/quickstart.yaml", f"storage={tmp_path}")
    assert out.count("│ reference-joint │") == 1
    _, out, _ = run(capsys, "models")
    assert "│ llama-3.2-11b-vision │" in out


def test_a_damaged_study_file_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = tmp_path / "studies" / "mine"
    folder.mkdir(parents=True)
    (folder / "study.json").write_text('{"name": "mi')
    code, _, err = run(capsys, "status", str(folder))
    assert code == 5
    assert "study.json" in err
    assert "is damaged" in err


def test_a_study_of_another_version_is_named_not_a_traceback(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = tmp_path / "studies" / "mine"
    folder.mkdir(parents=True)
    point = {"label": "base", "axes": {}, "config": {"capture": {"gone": 1}}, "stages": {"capture": "0" * 16}}
    record = {"name": "mine", "versions": {"vtsweep": "0.0.1"}, "stages": ["capture"], "points": [point]}
    record |= dict.fromkeys(("description", "file", "text", "command", "created"), "") | {"hardware": {}, "seconds": {}}
    (folder / "study.json").write_text(json.dumps(record))
    code, _, err = run(capsys, "status", str(folder))
    assert code == 5
    assert "0.0.1" in err
    assert "capture.gone" in err


def test_the_ui_of_a_folder_without_runs_is_refused_and_makes_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, _, err = run(capsys, "ui", str(tmp_path / "reslts"))
    assert code == 5
    assert "mlflow.db" in err
    assert list(tmp_path.iterdir()) == []


def test_numbers_have_three_digits_and_no_exponent_below_a_million() -> None:
    shown = {
        0.12345: "0.123",
        9.996: "10",
        999.4: "999",
        999.6: "1,000",
        1580.2: "1,580",
        -1234.5: "-1,234",
        2e6: "2e+06",
    }
    assert {value: format_number(value) for value in shown} == shown
