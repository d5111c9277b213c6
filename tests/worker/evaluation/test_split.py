"""Held-out rows: never trained on, never calibrated on, nor any text of theirs."""

import numpy as np
import pytest

from fimlora_contract.references import Columns
from fimlora_jobs.datasets.columns import find_fields
from fimlora_jobs.datasets.table import inline_rows, rows_of_files
from fimlora_worker.errors import DatasetEmpty
from fimlora_worker.evaluation.data import encode
from fimlora_worker.evaluation.split import hold_out
from fimlora_worker.inputs.calibration_data import draw
from fimlora_worker.inputs.examples import Encoder
from support.evaluations import make_settings
from support.jobs import write_jsonl
from support.model_folders import make_tokenizer
from support.training import make_rows


def unique_rows(n, **extra):
    return [{"text": f"w{i % 50} w{i // 50} w7", "label": i % 3, **extra} for i in range(n)]


def split_of(rows, *, own=None, **changes):
    table = rows if not isinstance(rows, list) else inline_rows(rows)
    fields = find_fields(table.names, columns=Columns())
    own = inline_rows(own) if own else None
    return hold_out(table, fields, make_settings(**changes), own=own)


def texts(rows):
    return [row["text"] for _, row in rows.read(range(rows.n_rows), rows.names)]


def test_a_share_of_the_rows_is_held_out_by_the_seed():
    """Every row is on one side, the same one each time; another seed chooses others."""
    rows = unique_rows(100)

    split = split_of(rows, held_out_share=0.2)

    assert sorted(texts(split.train) + texts(split.held_out)) == sorted(r["text"] for r in rows)
    assert split.held_out.n_rows == 20
    assert texts(split_of(rows, held_out_share=0.2).held_out) == texts(split.held_out)
    assert texts(split_of(rows, split_seed=1).held_out) != texts(split.held_out)
    assert split_of(rows, n_held_out=9).held_out.n_rows == 9
    assert split.n_equal_texts == split.n_unknown_classes == 0


def test_equal_texts_are_never_on_both_sides():
    """Half of the texts occur two or three times; what training has is not tested."""
    random = np.random.RandomState(1)
    rows = unique_rows(60) + unique_rows(30) + unique_rows(15)
    random.shuffle(rows)

    split = split_of(rows, held_out_share=0.4)

    train, held_out = texts(split.train), texts(split.held_out)
    assert not set(train) & set(held_out)
    assert len(held_out) + split.n_equal_texts == 42
    assert split.n_equal_texts > 5
    assert len(train) + 42 == 105


def test_any_column_but_the_label_tells_texts_apart():
    """A pair is equal only if both parts are; another label makes no other text."""
    rows = [
        {"premise": f"w{i}", "hypothesis": f"w{j}", "label": (i + j) % 2}
        for i in range(10)
        for j in range(10)
    ]
    doubled = rows + [{**row, "label": 1 - row["label"]} for row in rows]

    assert split_of(rows).n_equal_texts == 0
    assert split_of(doubled).n_equal_texts > 20


def test_conversations_are_compared_by_their_messages():
    chats = [[{"role": "user", "content": f"w{i % 20}"}] for i in range(40)]
    rows = inline_rows([{"messages": chat} for chat in chats])
    fields = find_fields(rows.names, columns=Columns())

    split = hold_out(rows, fields, make_settings(held_out_share=0.5))

    sides = [
        {str(row) for _, row in side.read(range(side.n_rows), ["messages"])}
        for side in (split.train, split.held_out)
    ]
    assert not sides[0] & sides[1]
    assert split.n_equal_texts > 0


def test_a_split_of_its_own_is_tested_on_and_all_other_rows_train():
    own = unique_rows(200)[90:]

    split = split_of(unique_rows(100), own=own, n_held_out=60)

    assert texts(split.train) == [row["text"] for row in unique_rows(100)]
    assert split.held_out.n_rows + split.n_equal_texts == 60
    assert set(texts(split.held_out)) <= {row["text"] for row in own[10:]}


def test_classes_that_training_lacks_are_not_tested():
    """No head has an output for them; they are counted."""
    own = unique_rows(200)[100:]
    for row in own[:40]:
        row["label"] = 9

    split = split_of(unique_rows(100), own=own)

    assert split.labels.classes == (0, 1, 2)
    assert split.n_unknown_classes == 40
    assert split.held_out.n_rows == 60


