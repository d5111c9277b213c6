"""A job on a quantised base: measured as the numbers its weights stand for, resident or streamed."""

import pytest

from support.executor_jobs import ended, submit
from support.jobs import Jobs
from support.packing import pack_folder, pack_gpt2


@pytest.mark.parametrize("packing", ["gptq", "bitsandbytes_4bit"])
def test_both_executors_plan_for_the_maps_that_the_weights_stand_for(
    jobs: Jobs, run_queue, model_folders, packing
):
    """The same bytes in every file; sizes are those of the unquantised model."""
    if not (folder := model_folders / packing).exists():
        pack_folder(model_folders / "decoder", folder, packing)
    submitted = [
        submit(jobs, model, "text", executor, target_modules="all-linear")
        for model, executor in (
            (packing, "streamed"),
            (packing, "resident"),
            ("decoder", "auto"),
        )
    ]
    run_queue()

    found = [ended(jobs, job_id) for job_id in submitted]
    assert [job.status for job in found] == ["succeeded"] * 3, [j.error for j in found]
    streamed, resident, plain = (job.result for job in found)
    assert streamed.digest == resident.digest != plain.digest
    assert [m.d_in for m in streamed.rank_map.modules] == [
        m.d_in for m in plain.rank_map.modules
    ]
    assert streamed.rank_map.spent == plain.rank_map.spent


def test_maps_that_hold_inputs_first_are_calibrated(jobs: Jobs, run_queue, model_folders):
    """GPT-2: packers put outputs first, and its own maps inputs."""
    folder = model_folders / "packed_gpt2"
    if not folder.exists():
        pack_gpt2(model_folders / "decoder", folder)
    submitted = [
        submit(jobs, "packed_gpt2", "text", executor, target_modules=["c_attn", "c_proj"])
        for executor in ("streamed", "resident")
    ]
    run_queue()

    found = [ended(jobs, job_id) for job_id in submitted]
    assert [job.status for job in found] == ["succeeded"] * 2, [j.error for j in found]
    assert found[0].result.digest == found[1].result.digest
    sides = {m.name: (m.d_in, m.d_out) for m in found[0].result.rank_map.modules}
    assert sides["transformer.h.0.attn.c_attn"] == (32, 96)


def test_a_method_that_is_not_read_fails_by_name(
    jobs: Jobs, run_queue, model_folders, tmp_path
):
    """With the way out, for a model that changed since the service looked at it."""
    if not (folder := model_folders / "odd_bits").exists():
        pack_folder(model_folders / "decoder", folder, "gptq")
        config = (folder / "config.json").read_text().replace('"bits": 4', '"bits": 5')
        (folder / "config.json").write_text(config)
    job_id = submit(jobs, "odd_bits", "text", "auto")
    run_queue()

    error = ended(jobs, job_id).error
    assert error.code == "unsupported_architecture"
    assert "bits=5" in error.detail
    assert "give the unquantised model" in error.detail
