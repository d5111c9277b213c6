"""Models that cannot be calibrated are refused by name, before anything is queued."""

import json
import os
import socket
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from safetensors.numpy import save_file

from fimlora_service.app import create_app
from support.hub import Hub
from support.model_folders import make_decoder
from support.packing import PACKERS, pack_folder
from support.service import CONFIG, make_model

TEXTS = {"source": "inline", "rows": [{"text": "w1 w2 w3"}] * 8}
REFUSED = "unsupported_architecture"
FULL = CONFIG | {"vocab_size": 50, "n_layer": 2, "n_head": 2, "n_embd": 16, "pad_token_id": 0}
TABLE = {
    "wte.weight": (50, 16),
    "wpe.weight": (64, 16),
    "token_type_embeddings.weight": (2, 16),
}
BLOCKS = {f"h.{n}.attn.c_attn.weight": (16, 48) for n in range(2)}


@pytest.fixture
def odd(data_dir: Path):
    """Make the model ``odd`` of a configuration and weights."""

    def make(config: Any = FULL, shapes: dict[str, tuple[int, ...]] | None = None) -> Path:
        folder = make_model(data_dir / "models" / "odd", config=config)
        write_weights(folder, TABLE | BLOCKS if shapes is None else shapes)
        return folder

    return make


def write_weights(folder: Path, shapes: dict[str, tuple[int, ...]], dtype: Any = "f4") -> None:
    weights = {name: np.zeros(shape, dtype) for name, shape in shapes.items()}
    save_file(weights, folder / "model.safetensors")


def test_the_model_that_the_others_spoil_is_accepted(http, body, odd):
    """Each refusal below is for its one change."""
    odd()

    assert http.post("/calibrate", json=body | {"base_model": "local:odd"}).status_code == 202


def test_a_configuration_that_names_code_from_elsewhere_is_refused(http, body, odd):
    """By the field; nothing is queued that a worker would fetch and run."""
    odd(FULL | {"text_config": {"attn_implementation": "org/kernel"}})

    answer = http.post("/calibrate", json=body | {"base_model": "local:odd"})

    assert (answer.status_code, answer.json()["code"]) == (422, REFUSED)
    assert "text_config.attn_implementation='org/kernel'" in answer.json()["detail"]


