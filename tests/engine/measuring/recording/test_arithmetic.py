"""What estimators add to a pass, against the operations that torch counts."""

import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from fimlora import TargetModule
from fimlora.measuring.recording.arithmetic import Added, added_arithmetic
from fimlora.measuring.recording.fisher_exact import FisherExact
from fimlora.measuring.recording.fisher_sketched import FisherSketched
from fimlora.measuring.recording.quantity import Pass
from fimlora.measuring.recording.recorder import Recorder
from fimlora.model.hooks import watch_modules
from fimlora.model.targets import all_linear_maps, find_targets, locate

RANK = 8
LONGEST = 4096


def minilm_like(n_layers: int = 6):
    config = transformers.BertConfig(
        hidden_size=384, intermediate_size=1536, num_hidden_layers=n_layers,
        num_attention_heads=12, max_position_embeddings=LONGEST, vocab_size=1000,
    )  # fmt: skip
    return transformers.BertForSequenceClassification._from_config(
        config, attn_implementation="eager"
    )


def llama_like():
    config = transformers.LlamaConfig(
        hidden_size=2048, intermediate_size=5632, num_hidden_layers=4, num_attention_heads=16,
        num_key_value_heads=4, max_position_embeddings=LONGEST, vocab_size=1000,
    )  # fmt: skip
    return transformers.LlamaForCausalLM._from_config(config, attn_implementation="eager")


BUILT = {"minilm": minilm_like, "llama": llama_like}


def count_bare(model, n_tokens: int) -> int:
    """Operations of a pass forward and back to the embeddings of the frozen model."""
    model.requires_grad_(requires_grad=False)
    ids = torch.zeros(1, n_tokens, dtype=torch.long, device=model.device)
    embeddings = model.get_input_embeddings()
    handle = embeddings.register_forward_hook(lambda *call: call[-1].requires_grad_())
    with FlopCounterMode(display=False) as counter:
        model(ids).logits.sum().backward()
    handle.remove()
    return counter.get_total_flops()


def count_alone(quantity, modules, n_tokens: int) -> int:
    """Operations of a quantity where no two modules have one input."""
    quantity.begin(Pass(torch.ones(1), None, is_whole=True, numbers=torch.zeros(1).long()))
    with FlopCounterMode(display=False) as counter:
        for module in modules:
            x, g = (
                torch.empty(1, n_tokens, d, device="meta") for d in (module.d_in, module.d_out)
            )
            recorder = Recorder([module], [quantity])
            recorder.begin(torch.ones(1), is_whole=True, numbers=torch.zeros(1).long())
            kept = recorder.keep(module.name, x)
            recorder.on_gradients(module.name, [(kept, g)])
    return counter.get_total_flops()


@pytest.mark.parametrize("n_tokens", [128, LONGEST])
@pytest.mark.parametrize("name", sorted(BUILT))
def test_shares_are_those_of_counted_operations(name, n_tokens):
    """On shapes alone; what is left out of a pass is its attention, and changes no decision."""
    with torch.device("meta"):
        model = BUILT[name]()
    modules = find_targets(model, "all-linear")
    bare = count_bare(model, n_tokens)
    exact = count_alone(FisherExact(modules), modules, n_tokens)
    sketched = count_alone(FisherSketched(modules, rank=RANK, seed=0), modules, n_tokens)

    found = added_arithmetic(modules, all_linear_maps(model), n_tokens=n_tokens, rank=RANK)

    assert found.exact / found.sketched == pytest.approx(exact / sketched, rel=0.01)
    config = model.config
    width, n_layers = config.hidden_size, config.num_hidden_layers
    attention = 12 * n_tokens**2 * width * n_layers
    assert found.exact * (bare - attention) == pytest.approx(exact, rel=0.02)
    assert found.is_exact_worth_it is (exact / bare < 0.1)
    if n_tokens == 128:  # where it is nearly decided
        assert exact / bare <= found.exact <= 1.1 * exact / bare


def test_modules_with_one_input_make_exact_cheaper_not_dearer():
    """Counted on a real pass, where query, key and value share their tokens' products."""
    model, n_tokens = minilm_like(n_layers=2), 128
    modules = find_targets(model, "all-linear")
    bare = count_bare(model, n_tokens)
    located = {module.name: locate(model, module) for module in modules}

    def count(recorder) -> int:
        with (
            FlopCounterMode(display=False) as counter,
            watch_modules(located, recorder.keep, recorder.on_gradients) as watch,
        ):
            watch.begin_forward()
            recorder.begin(torch.ones(1), is_whole=True)
            logits = model(torch.zeros(1, n_tokens, dtype=torch.long)).logits
            recorder.adapt(watch.calls)
            watch.backward(logits.sum())
        return counter.get_total_flops()

    added = count(Recorder(modules, [FisherExact(modules)])) - count(Recorder(modules, []))

    found = added_arithmetic(modules, all_linear_maps(model), n_tokens=n_tokens, rank=RANK)
    assert added / bare < found.exact < 1.3 * added / bare


@pytest.mark.parametrize(
    ("exact", "sketched", "is_worth_it"),
    [(0.099, 0.01, True), (0.1, 0.01, False), (0.4, 0.4, True), (0.4, 0.39, False)],
)
def test_exact_is_taken_below_a_tenth_or_where_nothing_is_saved(exact, sketched, is_worth_it):
    """Small maps and short examples are not worth an approximation."""
    assert Added(exact, sketched).is_exact_worth_it is is_worth_it


def test_shares_by_hand():
    """One map of 4 to 6 features among two, 10 tokens: its gradient costs less than products."""
    target, other = (TargetModule("a", d_in=4, d_out=6), TargetModule("b", d_in=6, d_out=4))

    found = added_arithmetic([target], [target, other], n_tokens=10, rank=3)
    short = added_arithmetic([target], [target, other], n_tokens=2, rank=3)

    assert found == Added(exact=24 / 96, sketched=30 / 96)
    assert short == Added(exact=12.5 / 96, sketched=30 / 96)
