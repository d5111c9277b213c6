"""Each kind of training that is not what was planned, made with real PEFT and seen on the model
and in its files alike. Most were met in public trackers, where nothing had said a word."""

import warnings
from dataclasses import replace

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from fimlora.adapter.verifying.compare import compare
from fimlora.adapter.verifying.folder import verify_adapter
from fimlora.adapter.verifying.intended import read_intended
from fimlora.adapter.verifying.live import see_model
from support.models import N_CLASSES, PAD, VOCABULARY, tiny
from support.trained_adapters import edit_config, edit_tensors
from support.verifying import NAME, SOURCE, base, planned_in


@pytest.fixture
def case(tmp_path):
    """A plan of ranks 1 to 8 in layout B, with initial weights."""
    return planned_in(tmp_path / "plan", weights=True)


@pytest.fixture
def save(tmp_path):
    """Saves a model with PEFT; returns the folder."""

    def save(model, name="saved"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.save_pretrained(tmp_path / name)
        return tmp_path / name

    return save


def seen_both(case, model, folder):
    """What is found on a model and in its files."""
    intended = read_intended(case.folder)
    return compare(intended, see_model(model, intended)), verify_adapter(folder, case.folder)


def quietly(make):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what PEFT says of it, it says to nobody in a cluster
        return make()


def adapted(model, config):
    """What PEFT makes of a config; a name that it gives the base model besides is no matter."""
    return quietly(lambda: get_peft_model(model, config))


def prefixed(pattern):
    return {f"base_model.model.{key}": value for key, value in pattern.items()}


def kinds(case):
    """How a planned config is changed on its way, and the fault that is to be named first."""
    rank, alpha = case.config().rank_pattern, case.config().alpha_pattern
    other = dict.fromkeys(("vision.layers.0.q_proj",), 4)
    return {
        "a trainer without patterns": ({"rank_pattern": {}, "alpha_pattern": {}}, "default_rank"),
        "one key is lost": (
            {"rank_pattern": dict([*rank.items()][1:]), "alpha_pattern": dict([*alpha.items()][1:])},
            "default_rank",
        ),
        "the alpha pattern is lost": ({"alpha_pattern": {}}, "alpha_lost"),
        "the rank pattern is lost": ({"rank_pattern": {}}, "default_rank"),
        "another alpha": ({"lora_alpha": 8}, "scale"),
        "another default rank": ({"r": 16, "lora_alpha": 32}, "default_rank"),
        "ranks are stabilised": ({"use_rslora": True}, "rslora"),
        "keys of the wrapper": (
            {"rank_pattern": prefixed(rank), "alpha_pattern": prefixed(alpha)},
            "pattern_unmatched",
        ),
        "a key for no module": ({"rank_pattern": rank | other}, "pattern_unmatched"),
        "fewer modules": ({"target_modules": {"q_proj", "v_proj"}}, "missing"),
        "layers left out": ({"layers_to_transform": [0]}, "missing"),
        "another module in full": ({"modules_to_save": ["score", "embed_tokens"]}, "saved"),
        "a target in full": ({"modules_to_save": ["score", "down_proj"]}, "missing"),
        "biases train": ({"bias": "all"}, "other_kind"),
        "DoRA": ({"use_dora": True}, "other_kind"),
        "a bias of LoRA": ({"lora_bias": True}, "other_kind"),
        "another initialisation": ({"init_lora_weights": "pissa"}, "other_kind"),
    }  # fmt: skip


KINDS = [
    *("a trainer without patterns", "one key is lost", "the alpha pattern is lost"),
    *("the rank pattern is lost", "another alpha", "another default rank"),
    *("ranks are stabilised", "keys of the wrapper", "a key for no module", "fewer modules"),
    *("layers left out", "another module in full", "a target in full", "biases train", "DoRA"),
    *("a bias of LoRA", "another initialisation"),
]


def test_every_kind_is_tried(case):
    assert {*kinds(case)} == {*KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_config_is_caught(case, save, kind):
    """On the model before a step, and in what it saves, with a sentence and the next step."""
    changes, code = kinds(case)[kind]
    model = quietly(lambda: case.model(**changes))

    for found in seen_both(case, model, save(model)):
        assert found.faults[0].code == code, found.faults
        assert found.faults[0].message in found.sentence
        assert found.next_step in found.sentence
        assert found.next_step
        assert not found.as_planned


def test_as_planned_is_as_planned(case, save):
    """Of the plan's own files, with and without tensors, and of a model made from them."""
    model = case.model()

    for found in (
        *seen_both(case, model, save(model)),
        verify_adapter(case.folder, case.folder),
    ):
        assert found.as_planned, found.faults
        assert found.found == found.planned
        assert found.found.parameters == case.plan.spent.parameters
    (case.folder / "adapter_model.safetensors").unlink()
    alone = verify_adapter(case.folder, case.folder)
    assert alone.as_planned
    assert "only what adapter_config.json says" in alone.notes[0]


def test_a_config_alone_is_held_against_the_plan(case):
    """Before anything is trained, what it would make of the planned modules is known."""
    (case.folder / "adapter_model.safetensors").unlink()
    edit_config(case.folder, alpha_pattern={})

    assert verify_adapter(case.folder, case.folder).faults[0].code == "alpha_lost"


def test_stabilised_ranks_that_are_planned(tmp_path, save):
    """On is right then, and off is the fault."""
    case = planned_in(tmp_path / "plan", scaling="rslora", lora_alpha=16)

    right, wrong = case.model(), case.model(use_rslora=False)

    for found in seen_both(case, right, save(right)):
        assert found.as_planned, found.faults
    for found in seen_both(case, wrong, save(wrong, "wrong")):
        assert found.faults[0].code == "rslora"


class TestOtherModels:
    def test_another_base_model_by_name(self, case, save):
        model = base()
        model.name_or_path = model.config._name_or_path = "org/other"
        model = adapted(model, case.config())

        for found in seen_both(case, model, save(model)):
            assert found.faults[0].code == "base_model"
            assert "org/other" in found.sentence

    def test_another_commit_in_the_cache_of_the_hub(self, case, save):
        """The path tells id and commit; the right one is the planned model."""
        for commit, codes in (("f" * 16, ["base_model"]), (SOURCE["revision"], [])):
            model = base()
            model.name_or_path = f"/cache/models--org--model/snapshots/{commit}"
            model = adapted(model, case.config())
            for found in seen_both(case, model, save(model)):
                assert [fault.code for fault in found.faults] == codes

    def test_a_copy_that_is_vouched_for(self, case, save):
        """Its name is another; whoever trains says that it is meant."""
        model = base()
        model.name_or_path = model.config._name_or_path = "mirror/model"
        folder = save(adapted(model, case.config()))

        assert not verify_adapter(folder, case.folder).as_planned
        assert verify_adapter(folder, case.folder, base_model="mirror/model").as_planned

    def test_a_path_tells_nothing_and_that_is_said(self, case, save):
        model = base()
        model.name_or_path = "/models/mine"
        folder = save(adapted(model, case.config()))

        found = verify_adapter(folder, case.folder)
        assert found.as_planned
        assert any("/models/mine" in note for note in found.notes)

    def test_layers_of_other_sizes(self, case, save):
        """The same names on a wider model."""
        config = transformers.LlamaConfig(
            vocab_size=VOCABULARY, pad_token_id=PAD, hidden_size=32, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, intermediate_size=40,
            num_labels=N_CLASSES,
        )  # fmt: skip
        wider = transformers.LlamaForSequenceClassification(config)
        wider.name_or_path = "/models/mine"
        model = adapted(wider, case.config())

        for found in seen_both(case, model, save(model)):
            assert {fault.code for fault in found.faults} == {"shape"}

    def test_another_architecture(self, tmp_path):
        """Seen on the model, whatever it is called."""
        case = planned_in(tmp_path / "plan")
        intended = read_intended(case.folder)
        intended = replace(intended, model_type="mistral")

        found = compare(intended, see_model(case.model(), intended))
        assert found.faults[0].code == "base_model"


class TestNames:
    """A wrapper's other names."""

    def test_a_whole_that_holds_the_text_model(self, tmp_path, save):
        """``model.language_model.layers`` in place of ``model.layers``, and every rank lost."""
        case = planned_in(tmp_path / "plan")

        class Whole(nn.Module):
            def __init__(self):
                super().__init__()
                inner = base()
                self.config, self.model, self.score = inner.config, nn.Module(), inner.score
                self.model.language_model = inner.model

        model = adapted(Whole(), case.config(task_type=None))

        for found in seen_both(case, model, save(model)):
            assert found.faults[0].code == "renamed"
            assert "model.language_model.layers.0" in found.sentence
            codes = {fault.code for fault in found.faults}
            assert {"renamed", "pattern_unmatched", "default_rank"} <= codes
            assert not codes & {"missing", "extra"}

    def test_names_that_hold_for_both_classes(self, tmp_path):
        """A plan that was made to hold for the whole is as planned on the whole."""
        from support.text_and_image import qwen

        text, whole = qwen()
        plan, config = _shared(text, whole, tmp_path)
        intended = read_intended(plan)

        for model in (text, whole):
            on_it = adapted(model, LoraConfig(**config))
            found = compare(intended, see_model(on_it, intended))
            assert found.as_planned, found.faults[:3]

    @pytest.mark.parametrize("part", ["module", "_orig_mod", "_fsdp_wrapped_module"])
    def test_tensors_named_by_a_wrapper(self, case, save, part):
        """PEFT would leave all of them aside."""
        folder = save(case.model())

        def rename(tensors):
            for key in list(tensors):
                tensors[key.replace("base_model.model.", f"base_model.model.{part}.")] = (
                    tensors.pop(key)
                )

        edit_tensors(folder, rename)
        found = verify_adapter(folder, case.folder)
        assert found.faults[0].code == "renamed"
        assert part in found.sentence

    def test_a_compiled_model_is_seen_through_and_its_files_are_not(self, case, save):
        """On the model the wrapper is harmless; in names of tensors it is not."""
        model = adapted(torch.compile(base(), backend="eager"), case.config(task_type=None))

        live, files = seen_both(case, model, save(model))
        assert live.as_planned, live.faults
        assert files.faults[0].code == "renamed"

    @pytest.mark.parametrize(
        "rename",
        [
            lambda key: key.replace("lora_A.weight", "lora_A.default.weight"),
            lambda key: key.removeprefix("base_model.model."),
            lambda key: f"_orig_mod.{key}",
        ],
    )
    def test_a_raw_state(self, case, save, rename):
        """Names as no save_pretrained writes them."""
        folder = save(case.model())

        def edit(tensors):
            for key in list(tensors):
                tensors[rename(key)] = tensors.pop(key)

        edit_tensors(folder, edit)
        found = verify_adapter(folder, case.folder)
        assert found.faults
        assert {fault.code for fault in found.faults} <= {"tensors", "renamed"}


def _shared(text, whole, folder):
    """A plan of a text model whose names hold for the whole, and its config."""
    import json

    from fimlora import find_targets, write_adapter
    from support.plans import plan_of

    plan = plan_of(find_targets(text, ["q_proj", "down_proj"]), [2, 5])
    write_adapter(
        plan, folder / "shared", base_model="org/model", task_type=None, model=text,
        other_model=whole,
    )  # fmt: skip
    return folder / "shared", json.loads((folder / "shared/adapter_config.json").read_text())


class TestMerged:
    """One map in place of several."""

    def test_projections_in_one(self, case, save):
        """Phi-3 has q, k and v in one, gate and up in another, at the same sizes."""
        config = transformers.Phi3Config(
            vocab_size=VOCABULARY, pad_token_id=PAD, hidden_size=24, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, intermediate_size=40, num_labels=N_CLASSES,
            bos_token_id=1, eos_token_id=2,
        )  # fmt: skip
        phi = transformers.Phi3ForSequenceClassification(config)
        phi.name_or_path = "/models/mine"
        targets = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
        model = adapted(phi, case.config(target_modules=targets))

        for found in seen_both(case, model, save(model)):
            fused = {f.module: f.planned for f in found.faults if f.code == "fused"}
            assert {name.rpartition(".")[2] for name in fused} == {"qkv_proj", "gate_up_proj"}
            assert "q_proj" in fused["model.layers.0.self_attn.qkv_proj"]
            assert not {f.code for f in found.faults} & {"missing", "extra"}

    def test_projections_in_one_by_their_size(self, case, save):
        """A name that nobody knows, as wide as its parts together."""
        model = base()
        for layer in model.model.layers:
            layer.self_attn.all_three = nn.Linear(24, 24 + 12 + 12, bias=False)
            for part in ("q_proj", "k_proj", "v_proj"):
                delattr(layer.self_attn, part)
        targets = ["all_three", "o_proj", "gate_proj", "up_proj", "down_proj"]
        model = adapted(model, case.config(target_modules=targets))

        found = verify_adapter(save(model), case.folder)
        assert {f.module for f in found.faults if f.code == "fused"} == {
            f"model.layers.{i}.self_attn.all_three" for i in range(2)
        }

    def test_experts_that_peft_rewrites_targets_onto(self, tmp_path, save):
        """The planned modules of dense layers get no LoRA; PEFT says nothing."""
        from support.families import build

        model = build("qwen3_moe_mlp_only")
        dense = [n for n, m in model.named_modules() if n.endswith("_proj") and ".mlp." in n]
        dense = [n for n in dense if isinstance(model.get_submodule(n), nn.Linear)]
        assert dense
        from fimlora import find_targets
        from support.plans import plan_of

        plan = plan_of(find_targets(model, dense), [4])
        fused = adapted(model, LoraConfig(r=4, target_modules=dense))

        intended = read_intended(plan)
        found = compare(intended, see_model(fused, intended))
        assert "fused" in {fault.code for fault in found.faults}
        folder = save(fused)
        assert not verify_adapter(folder, plan).as_planned


class TestPadding:
    """Layout C, whose padding has to be zero."""

    @pytest.fixture
    def padded(self, tmp_path):
        return planned_in(tmp_path / "plan", layout="C", weights=True)

    def test_right(self, padded, save):
        """As written, as loaded and as saved."""
        model = PeftModel.from_pretrained(base(), padded.folder, is_trainable=True)

        for found in (
            *seen_both(padded, model, save(model)),
            verify_adapter(padded.folder, padded.folder),
        ):
            assert found.as_planned, found.faults
            assert any("padding is zero" in note for note in found.notes)
            assert found.found.parameters == found.planned.parameters

    def test_drawn_anew(self, padded, save):
        """From the config alone A is drawn in full, and all of it would train."""
        model = padded.model()

        for found in seen_both(padded, model, save(model)):
            assert {fault.code for fault in found.faults} == {"padding"}

    def test_one_value(self, padded):
        """In one column of one B."""
        key = "base_model.model.model.layers.0.mlp.down_proj.lora_B.weight"
        edit_tensors(padded.folder, lambda tensors: tensors[key][:, -1].fill_(1e-8))

        found = verify_adapter(padded.folder, padded.folder)
        assert [f.module for f in found.faults] == ["model.layers.0.mlp.down_proj"]

    def test_a_padded_adapter_of_a_plan_in_layout_b(self, case, tmp_path):
        """What a server or a trainer of one rank is given is the same plan."""
        padded = planned_in(tmp_path / "padded", layout="C", weights=True)

        assert verify_adapter(padded.folder, case.folder).as_planned


class TestLayers:
    """What only a live model shows."""

    def found(self, case, model):
        intended = read_intended(case.folder)
        return compare(intended, see_model(model, intended))

    def test_no_adapter(self, case):
        assert self.found(case, base()).faults[0].code == "no_adapter"

    def test_frozen(self, case):
        """Loaded for inference, as from_pretrained does when nothing is said."""
        model = PeftModel.from_pretrained(base(), case.folder)

        assert self.found(case, model).faults[0].code == "frozen"

    def test_the_base_model_trains_as_well(self, case):
        model = case.model()
        model.base_model.model.model.norm.weight.requires_grad_(True)

        found = self.found(case, model)
        assert [fault.code for fault in found.faults] == ["trains_besides"]
        assert "model.norm.weight" in found.sentence

    def test_merged(self, case):
        model = case.model()
        model.merge_adapter()

        assert self.found(case, model).faults[0].code == "merged"

    def test_layers_that_are_not_what_the_config_says(self, case):
        """As after a resize by hand: a clone made from the config is another adapter."""
        model = case.model()
        model.peft_config["default"].rank_pattern = {}

        assert "config" in {fault.code for fault in self.found(case, model).faults}

    def test_resized_in_place(self, case):
        """By us: the layers and the config are the plan."""
        from fimlora.adapter.live import resize_adapter
        from support.peft_models import uniform_peft

        _, targets = tiny(NAME)
        model = uniform_peft(base(), targets, task_type="SEQ_CLS")
        assert not self.found(case, model).as_planned
        resize_adapter(model, case.plan)

        assert self.found(case, model).as_planned, self.found(case, model).faults

    def test_an_adapter_of_transformers_own(self, tmp_path):
        """``model.add_adapter``, without PEFT's wrapper."""
        case = planned_in(
            tmp_path / "plan", modules_to_save=None, task_type="CAUSAL_LM", name="llama_gqa_lm"
        )
        model, _ = tiny("llama_gqa_lm")
        model.add_adapter(case.config())

        assert self.found(case, model).as_planned, self.found(case, model).faults