class TestNumbers:
    @pytest.mark.parametrize(
        ("change", "named"),
        [
            ({"n_head": -2}, "n_head=-2; allowed is a whole number from 1"),
            ({"n_head": 0}, "n_head=0; allowed is at least 1"),
            ({"n_layer": 0}, "n_layer=0; allowed is at least 1"),
            ({"n_layer": -1}, "n_layer=-1"),
            ({"n_layer": 10**9}, "n_layer=1000000000"),
            ({"n_layer": "two"}, "n_layer='two'"),
            ({"n_layer": True}, "n_layer=True"),
            ({"n_layer": 2.5}, "n_layer=2.5"),
            ({"n_layer": 7}, "n_layer=7; its checkpoint has weights for 2 layers"),
            ({"n_layer": 1}, "n_layer=1; its checkpoint has weights for 2 layers (h.0 to h.1)"),
            ({"n_head": 3}, "hidden_size=16, which n_head=3 does not divide"),
            ({"n_embd": [16]}, "n_embd=[16]"),
            ({"n_embd": 32, "hidden_size": 32}, "wte.weight is 16 wide"),
            ({"vocab_size": 10**9}, "vocab_size=1000000000"),
            ({"vocab_size": 51}, "wte.weight has 50 rows, and vocab_size is 51"),
            ({"pad_token_id": 10**9}, "pad_token_id=1000000000, outside its vocab_size=50"),
            ({"pad_token_id": -51}, "pad_token_id=-51, outside"),
            ({"pad_token_id": "[PAD]"}, "pad_token_id='[PAD]'"),
            ({"layer_norm_epsilon": float("nan")}, "layer_norm_epsilon=nan"),
            ({"num_labels": 10**9}, "num_labels=1000000000"),
            ({"num_labels": -1}, "num_labels=-1"),
            ({"use_cache": "yes"}, "text for use_cache; allowed is true or false or null"),
            ({"initializer_range": [1]}, "a list for initializer_range"),
            ({"tie_word_embeddings": 1}, "a whole number for tie_word_embeddings"),
            ({"bos_token_id": "<s>"}, "text for bos_token_id"),
            ({"id2label": 5}, "a whole number for id2label"),
            ({"activation_function": {}}, "an object for activation_function"),
            ({"state_size": 10**8}, "state_size=100000000; no weight of its checkpoint"),
            ({"num_heads": 10**30}, "num_heads=1000000000000000000000000000000"),
            ({"resid_pdrop": 7}, "resid_pdrop=7; allowed is a share between 0 and 1"),
            ({"n_positions": 65}, "which has n_positions=65: wpe.weight has 64 rows"),
            ({"type_vocab_size": 3}, "has type_vocab_size=3: token_type_embeddings.weight"),
            ({"initializer_range": float("inf")}, "initializer_range=inf"),
            ({"torch_dtype": "int4"}, "torch_dtype='int4'"),
            ({"dtype": {"a": 1}}, "dtype={'a': 1}"),
            ({"layer_types": ["full_attention"], "num_hidden_layers": 2}, "layer_types of 1"),
            ({"layer_types": "full"}, "layer_types='full'"),
            ({"text_config": {"num_attention_heads": -1}}, "num_attention_heads=-1"),
            ({"text_config": {"num_hidden_layers": 0}}, "num_hidden_layers=0"),
            ({"num_key_value_heads": 3, "n_head": 4}, "num_key_value_heads=3"),
        ],
        ids=str,
    )
    def test_what_no_model_can_have_is_refused(self, refuse, odd, change, named):
        """The sentence has the field, its value, and what is allowed."""
        odd(FULL | change)

        code, detail = refuse(base_model="local:odd")

        assert (code, "'odd'" in detail, named in detail) == (REFUSED, True, True), detail

    def test_a_bottomless_configuration_is_refused(self, refuse, odd):
        """However deep, it is read in an instant."""
        folder = odd()
        deep = '{"a": ' * 40 + "1" + "}" * 40
        (folder / "config.json").write_text(json.dumps(FULL)[:-1] + f', "deep": {deep}}}')

        code, detail = refuse(base_model="local:odd")

        assert (code, "nested over" in detail) == (REFUSED, True), detail

    @pytest.mark.parametrize(
        "change",
        [{"model_type": "\ud800"}, {"architectures": ["\udfff"]}, {"a": {"\ud800": 1}}],
    )
    def test_half_a_character_is_refused(self, refuse, odd, change):
        """JSON can spell it and no answer could show it."""
        odd(FULL | change)

        code, detail = refuse(base_model="local:odd")

        assert (code, "half a character" in detail) == (REFUSED, True), detail