def test_views_of_files_read_and_scan_the_same_rows(tmp_path):
    """By number and by column, across files, places included."""
    rows = unique_rows(50)
    files = [
        write_jsonl(tmp_path / f"{name}.jsonl", part) or tmp_path / f"{name}.jsonl"
        for name, part in (("a", rows[:20]), ("b", rows[20:]))
    ]
    table = rows_of_files(files)

    split = split_of(table, held_out_share=0.3)

    for side in (split.train, split.held_out):
        read = side.read(range(side.n_rows), side.names)
        scanned = list(side.scan("text"))
        assert [(where, row["text"]) for where, row in read] == scanned
        assert len(scanned) == side.n_rows
    assert sorted(texts(split.train) + texts(split.held_out)) == sorted(r["text"] for r in rows)


@pytest.mark.parametrize("seed", range(3))
def test_calibration_never_sees_a_held_out_row(seed):
    """However many rows calibration draws from the training side, by whatever seed."""
    split = split_of(unique_rows(80), held_out_share=0.5)
    fields = find_fields(split.train.names, columns=Columns())
    encoder = Encoder(make_tokenizer(pad_token="[PAD]"), fields, 16, split.labels)

    drawn = draw(split.train, encoder, n_examples=1000, seed=seed)
    data = encode(split, encoder, make_settings())

    def ids(examples):
        return {tuple(example["input_ids"]) for example in examples}

    assert len(drawn.examples) == 40
    assert ids(drawn.examples) == ids(data.train)
    assert not ids(drawn.examples) & ids(data.held_out)


def test_examples_are_those_of_calibration():
    """Training and calibration tokenise by one code; as many rows as a run can see are used."""
    rows = make_rows(60)
    split = split_of(rows)
    fields = find_fields(split.train.names, columns=Columns())
    encoder = Encoder(make_tokenizer(pad_token="[PAD]"), fields, 16, split.labels)

    data = encode(split, encoder, make_settings(n_steps=2, batch_size=5))

    assert len(data.train) == 10
    assert list(data.train) == list(draw(split.train, encoder, n_examples=10, seed=0).examples)
    assert len(data.held_out) == split.held_out.n_rows


@pytest.mark.parametrize(
    ("rows", "own", "message"),
    [
        (unique_rows(3), None, "too few"),
        (unique_rows(50), unique_rows(10), r"of 10 held-out rows 10 have .* 0 are left"),
    ],
)
def test_rows_that_leave_nothing_to_test_are_refused(rows, own, message):
    with pytest.raises(DatasetEmpty, match=message):
        split_of(rows, own=own)


def test_too_few_rows_that_may_be_tested_are_refused_with_their_counts():
    """Eight are the fewest, after equal texts and unknown classes are left out."""
    rows, own = unique_rows(50), unique_rows(65)[45:]
    unknown = [dict(row, label=9) for row in own[7:13]]

    assert split_of(rows, own=[*own[:5], *unknown, *own[12:]]).held_out.n_rows == 8
    with pytest.raises(DatasetEmpty) as refused:
        split_of(rows, own=[*own[:5], *unknown, *own[13:]])

    assert "of 18 held-out rows 5 have the text of a training row and 6 a class" in str(
        refused.value
    )
    assert "7 are left to test on, and at least 8 are needed" in str(refused.value)


def test_held_out_rows_that_leave_nothing_to_predict_do_not_count():
    """Eight examples must come of the rows, not eight rows."""
    rows = [{"prompt": f"w{i} w{i // 50}", "completion": " w1 w2 w3"} for i in range(40)]
    own = [{"prompt": f"w{i} w3", "completion": " w1 w2"} for i in range(9)]
    for row in own[:2]:
        row["prompt"] = " ".join([row["prompt"], "w5 " * 20])
    split = split_of(rows, own=own)
    fields = find_fields(split.train.names, columns=Columns())
    encoder = Encoder(make_tokenizer(pad_token="[PAD]"), fields, 8, split.labels)

    with pytest.raises(
        DatasetEmpty, match=r"of 9 rows to test on 2 leave nothing .* 7 are left"
    ):
        encode(split, encoder, make_settings())
