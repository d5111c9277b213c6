"""Long text is cut before it is tokenised, and the tokens in use are those of the whole text."""

import pytest
from transformers import AutoTokenizer

from fimlora_jobs.datasets.columns import TextFields
from fimlora_jobs.datasets.labels import Labels
from fimlora_worker.inputs.cutting import MARGIN_TOKENS, cut_text
from fimlora_worker.inputs.examples import IGNORED, Encoder
from support.model_folders import make_tokenizer, minilm_folder

TEXTS = {
    "words": "w1 w2 w3 w4 unknown " * 3_000,
    "blanks": " " * 30_000 + "w1 w2 w3 " * 3_000,
    "blanks-between": ("w1" + " " * 500) * 300,
    "one-word": "x" * 40_000 + " w1 w2 w3 w4" * 3_000,
    "no-end": "abcdefgh" * 8_000,
    "lines": "w1\n\n" * 10_000,
    "other-script": "\u4f60\u597d\u4e16\u754c" * 9_000,
    "dropped": "\u0301\u200b" * 20_000 + "w1 w2 " * 3_000,
    "short": "w1 w2 w3",
    "empty": "",
}


@pytest.fixture(scope="module", params=["words", "wordpiece"])
def tokenizer(request):
    if request.param == "words":
        return make_tokenizer(pad_token="[PAD]", eos_token="[EOS]")
    return AutoTokenizer.from_pretrained(minilm_folder())


class Counting:
    """A tokenizer that remembers how much text it was given at once."""

    truncation_side = "right"

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.longest = 0

    def __call__(self, text, *args, **options):
        self.longest = max(self.longest, len(text))
        return self.tokenizer(text, *args, **options)


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("max_length", [3, 9, 150])
def test_the_tokens_are_those_of_the_whole_text(tokenizer, text, max_length):
    """Whatever there is much of: words, blanks, letters without an end."""
    whole = tokenizer(text, truncation=True, max_length=max_length)["input_ids"]
    labels = Labels("single_label_classification", (0, 1))
    encoder = Encoder(tokenizer, TextFields(text="t", label="y"), max_length, labels)

    example = encoder.encode({"t": text, "y": 1}, where="row 1")

    assert (example["input_ids"] if example else []) == whole


# Shorter: what is left over of two long texts makes as many pairs as the product of both.
PAIRED = {
    "words": "w1 w2 w3 w4 unknown " * 300,
    "blanks": " " * 4_000 + "w1 w2 w3 " * 300,
    "one-word": "x" * 4_000 + " w1 w2 w3 w4" * 300,
    "no-end": "abcdefgh" * 800,
    "some": "w1 w2 w3 w4 w5 w6 w7 w8 w9 w10 w11 w12",
    "short": "w1 w2 w3",
}


@pytest.mark.parametrize("first", PAIRED.values(), ids=PAIRED)
@pytest.mark.parametrize("second", ["one-word", "some", "short"])
def test_a_pair_is_shared_as_whole_texts_are(tokenizer, first, second):
    """Each gets half; a token that is left over goes to the longer, if that is known."""
    labels, fields = Labels("single_label_classification", (0, 1)), TextFields("a", "b", "y")
    max_length = 18 + tokenizer.num_special_tokens_to_add(pair=True)
    encoder = Encoder(tokenizer, fields, max_length, labels)
    row = {"a": first, "b": PAIRED[second], "y": 1}

    example = encoder.encode(row, where="row 1")

    whole = tokenizer(row["a"], row["b"], truncation=True, max_length=max_length)
    assert example == {**whole, "labels": 1}


def test_a_completion_begins_where_its_prompt_ends():
    """A prompt that fills everything leaves nothing to predict, cut or not."""
    tokenizer = make_tokenizer(eos_token="[EOS]")
    encoder = Encoder(tokenizer, TextFields(prompt="p", completion="c"), 9, None)

    example = encoder.encode({"p": "w0 w1", "c": " w2" * 50_000}, where="row 1")

    assert example["labels"] == [IGNORED, IGNORED, *[7] * 7]
    assert encoder.encode({"p": "w0 " * 50_000, "c": " w2"}, where="row 1") is None


def test_the_end_is_kept_for_a_tokenizer_that_cuts_the_beginning():
    """As it would by itself."""
    tokenizer = make_tokenizer(pad_token="[PAD]", truncation_side="left")
    text = "w1 " * 20_000 + "w2 w3 w4"
    encoder = Encoder(tokenizer, TextFields(text="t"), 5, None)

    example = encoder.encode({"t": text}, where="row 1")

    assert example["input_ids"] == [6, 6, 7, 8, 9]
    assert example["input_ids"] == tokenizer(text, truncation=True, max_length=5)["input_ids"]


def test_only_so_much_is_looked_at():
    """32 characters for each token, and up to 1,024 where these give fewer tokens."""
    wanted = 9 + MARGIN_TOKENS
    plain, blank = Counting(make_tokenizer()), Counting(make_tokenizer())

    assert len(cut_text("w1 " * 10**6, plain, max_length=9)) == plain.longest == wanted * 32
    assert len(cut_text(" " * 10**6, blank, max_length=9)) == wanted * 1_024
    assert blank.longest < wanted * 1_024
