"""A run trains what it says, as a loop by hand would, and leaves nothing behind."""

import json
import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers

from fimlora.allocation import allocate
from fimlora.errors import AdapterMismatch, OutOfMemory
from fimlora.measuring.examples.losses import LossKind
from fimlora.numerics.seeded_draws import draw_embedding_b, draw_lora_a
from fimlora.plan import TargetModule
from fimlora.scores import Scores
from fimlora_worker.errors import Abort, UnequalArms
from fimlora_worker.evaluation.adapted import adapt
from fimlora_worker.evaluation.data import order_of
from fimlora_worker.evaluation.runs import RunResult, RunSpec
from fimlora_worker.evaluation.task import task_for
from fimlora_worker.evaluation.testing import held_out_metrics
from fimlora_worker.evaluation.training import steps_with_tests, train
from fimlora_worker.inputs.calibration_data import PaddedBatches
from fimlora_worker.inputs.models import load_model
from support.evaluations import make_settings
from support.model_folders import make_family
from support.seq2seq import SEQ2SEQ_MODELS
from support.training import by_hand, make_rows, make_task

RATE = 2e-2
SPEC = RunSpec("fim", RATE, 3, "final")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A BERT that drops nothing, so that a loop by hand can do the same."""
    config = transformers.BertConfig(
        vocab_size=55, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=64, pad_token_id=0,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.BertModel(config)
    return make_family(tmp_path_factory.mktemp("encoder"), model)


@pytest.fixture(scope="module")
def encoder_decoder(tmp_path_factory):
    """A T5 that drops nothing."""
    config = transformers.T5Config(
        vocab_size=55, d_model=24, d_kv=8, d_ff=40, num_layers=2, num_heads=4, dropout_rate=0.0,
        pad_token_id=0, eos_token_id=4, decoder_start_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.T5ForConditionalGeneration(config)
    return make_family(tmp_path_factory.mktemp("encoder-decoder"), model)


def run(task, spec, tmp_path, on_step=lambda done, n: None) -> RunResult:
    return train(spec, task, folder=tmp_path, on_step=on_step)


def batches_of(examples, size, pad_id=0):
    return list(PaddedBatches(examples, batch_size=size, pad_id=pad_id))


def cases(encoder, encoder_decoder, model_folders):
    return {
        "classes": (encoder, make_rows(60), ["classifier"]),
        "amounts": (encoder, make_rows(60, label="amount"), ["classifier"]),
        "text": (model_folders / "decoder", make_rows(60, label=None), []),
        "prompts": (model_folders / "decoder", make_rows(60, prompt=True), []),
        "pairs": (encoder_decoder, make_rows(60, prompt=True), []),
    }


@pytest.mark.parametrize("kind", ["classes", "amounts", "text", "prompts", "pairs"])
def test_a_run_is_what_a_loop_by_hand_comes_to(
    kind, encoder, encoder_decoder, model_folders, tmp_path
):
    """Order, start, optimiser, schedule and clipping: the trained models have one loss."""
    folder, rows, head = cases(encoder, encoder_decoder, model_folders)[kind]
    task = make_task(folder, rows)
    plan = task.arms["fim"].plan(SPEC.seed)
    size, n = task.settings.batch_size, task.settings.n_steps
    order = order_of(len(task.data.train), n * size, seed=SPEC.seed)
    ordered = [task.data.train[i] for i in order]
    starts = {
        m.name: draw_lora_a(m, rank=plan.ranks[m.name], seed=SPEC.seed)
        for m in plan.modules
        if plan.ranks[m.name]
    }
    loaded = load_model(folder, task.model.config, task.model.request).model
    loaded.config.pad_token_id = task.pad_id

    result = run(task, SPEC, tmp_path)
    model = by_hand(
        loaded,
        plan,
        batches_of(ordered, size, task.pad_id),
        starts,
        rate=RATE,
        n_warmup=1,
        head=head,
    )

    assert result.loss == pytest.approx(slow_loss(model, task), rel=1e-5)
    assert result.loss != pytest.approx(slow_loss(untrained(task), task), rel=1e-4)
    assert result.curve[-1] == (n, result.loss)
    assert result.n_steps == n
    assert result.adapter_parameters == plan.spent.parameters
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert result.trainable_parameters == trained


def untrained(task):
    plan = task.arms["fim"].plan(0)
    return adapt(task.model, plan, seed=0).model


@torch.no_grad()
def slow_loss(model, task):
    """One row at a time, in float64, from the logits."""
    model.eval()
    losses = []
    for [batch] in (batches_of([example], 1) for example in task.data.held_out):
        logits = model(**batch).logits.double()[0]
        labels = batch["labels"][0]
        if task.model.request.problem_type == "regression":
            losses.append(float((logits[0] - labels) ** 2))
        elif task.model.request.problem_type:
            losses.append(float(torch.logsumexp(logits, 0) - logits[labels]))
        else:
            # A decoder of its own is given the labels shifted; another one predicts the next.
            shift = 0 if task.model.request.task == "seq2seq_lm" else 1
            for t in range(shift, len(labels)):
                if labels[t] != -100:
                    row = logits[t - shift]
                    losses.append(float(torch.logsumexp(row, 0) - row[labels[t]]))
    return sum(losses) / len(losses)


def test_the_same_run_gives_the_same_result(model_folders, tmp_path):
    """Dropout included, after another run and in a process that has drawn numbers since."""
    task = make_task(model_folders / "tiny", make_rows(60))

    first = run(task, SPEC, tmp_path)
    torch.rand(5), np.random.rand(5), random.random()
    other = run(task, replace(SPEC, seed=4), tmp_path)
    again = run(task, SPEC, tmp_path)

    assert replace(again, seconds=0) == replace(first, seconds=0)
    assert other.metrics != first.metrics
    assert RunResult.from_json(json.loads(json.dumps(first.to_json()))) == first


def test_arms_of_a_seed_see_the_same_rows_in_the_same_order():
    """The order follows from the seed; every example is used as often as any other."""
    for n, wanted in [(10, 24), (24, 24), (50, 24)]:
        order = order_of(n, wanted, seed=5)

        counts = np.bincount(order, minlength=n)
        assert order == order_of(n, wanted, seed=5) != order_of(n, wanted, seed=6)
        assert len(order) == wanted
        assert counts.max() - counts.min() <= 1


def test_all_arms_start_from_the_same_rows_of_a_and_the_same_head(encoder):
    """Where both arms have a row of A, it is the same one; B is zero."""
    task = make_task(encoder, make_rows(60))
    models = {
        name: adapt(task.model, arm.plan(0), seed=3).model.base_model.model
        for name, arm in task.arms.items()
    }

    for name in task.arms["fim"].plans[0].ranks:
        layers = [m.get_submodule(name) for m in models.values()]
        rank = min(layer.r["default"] for layer in layers)
        for layer in layers:
            assert torch.equal(
                layer.lora_A["default"].weight[:rank], layers[0].lora_A["default"].weight[:rank]
            )
            assert not layer.lora_B["default"].weight.any()
            assert layer.scaling["default"] == 2
    heads = [m.classifier.modules_to_save["default"].weight for m in models.values()]
    assert torch.equal(heads[0], heads[1])
    assert heads[0].requires_grad


def test_an_embedding_starts_the_other_way_round(encoder):
    """B is the random one, of as many of the same columns as the rank; its parameters count."""
    task = make_task(encoder, make_rows(60))
    name = "bert.embeddings.word_embeddings"
    table = TargetModule(name, 55, 16, is_embedding=True)
    plan = allocate(Scores((table,), {name: 1.0}), 3)

    found = adapt(task.model, plan, seed=3)

    layer = found.model.get_base_model().get_submodule(name)
    wanted = draw_embedding_b(table, rank=5, seed=3)[:3].T
    assert torch.equal(layer.lora_embedding_B["default"], wanted)
    assert not layer.lora_embedding_A["default"].any()
    assert found.adapter_parameters == 3 * (55 + 16)


def test_all_arms_train_the_same_modules_whole(encoder):
    """Beside the head, from the base model's weights; the trained parameters count them."""
    task = make_task(encoder, make_rows(60))
    whole = replace(task.model, modules_to_save=("pooler", "classifier"))
    n_whole = sum(each.parameters for each in whole.saved)

    for arm in task.arms.values():
        found = adapt(whole, arm.plan(0), seed=3)

        assert found.trainable_parameters == found.adapter_parameters + n_whole
        base = found.model.base_model.model
        pooler = base.bert.pooler
        for copy, own in zip(
            pooler.modules_to_save["default"].parameters(),
            pooler.original_module.parameters(),
            strict=True,
        ):
            assert copy.requires_grad
            assert not own.requires_grad
            assert torch.equal(copy, own)


