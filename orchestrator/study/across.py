"""What of the causal checks does not apply to a model with cross-attention, in words, before work starts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from orchestrator.ablate.cells import list_cells
from orchestrator.config import AblateConfig, RunConfig, StageName
from orchestrator.errors import ModelError
from orchestrator.models.catalogue import resolve
from orchestrator.models.known_config import read_config
from orchestrator.models.stacks import cross_layers, decoder_stack


def across_words(runs: Sequence[RunConfig], stages: Sequence[StageName]) -> list[str]:
    """Return a line for each check and model with cross-attention; none for other models, or where the config of a
    model is not at hand."""
    messages: list[str] = []
    for run in runs if "ablate" in stages else ():
        with contextlib.suppress(ModelError):
            config = read_config(resolve(run.model))
            if across := cross_layers(config):
                words = _words(run.ablate, decoder_stack(config).layers, across)
                messages += [f"{run.model.label}, ablate.checks {check}: {text}" for check, text in words]
    return list(dict.fromkeys(messages))


def _words(config: AblateConfig, n_layers: int, across: Sequence[int]) -> Iterator[tuple[str, str]]:
    """(check, what does not apply to it) for cross-attention in the layers `across`."""
    layers = ", ".join(map(str, across))
    cells = list_cells(config, n_layers, across)
    if "lens" in config.checks:
        yield (
            "lens",
            "visual tokens never enter the residual stream, so that only the question and the last token are read",
        )
    if "attention" in config.checks:
        yield "attention", f"the image is read in layers {layers} alone, and nothing else there: to_image is 1"
    if "routes" in config.checks and any(not name.startswith("question") for name in config.routes):
        windows = {(c.layer, c.last_layer) for c in cells if c.check == "routes"}
        blind = [w for w in sorted(windows) if not any(w[0] <= layer <= w[1] for layer in across)]
        without = f"; {len(blind)} of {len(windows)} windows hold none of them, and change nothing" if blind else ""
        yield "routes", f"the image is read in layers {layers} alone, the question in the others{without}"
    if "knockout" in config.checks:
        yield "knockout", f"layers {layers} are switched off one by one, and all; ablate.window does not apply"
    if "inside" in config.checks:
        depths = sorted({c.layer for c in cells if c.check == "deletion" and c.layer})
        yield "inside", f"tokens leave before the next layer that reads the image, here after {depths} layers"
    same = [check for check in ("replacing", "patching") if check in config.checks]
    if same:
        yield " and ".join(same), f"layers {layers} read the same visual states: they are others from a layer on"
