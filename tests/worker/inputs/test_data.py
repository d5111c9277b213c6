"""From rows to padded batches: what a model is really calibrated on."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from fimlora_contract.references import InlineDataset, LocalDataset, UploadedDataset
from fimlora_jobs.datasets.columns import TextFields
from fimlora_jobs.datasets.folders import FolderDigests, dataset_files
from fimlora_jobs.datasets.labels import Labels
from fimlora_jobs.datasets.rows import RowError
from fimlora_worker.errors import DatasetEmpty, DatasetSchema, DatasetUnreachable
from fimlora_worker.inputs.calibration_data import PaddedBatches, draw
from fimlora_worker.inputs.examples import Encoder
from fimlora_worker.inputs.labels import find_labels
from fimlora_worker.inputs.rows import open_rows
from fimlora_worker.inputs.token_spans import IGNORED
from fimlora_worker.settings import Settings
from support.jobs import write_jsonl
from support.model_folders import make_tokenizer

ID = "ds_" + "0" * 32


@pytest.fixture
def settings(tmp_path) -> Settings:
    return Settings(data_dir=tmp_path)


def inline(rows):
    return open_rows(InlineDataset(rows=rows), {}, Settings(), FolderDigests())


def encoder(fields: TextFields, *, max_length: int = 16, labels=None, **tokenizer) -> Encoder:
    options = {"pad_token": "[PAD]", "eos_token": "[EOS]"} | tokenizer
    return Encoder(make_tokenizer(**options), fields, max_length, labels)


class TestRows:
    """Reading the same rows from every source."""

    def test_jsonl_and_parquet_hold_the_same_rows(self, settings):
        """Uploads of either format give equal rows."""
        rows = [{"text": "w1", "label": 0}, {"text": "w2", "label": 1}]
        other = "ds_" + "1" * 32
        write_jsonl(settings.uploads_dir / ID / "data.jsonl", rows)
        (settings.uploads_dir / other).mkdir()
        pq.write_table(
            pa.Table.from_pylist(rows), settings.uploads_dir / other / "data.parquet"
        )

        for id_ in (ID, other):
            opened = open_rows(UploadedDataset(id=id_), {}, settings, FolderDigests())
            assert [row for _, row in opened.read([0, 1], opened.names)] == rows
            assert [value for _, value in opened.scan("label")] == [0, 1]
            assert opened.names == ("text", "label")

    def test_a_folder_is_read_file_after_file(self, settings):
        """Errors name the file and the line a row stands on."""
        folder = settings.datasets_dir / "d"
        write_jsonl(folder / "b.jsonl", [{"text": "w2"}])
        write_jsonl(folder / "a.jsonl", [{"text": "w0"}, {"text": "w1"}])
        resolved = {"digest": FolderDigests().of_files(dataset_files(folder))}
        rows = open_rows(LocalDataset(name="d"), resolved, settings, FolderDigests())

        assert [value for _, value in rows.scan("text")] == ["w0", "w1", "w2"]
        assert rows.read([2], rows.names) == [("b.jsonl line 1", {"text": "w2"})]

    @pytest.mark.parametrize("more", [b'{"text": "w2"}\n', b"{"], ids=["grown", "cut"])
    def test_a_dataset_that_changes_while_it_is_read_is_refused(self, settings, more):
        """Its rows would be others than those that the result says it was made from."""
        file = settings.datasets_dir / "d.jsonl"
        write_jsonl(file, [{"text": "w0"}, {"text": "w1"}])
        resolved = {"digest": FolderDigests().of_files(dataset_files(file))}
        rows = open_rows(LocalDataset(name="d.jsonl"), resolved, settings, FolderDigests())
        assert rows.n_rows == 2
        file.write_bytes(more if more == b"{" else file.read_bytes() + more)

        with pytest.raises(DatasetUnreachable, match=r"'d.jsonl' has changed"):
            rows.read([0, 1], ["text"])
        with pytest.raises((DatasetUnreachable, RowError)):
            list(rows.scan("text"))

    def test_a_dataset_that_changed_is_refused(self, settings):
        """The job was accepted for another content."""
        write_jsonl(settings.datasets_dir / "d.jsonl", [{"text": "w0"}])

        with pytest.raises(DatasetUnreachable, match=r"'d.jsonl' has changed"):
            open_rows(
                LocalDataset(name="d.jsonl"), {"digest": "sha256:0"}, settings, FolderDigests()
            )

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ('{"text": "a"}\n\n{"text": \n', "line 3 is not JSON"),
            ('["a"]\n', "line 1 is not an object with one field per column"),
        ],
    )
    def test_a_line_that_does_not_parse_is_named(self, settings, content, message):
        """Blank lines count, so that the number is that of the editor."""
        file = settings.uploads_dir / ID / "data.jsonl"
        file.parent.mkdir(parents=True)
        file.write_text(content)

        with pytest.raises(DatasetSchema, match=message):
            open_rows(UploadedDataset(id=ID), {}, settings, FolderDigests())

    def test_missing_and_empty_datasets_are_told_apart(self, settings):
        """One cannot be reached, the other has no rows."""
        with pytest.raises(DatasetUnreachable, match="is not there any more"):
            open_rows(UploadedDataset(id=ID), {}, settings, FolderDigests())
        write_jsonl(settings.uploads_dir / ID / "data.jsonl", [])
        with pytest.raises(DatasetEmpty):
            open_rows(UploadedDataset(id=ID), {}, settings, FolderDigests())


class TestLabels:
    """What a label column means."""

    def test_classes_are_numbered_in_sorted_order(self):
        """Row order does not change which output stands for which class."""
        for values in (["b", "a", "b"], ["a", "b", "b"]):
            labels = find_labels(inline([{"y": v} for v in values]), "y")
            assert labels == Labels("single_label_classification", ("a", "b"))
            assert labels.target("b") == 1

    def test_integers_are_classes_and_floats_are_numbers(self):
        """One fractional label makes it a regression."""
        assert find_labels(inline([{"y": 3}, {"y": 1}]), "y").classes == (1, 3)
        regression = find_labels(inline([{"y": 3}, {"y": 0.5}]), "y")

        assert (regression.problem_type, regression.n_outputs) == ("regression", 1)
        assert regression.target(3) == 3.0

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ([1, None], "row 2: column 'y' must be a label .*it holds nothing"),
            ([1, "a"], "row 2: column 'y' mixes text and numbers: it holds 'a', in row 1 1"),
            ([["a"], 1], "row 1: column 'y' must be a label .*it holds list"),
            (["a", "a"], "the one label 'a'; a classification needs two"),
        ],
    )
    def test_labels_that_make_no_task_are_refused(self, values, message):
        """The message names the row and what it holds."""
        with pytest.raises(DatasetSchema, match=message):
            find_labels(inline([{"y": v} for v in values]), "y")


class TestExamples:
    """One row as tokens and labels."""

    def test_pairs_are_joined_and_cut(self):
        """Both texts are there until max_length cuts them."""
        fields = TextFields(text="a", text_pair="b", label="y")
        labels = Labels("single_label_classification", (0, 1))
        row = {"a": "w0 w1", "b": "w2 w3", "y": 1}

        full = encoder(fields, labels=labels).encode(row, where="row 1")
        cut = encoder(fields, labels=labels, max_length=3).encode(row, where="row 1")

        assert full["input_ids"] == [5, 6, 7, 8]
        assert full["labels"] == 1
        assert len(cut["input_ids"]) == 3

    def test_only_the_completion_is_predicted(self):
        """Prompt tokens carry no label; the end of text is part of the completion."""
        fields = TextFields(prompt="p", completion="c")
        example = encoder(fields).encode({"p": "w0 w1", "c": " w2"}, where="row 1")

        assert example["input_ids"] == [5, 6, 7, 4]
        assert example["labels"] == [IGNORED, IGNORED, 7, 4]

    def test_a_prompt_that_fills_everything_leaves_nothing_to_predict(self):
        """Such a row is dropped, not counted as an example without labels."""
        fields = TextFields(prompt="p", completion="c")
        row = {"p": "w0 w1 w2 w3", "c": " w4"}

        assert encoder(fields, max_length=4).encode(row, where="row 1") is None

    def test_plain_text_is_predicted_token_by_token(self):
        """One token alone has nothing before it to predict it from."""
        fields = TextFields(text="t")

        assert encoder(fields).encode({"t": "w0 w1"}, where="r")["labels"] == [5, 6]
        assert encoder(fields).encode({"t": "w0"}, where="r") is None


class TestDraw:
    """Which rows are used, and how they are padded."""

    FIELDS = TextFields(text="t")

    def rows(self, n: int):
        return inline([{"t": f"w{i} w{i}"} for i in range(n)])

    def test_the_seed_alone_decides_the_order(self):
        """Equal seeds draw equally, others do not; no row is drawn twice."""
        orders = [
            [e["input_ids"][0] for e in draw(self.rows(20), encoder(self.FIELDS), n_examples=8, seed=seed).examples]
            for seed in (0, 0, 1)
        ]  # fmt: skip

        assert orders[0] == orders[1] != orders[2]
        assert len(set(orders[0])) == 8

    def test_fewer_rows_than_asked_for_are_all_used(self):
        """Ten of five are five."""
        drawn = draw(self.rows(5), encoder(self.FIELDS), n_examples=10, seed=0)

        assert (len(drawn.examples), drawn.n_dropped) == (5, 0)

    def test_rows_without_anything_to_predict_are_replaced_and_counted(self):
        """The draw goes on until there are enough."""
        rows = inline([{"t": "w0"}] * 5 + [{"t": "w1 w2"}] * 5)
        drawn = draw(rows, encoder(self.FIELDS), n_examples=5, seed=0)

        assert len(drawn.examples) == 5
        assert 1 <= drawn.n_dropped <= 5
        with pytest.raises(DatasetEmpty, match="none of the 2 rows leaves anything to predict"):
            draw(inline([{"t": "w0"}] * 2), encoder(self.FIELDS), n_examples=1, seed=0)

    def test_fewer_of_those_drawn_are_what_a_smaller_draw_gives(self):
        """With the rows that were dropped on the way to them, and none after."""
        rows = inline([{"t": "w0"}] * 9 + [{"t": f"w1 w{n}"} for n in range(9)])
        drawn = draw(rows, encoder(self.FIELDS), n_examples=8, seed=0)

        for n in range(1, 9):
            alone = draw(rows, encoder(self.FIELDS), n_examples=n, seed=0)
            some = drawn.first(n)
            assert (some.examples, some.n_dropped) == (alone.examples, alone.n_dropped)
        assert drawn.first(99) is drawn
        assert drawn.n_dropped > drawn.first(1).n_dropped

    def test_padding_carries_neither_attention_nor_labels(self):
        """Each batch is as wide as its own longest example."""
        examples = [
            {"input_ids": [1] * n, "attention_mask": [1] * n, "labels": [1] * n}
            for n in (2, 4, 1)
        ]
        batches = list(PaddedBatches(examples, batch_size=2, pad_id=9))

        assert len(PaddedBatches(examples, batch_size=2, pad_id=9)) == len(batches) == 2
        assert batches[0]["input_ids"].tolist() == [[1, 1, 9, 9], [1, 1, 1, 1]]
        assert batches[0]["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
        assert batches[0]["labels"].tolist() == [[1, 1, -100, -100], [1, 1, 1, 1]]
        assert batches[1]["input_ids"].shape == (1, 1)

    def test_a_part_of_the_batches_is_those_batches(self):
        """From one up to another; the last may have fewer examples."""
        examples = [
            {"input_ids": [n] * n, "attention_mask": [1] * n, "labels": n} for n in range(1, 8)
        ]
        batches = PaddedBatches(examples, batch_size=2, pad_id=9)
        whole = list(batches)

        for start, stop in [(0, 1), (1, 3), (2, 4), (0, 4)]:
            part = list(batches.part(start, stop))
            assert len(part) == len(batches.part(start, stop)) == stop - start
            for mine, theirs in zip(part, whole[start:stop], strict=True):
                assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
        assert [batches.n_examples(n) for n in range(6)] == [0, 2, 4, 6, 7, 7]

    def test_class_and_number_labels_become_one_tensor(self):
        """Integers stay integers, numbers are float32 as the losses want them."""
        for label, dtype in ((1, torch.int64), (0.5, torch.float32)):
            example = {"input_ids": [1], "attention_mask": [1], "labels": label}
            [batch] = PaddedBatches([example], batch_size=2, pad_id=0)
            assert batch["labels"].dtype == dtype
            assert batch["labels"].shape == (1,)
