"""Whether padding may be cut is what the model does with it, at the widths at hand."""

import pytest
import torch
import transformers

from fimlora import Settings, measure, measure_streamed
from fimlora.errors import UnsupportedModule
from fimlora.measuring.examples.examples import labelled_examples
from fimlora.measuring.examples.losses import Loss, LossKind
from fimlora.measuring.examples.padding_check import PaddingCheck
from support.statistics import assert_close, assert_identical

VOCABULARY, SAME = 61, 1e-10
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_attention_heads": 2,
    "intermediate_size": 40, "max_position_embeddings": 256, "pad_token_id": 1,
    "bos_token_id": 0, "eos_token_id": 2, "initializer_range": 0.2,
}  # fmt: skip
LAYERS = {"num_hidden_layers": 2}
LLAMA = {**SIZES, **LAYERS, "num_key_value_heads": 1, "head_dim": 16}
LONGROPE = {
    "rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [4.0] * 8,
    "rope_theta": 1e4, "original_max_position_embeddings": 64, "factor": 4.0,
}  # fmt: skip
T5GEMMA = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16,
    "intermediate_size": 40, "layer_types": ["full_attention"] * 2, "pad_token_id": 1,
}  # fmt: skip
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
# Class, config, options, targets; and the batches of which none may be cut.
FROM_FIRST, FROM_SWITCH = (0, 1, 2), (1, 2)
READERS = {
    "longrope": ("Phi3ForCausalLM", "Phi3", {
        **LLAMA, "rope_parameters": LONGROPE, "original_max_position_embeddings": 64,
    }, ["qkv_proj", "o_proj"], FROM_SWITCH),
    "dynamic": ("LlamaForCausalLM", "Llama", {
        **LLAMA, "max_position_embeddings": 64, "rope_parameters": DYNAMIC,
    }, ["q_proj", "v_proj"], FROM_SWITCH),
    "fourier": ("FNetForSequenceClassification", "FNet", {**SIZES, **LAYERS},
                ["intermediate.dense"], FROM_FIRST),
    "last_column": ("XLNetForSequenceClassification", "XLNet", {
        "vocab_size": VOCABULARY, "d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 40,
        "pad_token_id": 1, "initializer_range": 0.2,
    }, ["ff.layer_1"], FROM_FIRST),
    "column_after_the_last": ("T5GemmaForSequenceClassification", "T5Gemma", {
        "vocab_size": VOCABULARY, "encoder": T5GEMMA, "decoder": T5GEMMA, "pad_token_id": 1,
        "initializer_range": 0.2,
    }, ["q_proj", "down_proj"], FROM_FIRST),
    "neighbours": ("ConvBertForSequenceClassification", "ConvBert",
                   {**SIZES, **LAYERS, "embedding_size": 32}, ["query", "value"], FROM_FIRST),
    "blocks_of_attention": ("BigBirdForSequenceClassification", "BigBird",
                            {**SIZES, **LAYERS, "block_size": 8, "num_random_blocks": 1},
                            ["query", "value"], FROM_SWITCH),
    "pools": ("FunnelForSequenceClassification", "Funnel", {
        "vocab_size": VOCABULARY, "block_sizes": [1, 1, 1], "d_model": 32, "n_head": 2,
        "d_head": 16, "d_inner": 40, "pad_token_id": 1, "initializer_range": 0.2,
    }, ["v_head", "linear_1"], FROM_FIRST),
}  # fmt: skip
OTHERS = {
    "rotary": ("LlamaForCausalLM", "Llama", LLAMA, ["q_proj", "v_proj"]),
    "yarn": ("LlamaForCausalLM", "Llama", {**LLAMA, "rope_parameters": {
        "rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4,
        "original_max_position_embeddings": 64,
    }}, ["q_proj", "v_proj"]),
    "sliding_window": ("MistralForCausalLM", "Mistral", {**LLAMA, "sliding_window": 8},
                       ["q_proj", "v_proj"]),
    "linear_bias": ("BloomForCausalLM", "Bloom", {**SIZES, "n_layer": 2, "n_head": 2},
                    ["query_key_value"]),
    "table": ("RobertaForSequenceClassification", "Roberta", {**SIZES, **LAYERS}, ["query"]),
    "state_space": ("MambaForCausalLM", "Mamba", {**SIZES, **LAYERS, "state_size": 4},
                    ["in_proj"]),
}  # fmt: skip
# Long and uneven; the second one is below the switch of 64 columns.
LENGTHS = [(40, 9, 7, 3), (150, 9, 7, 3), (70, 30, 5, 66)]


