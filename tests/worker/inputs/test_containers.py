"""Same rows, same examples: whatever container the rows come in, and however it is cut."""

import csv
import json
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fimlora_contract.references import Columns
from fimlora_jobs.datasets.columns import find_fields
from fimlora_jobs.datasets.folders import dataset_files
from fimlora_jobs.datasets.table import inline_rows, rows_of_files
from fimlora_worker.errors import DatasetSchema
from fimlora_worker.inputs.calibration_data import draw
from fimlora_worker.inputs.examples import Encoder
from fimlora_worker.inputs.hub_rows import dataset_rows
from fimlora_worker.inputs.labels import find_labels
from support.model_folders import make_tokenizer

LENGTHS = (150, 9, 7, 3)


def rows_with(labels):
    """Rows of uneven length with some labels."""
    return [
        {
            "text": " ".join(f"w{(i * 7 + n) % 50}" for n in range(LENGTHS[i % 4])),
            "label": label,
        }
        for i, label in enumerate(labels)
    ]


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_csv(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["text", "label"])
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_parquet(path, rows):
    # As a column: Arrow's numbers are of one kind, those of JSON of two.
    labels = [row["label"] for row in rows]
    if any(isinstance(label, float) for label in labels):
        labels = [float(label) for label in labels]
    pq.write_table(pa.table({"text": [r["text"] for r in rows], "label": labels}), path)
    return path


def written_by_datasets(path, rows, names):
    features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
    Dataset.from_list(rows, features=features).to_parquet(path)
    return path


