"""The dataset of the demonstration."""

from collections import Counter

from demo.docstrings import MAX_ROWS_PER_CLASS, MIN_ROWS_PER_CLASS, build_rows


def test_the_standard_library_gives_enough_rows_and_classes():
    """At least what the demonstration promises, every text once in its class."""
    rows = build_rows()

    counts = Counter(row["label"] for row in rows)
    assert len(rows) >= 1_500
    assert len(counts) >= 8
    assert min(counts.values()) >= MIN_ROWS_PER_CLASS
    assert max(counts.values()) <= MAX_ROWS_PER_CLASS
    assert len({(row["text"], row["label"]) for row in rows}) == len(rows)
    assert len({row["label"] for row in rows[: 3 * len(counts)]}) == len(counts)


def test_labels_are_packages_and_texts_are_docstrings(tmp_path):
    """Of modules, classes and functions; not of tests, not those of a few words."""
    package = tmp_path / "colours"
    (package / "test").mkdir(parents=True)
    functions = [
        f'def f{n}():\n    """Return colour\n    number {n} of the palette."""\n'
        for n in range(50)
    ]
    (package / "__init__.py").write_text('"""Short."""\n' + "".join(functions))
    (package / "test" / "more.py").write_text('"""A docstring long enough to be taken."""')

    rows = build_rows(tmp_path)

    assert {row["label"] for row in rows} == {"colours"}
    assert rows[0]["text"] == "Return colour number 0 of the palette."
    assert len(rows) == 50
