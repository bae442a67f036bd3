"""The text around a question, the question's own tokens in it, and how an answer is read."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from orchestrator.errors import ModelError
from orchestrator.models.catalogue import FAMILIES
from orchestrator.models.prompts import family_rules, question_span, render
from tests.models.processors import make_tokenizer

IMAGE = 120


def bytes_tokenizer():
    """A byte-level tokeniser with merges, as Llama 3 and Qwen have: words swallow the space before them."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, special_tokens=["<image>"])
    core.train_from_iterator(["how many red circles are there? User: Assistant: describe the image"] * 20, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, extra_special_tokens={"image_token": "<image>"})


BYTES, CHARACTERS = bytes_tokenizer(), make_tokenizer("llava", bos=False)


@settings(max_examples=60, deadline=None)
@given(
    question=st.text(min_size=1, max_size=40).filter(lambda text: text.strip() and "<image>" not in text),
    before=st.sampled_from(["User: ", "USER: how many? ", ""]),
    after=st.sampled_from(["\nAssistant:", " ASSISTANT:", "?"]),
)
def test_the_span_holds_the_question_and_no_token_more(question, before, after):
    image = BYTES.convert_tokens_to_ids("<image>")
    ids = BYTES(f"{before}<image><image>\n{question}{after}")["input_ids"]
    start, end = question_span(BYTES, ids, question, {image})
    squeeze = lambda text: "".join(text.split())  # noqa: E731
    assert squeeze(question) in squeeze(BYTES.decode(ids[start:end]))
    assert squeeze(question) not in squeeze(BYTES.decode(ids[start + 1 : end]))
    assert squeeze(question) not in squeeze(BYTES.decode(ids[start : end - 1]))
    assert image not in ids[start:end]


def test_the_last_of_equal_texts_is_the_question():
    ids = CHARACTERS("a b?<image>a b? a b?:")["input_ids"]
    start, end = question_span(CHARACTERS, ids, "a b?", {IMAGE})
    assert end == len(ids) - 1
    assert CHARACTERS.decode(ids[start:end]) == "a b?"


def test_a_question_before_the_image_is_found():
    ids = CHARACTERS("what?<image><image>:")["input_ids"]
    assert question_span(CHARACTERS, ids, "what?", {IMAGE}) == (0, 5)


def test_a_lost_question_is_an_error():
    with pytest.raises(ModelError, match="not in the prompt"):
        question_span(CHARACTERS, CHARACTERS("abc")["input_ids"], "xyz", {IMAGE})
    with pytest.raises(ModelError, match="no tokens"):
        question_span(CHARACTERS, [5, 6], "", {IMAGE})


def test_every_family_has_a_published_text():
    for family in FAMILIES:
        rules = family_rules(family)
        text = rules["template"].format(image=rules["image"], question="QUESTION")
        assert text.count("QUESTION") == 1


class Processor:
    chat_template = None

    def __init__(self, template=None):
        self.tokenizer = CHARACTERS
        self.chat_template = template

    def apply_chat_template(self, turns, add_generation_prompt, tokenize):
        assert not tokenize
        text = "".join(
            f"[{turn['role']}]"
            + "".join("<image>" if part["type"] == "image" else part["text"] for part in turn["content"])
            + "|"
            for turn in turns
        )
        return text + (self.chat_template if add_generation_prompt else "")


def test_the_processor_s_own_template_comes_first():
    assert render(Processor("[assistant]"), "llava", "why?", image=True) == ("[user]<image>why?|[assistant]", "")
    assert render(Processor("[assistant]"), "llava", "why?", image=False, answer="so")[1] == "so|"
    # A generation prompt that an assistant's turn does not begin with: answer and end.
    assert render(Processor("[assistant]<think>"), "llava", "why?", image=True, answer="so")[1] == "so"
    assert render(Processor(), "llava", "why?", image=True, answer="so") == (
        "USER: <image>\nwhy? ASSISTANT:",
        " so",
    )
    assert render(Processor("x"), "molmo", "why?", image=True)[0] == "why?"


def test_a_family_without_any_text_says_so():
    with pytest.raises(ModelError, match=r"no chat template and prompts\.yaml has no text"):
        render(Processor(), "unheard_of", "why?", image=True)
