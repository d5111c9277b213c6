"""Trained adapters: upload, list, look at, fetch, delete."""

import io
import json
import subprocess
import tarfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from fimlora_jobs.data_folder import DataFolder
from fimlora_service.adapters.keeping import delete_kept
from fimlora_service.errors import AdapterInUse
from fimlora_service.keys.principal import EVERYBODY
from support.adapter_files import (
    CONFIG,
    NAMES,
    TAR,
    WEIGHTS,
    as_tar,
    config_of,
    files_of,
    tensors_of,
    write_adapter_files,
)


def left_behind(data_dir) -> list[str]:
    """Everything in the folders an upload passes through."""
    return [str(p) for room in ("tmp", "uploads") for p in (data_dir / room).iterdir()]


@pytest.fixture
def kept(http) -> str:
    """Id of an uploaded adapter."""
    return http.post("/adapters", content=as_tar(files_of()), headers=TAR).json()["id"]


def test_an_upload_is_kept_under_its_content(http, data_dir):
    """The first time 201, then 200 with the same id, in whatever archive it comes."""
    files = files_of()
    first = http.post("/adapters", content=as_tar(files), headers=TAR)
    named = {f"./trained/{name}": files[name] for name in reversed(files)}
    odd = as_tar({"README.md": b"# a"} | named, format=tarfile.PAX_FORMAT)
    second = http.post("/adapters", content=odd, headers=TAR)

    adapter = first.json()
    assert (first.status_code, second.status_code) == (201, 200), second.text
    assert adapter == second.json() == http.get(first.headers["Location"]).json()
    assert (adapter["n_modules"], adapter["rank_min"], adapter["rank_max"]) == (6, 4, 4)
    assert adapter["parameters"] == 1344
    assert (adapter["base_model"], adapter["task_type"]) == ("org/model", "CAUSAL_LM")
    for name, content in files.items():
        assert http.get(f"{first.headers['Location']}/files/{name}").content == content
    assert not list((data_dir / "tmp").iterdir())


@pytest.mark.parametrize("format", ["ustar", "gnu", "pax"])
def test_archives_of_the_tool_itself_are_read(http, tmp_path, format):
    """As `tar` writes them, of two files or of a folder."""
    write_adapter_files(tmp_path / "trained")
    for words in ((tmp_path / "trained", CONFIG, WEIGHTS), (tmp_path, "trained")):
        command = ["tar", f"--format={format}", "-cf", "-", "-C", *map(str, words)]
        archive = subprocess.run(command, capture_output=True, check=True).stdout

        answer = http.post("/adapters", content=archive, headers=TAR)

        assert answer.status_code in {200, 201}, answer.text


