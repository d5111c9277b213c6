"""Images and sounds of rows, known by their first bytes; nothing is fetched, nothing outside read."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fimlora_contract.references import Columns
from fimlora_jobs.datasets.checks import check_rows
from fimlora_jobs.datasets.columns import ColumnError, TextFields, check_row, find_fields
from fimlora_jobs.datasets.conversations import ConversationError, read_conversation
from fimlora_jobs.datasets.files import read_files
from fimlora_jobs.datasets.folders import FolderDigests, content_files
from fimlora_jobs.datasets.media import MediaError, check_media, read_media
from support.seeing import data_url, pixels, png, wav

PICTURE = png(pixels(0, 4, 4))
SOUND = wav(0, n_samples=10)


@pytest.fixture
def folder(tmp_path):
    """Rows with a picture beside them, and a secret outside."""
    (tmp_path / "secret.png").write_bytes(PICTURE)
    inside = tmp_path / "rows"
    (inside / "pictures").mkdir(parents=True)
    (inside / "pictures" / "one.PNG").write_bytes(PICTURE)
    (inside / "out.png").symlink_to(tmp_path / "secret.png")
    (inside / "linked.png").symlink_to("pictures/one.PNG")
    (inside / "linked").symlink_to("pictures")
    (inside / "rows.jsonl").write_text("{}")
    return inside


@pytest.mark.parametrize(
    "value",
    [
        {"bytes": PICTURE, "path": None},
        {"bytes": PICTURE, "path": "/home/me/one.png"},
        {"bytes": None, "path": "pictures/one.PNG"},
        data_url(PICTURE),
        "pictures/one.PNG",
        "./pictures/one.PNG",
        "linked.png",
    ],
    ids=["bytes", "bytes and their path", "struct of a path", "data", "path", "dot", "link"],
)
def test_every_way_to_say_an_image(folder, value):
    """All of them have the same bytes."""
    assert read_media(value, "image", beside=folder) == PICTURE


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("https://example.org/a.png", "nothing is fetched"),
        ("file:///etc/passwd", "nothing is fetched"),
        ("//host/a.png", "nothing is fetched"),
        ({"bytes": None, "path": "http://a/b.png"}, "nothing is fetched"),
        ("/etc/passwd", "stays inside"),
        ("../secret.png", "stays inside"),
        ("pictures/../../secret.png", "stays inside"),
        ("out.png", "no file inside the folder"),
        ("linked/one.PNG", "leads through a link; name the file where it lies"),
        ("pictures", "end in .gif"),
        ("rows.jsonl", "end in .gif"),
        ("absent.png", "is not there"),
        ("a\\b.png", "stays inside"),
        ("a\x00.png", "stays inside"),
        ("data:image/png;base64,%%%%", "not sound base64"),
        (data_url(SOUND), "another format"),
        ({"bytes": b"MZ"}, "another format"),
        ({"bytes": "text"}, "as the bytes of an image"),
        ({"bytes": None, "path": None}, "holds nothing where an image"),
        (5, "holds int '5'"),
        ({"bytes": PICTURE[:8] + bytes(16 << 20)}, "one may have 16777216"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_no_image_is_named(folder, value, message):
    with pytest.raises(MediaError, match=message):
        check_media(value, "image", beside=folder)


def test_no_path_without_a_folder():
    """An upload is one file."""
    with pytest.raises(MediaError, match="no files lie beside these rows; allowed are bytes"):
        check_media("one.png", "image", beside=None)


def test_sounds():
    assert read_media(data_url(SOUND, "audio/wav"), "audio", beside=None) == SOUND
    with pytest.raises(MediaError, match="allowed are WAV"):
        check_media({"bytes": PICTURE}, "audio", beside=None)


def test_the_digest_covers_media(folder):
    """Another picture is another dataset; other files beside it are not its content."""
    digests = FolderDigests()
    before = digests.of_files(content_files(folder))
    (folder / "notes.txt").write_text("a")
    assert digests.of_files(content_files(folder)) == before

    (folder / "pictures" / "one.PNG").write_bytes(png(pixels(1, 5, 4)))

    assert digests.of_files(content_files(folder)) != before


@pytest.mark.parametrize(
    ("content", "columns", "parts", "media"),
    [
        ([{"type": "image", "image": "a"}, "x"], {}, ["image", "text"], ["a"]),
        ([{"type": "image_url", "image_url": {"url": "a"}}], {}, ["image"], ["a"]),
        (
            [{"type": "image"}, {"type": "image"}],
            {"image": ["a", "b"]},
            ["image"] * 2,
            ["a", "b"],
        ),
        ("<image>x<image>", {"image": ["a", "b"]}, ["image", "text", "image"], ["a", "b"]),
        ("x", {"image": ["a", "b"]}, ["image", "image", "text"], ["a", "b"]),
        ("x", {"audio": ["a"], "image": ["b"]}, ["audio", "image", "text"], ["a", "b"]),
        ("<image> is text", {}, None, []),
    ],
    ids=lambda value: str(value)[:40],
)
def test_where_images_go(content, columns, parts, media):
    """Parts in order; a column fills their places, or goes first."""
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": content}]

    found = read_conversation(messages, media=columns)

    shown = found.messages[1]["content"]
    assert shown == content if parts is None else [p["type"] for p in shown] == parts
    assert [value for _, value in found.media] == media


@pytest.mark.parametrize(
    ("content", "columns"),
    [
        ([{"type": "image"}], {}),
        ([{"type": "image"}], {"image": ["a", "b"]}),
        ("<image><image>", {"image": ["a"]}),
    ],
)
def test_each_place_has_an_image(content, columns):
    with pytest.raises(ConversationError, match="each needs one"):
        read_conversation([{"role": "user", "content": content}], media=columns)


def test_columns_are_found_and_left_alone():
    names = ["image", "prompt", "completion"]
    assert find_fields(names, columns=Columns()).images == "image"
    assert find_fields(names, columns=Columns(images="")).images is None
    assert find_fields(["text", "label", "image"], columns=Columns()).images is None
    with pytest.raises(ColumnError, match="classified by their text alone"):
        find_fields(["t", "l", "i"], columns=Columns(text="t", label="l", images="i"))
    # What jobs have on record is as before where there are none.
    assert "images" not in TextFields(text="text").on_record()


def test_a_row_is_named(tmp_path):
    """Parquet as `datasets` writes it, of which one image is damaged."""
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = pa.array(
        [[{"bytes": PICTURE, "path": "a.png"}], [], [{"bytes": b"no", "path": None}]],
        pa.list_(struct),
    )
    file = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"text": ["a", "b", "c"], "images": images}), file)
    fields = find_fields(["text", "images"], columns=Columns())
    rows = list(read_files([file], ["text", "images"]))

    assert check_rows(rows[:2], fields).media == ("image",)
    with pytest.raises(
        ColumnError, match="row 3, image 1 of it, holds an image of another format"
    ):
        check_rows(rows, fields)


def test_a_row_may_have_so_many():
    row = {"text": "a", "images": [data_url(PICTURE)] * 33}
    with pytest.raises(ColumnError, match="row 1 has 33 of kind image; a row may have 32"):
        check_row(row, TextFields(text="text", images="images"), where="row 1")
