"""Prompt and completion as text: the tokens and labels that TRL trains on, row for row."""

import pytest
from tokenizers.processors import TemplateProcessing
from trl.data_utils import common_prefix_length

from fimlora_jobs.datasets.columns import TextFields
from fimlora_worker.inputs.examples import Encoder
from fimlora_worker.inputs.token_spans import IGNORED, label_spans
from support.chats import chat_tokenizer
from support.model_folders import make_tokenizer

FIELDS = TextFields(prompt="p", completion="c")
ROWS = {
    "a word apart": ("Question: how?\nAnswer:", " Like this."),
    "a word goes on": ("Use text", "wrap for that"),
    "a space before": ("Answer: ", "yes"),
    "nothing before": ("", "Just this."),
    "nothing after": ("Only a question", ""),
    "other letters": ("Wie heißt 漢", "字 é?"),
    "long": ("word " * 150, "other " * 9),
}


def by_trl(tokenizer, prompt: str, completion: str):
    """What `SFTTrainer` makes of a row, and labels with ``completion_only_loss``."""
    eos = tokenizer.eos_token
    completion += "" if completion.endswith(eos) else eos
    before = tokenizer(prompt)["input_ids"]
    ids = tokenizer(prompt + completion)["input_ids"]
    n_before = common_prefix_length(before, ids)
    return ids, [IGNORED] * n_before + ids[n_before:]


def encode(tokenizer, prompt: str, completion: str):
    row = {"p": prompt, "c": completion}
    example = Encoder(tokenizer, FIELDS, 512, None).encode(row, where="row 1")
    return example["input_ids"], example["labels"]


@pytest.mark.parametrize("starts", [False, True], ids=["plain", "adds a beginning"])
@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_a_row_is_tokenised_as_trl_does(row, starts):
    """Tokens may reach over the edge; such a one is learned."""
    tokenizer = chat_tokenizer()
    if starts:
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
        )

    assert encode(tokenizer, *row) == by_trl(tokenizer, *row)


def test_a_merge_over_the_edge_is_learned():
    """Otherwise nobody would ask for the end of that word."""
    tokenizer = chat_tokenizer()
    whole = tokenizer("the")["input_ids"]
    assert len(whole) == 1

    ids, labels = encode(tokenizer, "t", "he")

    assert (ids, labels) == ([*whole, tokenizer.eos_token_id],) * 2


def test_the_end_of_text_is_there_once():
    """Also where the tokenizer adds one, or the row has it; TRL trains two of them then."""
    adds_end = chat_tokenizer()
    adds_end.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", adds_end.eos_token_id)]
    )
    expected = encode(chat_tokenizer(), "Ask:", " yes")

    assert encode(adds_end, "Ask:", " yes") == expected
    assert encode(chat_tokenizer(), "Ask:", " yes</s>") == expected
    assert by_trl(adds_end, "Ask:", " yes")[0] == [*expected[0], adds_end.eos_token_id]


def test_an_instruction_is_worded_as_in_alpaca():
    """The data set's own text, of which the response is learned; an empty input is none."""
    tokenizer = chat_tokenizer()
    fields = TextFields(instruction="i", input="n", completion="o")
    encoder = Encoder(tokenizer, fields, 512, None)
    with_input = encoder.encode({"i": "Add.", "n": "1, 2", "o": "3"}, where="row 1")
    without, empty = (
        encoder.encode({"i": "Greet.", "n": given, "o": "Hi"}, where="row 1")
        for given in (None, "")
    )

    text = tokenizer.decode(with_input["input_ids"])
    assert text.startswith(
        "Below is an instruction that describes a task, paired with an input"
    )
    assert "### Instruction:\nAdd.\n\n### Input:\n1, 2\n\n### Response:\n3" in text
    assert tokenizer.decode([x for x in with_input["labels"] if x != IGNORED]) == "3</s>"
    assert without == empty
    assert "### Input" not in tokenizer.decode(without["input_ids"])


class WithoutOffsets:
    """A tokenizer written in Python: ids and nothing else."""

    is_fast = False

    def __init__(self) -> None:
        self.inner = make_tokenizer()

    def __call__(self, text, *, return_offsets_mapping=False, **options):
        if return_offsets_mapping:
            raise NotImplementedError
        return {"input_ids": self.inner(text, **options)["input_ids"]}


@pytest.mark.parametrize("spans", [[(6, 12)], [(0, 3), (6, 9)], [], [(0, 15)]])
def test_a_tokenizer_without_offsets_gives_the_same_labels(spans):
    """Then the tokens of a beginning say where it ends."""
    text = "w1 w2 w3 w4 w5 "

    assert label_spans(WithoutOffsets(), text, spans) == label_spans(
        make_tokenizer(), text, spans
    )
