"""Whatever a processor's files say: an example, or a refusal by name, soon and in little memory."""

import json
import os
import resource
import shutil
import subprocess
import sys
import time

import pytest
import transformers

from fimlora_worker.errors import DatasetSchema, UnsupportedArchitecture, WorkerError
from fimlora_worker.inputs.media import encoding
from fimlora_worker.inputs.media.encoding import MediaEncoder
from fimlora_worker.inputs.media.memory_limit import at_most_more
from fimlora_worker.inputs.media.processor import load_processor
from fimlora_worker.inputs.media.processor_files import check_processor_files
from support.seeing import MAKERS, pixels, png, wav

pytest.importorskip("PIL")
ODD = (10**9, 2**63, 10**30, -1, 0, float("inf"), "six", "", None, {}, [])
AT_MOST_S, AT_MOST_KIB = 20.0, 1 << 20
# Fields that say how much is made, by the file that each has them in.
MODELS = {
    "llava": ("processor_config.json", [
        ("patch_size",), ("num_additional_image_tokens",), ("image_processor", "size"),
        ("image_processor", "size", "shortest_edge"), ("image_processor", "crop_size", "height"),
    ]),
    "qwen_vl": ("preprocessor_config.json", [
        ("patch_size",), ("merge_size",), ("temporal_patch_size",), ("size", "shortest_edge"),
        ("size", "longest_edge"), ("size",), ("image_processor_type",),
    ]),
    "idefics3": ("processor_config.json", [
        ("image_seq_len",), ("image_processor", "size", "longest_edge"),
        ("image_processor", "max_image_size", "longest_edge"),
    ]),
    "qwen_audio": ("processor_config.json", [
        ("feature_extractor", "feature_size"), ("feature_extractor", "hop_length"),
        ("feature_extractor", "sampling_rate"), ("feature_extractor", "chunk_length"),
        ("feature_extractor", "n_fft"),
    ]),
}  # fmt: skip
CASES = [(name, file, path) for name, (file, paths) in MODELS.items() for path in paths]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One of each, of which the files are changed and put back."""
    room = tmp_path_factory.mktemp("processors")
    return {name: MAKERS[name](room / name) for name in MODELS}


def encode(folder, kind, **options):
    """One row through a model's processor."""
    processor = load_processor(folder, transformers.AutoConfig.from_pretrained(folder))
    processor.tokenizer.chat_template = None  # or each starts a process of its own
    media = [(kind, {"bytes": png(pixels(0, 60, 40)) if kind == "image" else wav(0)})]
    encoder = MediaEncoder(processor, 128, **options)
    text = encoder.placed("what?", media, where="row 1")
    return encoder.encode(text, [(0, len(text))], media, where="row 1")


@pytest.mark.parametrize(("name", "file", "path"), CASES, ids=lambda v: str(v)[:60])
def test_an_odd_number_is_refused_by_name_or_read(folders, name, file, path):
    """Each kind of nonsense in one field, and no field at all."""
    folder, kind = folders[name], "audio" if name == "qwen_audio" else "image"
    whole = (folder / file).read_text()
    try:
        for odd in (*ODD, "absent"):
            content = json.loads(whole)
            owner = content
            for key in path[:-1]:
                owner = owner[key]
            owner.pop(path[-1]) if odd == "absent" else owner.update({path[-1]: odd})
            (folder / file).write_text(json.dumps(content))
            began, before = time.monotonic(), _peak()
            said = _said(folder, kind)
            assert len(said) < 1_000 if isinstance(said, str) else len(said["input_ids"]) <= 128
            assert time.monotonic() - began < AT_MOST_S, (path, odd)
            assert _peak() - before < AT_MOST_KIB, (path, odd)
    finally:
        (folder / file).write_text(whole)
    assert encode(folder, kind)["input_ids"]


