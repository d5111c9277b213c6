"""Functions of a folder become rows: code without docstrings, in an order of its own."""

from benchmarks.function_sources import PACKAGES, build_rows

CODE = '''
def short(): return 1

def long(a, b):
    """Said of {name}."""
    if a:
        for c in b:
            yield c
    return {name}

class Inner:
    async def method(self):
        """Also this."""
        await self
        self.x = 1
        return self.x
'''


def test_rows_are_the_code_of_functions_by_package(tmp_path):
    for name in PACKAGES:
        (tmp_path / name / "tests").mkdir(parents=True)
        (tmp_path / name / "b.py").write_text(CODE.format(name=name))
        (tmp_path / name / "a.py").write_text(CODE.format(name=f"{name}_a"))
        (tmp_path / name / "tests" / "test_b.py").write_text(CODE.format(name="left_out"))

    rows = build_rows(tmp_path)

    assert [row["label"] for row in rows[:3]] == list(PACKAGES)  # spread evenly
    texts = [row["text"] for row in rows if row["label"] == "email"]
    assert texts == [
        "def long(a, b): if a: for c in b: yield c return email_a",
        "async def method(self): await self self.x = 1 return self.x",
        "def long(a, b): if a: for c in b: yield c return email",
    ]
    assert build_rows(tmp_path) == rows


def test_the_standard_library_has_enough_of_them():
    rows = build_rows()

    assert {row["label"] for row in rows} == set(PACKAGES)
    assert len(rows) > 500
