"""Jobs whose rows have images and sounds: energies are those of the model's own loss."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import transformers

from support.jobs import Jobs, write_jsonl
from support.seeing import MAKERS, byte_tokenizer, data_url, pixels, png, wav
from support.seeing_tiles import MORE

pytest.importorskip("PIL")
from PIL import Image

WORDS = ["a red square", "two dogs", "rain over Oslo", "nothing much", "a map", "an old door"]
SIZES = [(28, 28), (42, 28), (28, 56), (56, 56), (30, 40), (28, 28)]


def image_rows() -> list[dict[str, Any]]:
    """Images of several sizes, one or two of a row."""
    rows = []
    for n, (words, size) in enumerate(zip(WORDS, SIZES, strict=True)):
        images = [data_url(png(pixels(n, *size)))] * (1 + n % 2)
        parts = [
            *({"type": "image", "image": i} for i in images),
            {"type": "text", "text": "?"},
        ]
        answer = {"role": "assistant", "content": words}
        rows.append({"messages": [{"role": "user", "content": parts}, answer]})
    return rows


def sound_rows() -> list[dict[str, Any]]:
    return [
        {
            "messages": [
                {"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": "?"}]},
                {"role": "assistant", "content": words},
            ],
            "audio": data_url(wav(n, n_samples=6_000 + 500 * n), "audio/wav"),
        }
        for n, words in enumerate(WORDS)
    ]


@pytest.fixture
def models(jobs: Jobs):
    shared = jobs.data_dir / "models"
    if shared.is_symlink():
        shared.unlink()
        shared.mkdir()
    return shared


def run(jobs: Jobs, run_queue: Callable[[], None], model: str, rows: Any, **calibration: Any):
    job_id = jobs.submit(
        model=model,
        dataset=rows if isinstance(rows, dict) else {"source": "inline", "rows": rows},
        target_modules="all-linear",
        calibration={"n_batches": 3, "batch_size": 2, "dtype": "float32", "estimator": "exact"}
        | calibration,
        adapter={"weights": True},
    )
    run_queue()
    job = jobs.get(job_id).to_job()
    assert job.error is None, job.error
    return job


def own_gradients(folder: Any, texts: list[tuple[str, dict[str, Any]]], names: list[str]):
    """Mean over rows of the squared gradient, as the processor's own user would compute it."""
    model = transformers.AutoModelForMultimodalLM.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    energies = dict.fromkeys(names, 0.0)
    for answer, inputs in texts:
        n = len(tokenizer(answer, add_special_tokens=False)["input_ids"])
        labels = inputs["input_ids"].clone()
        labels[:, :-n] = -100
        model.zero_grad()
        model(**inputs, labels=labels).loss.backward()
        for name in names:
            gradient = model.get_submodule(name).weight.grad
            energies[name] += float(gradient.square().sum()) / len(texts)
    return energies


@pytest.mark.parametrize("name", ["llava", "gemma3", "idefics3"])
def test_images_in_messages(jobs, run_queue, models, name):
    """One row after the other through the processor, its answer alone labelled."""
    folder = MAKERS[name](models / name)
    rows = image_rows()

    job = run(jobs, run_queue, name, rows)

    processor = transformers.AutoProcessor.from_pretrained(folder)
    texts = []
    for n, row in enumerate(rows):
        user = row["messages"][0]["content"]
        plain = [
            {"type": p["type"]} | ({"text": p["text"]} if "text" in p else {}) for p in user
        ]
        messages = [{"role": "user", "content": plain}, row["messages"][1]]
        text = processor.apply_chat_template(messages)
        images = [Image.fromarray(pixels(n, *SIZES[n]))] * (len(user) - 1)
        inputs = processor(
            text=[text], images=images, return_tensors="pt", add_special_tokens=False
        )
        texts.append((f"{WORDS[n]}</s>", dict(inputs)))
    names = [m.name for m in job.result.rank_map.modules]
    wanted = own_gradients(folder, texts, names)
    assert any("vision" in module for module in names)
    for module in job.result.rank_map.modules:
        weight = wanted[module.name] / (module.d_in * module.d_out)
        found = module.score * 3 / 4
        assert abs(found - weight) <= 1e-4 * weight, module.name