def test_a_head_that_is_given_is_what_training_starts_from(encoder):
    """A fitted head takes the place of the drawn one."""
    task = make_task(encoder, make_rows(60))
    given = {"classifier.weight": torch.full((3, 16), 0.25)}

    model = adapt(task.model, task.arms["fim"].plan(0), seed=0, head=given).model

    head = model.base_model.model.classifier.modules_to_save["default"]
    assert torch.equal(head.weight, given["classifier.weight"])
    assert not torch.equal(head.bias, torch.full((3,), 0.25))


def test_nothing_is_left_behind(encoder, tmp_path, capfd):
    """Generators stand where they stood, the folder is empty, nothing was written out."""
    task = make_task(encoder, make_rows(60))
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    capfd.readouterr()

    run(task, SPEC, tmp_path)

    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


def test_the_environment_decides_nothing(encoder, tmp_path, monkeypatch):
    """Variables that accelerate knows change no result."""
    task = make_task(encoder, make_rows(60))
    before = run(task, SPEC, tmp_path)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")

    after = run(task, SPEC, tmp_path)

    assert after.metrics == before.metrics


def test_a_cpu_trains_in_single_precision(encoder, tmp_path):
    """Where calibration is asked to run in half precision, training does not."""
    task = make_task(encoder, make_rows(60))
    request = replace(task.model.request, dtype="bfloat16")
    half = replace(task, model=replace(task.model, request=request))

    assert run(half, SPEC, tmp_path).metrics == run(task, SPEC, tmp_path).metrics


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_gpu_trains_as_a_cpu_does(dtype, encoder, tmp_path):
    """In half precision within its rounding; what is trained is kept in single precision."""
    task = make_task(encoder, make_rows(60))
    request = replace(task.model.request, device="cuda", dtype=dtype)
    on_gpu = replace(task, model=replace(task.model, request=request))

    found, expected = run(on_gpu, SPEC, tmp_path), run(task, SPEC, tmp_path)

    assert found.loss == pytest.approx(expected.loss, rel=1e-4 if dtype == "float32" else 0.05)
    assert found.trainable_parameters == expected.trainable_parameters
    model = adapt(on_gpu.model, task.arms["fim"].plan(0), seed=0).model
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


