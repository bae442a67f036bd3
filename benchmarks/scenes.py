"""How fast scenes are made, drawn, described and asked about, on one core.

    python -m benchmarks.scenes [--quick]

Processor time, so that a busy machine does not change it. The last line is one JSON object; the aim is
`images_per_second` (scene and drawing together, 336 px, 50 objects) of at least 300.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

from orchestrator.config import ScenesConfig
from orchestrator.data.attributes import scene_attributes
from orchestrator.data.builders import FAMILIES
from orchestrator.data.examples import make_example
from orchestrator.data.questions import make_questions
from orchestrator.data.render import render
from orchestrator.data.scenes import make_scene


def milliseconds(work: Callable[[int], object], n: int) -> float:
    """Mean processor time of one call, the best of three rounds."""
    work(0)
    rounds = []
    for _ in range(3):
        start = time.process_time()
        for index in range(n):
            work(index)
        rounds.append((time.process_time() - start) / n * 1e3)
    return min(rounds)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few images only")
    n = 20 if parser.parse_args().quick else 200
    print(f"{'objects':>8} {'scene ms':>9} {'draw ms':>9} {'attributes ms':>14} {'8 questions ms':>15} {'images/s':>9}")
    rate = 0.0
    for n_objects in (5, 50, 200):
        config = ScenesConfig(n_objects=(n_objects, n_objects))
        scenes = [make_scene(config, index) for index in range(n)]
        make = milliseconds(lambda i, config=config: make_scene(config, i), n)  # type: ignore[misc]
        draw = milliseconds(lambda i, scenes=scenes: render(scenes[i]), n)  # type: ignore[misc]
        describe = milliseconds(lambda i, scenes=scenes: scene_attributes(scenes[i]), n)  # type: ignore[misc]
        ask = milliseconds(lambda i, scenes=scenes: make_questions(scenes[i], FAMILIES, 8, i), n)  # type: ignore[misc]
        per_second = 1e3 / (make + draw)
        print(f"{n_objects:>8} {make:>9.3f} {draw:>9.3f} {describe:>14.3f} {ask:>15.3f} {per_second:>9.0f}")
        rate = per_second if n_objects == 50 else rate
    config = ScenesConfig(n_objects=(1, 12), n_objects_spacing="uniform")
    example = milliseconds(lambda i: make_example(config, "relation", "high", 0, i), n)
    print(json.dumps({"images_per_second": round(rate), "milliseconds_per_example": round(example, 3)}))


if __name__ == "__main__":
    main()