def test_images_on_one_axis_of_patches(jobs, run_queue, models):
    """Batches of two rows whose images have other sizes: examples one at a time, no plan but one."""
    MAKERS["qwen_vl"](models / "qwen")
    rows = image_rows()

    job = run(jobs, run_queue, "qwen", rows)
    other = run(jobs, run_queue, "qwen", rows, executor="streamed")
    one = run(jobs, run_queue, "qwen", rows, n_batches=6, batch_size=1)

    names = [m.name for m in job.result.rank_map.modules]
    assert any(".visual.blocks.1." in name for name in names)
    for others in (other, one):
        for a, b in zip(
            job.result.rank_map.modules, others.result.rank_map.modules, strict=True
        ):
            assert (a.name, a.rank) == (b.name, b.rank)
            assert abs(a.score - b.score) <= 1e-5 * a.score


def test_sounds(jobs, run_queue, models):
    """A column beside the messages, in whose places they go; as the processor's own user reads them."""
    folder = MAKERS["qwen_audio"](models / "hears")
    rows = sound_rows()

    job = run(jobs, run_queue, "hears", rows)

    processor = transformers.AutoProcessor.from_pretrained(folder)
    texts = []
    for n, row in enumerate(rows):
        inputs = processor(
            text=[processor.apply_chat_template(row["messages"])],
            audio=[samples(wav(n, n_samples=6_000 + 500 * n))],
            sampling_rate=16_000, return_tensors="pt", add_special_tokens=False,
        )  # fmt: skip
        texts.append((f"{WORDS[n]}</s>", dict(inputs)))
    names = [m.name for m in job.result.rank_map.modules]
    wanted = own_gradients(folder, texts, names)
    assert any("audio_tower" in name for name in names)
    for module in job.result.rank_map.modules:
        weight = wanted[module.name] / (module.d_in * module.d_out)
        assert abs(module.score * 3 / 4 - weight) <= 1e-4 * weight, module.name


def samples(content: bytes) -> Any:
    """What a WAV file of one channel of 16 bits holds behind its header."""
    return np.frombuffer(content[44:], "<i2").astype(np.float32) / 32_768


def test_whisper_is_refused_by_name(jobs, run_queue, models):
    """What writes what it hears reads no text beside it; the job says which models do."""
    config = transformers.WhisperConfig(
        vocab_size=300, num_mel_bins=8, d_model=16, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=24,
        decoder_ffn_dim=24, max_source_positions=50, max_target_positions=64, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    transformers.WhisperForConditionalGeneration(config).save_pretrained(models / "whisper")
    reader = transformers.WhisperFeatureExtractor(feature_size=8, chunk_length=1)
    reader.save_pretrained(models / "whisper")
    byte_tokenizer().save_pretrained(models / "whisper")
    for row in sound_rows()[0], {"audio": sound_rows()[0]["audio"], "text": "a red square"}:
        job_id = jobs.submit(model="whisper", dataset={"source": "inline", "rows": [row]})
        run_queue()
        error = jobs.get(job_id).to_job().error

        assert error.code == "unsupported_architecture"
        assert "whisper" in error.detail.lower()


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # of its own use of numpy
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("paligemma", "processor (PaliGemmaProcessor) changes the text"),
        ("idefics2", "processor (Idefics2Processor) does not say which characters stand for"),
    ],
)
def test_a_processor_that_rewrites_the_text_is_refused(jobs, run_queue, models, name, said):
    """PaliGemma's puts a beginning and a line's end around it, Idefics 2's tells no places."""
    (MAKERS | MORE)[name](models / "sees")
    row = {"image": data_url(png(pixels(0))), "prompt": "What is it?", "completion": " A"}
    job_id = jobs.submit(
        model="sees",
        dataset={"source": "inline", "rows": [row]},
        calibration={"n_batches": 1, "batch_size": 1},
    )
    run_queue()

    error = jobs.get(job_id).to_job().error

    assert error.code == "unsupported_architecture"
    assert f"row 1: the model's {said}" in error.detail
    assert "(--column images=, --column audio=), or measure it by the library" in error.detail