def shards(folder, rows, write, suffix):
    """Eleven files, whose names a sort by letters would put in another order."""
    folder.mkdir()
    cuts = [len(rows) * k // 11 for k in range(12)]
    for k in range(11):
        write(folder / f"part-{k}.{suffix}", rows[cuts[k] : cuts[k + 1]])
    return list(dataset_files(folder).values())


def containers(folder, rows):
    """The same rows in every container that declares nothing."""
    hub = Dataset(pq.read_table(write_parquet(folder / "hub.parquet", rows)))
    return {
        "inline": inline_rows(rows),
        "jsonl": rows_of_files([write_lines(folder / "a.jsonl", rows)]),
        "csv": rows_of_files([write_csv(folder / "a.csv", rows)]),
        "parquet": rows_of_files([write_parquet(folder / "a.parquet", rows)]),
        "jsonl-shards": rows_of_files(shards(folder / "j", rows, write_lines, "jsonl")),
        "csv-shards": rows_of_files(shards(folder / "c", rows, write_csv, "csv")),
        "parquet-shards": rows_of_files(shards(folder / "p", rows, write_parquet, "parquet")),
        "datasets": dataset_rows(hub),
    }


def examples_of(rows, *, task="auto", n_examples=30):
    """What a job would measure: the head's outputs, and the examples in their order."""
    fields = find_fields(rows.names, columns=Columns(), task=task)
    labels = find_labels(rows, fields.label, task) if fields.label else None
    encoder = Encoder(make_tokenizer(pad_token="[PAD]"), fields, 64, labels)
    drawn = draw(rows, encoder, n_examples=n_examples, seed=3)
    return labels, drawn.examples, drawn.n_dropped


LABELS = {
    "whole": ([0, 1, 2], "single_label_classification", (0, 1, 2)),
    "one-float": ([0, 1.0, 1], "single_label_classification", (0, 1)),
    "all-floats": ([0.0, 2.0, 5.0], "single_label_classification", (0, 2, 5)),
    "fractions": ([0, 1, 0.5], "regression", ()),
    "text": (["b", "a", "10"], "single_label_classification", ("10", "a", "b")),
    "spelled": (["10", "9", "2"], "single_label_classification", (2, 9, 10)),
    "zip-codes": (["01", "1"], "single_label_classification", ("01", "1")),
    "unlabelled": ([0, -1, 1, 2, -1], "single_label_classification", (0, 1, 2)),
    "signs": ([-1, 1], "single_label_classification", (-1, 1)),
    "minus-one-or-zero": ([-1, 0], "single_label_classification", (-1, 0)),
    "negative": ([-2, -1, 0, 1], "single_label_classification", (-2, -1, 0, 1)),
}


@pytest.mark.parametrize(("values", "problem", "classes"), LABELS.values(), ids=LABELS)
def test_same_rows_same_examples(tmp_path, values, problem, classes):
    """Equal labels, equal examples in equal order, and as many rows left out."""
    rows = rows_with(values * 11)
    found = {name: examples_of(part) for name, part in containers(tmp_path, rows).items()}

    labels, examples, n_dropped = found["inline"]
    assert (labels.problem_type, labels.classes) == (problem, classes)
    n_labelled = sum(v != -1 or v in classes for v in values)
    assert len(examples) == min(30, 11 * n_labelled)
    for name, other in found.items():
        assert other == (labels, examples, n_dropped), name


def test_declared_classes_are_read_from_a_file_as_from_the_hub(tmp_path):
    """Also those that no row has, and -1 is no class beside them."""
    rows = rows_with([2, 0, -1, 2] * 8)
    file = written_by_datasets(tmp_path / "a.parquet", rows, ["x", "y", "z"])
    hub = dataset_rows(Dataset.from_parquet(str(file), cache_dir=str(tmp_path / "cache")))

    assert examples_of(rows_of_files([file])) == examples_of(hub)
    labels, examples, n_dropped = examples_of(hub)
    assert (labels.classes, labels.n_outputs, labels.has_unlabelled) == ((0, 1, 2), 3, True)
    assert (len(examples), n_dropped) == (24, 8)


@pytest.mark.parametrize("name", ["a", "b"])
def test_where_every_class_occurs_a_declaration_changes_nothing(tmp_path, name):
    """The names are told apart by their ids, in a file that has them and in one that has not."""
    rows = rows_with([0, 1, 2, -1] * 8)
    file = written_by_datasets(tmp_path / f"{name}.parquet", rows, ["x", "y", "z"])

    assert examples_of(rows_of_files([file])) == examples_of(inline_rows(rows))


@pytest.mark.parametrize(
    ("values", "names", "message"),
    [
        (
            [0, 1, 5],
            "ab",
            "row 3: column 'label' holds 5, but the dataset declares classes 0 to 1",
        ),
        ([-1, -1], "ab", "labels no row"),
    ],
)
def test_labels_that_a_declaration_forbids_are_refused(values, names, message):
    """Rather than looked up in vain."""
    rows = replace(inline_rows(rows_with(values)), classes={"label": tuple(names)})

    with pytest.raises(DatasetSchema, match=message):
        find_labels(rows, "label")


@pytest.mark.parametrize("values", [[-1, 0, 1], ["1", "0", "-1"], [0.0, 1.0, -1.0]])
def test_three_signs_may_be_classes_or_rows_without_one(tmp_path, values):
    """Sentiment is spelled so, and so are the rows of a hidden split: neither is assumed."""
    for part in containers(tmp_path, rows_with(values)).values():
        with pytest.raises(DatasetSchema, match="'label' holds -1, 0 and 1: three classes, or"):
            find_labels(part, "label")


def test_the_task_decides_where_labels_do_not(tmp_path):
    """Whole numbers can be amounts; fractions can be no classes."""
    whole, broken = rows_with([1, 2, 5]), rows_with([1, 0.5])

    for part in containers(tmp_path, whole).values():
        assert find_labels(part, "label", "regression").problem_type == "regression"
    with pytest.raises(DatasetSchema, match=r"row 2 holds 0\.5: set task regression, or auto"):
        find_labels(inline_rows(broken), "label", "sequence_classification")
    with pytest.raises(
        DatasetSchema, match=r"task regression needs numbers; .* text such as 'a'"
    ):
        find_labels(inline_rows(rows_with(["a", "1"])), "label", "regression")
    declared = replace(inline_rows(rows_with([0, 1, -1])), classes={"label": ("x", "y")})
    with pytest.raises(DatasetSchema, match="holds -1 where there is none"):
        find_labels(declared, "label", "regression")


def test_booleans_are_the_numbers_they_stand_for(tmp_path):
    """True is 1, in JSON and in Arrow."""
    rows = rows_with([True, False] * 5)
    numbers = rows_with([1, 0] * 5)

    expected = examples_of(inline_rows(numbers))

    assert examples_of(inline_rows(rows)) == expected
    assert examples_of(rows_of_files([write_parquet(tmp_path / "a.parquet", rows)])) == expected


def test_a_column_of_nulls_is_a_column_that_rows_lack(tmp_path):
    """Formats with a schema must write something where others write nothing."""
    bare = [{"text": row["text"]} for row in rows_with([0] * 8)]
    nulls = [row | {"label": None} for row in bare]
    typed = pa.table({"text": [r["text"] for r in bare], "label": pa.nulls(8, pa.int64())})
    pq.write_table(typed, tmp_path / "a.parquet")
    expected = examples_of(inline_rows(bare))

    assert expected[0] is None
    for rows in (
        inline_rows(nulls),
        rows_of_files([write_lines(tmp_path / "a.jsonl", nulls)]),
        rows_of_files([tmp_path / "a.parquet"]),
        dataset_rows(Dataset(typed)),
    ):
        assert examples_of(rows) == expected


def test_columns_are_those_of_all_first_rows(tmp_path):
    """Not of the first row alone."""
    rows = [{"text": "w1 w2"}, *rows_with([0, 1])]

    assert inline_rows(rows).names == ("text", "label")
    assert rows_of_files([write_lines(tmp_path / "a.jsonl", rows)]).names == ("text", "label")


NUMBERS = st.one_of(
    st.integers(-3, 5),
    st.integers(-(2**63), 2**63),
    st.integers(-3, 5).map(float),
    st.floats(allow_nan=False, allow_infinity=False),
)
SPELLED = st.sampled_from(
    ["0", "1", "-1", "1.0", "01", "1e2", "+1", "nan", "1_0", "\u0661", " 1"]
)
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=5) | SPELLED


@settings(max_examples=200)
@given(st.lists(NUMBERS, min_size=1, max_size=6) | st.lists(TEXT, min_size=1, max_size=6))
@example([-1, 0, 1])
@example(["-1", "0", "1"])
@example([2**53 + 1.0, 2**53])
def test_labels_mean_the_same_wherever_they_are_written(tmp_path_factory, values):
    """Whatever they are: equal targets in JSON and CSV, or refused in both."""
    folder = tmp_path_factory.mktemp("labels")
    rows = rows_with(values)
    sources = [
        inline_rows(rows),
        rows_of_files([write_lines(folder / "a.jsonl", rows)]),
        rows_of_files([write_csv(folder / "a.csv", rows)]),
    ]

    assert len({repr(targets_of(source, values)) for source in sources}) == 1


def targets_of(rows, values):
    """The head and what each row is trained on, or the refusal without its place."""
    try:
        labels = find_labels(rows, "label")
    except DatasetSchema as error:
        return str(error).partition("column")[2]
    found = [labels.target(value) for _, value in rows.scan("label")]
    assert len(found) == len(values)
    return labels, found