class TestQuantised:
    @pytest.mark.parametrize(
        ("change", "named"),
        [
            (
                {"quantization_config": {"quant_method": "gptq", "bits": 4}},
                "(gptq), and no weight",
            ),
            ({"quantization_config": {"load_in_4bit": True}}, "(bitsandbytes), and no weight"),
            ({"quantization_config": {"quant_method": "fp8"}}, "(fp8), and no weight"),
            ({"quantization_config": {"quant_method": "hqq"}}, "(hqq), and of checkpoints"),
            ({"quantization_config": [4]}, "quantization_config is no object"),
            ({"quantization_config": {"quant_method": "mxfp4"}}, "(mxfp4"),
            ({"text_config": {"quantization_config": {"quant_method": "awq"}}}, "(awq"),
            ({"compression_config": {"quant_method": "compressed-tensors"}}, "(compressed"),
        ],
    )
    def test_a_configuration_that_says_so_is_refused(self, refuse, odd, change, named):
        """Also where it is that of the text part, and whatever would run it."""
        odd(FULL | change)
        streamed = {"calibration": {"executor": "streamed"}}

        for request in ({}, streamed):
            code, detail = refuse(base_model="local:odd", **request)

            assert (code, named in detail) == (REFUSED, True), detail
            assert "give the unquantised model" in detail

    @pytest.mark.parametrize("packing", sorted(PACKERS))
    def test_packed_weights_that_are_read_count_as_what_they_stand_for(
        self, http, body, data_dir, tmp_path, packing
    ):
        """Accepted, and estimated as the model that they were packed from, fractions of it too."""
        plain = make_decoder(data_dir / "models" / "plain")
        pack_folder(plain, data_dir / "models" / "packed", packing)
        request = body | {"target_modules": ["q_proj", "down_proj"], "dataset": TEXTS}
        request["budget"] = {"fraction": 0.05}
        names = [{"base_model": f"local:{name}"} for name in ("plain", "packed")]

        estimates = [http.post("/estimate", json=request | name).json() for name in names]

        assert estimates[0]["model"]["target_modules"] == 4
        assert estimates[0]["model"] == estimates[1]["model"]
        assert estimates[0]["model"]["budget"]["unit"] == "fraction"
        assert http.post("/calibrate", json=request | names[1]).status_code == 202

    @pytest.mark.parametrize(
        ("packing", "change", "named"),
        [
            ("awq", {"version": "gemv"}, "format gemv"),
            ("awq", {"version": None, "format": "llm-awq"}, "format llm-awq"),
            ("gptq", {"bits": 5}, "bits=5"),
            ("gptq", {"format": "gptq_p"}, "format gptq_p"),
            ("compressed", {"transform_config": {"config_groups": {"R": {}}}}, "transform"),
        ],
    )
    def test_layouts_that_are_not_read_are_named(
        self, refuse, data_dir, packing, change, named
    ):
        """Of tensors that look like those that are."""
        plain = make_decoder(data_dir / "models" / "plain")
        pack_folder(plain, folder := data_dir / "models" / "odd", packing)
        config = json.loads((folder / "config.json").read_text())
        config["quantization_config"] |= change
        (folder / "config.json").write_text(json.dumps(config))

        code, detail = refuse(base_model="local:odd")

        assert (code, named in detail) == (REFUSED, True), detail
        assert "give the unquantised model" in detail

    @pytest.mark.parametrize(
        "file", ["quantize_config.json", "quant_config.json", "hf_quant_config.json"]
    )
    def test_a_file_of_a_tool_that_quantises_tells(self, refuse, odd, file):
        """Older tools left config.json as it was."""
        (odd() / file).write_text("{}")

        assert refuse(base_model="local:odd")[0] == REFUSED

    @pytest.mark.parametrize(
        ("name", "dtype"),
        [
            ("h.0.attn.q.qweight", "i4"),
            ("h.0.attn.q.weight", "u1"),
            ("h.0.attn.q.weight", "i1"),
            ("h.0.mlp.experts.gate_up_proj_blocks", "u1"),
        ],
    )
    def test_packed_weights_tell(self, refuse, odd, name, dtype):
        """With nothing in any configuration."""
        write_weights(odd(), {name: (8, 8)}, dtype)

        code, detail = refuse(base_model="local:odd")

        assert (code, name in detail) == (REFUSED, True), detail

    def test_integers_that_are_no_weights_are_no_sign(self, http, body, odd):
        """Position ids and masks are stored in many checkpoints."""
        folder = odd()
        tensors = {"wte.weight": np.zeros((50, 16), "f4"), "attn.bias": np.ones(4, bool)}
        tensors |= {"h.1.position_ids": np.arange(9), "h.1.attn.w": np.zeros((16, 16), "f4")}
        save_file(tensors, folder / "model.safetensors")

        answer = http.post("/calibrate", json=body | {"base_model": "local:odd"})

        assert answer.status_code == 202, answer.text