def test_files_beside_rows_of_a_registered_folder(jobs, run_queue, models):
    """A row names a file of its folder; another picture afterwards is another dataset."""
    MAKERS["llava"](models / "sees")
    folder = jobs.data_dir / "datasets" / "pictures"
    folder.mkdir(parents=True)
    rows = []
    for n, words in enumerate(WORDS):
        (folder / f"{n}.png").write_bytes(png(pixels(n)))
        rows.append({"image": f"{n}.png", "prompt": "What is it?", "completion": f" {words}"})
    write_jsonl(folder / "rows.jsonl", rows)
    inline = [row | {"image": data_url(png(pixels(n)))} for n, row in enumerate(rows)]

    named = run(jobs, run_queue, "sees", {"source": "local", "name": "pictures"})
    given = run(jobs, run_queue, "sees", inline)

    for a, b in zip(named.result.rank_map.modules, given.result.rank_map.modules, strict=True):
        assert (a.name, a.score) == (b.name, b.score)


@pytest.mark.parametrize(
    ("image", "max_length", "detail"),
    [
        ("beside.png", 64, "row 1, image 1 of it, names the file"),
        (data_url(png(pixels(0))[:90]), 64, "row 1, image 1 of it, is damaged"),
        ([data_url(png(pixels(0)))] * 3, 8, "set calibration.max_length to more than that"),
    ],
    ids=["a file", "damaged", "no room"],
)
def test_rows_that_cannot_be_read_are_named(jobs, run_queue, models, image, max_length, detail):
    """The job fails with the row and what would be right, and leaves none out."""
    MAKERS["llava"](models / "sees")
    row = {"image": image, "prompt": "What is it?", "completion": " A"}
    job_id = jobs.submit(
        model="sees",
        dataset={"source": "inline", "rows": [row]},
        calibration={"n_batches": 1, "batch_size": 1, "max_length": max_length},
    )
    run_queue()

    error = jobs.get(job_id).to_job().error

    assert error.code == "dataset_schema"
    assert detail in error.detail


def test_what_lies_behind_the_cut_of_a_text_changes_nothing(jobs, run_queue, models):
    """However much it is."""
    MAKERS["llava"](models / "sees")
    found = []
    for n_words in (400, 40_000):
        text = "a red square <image>" + " w1 w2 red" * n_words
        rows = [{"image": data_url(png(pixels(n))), "text": text} for n in range(2)]
        job = run(jobs, run_queue, "sees", rows, max_length=48)
        found.append([(m.name, m.score) for m in job.result.rank_map.modules])

    assert found[0] == found[1]


@pytest.mark.parametrize("max_length", [8, 15], ids=["before the image", "inside of it"])
def test_no_row_is_cut_before_its_last_image(jobs, run_queue, models, max_length):
    """Though words to predict are left of it."""
    MAKERS["llava"](models / "sees")
    row = {"image": data_url(png(pixels(0))), "text": "a red square <image> and more"}
    job_id = jobs.submit(
        model="sees",
        dataset={"source": "inline", "rows": [row]},
        calibration={"n_batches": 1, "batch_size": 1, "max_length": max_length},
    )
    run_queue()

    error = jobs.get(job_id).to_job().error

    assert error.code == "dataset_schema"
    assert "row 1: its images and sounds, and the text before them, take" in error.detail


def test_an_evaluation_is_refused_before_anything_is_measured(
    jobs, run_queue, models, monkeypatch
):
    """Where the service has not seen the rows: by the worker, as soon as it has."""

    def make_plans(*_: Any) -> None:
        raise AssertionError("something was measured")

    monkeypatch.setattr("fimlora_worker.job.evaluation.make_plans", make_plans)
    MAKERS["llava"](models / "sees")
    rows = [{"image": data_url(png(pixels(n, 2, 2))), "text": f"red {n}"} for n in range(40)]
    job_id = jobs.submit_evaluation(
        base_model={"source": "local", "name": "sees"},
        dataset={"source": "inline", "rows": rows},
    )
    run_queue()

    error = jobs.get(job_id).to_job().error

    assert error.code == "dataset_schema"
    assert error.detail.startswith("evaluations train on text alone")


def test_a_model_of_text_is_refused(jobs, run_queue):
    """With the way to leave the column alone."""
    rows = [{"text": "w1 w2 w3", "image": data_url(png(pixels(0)))}]
    job_id = jobs.submit(model="decoder", dataset={"source": "inline", "rows": rows})
    run_queue()

    error = jobs.get(job_id).to_job().error

    assert error.code == "unsupported_architecture"
