"""Several embeddings and heads of one weight: all are seen, told of and refused together."""

import itertools

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from families.registry import FAMILIES
from fimlora import apply_fim_ranks
from fimlora.errors import UnsupportedModule
from fimlora.measuring.settings import Settings
from fimlora.model.targets import facts_of_ties, ties_among

# Their vocabulary stands in four modules: one that nobody calls, one in either half, and the head.
FOURFOLD = {
    "t5/seq2seq_lm": ("shared", "encoder.embed_tokens", "decoder.embed_tokens", "lm_head"),
    "bart/seq2seq_lm": (
        "model.shared",
        "model.encoder.embed_tokens",
        "model.decoder.embed_tokens",
        "lm_head",
    ),
}
# Of T5 alone: the tables of BART scale what they give, and are no targets.
PAIRS = list(itertools.combinations(FOURFOLD["t5/seq2seq_lm"], 2))


class TwoTables(nn.Module):
    """Two vocabularies, each with heads of its own, and a third without."""

    def __init__(self) -> None:
        super().__init__()
        for side in ("source", "target"):
            setattr(self, f"{side}_table", nn.Embedding(10, 8))
            for n in (1, 2):
                head = nn.Linear(8, 10, bias=False)
                head.weight = getattr(self, f"{side}_table").weight
                setattr(self, f"{side}_head_{n}", head)
        self.alone = nn.Embedding(10, 8)
        self.apart = nn.Linear(8, 10)


@pytest.mark.parametrize("name", FOURFOLD)
def test_all_modules_of_one_weight_are_one_group(name):
    """As looking at each pair of parameters finds."""
    model = FAMILIES[name].pretrained()
    modules = [n for n, m in model.named_modules() if hasattr(m, "weight")]

    [group] = ties_among(model, modules)

    assert group == FOURFOLD[name]
    first = model.get_submodule(group[0]).weight
    assert set(group) == {n for n in modules if model.get_submodule(n).weight is first}


def test_each_weight_has_a_group_of_its_own():
    """Two heads of one table, and another table with two."""
    model = TwoTables()
    names = dict(model.named_modules())

    assert ties_among(model, names) == [
        ("source_table", "source_head_1", "source_head_2"),
        ("target_table", "target_head_1", "target_head_2"),
    ]
    assert ties_among(model, ["source_head_1", "source_head_2", "target_table"]) == [
        ("source_head_1", "source_head_2")
    ]
    assert ties_among(model, ["source_head_1", "target_table", "alone", "apart"]) == []


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_any_two_of_them_are_refused(pair):
    """By both names."""
    with pytest.raises(UnsupportedModule, match="are one weight") as caught:
        Settings(target_modules=[*pair]).choose(FAMILIES["t5/seq2seq_lm"].pretrained())

    assert f"{pair[0]!r} and {pair[1]!r} are one weight" in str(caught.value)


@pytest.mark.parametrize("name", FOURFOLD)
def test_of_one_of_them_all_others_are_told(name):
    """But those that train whole, as copies."""
    model = FAMILIES[name].pretrained()
    *others, last = FOURFOLD[name]

    assert facts_of_ties(model, [last], saved=[]) == {"tied_targets": {last: ", ".join(others)}}
    assert facts_of_ties(model, [last], saved=others[1:]) == {"tied_targets": {last: others[0]}}
    assert facts_of_ties(model, [last], saved=[last]) == {}
    assert facts_of_ties(model, ["q", "q_proj"], saved=[]) == {}


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
@pytest.mark.filterwarnings("ignore:.*tied")
def test_three_of_a_live_adapter_get_one_rank():
    """Groups that overlapped could not be planned."""
    name = "t5/seq2seq_lm"
    _, *tied = FOURFOLD[name]
    torch.manual_seed(0)
    ids = torch.randint(3, 30, (2, 7))
    config = LoraConfig(r=3, lora_alpha=6, target_modules=[*tied, "q", "v"])

    plan = apply_fim_ranks(
        get_peft_model(FAMILIES[name].pretrained(), config),
        [{"input_ids": ids, "labels": ids}],
    )

    assert len({plan.ranks[each] for each in tied}) == 1
    assert len(set(plan.ranks.values())) > 1