def build(class_name, config_name, options):
    torch.manual_seed(0)
    config = getattr(transformers, f"{config_name}Config")(**options)
    return getattr(transformers, class_name)(config).eval()


def batch_of(model, lengths, seed):
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), max(lengths))
    ids, mask = torch.ones(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    for row, n in enumerate(lengths):
        ids[row, :n] = torch.randint(3, VOCABULARY, (n,), generator=generator)
        mask[row, :n] = 1
    labels = torch.arange(len(lengths)) % 2
    if "CausalLM" in type(model).__name__:
        labels = ids.masked_fill(mask == 0, -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def batches_of(model):
    return [batch_of(model, lengths, seed) for seed, lengths in enumerate(LENGTHS)]


def widths_of(model):
    """Widths of the passes that are measured, as they come."""
    widths = []

    def note(module, args, kwargs):
        if torch.is_grad_enabled():
            widths.append(kwargs["input_ids"].shape[1])

    model.register_forward_pre_hook(note, with_kwargs=True)
    return widths


def measured_whole(case, **options):
    """Every batch by a freshly built model, with a tensor that nobody knows how to cut."""
    class_name, config_name, config, targets, *_ = case
    found = None
    for number in range(len(LENGTHS)):
        model = build(class_name, config_name, config).double()
        batch = batches_of(model)[number] | {"return_dict": torch.ones(1, 1)}
        one = measure(model, [batch], target_modules=targets, estimator="exact", **options)
        found = one if found is None else found.merge(one)
    return found


@pytest.mark.parametrize("size", [None, 1, 2])
@pytest.mark.parametrize("name", READERS)
def test_a_model_that_reads_padding_gets_all_of_it(name, size):
    """From the first batch on where it shows, whatever the size of micro-batches."""
    class_name, config_name, config, targets, whole = READERS[name]
    model = build(class_name, config_name, config).double()
    widths = widths_of(model)

    found = measure(
        model, batches_of(model), target_modules=targets, micro_batch_size=size,
        estimator="exact",
    )  # fmt: skip

    assert_close(found, measured_whole(READERS[name]), SAME)
    assert {max(LENGTHS[n]) for n in whole} <= {*widths}
    cut = {n for lengths in LENGTHS for n in lengths} - {max(LENGTHS[n]) for n in range(3)}
    assert bool(cut & {*widths}) == (whole is FROM_SWITCH and size is not None)


@pytest.mark.parametrize("size", [None, 1])
@pytest.mark.parametrize("name", OTHERS)
def test_a_model_that_does_not_is_cut(name, size):
    """And nothing changes; some compute in float32 whatever the model's dtype."""
    class_name, config_name, config, targets = OTHERS[name]
    model = build(class_name, config_name, config).double()
    widths = widths_of(model)

    found = measure(
        model, batches_of(model), target_modules=targets, micro_batch_size=size,
        estimator="exact",
    )  # fmt: skip

    assert_close(found, measured_whole(OTHERS[name]), 1e-6 if name == "linear_bias" else SAME)
    assert 9 in widths


@pytest.mark.parametrize("size", [None, 2])
@pytest.mark.parametrize("name", READERS)
def test_streamed_decides_alike(name, size, tmp_path):
    """To the last bit, also where a pass would leave the model other than it was."""
    class_name, config_name, config, targets, _ = READERS[name]
    model = build(class_name, config_name, config)
    model.save_pretrained(tmp_path)

    streamed = measure_streamed(
        tmp_path,
        batches_of(model),
        Settings(target_modules=targets, micro_batch_size=size),
        model_class=type(model),
    )

    resident = measure(model, batches_of(model), target_modules=targets, micro_batch_size=size)
    assert_identical(streamed, resident)


def test_attention_that_only_a_question_replaces_is_no_refusal(tmp_path):
    """All measured examples are long; the few tokens that a loss is compared on are not."""
    class_name, config_name, config, targets, _ = READERS["blocks_of_attention"]
    model = build(class_name, config_name, config)
    model.save_pretrained(tmp_path)
    batch, settings = batch_of(model, (150, 9, 7, 3), 0), Settings(target_modules=targets)

    streamed = measure_streamed(tmp_path, [batch], settings, model_class=type(model))

    assert_identical(streamed, measure(model, [batch], target_modules=targets))


@pytest.mark.parametrize("name", READERS)
def test_the_model_comes_back_as_it_was(name):
    """Frequencies that have grown and attention that was replaced are put back."""
    class_name, config_name, config, targets, _ = READERS[name]
    model = build(class_name, config_name, config)
    modules = dict(model.named_modules())
    buffers = {n: (b, b.clone()) for n, b in model.named_buffers()}
    plain = {
        n: {k: v for k, v in vars(m).items() if isinstance(v, (int, float, str))}
        for n, m in modules.items()
    }

    measure(model, batches_of(model), target_modules=targets)

    assert all(a is b for a, b in zip(modules.values(), model.modules(), strict=True))
    for name, buffer in model.named_buffers():
        assert buffer is buffers[name][0]
        assert torch.equal(buffer, buffers[name][1])
    for name, module in model.named_modules():
        now = {k: v for k, v in vars(module).items() if isinstance(v, (int, float, str))}
        assert now == plain[name]


@pytest.mark.parametrize("executor", ["resident", "streamed"])
def test_a_model_that_draws_its_attention_is_refused(executor, tmp_path):
    """Reformer hashes by random planes, others every time."""
    options = {
        **SIZES, "attention_head_size": 16, "feed_forward_size": 40, "axial_pos_embds": False,
        "attn_layers": ["lsh", "local"], "lsh_attn_chunk_length": 8, "num_buckets": 4,
        "local_attn_chunk_length": 8, "is_decoder": False,
    }  # fmt: skip
    model = build("ReformerForSequenceClassification", "Reformer", options)
    model.save_pretrained(tmp_path)
    settings, batches = Settings(target_modules=["value"]), batches_of(model)
    run = {
        "resident": lambda: measure(model, batches, target_modules=["value"]),
        "streamed": lambda: measure_streamed(
            tmp_path, batches, settings, model_class=type(model)
        ),
    }[executor]

    with pytest.raises(UnsupportedModule, match=r"Reformer.* draws random numbers"):
        run()


def test_widths_are_asked_about_once():
    """Ranges that have a width in common are one."""
    check = PaddingCheck()

    for widths in [(3, 9), (20, 40), (9, 12), (5, 11), (10, 25)]:
        check._add(widths)

    assert check.same == [(3, 40)]
    assert check._knows((4, 39))
    assert not check._knows((2, 39))


def test_only_what_is_new_is_asked():
    """All tokens of two examples at first; then a shorter one up to what is known already."""
    check, loss = PaddingCheck(), Loss(LossKind.CAUSAL_LM)
    model = build("LlamaForCausalLM", "Llama", LLAMA)
    asked = []

    for lengths in [(40, 20, 12), (40, 30, 13), (40, 9), (40, 9), (50, 20)]:
        examples = labelled_examples(batch_of(model, lengths, 0), loss, torch.device("cpu"))
        pairs = check.ask(examples, lambda _: torch.zeros(1))
        asked.append([(p.narrow.trace.width, p.wide.trace.width) for p in pairs])

    assert asked == [[(12, 40), (11, 16), (20, 40)], [], [(9, 12)], [], [(20, 50)]]
    assert check.same == [(9, 50)]
