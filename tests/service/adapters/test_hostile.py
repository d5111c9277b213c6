"""Adapters that were made to do harm: each is taken or refused, and never a fault."""

import json
import random
import struct

import numpy as np
import pytest

from support.adapter_files import CONFIG, TAR, WEIGHTS, as_tar, config_of, files_of

ODD = [
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**400, 0.0, 1.5, -0.0, 1e308, "", "x", "q_proj",
    "^q_proj", "(", "(a+)+$", ".*", "\u0000", "\ud800", [], [[]], [1], ["q_proj", 3], {}, {"": 4},
    {"q_proj": None}, {"q_proj": -4}, {"(": 4}, {"q_proj": 4.0}, {"q_proj": "4"},
    {"(.*a){20}q_proj": 4}, {"base_model.model.q_proj": 4}, [None] * 50,
]  # fmt: skip
FIELDS = [
    *config_of(), "rank_pattern", "alpha_pattern", "use_rslora", "exclude_modules", "bias",
    "layers_to_transform", "layers_pattern", "fan_in_fan_out", "lora_dropout", "modules_to_save",
    "init_lora_weights", "revision", "use_dora", "anything",
]  # fmt: skip
ENTRY_FIELDS = ["dtype", "shape", "data_offsets"]
ENTRY_ODD = [
    *ODD, "F32", "F64", "F16", "BF16", "I8", "F4", [4, 24], [0, 24], [2**39] * 60, [4], [4, 24, 1],
    [-4, -24], [96, 1], "44", [0, 384], [384, 0], [0, 2**62], [-384, 0], [0, 0], [1, 385],
]  # fmt: skip


def split(weights: bytes) -> tuple[dict, bytes]:
    (n,) = struct.unpack("<Q", weights[:8])
    return json.loads(weights[8 : 8 + n]), weights[8 + n :]


def joined(header, data: bytes, *, length: int | None = None) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def odd_config(rng: random.Random) -> bytes:
    """One to three fields of other kinds."""
    config = config_of()
    for field in rng.sample(FIELDS, k=rng.randint(1, 3)):
        config[field] = rng.choice(ODD)
    return as_tar(files_of() | {CONFIG: json.dumps(config).encode()})


def odd_adalora(rng: random.Random) -> bytes:
    """AdaLoRA with fields of other kinds, and a matrix of another shape or missing."""
    draw = np.random.default_rng(rng.randrange(100))
    shapes = {"A": (4, 24), "B": (24, 4), "E": (4, 1)}
    tensors = {
        f"base_model.model.{name}.lora_{part}": draw.normal(size=shape).astype(np.float32)
        for name in ("q_proj", "x.q_proj")
        for part, shape in shapes.items()
    }
    for key in rng.sample([*tensors], k=rng.randint(0, 2)):
        tensors[key] = draw.normal(size=rng.choice([(4, 24), (4,), (4, 1), (0, 3)]))
    config = {
        "peft_type": "ADALORA",
        "lora_alpha": 8,
        "init_r": 4,
        "target_modules": ["q_proj"],
    }
    for field in rng.sample(
        [*config, "task_type", "bias", "lora_dropout"], k=rng.randint(0, 2)
    ):
        if field != "peft_type":
            config[field] = rng.choice(ODD)
    return as_tar(files_of(config, tensors))


def odd_header(rng: random.Random) -> bytes:
    """An entry of another kind, place, shape, or under another name."""
    header, data = split(files_of()[WEIGHTS])
    key = rng.choice([*header])
    match rng.randint(0, 5):
        case 0:
            header[key] = rng.choice(ENTRY_ODD)
        case 1:
            header[rng.choice(["", "x" * 10_000, "\n", "../a", key + "x", "lora_A"])] = header[
                key
            ]
        case 2:
            del header[key]
        case 3:
            header["__metadata__"] = rng.choice(ENTRY_ODD)
        case _:
            header[key][rng.choice(ENTRY_FIELDS)] = rng.choice(ENTRY_ODD)
    lengths = [None, None, None, 0, 7, 2**20, 2**63, 2**64 - 1]
    return as_tar(files_of() | {WEIGHTS: joined(header, data, length=rng.choice(lengths))})


def flipped(rng: random.Random) -> bytes:
    """Bytes of the archive changed, cut off, or sent twice; mostly where it is described."""
    content = bytearray(as_tar(files_of()))
    for _ in range(rng.randint(1, 6)):
        end = rng.choice([600, 2_500, len(content)])
        content[rng.randrange(end)] = rng.randrange(256)
    if rng.random() < 0.2:
        del content[rng.randrange(len(content)) :]
    return bytes(content)


def odd_text(rng: random.Random) -> bytes:
    """A config that is no JSON, or JSON of a kind that hurts."""
    texts = [
        b"", b"{", b"[" * 200_000, b'{"r": ' + b"9" * 10_000 + b"}", b'{"r": NaN}', b"\xff\xfe{}",
        b'"x"', b"null", b'{"peft_type": "LORA", "peft_type": "LOKR"}', b'{"a":' * 50_000,
        json.dumps(config_of(target_modules=["x"] * 30_000)).encode(),
        json.dumps(config_of(rank_pattern={f"{'a' * i}.b": 4 for i in range(700)})).encode(),
    ]  # fmt: skip
    return as_tar(files_of() | {CONFIG: rng.choice(texts)})


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("make", [odd_config, odd_header, odd_adalora, flipped, odd_text])
def test_no_adapter_is_a_fault(http, data_dir, make, seed):
    """800 of them: 201 or 4xx with a code; what is taken can be worked on, and nothing is left."""
    rng = random.Random(f"{make.__name__} {seed}")
    for _ in range(20):
        answer = http.post("/adapters", content=make(rng), headers=TAR)
        assert answer.status_code in {200, 201, 422}, answer.text
        assert str(data_dir) not in answer.text
        if answer.status_code == 422:
            assert answer.json()["code"] == "adapter_invalid"
            continue
        at = f"/adapters/{answer.json()['id']}"
        for route, body in (
            ("truncate", {"energy": 0.9}), ("audit", {}), ("convert", {"layout": "C"}),
        ):  # fmt: skip
            worked = http.post(f"{at}/{route}", json=body)
            assert worked.status_code in {200, 422}, worked.text
    assert not list((data_dir / "tmp").iterdir())
    assert http.get("/adapters").status_code == 200