class Cancelled(Abort):
    """What a worker raises."""


@pytest.mark.parametrize("at", [0, 7, 20])
def test_a_run_can_be_ended_from_outside_at_any_time(at, encoder, tmp_path):
    """Before a step or amid a test; the next run is as if nothing had been."""
    task = make_task(encoder, make_rows(60))
    whole = run(task, SPEC, tmp_path)
    calls = []

    def on_step(done, n):
        calls.append((done, n))
        if len(calls) > at:
            raise Cancelled

    with pytest.raises(Cancelled):
        run(task, SPEC, tmp_path, on_step)

    assert len(calls) == at + 1
    assert not list(tmp_path.iterdir())
    assert run(task, SPEC, tmp_path).metrics == whole.metrics


def test_progress_is_told_before_each_step_and_each_batch_of_a_test(encoder, tmp_path):
    task, told = make_task(encoder, make_rows(60)), []

    run(task, SPEC, tmp_path, lambda done, n: told.append((done, n)))

    n_batches = math.ceil(len(task.data.held_out) / 4)
    expected = [d for step in range(6) for d in [step, *([step + 1] * n_batches * (step % 2))]]
    assert told == [(done, 6) for done in expected]


def test_a_run_that_diverges_ends_and_says_so(encoder, tmp_path):
    """It has no loss; steps that could change nothing are not made."""
    task = make_task(encoder, make_rows(60))

    result = run(task, replace(SPEC, learning_rate=1e30), tmp_path)

    assert result.has_diverged
    assert result.n_steps < task.settings.n_steps
    assert math.isnan(result.metrics["loss"])


