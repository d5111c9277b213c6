"""Evaluations of rows with images or sounds: refused by name, before anything is queued."""

import pytest

from fimlora_jobs.datasets.columns import NO_MEDIA_IN_EVALUATIONS
from support.seeing import MAKERS, data_url, pixels, png, wav

pytest.importorskip("PIL")
IMAGE, SOUND = data_url(png(pixels(0, 2, 2))), data_url(wav(0, n_samples=9), "audio/wav")
PARTS = [{"type": "image", "image": IMAGE}, {"type": "text", "text": "?"}]
ROWS = {
    "column": [{"text": f"text {n}", "image": IMAGE} for n in range(16)],
    "sounds": [{"text": f"text {n}", "audio": SOUND} for n in range(16)],
    "parts": [
        {"messages": [{"role": "user", "content": PARTS}, {"role": "assistant", "content": f"{n}"}]}
        for n in range(16)
    ],
}  # fmt: skip


@pytest.mark.parametrize("more", [{}, {"validate_only": True}], ids=["in full", "only asked"])
@pytest.mark.parametrize("name", ROWS)
def test_rows_that_show_something_are_refused(http, body, data_dir, redis_client, name, more):
    """Wherever it is in them; nothing of it is on record."""
    MAKERS["qwen_audio" if name == "sounds" else "llava"](data_dir / "models" / "sees")
    asked = body | {
        "base_model": "local:sees",
        "dataset": {"source": "inline", "rows": ROWS[name]},
    }

    answer = http.post("/evaluations", json=asked | more)

    assert (answer.status_code, answer.json()["code"]) == (422, "dataset_schema")
    assert NO_MEDIA_IN_EVALUATIONS in answer.json()["detail"]
    assert not [key for key in redis_client.scan_iter() if b":job:" in key]


@pytest.mark.parametrize("role", ["images", "audio"])
def test_a_column_that_is_named_is_refused_unseen(http, body, role):
    """Rows of the hub are not here yet; nobody is asked for them."""
    dataset = {"source": "hub", "id": "org/name", "columns": {"text": "t", role: "shown"}}

    for asked in ({"dataset": dataset}, {"eval_dataset": dataset}):
        answer = http.post("/evaluations", json=body | asked)
        assert (answer.status_code, answer.json()["code"]) == (422, "dataset_schema")
        assert NO_MEDIA_IN_EVALUATIONS in answer.json()["detail"]
