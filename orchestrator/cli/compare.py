"""`vtsweep compare`: several studies in one report."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.errors import StorageError
from orchestrator.progress import Progress
from orchestrator.store.study_record import Study


def compare_studies(studies: Sequence[Study], out: str, quiet: bool = False) -> str:
    """Write one report over several studies; returns the path of its page.

    Raises:
        StorageError: fewer than two are named.
    """
    from orchestrator.report import make_comparison
    from orchestrator.report.collect import gather_results
    from orchestrator.store.filesystem import Storage

    if len(studies) < 2:
        raise StorageError(f"compare needs two or more studies, found {len(studies)}")
    storage = Storage(out)
    results = [gather_results(study) for study in studies]
    with Progress("comparison", None, "files", quiet=quiet) as progress:
        written = make_comparison(results, storage, lambda name: progress.advance(1, name))
    return storage.locate(written[0])