class TestHeads:
    ROWS: ClassVar = {
        "text": [{"text": "a"}, {"text": "b"}],
        "completions": [{"prompt": "a", "completion": "b"}],
        "instructions": [{"instruction": "a", "output": "b"}],
        "messages": [{"messages": [{"role": "user", "content": "a"}]}],
        "message pairs": [
            {
                "prompt": [{"role": "user", "content": "a"}],
                "completion": [{"role": "assistant", "content": "b"}],
            }
        ],
        "labels": [{"text": "a", "label": 0}, {"text": "b", "label": 1}],
    }

    def ask(self, http, body, rows: str, **change: Any) -> Any:
        dataset = {"source": "inline", "rows": self.ROWS[rows]}
        return http.post(
            "/calibrate", json=body | {"base_model": "local:odd", "dataset": dataset} | change
        )

    @pytest.mark.parametrize("rows", ["text", "completions", "messages"])
    @pytest.mark.parametrize("kind", ["bert", "deberta-v2", "modernbert", "distilbert"])
    def test_text_for_a_model_that_writes_none_is_refused(self, http, body, odd, kind, rows):
        """An encoder cannot be asked what comes next."""
        odd({"model_type": kind}, {"layer.0.weight": (16, 16)})

        answer = self.ask(http, body, rows)

        assert (answer.status_code, answer.json()["code"]) == (422, REFUSED)
        assert f"{kind} is no causal language model" in answer.json()["detail"]

    @pytest.mark.parametrize("rows", ["text", "messages", "message pairs"])
    @pytest.mark.parametrize("kind", ["t5", "bart", "marian"])
    @pytest.mark.parametrize("task", ["auto", "causal_lm"])
    def test_an_encoder_decoder_needs_pairs(self, http, body, odd, kind, rows, task):
        """It says which rows it can learn from."""
        odd({"model_type": kind, "is_encoder_decoder": True}, {"layer.0.weight": (16, 16)})

        answer = self.ask(http, body, rows, calibration={"task": task})

        assert (answer.status_code, answer.json()["code"]) == (422, REFUSED)
        assert f"{kind} is an encoder-decoder" in answer.json()["detail"]
        assert "prompt and completion (or instruction and output) as text" in answer.text

    @pytest.mark.parametrize(
        ("config", "rows"),
        [
            ({"model_type": "t5"}, "completions"),
            ({"model_type": "bart", "is_encoder_decoder": True}, "instructions"),
            ({"model_type": "bart", "is_encoder_decoder": True}, "labels"),
            (
                {"model_type": "bart", "is_encoder_decoder": False, "is_decoder": True},
                "text",
            ),
            ({"model_type": "bert"}, "labels"),
            ({"model_type": "bert", "is_decoder": True}, "text"),
            ({"model_type": "llama"}, "text"),
            ({"model_type": "llama"}, "labels"),
            ({"model_type": "newer_than_this_table"}, "text"),
            ({"model_type": "newer_than_this_table"}, "labels"),
        ],
    )
    def test_heads_that_exist_or_may_exist_are_accepted(self, http, body, odd, config, rows):
        """What the table does not know is the worker's to say."""
        odd(config, {"layer.0.weight": (16, 16)})

        assert self.ask(http, body, rows).status_code == 202

    def test_labels_for_a_model_that_cannot_classify_are_refused(self, http, body, odd):
        """And what it can do is said."""
        odd({"model_type": "codegen"}, {"h.0.weight": (16, 16)})

        detail = self.ask(http, body, "labels").json()["detail"]

        assert "no sequence classification head for codegen" in detail
        assert "without labels" in detail

    def test_a_task_that_is_given_is_enough(self, http, body, hub: Hub, settings, odd):
        """The columns of a hub dataset are not known yet, but what is wanted is."""
        from support.testclient import TestClient

        odd({"model_type": "bert"}, {"layer.0.weight": (16, 16)})
        hub.add("org/data", {"train.jsonl": b'{"text": "a"}'}, kind="dataset")
        request = body | {"base_model": "local:odd", "dataset": "org/data"}
        app = create_app(settings.model_copy(update={"hub_endpoint": hub.url}))
        with TestClient(app) as near:
            auto = near.post("/calibrate", json=request)
            given = near.post(
                "/calibrate", json=request | {"calibration": {"task": "causal_lm"}}
            )

        assert (auto.status_code, given.status_code) == (202, 422)


