"""Speed of reading question files: rows per second, images per second and core, and the driver's memory.

    python -m benchmarks.data [--quick]

Rows are JSON lines about 1,000 images, checked once and then read from the cached table. A separate process does
the driver's work before a run, at 10^3 and at 10^6 rows (10^5 with --quick): it opens the source, hashes rows and
images by content, and groups the rows by family and by thirds of a numeric column. Images come from a folder, and as
bytes in a Parquet column, through `load_shard`, the function that Ray's loading tasks call.
The last line is one JSON object, in seconds of processor time, which other work on the machine does not stretch:
`rows_per_s` (first time), `again_s` (second time, larger number of rows), `images_per_s_core`, and
`driver_memory_ratio` (peak at the larger number of rows over that at 10^3, imports included).
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from orchestrator.capture.loading import load_shard
from orchestrator.config import QuestionsConfig
from orchestrator.data.files.source import QuestionSource

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


def images_per_second(root: Path, n: int) -> dict[str, float]:
    """Images of 640 x 480 px loaded per second of CPU time, from files and from a Parquet column."""
    root.mkdir()
    rng = np.random.default_rng(0)
    smooth = rng.integers(0, 256, (15, 20, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(smooth).resize((640, 480)).save(buffer, format="jpeg", quality=90)
    rows = [{"id": f"q{i}", "question": "what ?", "image": f"{i}.jpg"} for i in range(n)]
    for row in rows:
        (root / row["image"]).write_bytes(buffer.getvalue())
    (root / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = pa.Table.from_pylist([{**row, "image": {"bytes": buffer.getvalue(), "path": None}} for row in rows])
    pq.write_table(table, root / "q.parquet", row_group_size=100)
    rates = {}
    for name in ("q.jsonl", "q.parquet"):
        source = QuestionSource(QuestionsConfig(root=str(root), file=(name,)))
        start = time.process_time()
        assert all(one.reason is None for one in load_shard(source, range(n)))
        rates[name] = n / (time.process_time() - start)
    return rates


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="10^5 rows, 50 images")
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
        rates = images_per_second(root / "images", 50 if quick else 500)
        print(f"images a second and core: folder {rates['q.jsonl']:.0f}, Parquet {rates['q.parquet']:.0f}")
    ratio = found[large][1] / found[small][1]
    rate = large / found[large][0]
    figures = {"rows_per_s": round(rate), "again_s": round(found[large][2], 2)}
    figures["images_per_s_core"] = round(min(rates.values()))
    print(json.dumps({**figures, "driver_memory_ratio": round(ratio, 2), "n_rows": large}))


if __name__ == "__main__":
    main()