def _said(folder, kind):
    """An example, or the sentence of a refusal; anything else is raised."""
    try:
        return encode(folder, kind)
    except WorkerError as error:
        return str(error)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"size": {"shortest_edge": 10**9}}, "preprocessor_config.json has size.shortest_edge=1000000000; allowed is a whole number from 1 to 8192"),
        ({"size": {"shortest_edge": 1, "longest_edge": 10**9}}, "size.longest_edge=1000000000; allowed is a whole number from 1 to 33554432"),
        ({"patch_size": 0}, "patch_size=0; allowed is a whole number from 2"),
        ({"patch_size": "14"}, "patch_size='14'; allowed"),
        ({"patch_size": True}, "patch_size=True; allowed"),
        ({"crop_size": [{"height": -3}]}, "crop_size.height=-3; allowed"),
        ({"rescale_factor": 10**999}, "rescale_factor=a number of 3319 bits; allowed"),
        ({"image_mean": [0.5, float("nan")]}, "image_mean=nan; allowed is a number"),
        ([], "is no JSON object"),
        ("{", "is no JSON that is read"),
    ],
    ids=lambda v: str(v)[:40],
)  # fmt: skip
def test_a_field_is_named_with_what_is_allowed(tmp_path, content, message):
    text = content if content == "{" else json.dumps(content)
    (tmp_path / "preprocessor_config.json").write_text(text)
    with pytest.raises(UnsupportedArchitecture) as refused:
        check_processor_files(tmp_path)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    "content",
    [
        {"size": {"shortest_edge": 3136, "longest_edge": 12_845_056}, "patch_size": 14},
        {"size": {"height": 896, "width": 896}, "image_seq_length": 256},
        {"size": {"longest_edge": 1540}, "patch_size": {"height": 16, "width": 16}},
        {"video_processor": {"size": {"longest_edge": 10**9}}, "max_pixels": None},
        {"sampling_rate": 16_000, "chunk_length": 30, "n_samples": 480_000, "n_fft": 400,
         "hop_length": 160, "feature_size": 128, "nb_max_frames": 3_000},
        {"model_max_length": 10**30, "resample": 3, "rescale_factor": 1 / 255, "do_resize": True},
    ],
)  # fmt: skip
def test_what_released_models_say_is_allowed(tmp_path, content):
    """Qwen2-VL, Gemma 3, Pixtral, videos, Whisper."""
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
    check_processor_files(tmp_path)


def test_code_of_a_processor_is_never_run(folders, tmp_path):
    """A class of its own is refused by name; the module beside it is not imported."""
    folder = tmp_path / "own"
    shutil.copytree(folders["llava"], folder)
    (folder / "own.py").write_text("raise SystemExit('ran')")
    content = json.loads((folder / "processor_config.json").read_text())
    content |= {
        "processor_class": "OwnProcessor",
        "auto_map": {"AutoProcessor": "own.OwnProcessor"},
    }
    content["image_processor"] |= {
        "image_processor_type": "OwnImages", "auto_map": {"AutoImageProcessor": "own.OwnImages"},
    }  # fmt: skip
    (folder / "processor_config.json").write_text(json.dumps(content))

    with pytest.raises(UnsupportedArchitecture, match="the model's processor cannot be loaded"):
        encode(folder, "image")


def test_a_thin_image_is_refused_before_it_is_resized(folders):
    """By its shorter side it would grow to more pixels than any image may have."""
    processor = load_processor(
        folders["llava"], transformers.AutoConfig.from_pretrained(folders["llava"])
    )
    processor.tokenizer.chat_template = None
    media = [("image", {"bytes": png(pixels(0, 2_100, 10))})]
    with pytest.raises(
        DatasetSchema, match="image 1 of it, has 2100 x 10 pixels; one side may"
    ):
        MediaEncoder(processor, 64).encode("<image>", [], media, where="row 1")


def test_what_takes_too_much_memory_is_a_refusal(folders, monkeypatch):
    """Not a dead worker; and the limit of the process is as it was."""
    monkeypatch.setattr(encoding, "MOST_BYTES", 0)
    before = resource.getrlimit(resource.RLIMIT_DATA)
    folder = folders["llava"]
    whole = (folder / "processor_config.json").read_text()
    content = json.loads(whole)
    content["image_processor"]["size"] = {"shortest_edge": 4_096}
    content["image_processor"]["crop_size"] = {"height": 4_096, "width": 4_096}
    content["patch_size"] = 1_024
    try:
        (folder / "processor_config.json").write_text(json.dumps(content))
        with pytest.raises(DatasetSchema, match="take the model's processor more than 0 GiB"):
            encode(folder, "image")
    finally:
        (folder / "processor_config.json").write_text(whole)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


def test_the_limit_counts_what_comes_on_top():
    """And is lifted at the end, also after an error."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with pytest.raises(MemoryError), at_most_more(64 << 20):
        bytearray(1 << 30)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    with at_most_more(1 << 30):
        assert len(bytearray(64 << 20)) == 64 << 20


THREADS = """
import threading
from fimlora_worker.inputs.media.encoding import MOST_BYTES
from fimlora_worker.inputs.media.memory_limit import at_most_more

def run():
    bytearray(4_096)  # of a heap of the thread's own
    everyone.wait()

everyone = threading.Barrier(257)
with at_most_more(MOST_BYTES):
    threads = [threading.Thread(target=run, daemon=True) for _ in range(256)]
    for thread in threads:
        thread.start()
    everyone.wait()
    try:
        bytearray(2 * MOST_BYTES)
    except MemoryError:
        print("refused")
"""


def test_a_machine_of_many_processors_may_start_its_threads():
    """Their allocator reserves 64 MiB for each, of which next to nothing is used."""
    many = os.environ | {"MALLOC_ARENA_MAX": "4096"}
    ran = subprocess.run(
        [sys.executable, "-c", THREADS],
        env=many, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

    assert (ran.stdout, ran.returncode) == ("refused\n", 0), ran.stderr[-2_000:]