class TestTokenizer:
    def write(self, folder: Path, *, n_tokens: int, added: dict[str, int], **more: Any) -> None:
        vocabulary = {f"w{n}": n for n in range(n_tokens)}
        entries = [{"id": n, "content": token} for token, n in added.items()]
        content = {"model": {"vocab": vocabulary}, "added_tokens": entries} | more
        (folder / "tokenizer.json").write_text(json.dumps(content))

    def test_a_model_without_one_is_refused(self, refuse, odd):
        """Nothing turns text into its ids."""
        (odd() / "tokenizer.json").unlink()

        code, detail = refuse(base_model="local:odd")

        assert (code, "has no tokenizer" in detail) == (REFUSED, True)

    @pytest.mark.parametrize(
        "processor",
        [
            {"type": "BertProcessing", "sep": ["<x>", 50], "cls": ["w1", 1]},
            {
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "<x>"}}, {"Sequence": {"id": "A"}}],
                "special_tokens": {"<x>": {"id": "<x>", "ids": [50]}},
            },
        ],
        ids=["bert", "template"],
    )
    @pytest.mark.parametrize("nested", [False, True])
    def test_a_token_of_every_text_outside_the_embedding_is_refused(
        self, refuse, odd, processor, nested
    ):
        """As fine-tuning leaves it that adds a token and no row."""
        whole = {"type": "Sequence", "processors": [processor]} if nested else processor
        self.write(odd(), n_tokens=50, added={"<x>": 50}, post_processor=whole)

        code, detail = refuse(base_model="local:odd")

        assert code == REFUSED
        assert "adds '<x>' to every text, whose id 50 lies outside" in detail

    def test_a_token_that_no_text_turns_into_may_lie_outside(self, http, body, odd):
        """Such as one that stands for an image in a model that reads text only."""
        self.write(odd(), n_tokens=50, added={"<image>": 50, "<pad>": 51})

        answer = http.post("/calibrate", json=body | {"base_model": "local:odd"})

        assert answer.status_code == 202, answer.text

    def test_the_vocabulary_of_another_model_is_refused(self, refuse, odd):
        """Most of its ids have no row."""
        self.write(odd(), n_tokens=5000, added={})

        assert "ids up to 4999" in refuse(base_model="local:odd")[1]

    @pytest.mark.parametrize(
        ("name", "content", "named"),
        [
            ("tokenizer.json", "{", "tokenizer.json is not JSON (Expecting property name"),
            ("tokenizer.json", "{}", "tokenizer.json has no model"),
            ("tokenizer.json", "version https://git-lfs.github", "pointer of Git LFS"),
            ("tokenizer_config.json", "[]", "tokenizer_config.json does not hold an object"),
            ("tokenizer_config.json", '{"model_max_length": "x"}', "model_max_length='x'"),
            ("special_tokens_map.json", "{", "special_tokens_map.json is not JSON"),
            ("added_tokens.json", "null", "added_tokens.json does not hold an object"),
        ],
    )
    @pytest.mark.parametrize("source", ["local", "hub"])
    @pytest.mark.parametrize("endpoint", ["/calibrate", "/estimate"])
    def test_a_broken_one_is_refused(
        self, settings, body, hub, odd, name, content, named, source, endpoint
    ):
        """Wherever the model is, before anything is queued."""
        from support.testclient import TestClient

        folder = odd()
        (folder / name).write_text(content)
        model = "local:odd" if source == "local" else hub.add("org/odd", folder).id
        app = create_app(settings.model_copy(update={"hub_endpoint": hub.url}))
        with TestClient(app) as http:
            answer = http.post(endpoint, json=body | {"base_model": model})
            queued = http.get("/jobs").json()["data"]

        assert (answer.status_code, answer.json()["code"], queued) == (422, REFUSED, [])
        assert named in answer.json()["detail"]


