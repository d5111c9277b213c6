"""How many tokens a model has positions for is what its own forward pass says."""

import pytest
import torch
import transformers
from transformers import GPT2Config, LlamaConfig, LlamaForCausalLM

from fimlora import Settings, measure, measure_streamed
from fimlora.errors import InvalidOption
from fimlora.measuring.resident import measure_resident
from fimlora.model.input_limits import InputLimits, input_limits

VOCABULARY, STATED = 40, 24
COMMON = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 1,
    "num_attention_heads": 2, "intermediate_size": 20, "max_position_embeddings": STATED,
    "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 20, "decoder_ffn_dim": 20,
    "dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 20, "ffn_dim": 20,
    "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": STATED, "n_inner": 20,
    "word_embed_proj_dim": 16, "attention_window": 4, "embedding_size": 16, "emb_dim": 16,
    "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2,
}  # fmt: skip
# Behind the row of padding, behind two rows, from the first row on, and in rows that no
# position may use.
BEHIND_PADDING = [
    "Roberta", "XLMRoberta", "XLMRobertaXL", "Camembert", "RobertaPreLayerNorm",
    "Data2VecText", "MPNet", "Longformer", "IBert", "Xmod",
]  # fmt: skip
OTHERS = [
    "Bert",
    "Electra",
    "DistilBert",
    "OPT",
    "Bart",
    "BioGpt",
    "GPT2",
    "Mra",
    "XLM",
    "Albert",
]


def build(name, **options):
    config = getattr(transformers, f"{name}Config")(**{**COMMON, **options})
    if name == "Xmod":
        config.default_language = "en_XX"
    torch.manual_seed(0)
    return getattr(transformers, f"{name}Model")(config).eval()


def runs(model, n_tokens):
    ids = torch.full((2, n_tokens), 5)
    try:
        with torch.no_grad():
            model(input_ids=ids, attention_mask=torch.ones_like(ids))
    except (IndexError, RuntimeError, ValueError):
        return False
    return True


@pytest.mark.parametrize("name", [*BEHIND_PADDING, *OTHERS])
def test_the_limit_is_the_longest_input_that_runs(name):
    """Tried out: as many tokens run, and one more does not."""
    model = build(name)

    found = input_limits(model)

    assert found.n_ids == VOCABULARY
    assert found.n_positions == STATED - 2 * (name in BEHIND_PADDING)
    assert runs(model, found.n_positions)
    assert not runs(model, found.n_positions + 1)


def test_another_padding_moves_the_limit():
    """Positions begin behind the row of padding, wherever that is."""
    model = build("Roberta", pad_token_id=5)

    assert input_limits(model).n_positions == STATED - 6


@pytest.mark.parametrize("name", ["Llama", "T5", "Bloom"])
def test_positions_without_a_table_never_end(name):
    """Rotary, relative and linear ones are computed."""
    model = build(name, d_kv=8, d_ff=20, num_layers=1, num_heads=2)

    assert input_limits(model) == InputLimits(VOCABULARY, None)


def test_a_table_of_images_is_no_limit_of_a_text():
    """Its vision tower has 4 patches."""
    text = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 1,
            "num_attention_heads": 2, "intermediate_size": 20}  # fmt: skip
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
              "intermediate_size": 20, "image_size": 4, "patch_size": 2}  # fmt: skip
    config = transformers.LlavaConfig(
        text_config=LlamaConfig(**text), vision_config=transformers.CLIPVisionConfig(**vision)
    )

    found = input_limits(transformers.LlavaForConditionalGeneration(config))

    assert found == InputLimits(VOCABULARY, None, image_token=config.image_token_id)


def gpt2():
    torch.manual_seed(0)
    config = GPT2Config(**{k: COMMON[k] for k in ("vocab_size", "n_positions")},
                        n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=2)  # fmt: skip
    return transformers.GPT2LMHeadModel(config).eval()


def batch_of(n_tokens, token=5):
    ids = torch.full((2, n_tokens), token)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


REFUSED = {
    "too_long": (batch_of(STATED + 1), rf"batch 2 of 2 has {STATED + 1} tokens.* {STATED} pos"),
    "id_too_large": (batch_of(3, VOCABULARY), rf"token id {VOCABULARY} in batch 2 of 2.* 0 to 39"),
    "id_below_zero": (batch_of(3, -1), r"token id -1 in batch 2 of 2"),
    "position_too_large": (
        batch_of(3) | {"position_ids": torch.tensor([[0, 1, 24]] * 2)},
        r"batch 2 of 2 has 25 tokens",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("batch", "message"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("executor", ["resident", "streamed"])
def test_what_a_model_has_no_room_for_is_refused_by_name(executor, batch, message, tmp_path):
    """Not by an index error of torch, which on a GPU ends the process."""
    batches, settings = [batch_of(STATED), batch], Settings(target_modules=["c_attn"])
    model = gpt2()
    model.save_pretrained(tmp_path)
    given, run = {
        "resident": (model, measure_resident),
        "streamed": (tmp_path, measure_streamed),
    }[executor]

    with pytest.raises(InvalidOption, match=message):
        run(given, batches, settings)


def test_rotary_positions_may_go_beyond_what_the_config_states():
    """It says what the model was trained with, and not what runs."""
    torch.manual_seed(0)
    config = LlamaConfig(**{k: COMMON[k] for k in list(COMMON)[:6]}, num_key_value_heads=1)
    model = LlamaForCausalLM(config).eval()

    found = measure(model, [batch_of(STATED + 6)], target_modules=["q_proj"])

    assert found.n_examples == 2