def link_member(name: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(member)
        for other, content in files_of().items():
            if other != name:
                member = tarfile.TarInfo(other)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def nan_tensors():
    tensors = tensors_of()
    tensors[f"base_model.model.{NAMES[2]}.lora_B.weight"][3, 1] = np.nan
    return tensors


def wide_tensors():
    return {
        f"base_model.model.{NAMES[0]}.lora_{factor}.weight": np.zeros(shape, np.float32)
        for factor, shape in (("A", (2_000, 1)), ("B", (1, 2_000)))
    }


@pytest.mark.parametrize(
    ("content", "headers", "code", "said"),
    [
        (b"", TAR, "adapter_invalid", "no uncompressed tar"),
        (b"x" * 5_000, TAR, "adapter_invalid", "no uncompressed tar"),
        (bytes(1_024), TAR, "adapter_invalid", "no uncompressed tar|has no adapter_config"),
        (as_tar(files_of())[:3_000], TAR, "adapter_invalid", "ends within"),
        (as_tar({CONFIG: b"{}"}), TAR, "adapter_invalid", f"no {WEIGHTS}"),
        (as_tar({WEIGHTS: b""}), TAR, "adapter_invalid", f"no {CONFIG}"),
        (
            as_tar({CONFIG: b"{}", "adapter_model.bin": b"\x80"}),
            TAR,
            "adapter_invalid",
            "is a pickle",
        ),
        (as_tar({"a/" + CONFIG: b"{}"} | files_of()), TAR, "adapter_invalid", "twice"),
        (
            as_tar({f"n{i}": b"" for i in range(101)}),
            TAR,
            "adapter_invalid",
            "over 100 members",
        ),
        (link_member(WEIGHTS), TAR, "adapter_invalid", "is a link"),
        (
            as_tar({CONFIG: b" " * 1_100_000, WEIGHTS: b""})[:390_000],
            TAR,
            "adapter_invalid",
            "ends within",
        ),
        (as_tar(files_of(config_of(use_dora=True))), TAR, "adapter_invalid", "DoRA"),
        (as_tar(files_of(config_of(peft_type="LOKR"))), TAR, "adapter_invalid", "only LORA"),
        (as_tar(files_of(tensors=nan_tensors())), TAR, "adapter_invalid", "1 values that are"),
        (
            as_tar(files_of(config_of(r=2_000), wide_tensors())),
            TAR,
            "adapter_invalid",
            "rank 2000 is over the limit of 1024",
        ),
        (as_tar(files_of()), {"Content-Type": "text/plain"}, "unsupported_media_type", "x-tar"),
        (
            as_tar(files_of()),
            TAR | {"Content-Encoding": "gzip"},
            "unsupported_media_type",
            "plain",
        ),
        (b"x" * 500_000, TAR, "payload_too_large", "400000"),
    ],
)
def test_an_upload_that_is_refused_leaves_nothing_behind(
    http, data_dir, content, headers, code, said
):
    """And says what is wrong, and what is not where."""
    import re

    answer = http.post("/adapters", content=content, headers=headers)

    assert answer.json()["code"] == code, answer.text
    assert re.search(said, answer.json()["detail"]), answer.text
    assert str(data_dir) not in answer.text
    assert left_behind(data_dir) == []


def test_equal_uploads_at_once_are_one_adapter(http, data_dir):
    def post(_: int) -> int:
        return http.post("/adapters", content=as_tar(files_of()), headers=TAR).status_code

    with ThreadPoolExecutor(6) as pool:
        codes = sorted(pool.map(post, range(6)))

    assert codes == [200] * 5 + [201]
    assert len(left_behind(data_dir)) == 1


def test_kept_and_registered_adapters_are_listed(http, kept, data_dir):
    """What is registered and not usable says why; one is described as in the list."""
    write_adapter_files(data_dir / "adapters" / "mine")
    (data_dir / "adapters" / "junk").mkdir()
    (data_dir / "adapters" / "gone").symlink_to(data_dir / "nowhere")

    listed = http.get("/adapters").json()["data"]

    assert [(a["id"], a["source"], a["usable"]) for a in listed] == [
        (kept, "upload", True),
        ("gone", "local", False),
        ("junk", "local", False),
        ("mine", "local", True),
    ]
    assert [http.get(f"/adapters/{a['id']}").json() for a in listed if a["id"] != "gone"] == [
        a for a in listed if a["id"] != "gone"
    ]
    assert str(data_dir) not in json.dumps(listed)


@pytest.mark.parametrize("method", ["GET", "DELETE"])
@pytest.mark.parametrize(
    "id_", ["ad_" + "0" * 32, "none", "..%2f", "%2e%2e", "ad_x", "a%5Cb", ".git"]
)
def test_an_adapter_that_is_not_there_is_not_found(http, data_dir, method, id_):
    """404, and no name is a path."""
    before = sorted(data_dir.rglob("*"))

    answer = http.request(method, f"/adapters/{id_}")

    assert answer.status_code == 404, answer.text
    assert answer.json()["code"] in {"adapter_not_found", "not_found"}
    assert sorted(data_dir.rglob("*")) == before


def test_files_are_fetched_by_name_and_digest(http, kept, data_dir):
    """Only those that are listed; a copy that is right is not sent again."""
    (data_dir / "uploads" / kept / "secret.txt").write_text("not listed")
    for file in http.get(f"/adapters/{kept}").json()["files"]:
        answer = http.get(file["href"])
        assert answer.headers["ETag"] == f'"{file["digest"]}"'
        assert len(answer.content) == file["size"]
        again = http.get(file["href"], headers={"If-None-Match": answer.headers["ETag"]})
        assert (again.status_code, again.content) == (304, b"")

    for name in ("secret.txt", "meta.json", "..%2fmeta.json", "none"):
        answer = http.get(f"/adapters/{kept}/files/{name}")
        assert answer.json()["code"] in {"artifact_not_found", "not_found"}, answer.text


def test_a_deleted_adapter_is_gone(http, kept, data_dir):
    """204, then 404; it can be uploaded again, under the same id."""
    answer = http.delete(f"/adapters/{kept}")

    assert (answer.status_code, answer.content) == (204, b"")
    assert left_behind(data_dir) == []
    assert http.delete(f"/adapters/{kept}").json()["code"] == "adapter_not_found"
    again = http.post("/adapters", content=as_tar(files_of()), headers=TAR)
    assert (again.status_code, again.json()["id"]) == (201, kept)


def test_a_job_accepted_in_the_same_moment_keeps_its_adapter(http, kept, data_dir):
    """It is put back as if nothing had happened."""
    answers = iter([[], ["job_1"]])

    with pytest.raises(AdapterInUse, match="needed by 1 jobs"):
        delete_kept(
            kept,
            data_folder=DataFolder(data_dir),
            principal=EVERYBODY,
            find_users=lambda: next(answers),
        )

    assert http.get(f"/adapters/{kept}").status_code == 200
    assert not list((data_dir / "tmp").iterdir())


def test_a_registered_adapter_is_the_operators(http, data_dir):
    """It is not deleted, and its files are not sent."""
    write_adapter_files(data_dir / "adapters" / "mine")

    assert "are the operator's" in http.delete("/adapters/mine").json()["detail"]
    assert "are the operator's" in http.get(f"/adapters/mine/files/{CONFIG}").json()["detail"]
    assert (data_dir / "adapters" / "mine" / CONFIG).is_file()