def test_metrics_do_not_depend_on_how_held_out_rows_are_batched(
    encoder, encoder_decoder, model_folders
):
    """Padding and the size of batches change no metric, for classes and for tokens."""
    for folder, rows in [
        (encoder, make_rows(60)),
        (model_folders / "decoder", make_rows(60, label=None)),
        (encoder_decoder, make_rows(60, prompt=True)),
    ]:
        task = make_task(folder, rows, n_steps=1, n_points=1)
        model = untrained(task)
        found = [
            held_out_metrics(
                model,
                PaddedBatches(task.data.held_out, batch_size=size, pad_id=task.pad_id),
                kind=task.kind,
                on_batch=lambda: None,
            )
            for size in (1, 5, 64)
        ]
        for other in found[1:]:
            assert other == pytest.approx(found[0], rel=1e-5)


@pytest.mark.parametrize("size", [1, 3, 8])
def test_an_encoder_decoder_predicts_the_first_token_too(size):
    """The loss is the mean over all tokens that are written, batched as one likes."""
    model = SEQ2SEQ_MODELS["t5"](60)
    examples = [
        {
            "input_ids": [3 + (n + i) % 50 for i in range(length)],
            "attention_mask": [1] * length,
            "labels": [3 + (5 * n + i) % 50 for i in range(1 + 4 * n % 7)],
        }
        for n, length in enumerate([15, 9, 7, 3, 11])
    ]
    total = n_tokens = 0
    with torch.no_grad():
        for example in examples:
            row = {name: torch.tensor([ids]) for name, ids in example.items()}
            n = len(example["labels"])
            total, n_tokens = total + float(model(**row).loss) * n, n_tokens + n

    found = held_out_metrics(
        model,
        PaddedBatches(examples, batch_size=size, pad_id=0),
        kind=LossKind.SEQ2SEQ_LM,
        on_batch=lambda: None,
    )

    assert found["loss"] == pytest.approx(total / n_tokens, rel=1e-5)


def test_memory_that_runs_out_is_named_with_a_way_out(encoder, tmp_path):
    """Torch's error becomes the engine's; it says what to lower."""
    task = make_task(encoder, make_rows(60))

    def on_step(done, n):
        if done == 2:
            torch.empty(2**60)

    with pytest.raises(OutOfMemory, match=r"batch_size=4 and max_length=24 does not fit"):
        run(task, SPEC, tmp_path, on_step)


def test_a_plan_that_peft_would_not_make_is_refused(encoder, tmp_path):
    """A plan whose costs are not the model's spends something else than it says."""
    task = make_task(encoder, make_rows(60))
    plan = task.arms["fim"].plans[0]
    first = plan.modules[0]
    wrong = replace(plan, modules=(replace(first, d_in=first.d_in + 1), *plan.modules[1:]))
    bad = replace(task, arms={"fim": replace(task.arms["fim"], plans=(wrong,))})

    with pytest.raises((AdapterMismatch, RuntimeError)):
        run(bad, SPEC, tmp_path)


def test_arms_that_do_not_spend_the_same_are_refused_before_anything_is_trained(encoder):
    task = make_task(encoder, make_rows(60))
    plan = task.arms["fim"].plans[0]
    more = replace(plan, ranks={name: rank + 2 for name, rank in plan.ranks.items()})
    arms = {**task.arms, "fim": replace(task.arms["fim"], plans=(more,))}

    with pytest.raises(UnequalArms):
        task_for(task.settings, arms, task.model, None, None, None)


@pytest.mark.parametrize(
    ("n_steps", "n_points", "expected"),
    [
        (6, 3, {2, 4, 6}),
        (7, 3, {2, 5, 7}),
        (2, 5, {1, 2}),
        (1, 1, {1}),
        (96, 4, {24, 48, 72, 96}),
    ],
)
def test_the_last_step_is_always_tested(n_steps, n_points, expected):
    assert steps_with_tests(make_settings(n_steps=n_steps, n_points=n_points)) == expected
