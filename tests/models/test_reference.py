"""The shipped reference checkpoints, and the pre-training that made them."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from orchestrator.config import ScenesConfig
from orchestrator.data.questions import LOW_OBJECTS, make_questions
from orchestrator.data.render import render
from orchestrator.data.scenes import SHAPES, make_scene
from orchestrator.data.templates import templates, vocabulary
from orchestrator.reference.build import make_cross, make_joint, make_processor, transplant
from orchestrator.reference.dense_loss import DenseHead, WordHead, dense_targets
from orchestrator.reference.forward import encode, packed_logits
from orchestrator.reference.packing import LOGGED, ask, pack
from orchestrator.reference.pretrain import Recipe, Trainer
from orchestrator.reference.pretrain_data import MIX, Pool, draw_scene, mirror, normalise, resize
from orchestrator.reference.pretrain_eval import HELD_OUT_SEED, evaluate, point_errors

REFERENCE = Path(__file__).parents[2] / "orchestrator" / "reference" / "checkpoints"
SHIPPED = ["reference-joint", "reference-cross"]
SIMPLE = ("colour", "shape", "existence", "count", "count_by_attribute", "comparison", "relation")
BAR = 0.95
"""Least share right of 40 questions of each closed family about simple scenes; measured: 99.8 % or more of 500."""


def low_scene(index: int, n: tuple[int, int] = (2, 4)):
    return make_scene(ScenesConfig(seed=5, n_objects=n, size=(0.15, 0.3)), index)


def prompt(processor, question: str) -> str:
    content = [{"type": "image"}, {"type": "text", "text": question}]
    return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("cross", [False, True], ids=["joint", "cross"])
def test_packed_questions_are_answered_as_if_each_stood_alone(cross, attention):
    """With either attention: the eager one adds its mask, so that a Boolean mask would hide nothing."""
    torch.manual_seed(0)
    processor = make_processor(vocabulary(), cross=cross)
    tokenizer = processor.tokenizer
    model = (make_cross if cross else make_joint)(len(tokenizer)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.1)
    scenes = [low_scene(i) for i in range(2)]
    images = [render(scene) for scene in scenes]
    asked = [ask(scene, 0) for scene in scenes]
    packed = pack(asked, tokenizer, cross=cross)
    with torch.no_grad():
        _, projected = encode(model, normalise(np.stack([resize(image) for image in images])))
        model.set_attn_implementation(attention)
        logits, _ = packed_logits(model, projected, packed)
        model.set_attn_implementation("sdpa")
    for row, questions in enumerate(asked):
        labels = packed["labels"][row]
        ends = (labels == tokenizer.eos_token_id).nonzero().flatten().tolist()
        assert len(ends) == len(questions)
        for end, (question, answer, *_) in zip(ends, questions, strict=True):
            text = f"{prompt(processor, question)} {answer}"
            special = {"add_special_tokens": False} if cross else {}
            inputs = processor(images=[[images[row]]], text=[text], return_tensors="pt", **special)
            with torch.no_grad():
                alone = model(**inputs).logits[0]
            n = len(tokenizer(answer, add_special_tokens=False)["input_ids"]) + 1
            torch.testing.assert_close(logits[row, end - n + 1 : end + 1], alone[-n:], atol=1e-5, rtol=1e-5)


def test_every_text_of_the_questions_survives_encoding_and_decoding():
    tokenizer = make_processor(vocabulary()).tokenizer
    for index in range(30):
        families = ["colour", "shape", "existence", "count", "count_by_attribute", "comparison", "relation", "point"]
        for question in make_questions(low_scene(index), [*families, "caption"], 12, index):
            for text in (question.text, question.answer):
                ids = tokenizer(text, add_special_tokens=False)["input_ids"]
                assert tokenizer.unk_token_id not in ids, text
                assert tokenizer.decode(ids) == text


def test_each_digit_of_a_number_is_a_token():
    tokenizer = make_processor(vocabulary()).tokenizer
    assert tokenizer.tokenize("137") == ["1", "##3", "##7"]


def test_dense_targets_name_the_object_in_its_patch():
    classes, numbers = dense_targets(
        np.array([0.31]), np.array([0.56]), np.array([0.2]), np.array([3]), np.array([7]), grid=8
    )
    patch = 4 * 8 + 2
    assert classes[patch].tolist() == [4, 8, 1, 3, 7]
    np.testing.assert_allclose(numbers[patch], [0.31 * 8 - 2.5, 0.56 * 8 - 4.5, 0.2, 0.31, 0.56], atol=1e-6)
    np.testing.assert_allclose(numbers[0, 3:], 1 / 16)  # an empty patch tells its own place
    assert (classes[:, 2].sum(), (classes[:, 3] >= 0).sum()) == (1, 1)
    assert classes[0].tolist() == [0, 0, 0, -1, -1]


def test_dense_loss_falls_to_nothing_where_the_states_tell_the_truth():
    torch.manual_seed(0)
    states, classes = torch.randn(2, 4, 16), torch.randint(0, 3, (2, 4, 5))
    numbers, head = torch.rand(2, 4, 5), DenseHead(16, 8, 10)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.1)
    first = head(states, classes, numbers)[0].item()
    for _ in range(300):
        optimizer.zero_grad()
        loss, accuracy = head(states, classes, numbers)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05 * first
    assert accuracy["centre_shape"] == 1.0


def test_named_words_are_marked_with_what_is_true_of_them():
    tokenizer = make_processor(vocabulary()).tokenizer
    drawn = [draw_scene(kind, 5, i) for kind in MIX if kind.use == "plain" for i in range(20)]
    asked = [ask(scene, 0, first=first) for scene, first in drawn]
    packed = pack(asked, tokenizer, cross=False)
    words = tokenizer.convert_ids_to_tokens(packed["input_ids"][tuple(packed["marks"].T)].tolist())
    plurals = templates()["plurals"]
    assert set(words) <= {*SHAPES, *plurals.values(), "object", "objects"}
    n_relations = 0
    for questions in asked:
        for q in questions:
            if LOGGED[q.family].startswith("relation"):
                first, second = q.marks
                assert {
                    "left": first.x < second.x,
                    "right": first.x > second.x,
                    "above": first.y < second.y,
                    "below": first.y > second.y,
                }[q.answer]
                n_relations += 1
            elif LOGGED[q.family] in ("count", "count_by_attribute"):
                assert round(2 ** q.marks[0].log_n - 1) == int(q.answer)
            elif LOGGED[q.family] == "existence":
                assert (q.marks[0].log_n > 0) == (q.answer == "yes")
    assert n_relations > 50


def test_word_loss_falls_to_nothing_where_the_states_tell_the_truth():
    torch.manual_seed(0)
    states, values, head = torch.randn(12, 16), torch.rand(12, 6), WordHead(16, 2)
    values[::3, :2] = math.nan
    values[::4, 3:] = math.nan
    optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
    first = head(states, values)[0].item()
    for _ in range(400):
        optimizer.zero_grad()
        loss, errors = head(states, values)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05 * first
    assert errors["place_error"] < 3


def test_no_question_is_asked_about_a_crowded_scene():
    """Only crowding is new to the models: every scene with questions holds up to four objects, or equal ones apart."""
    for kind in MIX:
        scene = draw_scene(kind, 5, 1).scene
        if kind.use in ("plain", "easy"):
            assert kind.options["n_objects"][1] <= LOW_OBJECTS[1]
        elif kind.use == "sparse":
            assert len({(o.colour, o.shape) for o in scene.objects}) == 1
            nearest = min(
                math.hypot(a.x - b.x, a.y - b.y) / a.size for a in scene.objects for b in scene.objects if a is not b
            )
            assert nearest > 1.8


def test_a_scene_built_for_an_answer_is_asked_that_question_first_whether_mirrored_or_not():
    for kind in MIX:
        if kind.family is not None:
            scene, question = draw_scene(kind, 5, 3)
            assert question is not None
            assert question.family == kind.family
            for seen in (scene, mirror(scene)):
                asked = ask(seen, 1, first=question)
                assert (asked[0].text, asked[0].answer) == (question.text, question.answer)
                assert len({q.text for q in asked}) == len(asked)


def test_the_pool_holds_the_same_images_however_many_processes_draw_it(tmp_path):
    one, two = (Pool(tmp_path / str(n), 30, 5, processes=n).images for n in (1, 2))
    np.testing.assert_array_equal(one, two)


def test_a_run_ends_at_its_minutes_with_a_finished_checkpoint(tmp_path):
    recipe = Recipe("reference-joint", 0, 10_000, minutes=0.02, answer_batch=(2, 1), pool=40, bfloat16=False)
    trainer = Trainer(recipe, tmp_path, tmp_path / "out", compiled=False)
    trainer.run()
    assert 1 <= trainer.state.step < 10_000
    again = Trainer(recipe, tmp_path, tmp_path / "out", compiled=False)
    again.run()
    assert again.state == trainer.state
    assert (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize("cross", [False, True], ids=["joint", "cross"])
def test_a_stopped_run_resumes_where_it_was(cross, tmp_path):
    recipe = Recipe(
        "reference-cross" if cross else "reference-joint",
        encoder_steps=0,
        answer_steps=2,
        answer_batch=(2, 1),
        pool=40,
        bfloat16=False,
    )
    Trainer(recipe, tmp_path, tmp_path / "straight", compiled=False).run()
    straight = (tmp_path / "straight" / "model.safetensors").read_bytes()
    saved = torch.load(tmp_path / f"{recipe.model}.pt", weights_only=True)
    assert saved["state"]["step"] == 2
    again = Trainer(recipe, tmp_path, tmp_path / "again", compiled=False)
    again.run()  # nothing is left to do
    assert again.state.step == 2
    for name, value in again.model.state_dict().items():
        assert torch.equal(value, saved["model"][name])
    assert straight


def test_point_errors_are_distances_in_hundredths():
    error, unreadable = point_errors(["10 20", "00 00 10 10", "yes"], ["13 24", "00 00 20 20", "50 50"])
    assert error == pytest.approx((5 + 5 * 2**0.5) / 2)
    assert unreadable == pytest.approx(1 / 3)


def test_mirrored_scene_is_the_mirrored_image():
    scene = low_scene(3, (5, 5))
    straight, mirrored = render(scene).astype(int), render(mirror(scene)).astype(int)
    assert np.abs(straight[:, ::-1] - mirrored).mean() < 1.0


def test_transplanted_encoder_sees_what_its_source_saw():
    """Equal up to mllama's padding tokens, which its own mask leaves visible."""
    torch.manual_seed(0)
    joint, cross = make_joint(100), make_cross(100)
    transplant(joint, cross)
    pixels = torch.randn(2, 3, 112, 112)
    with torch.no_grad():
        ours, theirs = encode(joint, pixels)[0], encode(cross, pixels)[0]
    theirs_raw = torch.nn.functional.layer_norm(ours, ours.shape[-1:])
    similar = torch.nn.functional.cosine_similarity(theirs_raw, theirs, dim=-1)
    assert similar.min() > 0.95


@pytest.mark.parametrize("name", SHIPPED)
def test_checkpoint_is_small_genuine_and_offline(name, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = REFERENCE / name
    assert (folder / "model.safetensors").stat().st_size <= 10_000_000
    model = AutoModelForImageTextToText.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    assert model.config.image_token_id == processor.tokenizer.convert_tokens_to_ids("<image>")
    assert model.get_input_embeddings().weight.shape[0] >= len(processor.tokenizer)
    assert set(make_processor(vocabulary()).tokenizer.get_vocab()) <= set(processor.tokenizer.get_vocab())


@pytest.mark.parametrize("name", SHIPPED)
def test_checkpoint_answers_questions_about_simple_scenes(name):
    rows = evaluate(REFERENCE / name, n=40, names=[*SIMPLE, "point", "count, crowded"])
    for row in rows[: len(SIMPLE)]:
        assert row.accuracy >= BAR, row
    point, crowded = rows[len(SIMPLE) :]
    assert point.error is not None
    assert point.error < 1.0
    assert crowded.accuracy < 0.3, "crowding is what fine-tuning can teach"


def test_held_out_scenes_are_not_training_scenes():
    assert Recipe("reference-joint").seed < HELD_OUT_SEED
