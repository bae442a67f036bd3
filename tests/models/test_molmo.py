"""The original Molmo's adapter against a stand-in with its module layout; not its published weights."""

import types

import numpy as np
import pytest
import torch

from orchestrator.models.families import make_adapter
from orchestrator.models.groups import TEXT, VISION
from orchestrator.models.molmo import MolmoAdapter, apply_shims, grid_of_runs, without_tensorflow_check
from tests.models.molmo_stand_in import MolmoForCausalLM, molmo_adapter, molmo_example
from tests.models.processors import make_tokenizer


class Processor:
    """As Molmo's: `process` writes the prompt and gives tensors without a batch axis."""

    def __init__(self):
        self.tokenizer = make_tokenizer("llava")

    def process(self, images=None, text=""):
        words = self.tokenizer(f" User: {text} Assistant:", add_special_tokens=False)["input_ids"]
        if images is None:
            return {"input_ids": torch.tensor([1, *words])}
        assert images[0].size == (36, 20)
        row = [118, 119]
        ids = [1, *(row * 12), *([118] * 12), 119, *words]
        places = np.flatnonzero(np.array(ids) == 118).reshape(2, 12)
        return {
            "input_ids": torch.tensor(ids),
            "images": torch.randn(2, 24, 12),
            "image_masks": torch.ones(2, 24),
            "image_input_idx": torch.from_numpy(places),
        }


def test_a_molmo_config_chooses_the_molmo_adapter():
    assert isinstance(make_adapter(MolmoForCausalLM()), MolmoAdapter)


@torch.no_grad()
def test_prepare_goes_through_molmo_s_own_processor():
    adapter = MolmoAdapter(molmo_adapter().model, Processor())
    image = np.zeros((20, 36, 3), dtype=np.uint8)
    for question in ("how many?", "is it red?"):
        example = adapter.prepare(image, question, "blue")
        groups = example["groups"][0]
        text = adapter.tokenizer.decode(example["input_ids"][0][groups == TEXT].tolist())
        assert text == question
        assert (groups == VISION).sum() == 24
        assert adapter.run(example).loss.isfinite()
    batch = adapter.collate([adapter.prepare(image, "how many?"), adapter.prepare(image, "a?")])
    assert len(adapter.generate(batch, 3)) == 2
    assert int(adapter.n_vision(adapter.prepare(None, "how many?"))[0]) == 0


@torch.no_grad()
def test_padding_moves_the_image_s_places():
    adapter = molmo_adapter()
    short, long = molmo_example(adapter, (1, 1), 2, 1), molmo_example(adapter, (2, 2), 9, 2)
    batch = adapter.collate([short, long])
    shift = batch["input_ids"].shape[1] - short["input_ids"].shape[1]
    places = batch["image_input_idx"][0]
    assert torch.equal(places[places >= 0], short["image_input_idx"].flatten() + shift)
    assert (batch["images"][0, 2:] == -1).all()


@torch.no_grad()
def test_limited_logits_leave_the_final_norm_whole():
    adapter = molmo_adapter()
    example = molmo_example(adapter)
    seen = []
    handle = adapter.final_norm.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    last = adapter.run(example, logits_to_keep=1).logits
    handle.remove()
    assert seen == [example["input_ids"].shape[1]]
    torch.testing.assert_close(last, adapter.run(example).logits[:, -1:])


def test_places_follow_rows_and_views():
    low = [p for row in range(12) for p in range(row * 4, row * 4 + 3)]
    high = [60, 61, 62, 63, 65, 66, 67, 68]
    grid = grid_of_runs(torch.tensor(low + high))
    assert grid[0].tolist() == [0, 0, 0]
    assert grid[35].tolist() == [11, 2, 0]
    assert grid[36].tolist() == [0, 0, 1]
    assert grid[-1].tolist() == [1, 3, 1]
    assert grid_of_runs(torch.zeros(0, dtype=torch.long)).shape == (0, 3)


def test_shims_make_the_class_loadable():
    class Remote:
        def tie_weights(self):
            raise AssertionError("the original takes no arguments")

    apply_shims(Remote)
    assert Remote.all_tied_weights_keys == {}
    assert Remote._supports_default_dynamic_cache() is False
    Remote().tie_weights(missing_keys=set(), recompute_mapping=False)


def test_tensorflow_is_ignored_only_inside_the_context(tmp_path):
    from transformers import dynamic_module_utils

    file = tmp_path / "code.py"
    file.write_text("import tensorflow\nimport numpy\n")
    with without_tensorflow_check():
        assert dynamic_module_utils.get_imports(file) == ["numpy"]
    assert "tensorflow" in dynamic_module_utils.get_imports(file)


def test_remote_class_is_loaded_from_the_pinned_revision(monkeypatch):
    import transformers

    from orchestrator.models import molmo
    from orchestrator.models.catalogue import entries

    entry = entries()["molmo-7b-o"]
    asked = []

    class Remote(MolmoForCausalLM):
        @classmethod
        def from_pretrained(cls, source, **kwargs):
            asked.append((source, kwargs["revision"], kwargs["use_safetensors"]))
            return cls(), {"missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set()}

    config = types.SimpleNamespace(auto_map={"AutoModelForCausalLM": "modeling_molmo.MolmoForCausalLM"})
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", lambda *_, **__: config)
    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", lambda *_, **__: Processor())
    monkeypatch.setattr(transformers.dynamic_module_utils, "get_class_from_dynamic_module", lambda *_, **__: Remote)
    adapter = molmo.load_molmo(entry, (), torch.float32)
    assert asked == [("allenai/Molmo-7B-O-0924", entry.revision, True)]
    assert adapter.family == "molmo"
    with pytest.raises(StopIteration):
        next(iter(adapter.image_ids()))