class TestSpecialFiles:
    @pytest.mark.parametrize(
        "name",
        [
            "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
            "vocab.txt", "additional_chat_templates/a.jinja",
        ],
    )  # fmt: skip
    def test_a_pipe_is_not_opened(self, refuse, http, odd, name):
        """Nobody writes to it: the answer would never come."""
        path = odd() / name
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        os.mkfifo(path)

        code, detail = refuse(base_model="local:odd")

        assert (code, path.name in detail) == (REFUSED, True)
        listed = {model["id"]: model for model in http.get("/models").json()["data"]}
        assert not listed["odd"]["usable"]

    def test_a_device_or_a_socket_is_not_opened(self, refuse, odd):
        """A link to an endless device is one."""
        folder = odd()
        (folder / "vocab.json").symlink_to("/dev/zero")

        assert "vocab.json is a pipe, a device" in refuse(base_model="local:odd")[1]

        (folder / "vocab.json").unlink()
        with socket.socket(socket.AF_UNIX) as opened:
            before = Path.cwd()
            os.chdir(folder)  # the address of a socket is short
            opened.bind("vocab.json")
            os.chdir(before)

            assert "vocab.json is a pipe" in refuse(base_model="local:odd")[1]


class TestOffsets:
    @pytest.mark.parametrize(
        "places",
        [
            {"a": (0, 64), "b": (32, 96)},
            {"a": (0, 64), "b": (64, 160)},
            {"a": (0, 64), "b": (96, 160)},
            {"a": (64, 0), "b": (64, 128)},
            {"a": (0, 60), "b": (60, 124)},
        ],
        ids=["overlap", "beyond", "hole", "backwards", "short"],
    )
    def test_tensors_that_lie_where_they_cannot_are_refused(self, refuse, odd, places):
        """Two 4 x 4 matrices take 64 bytes each, one behind the other."""
        entry = {"dtype": "F32", "shape": [4, 4]}
        header = json.dumps({n: entry | {"data_offsets": p} for n, p in places.items()})
        head = len(header).to_bytes(8, "little") + header.encode()
        (odd() / "model.safetensors").write_bytes(head + b"\0" * 128)

        assert refuse(base_model="local:odd")[0] == "unsafe_weights"


def test_a_model_of_the_hub_is_refused_by_the_same_rules(settings, body, hub, tmp_path):
    """By its configuration, the names of its files, its tokenizer and its weights' heads."""
    from support.testclient import TestClient

    changes = (
        {"quantization_config": {"quant_method": "awq"}},
        {"n_head": -1},
        {},
        {"n_layer": 1},
    )
    for number, change in enumerate(changes):
        made = make_model(tmp_path / f"m{number}", config=FULL | change)
        write_weights(made, TABLE | BLOCKS)
        hub.add(f"org/model{number}", made)
    del hub.add("org/model4", tmp_path / "m2").files["tokenizer.json"]
    app = create_app(settings.model_copy(update={"hub_endpoint": hub.url}))
    with TestClient(app) as http:
        answers = [
            http.post("/calibrate", json=body | {"base_model": f"org/model{n}"})
            for n in range(5)
        ]

    assert [answer.status_code for answer in answers] == [422, 422, 202, 422, 422]
    assert "quantised" in answers[0].json()["detail"]
    assert "has weights for 2 layers" in answers[3].json()["detail"]
    assert "no tokenizer" in answers[4].json()["detail"]
