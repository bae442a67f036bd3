"""Speed of reading question files: rows per second, images per second and core, and the driver's memory.

    python -m benchmarks.data [--quick]

Rows are JSON lines about 1,000 images, checked once and then read from the cached table. A separate process does
the driver's work before a run, at 10^3 and at 10^6 rows (10^5 with --quick): it opens the source, hashes rows and
images by content, and groups the rows by family and by thirds of a numeric column.

Rows then go through Ray, as in a capture: loading tasks of Ray Data read rows and decode pictures of 640 x 480 px, and
an actor with a stand-in for the model (`benchmarks.simulated`) writes their shards. Sources are JSON lines with
pictures in files, Parquet with pictures as bytes, and a folder of pictures. A first run of a few pictures, which starts
Ray's processes, and the first shard of each run are left out; processor time is that of all of Ray's processes.

The last line is one JSON object. Rates are per second of processor time, which other work on the machine does not
stretch: `rows_per_s` (reading and checking rows for the first time), `again_s` (second time, larger number of rows),
`images_per_s_core` (through Ray, the slowest source; one picture a row), `through_ray` (of each source, images a second
of the clock and of processor time), and `driver_memory_ratio` (peak at the larger number of rows over that at 10^3,
imports included).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from benchmarks.simulated import Simulation
from orchestrator.capture.capture_stage import make_job
from orchestrator.capture.ray import stream_ray
from orchestrator.cluster.placement import capture_pool
from orchestrator.cluster.session import Cluster, session
from orchestrator.config import RunConfig
from orchestrator.data.source import make_source
from orchestrator.store.filesystem import Storage
from orchestrator.study.resolve import resolve_run

N_PICTURES = 1_000

OPEN = """
import json, resource, sys, time
from orchestrator.config import QuestionsConfig
from orchestrator.data.file_questions import FileQuestions
from orchestrator.data.files.source import QuestionSource
start = time.process_time()
source = QuestionSource(QuestionsConfig(root=sys.argv[1], file=("q.jsonl",)))
source.fingerprint()
rows = FileQuestions(source, "x", lambda cluster: len(cluster) % 2 == 0)
rows.make("question", "low", 0, 0)
print(json.dumps([len(source), time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))
"""


def write_rows(root: Path, n: int) -> None:
    """n rows of JSON lines about 1,000 small images."""
    root.mkdir(parents=True)
    for i in range(N_PICTURES):
        Image.new("RGB", (8, 8), (i % 256, i // 256, 0)).save(root / f"{i}.png")
    with (root / "q.jsonl").open("w") as file:
        for i in range(n):
            row = {
                "id": f"q{i}",
                "image": f"{i % N_PICTURES}.png",
                "question": f"is there a dog in picture {i} ?",
                "answer": "yes",
                "n": i % 7,
                "x": i / n,
            }
            file.write(json.dumps(row) + "\n")


def opened(root: Path) -> tuple[int, float, float]:
    """Rows, seconds of processor time and peak memory (MB) of a process that opens the source."""
    found = subprocess.run([sys.executable, "-c", OPEN, str(root)], capture_output=True, text=True, check=True)
    n, seconds, memory = json.loads(found.stdout.splitlines()[-1])
    return n, seconds, memory


def write_pictures(root: Path, n: int) -> dict[str, dict[str, object]]:
    """n pictures of 640 x 480 px with a question each, in three forms; the data section of each by its name."""
    (root / "photos").mkdir(parents=True)
    rng = np.random.default_rng(0)
    smooth = rng.integers(0, 256, (15, 20, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(smooth).resize((640, 480)).save(buffer, format="jpeg", quality=90)
    rows = [{"id": f"q{i}", "question": "what ?", "image": f"photos/{i}.jpg"} for i in range(n)]
    for row in rows:
        (root / row["image"]).write_bytes(buffer.getvalue())
    (root / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = pa.Table.from_pylist([{**row, "image": {"bytes": buffer.getvalue(), "path": None}} for row in rows])
    pq.write_table(table, root / "q.parquet", row_group_size=100)
    (root / "photos" / "attributes.csv").write_text("file,n\n" + "".join(f"{i}.jpg,{i % 7}\n" for i in range(n)))
    return {
        "jsonl": {"source": "questions", "root": str(root), "file": "q.jsonl"},
        "parquet": {"source": "questions", "root": str(root), "file": "q.parquet"},
        "folder": {"source": "folder", "root": str(root / "photos")},
    }


def through_ray(data: dict[str, object], folder: Path, cluster: Cluster) -> tuple[float, float]:
    """Images per second of the clock, and of processor time of Ray's processes, from the first shard to the last."""
    how = {"backend": "ray", "n_actors": 1, "shard_size": 10, "torch_threads": 1}
    run = RunConfig.model_validate({"data": data, "how": how})
    point = resolve_run(run, Storage(str(folder)), "capture")
    source = make_source(run.data)
    plan = point.stages["capture"].open({"n_images": point.n_images, "shard_size": run.how.shard_size})
    job = make_job(point, plan, Simulation())
    started, n = None, 0
    for stats in stream_ray(job, source, range(job.n_shards), capture_pool(run.how, cluster.nodes), 1):
        assert stats.n_rejected == 0
        if started is None:
            started = time.perf_counter(), processor_seconds()
        else:
            n += stats.n_images
    assert started is not None
    clock, used = time.perf_counter() - started[0], processor_seconds() - started[1]
    return n / clock, n / used


def processor_seconds() -> float:
    """Processor time of all processes that this one started, s."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="10^5 rows, 300 images")
    quick = parser.parse_args().quick
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        os.environ["VTSWEEP_CACHE"] = str(root / "cache")
        small, large = 1_000, 100_000 if quick else 1_000_000
        found = {}
        for n in (small, large):
            write_rows(root / str(n), n)
            _, first, memory = opened(root / str(n))
            _, again, memory_again = opened(root / str(n))
            found[n] = first, max(memory, memory_again), again
            print(f"{n:>9,} rows: first {first:.2f} s, {memory:.0f} MB; again {again:.2f} s, {memory_again:.0f} MB")
        rates: dict[str, dict[str, int]] = {}
        sources = write_pictures(root / "images", 300 if quick else 3_000)
        how = RunConfig.model_validate({"how": {"backend": "ray", "object_store_gb": 0.3}}).how
        with session(how) as cluster:
            through_ray({**sources["jsonl"], "n_images": 200}, root / "start", cluster)
            for name, data in sources.items():
                clock, core = through_ray(data, root / f"results-{name}", cluster)
                rates[name] = {"per_s": round(clock), "per_s_core": round(core)}
                print(f"through Ray, {name}: {clock:.0f} rows (one image each) a second, {core:.0f} a second and core")
    ratio = found[large][1] / found[small][1]
    rate = large / found[large][0]
    figures = {"rows_per_s": round(rate), "again_s": round(found[large][2], 2)}
    figures["images_per_s_core"] = min(rate["per_s_core"] for rate in rates.values())
    print(json.dumps({**figures, "through_ray": rates, "driver_memory_ratio": round(ratio, 2), "n_rows": large}))


if __name__ == "__main__":
    main()
