"""``fimlora adapters`` on the real app: from a folder to the service and back."""

import json

from support.adapter_files import CONFIG, WEIGHTS, write_adapter_files


def test_an_adapter_goes_there_and_comes_back(run, tmp_path):
    """Uploaded, listed, fetched as it was, and deleted."""
    folder = write_adapter_files(tmp_path / "trained")

    uploaded = run("adapters", "upload", folder)
    id_ = uploaded.stdout.strip()
    listed = run("adapters")
    fetched = run("adapters", "download", id_, "--output", tmp_path / "back")
    deleted = run("adapters", "delete", id_)

    assert uploaded.exit_code == fetched.exit_code == deleted.exit_code == 0
    assert "6 modules, 1,344 parameters" in uploaded.stderr
    assert [line.split()[:4] for line in listed.stdout.splitlines()[1:]] == [
        [id_, "upload", "4", "1,344"]
    ]
    for name in (CONFIG, WEIGHTS):
        assert (tmp_path / "back" / name).read_bytes() == (folder / name).read_bytes()
    assert "no adapters yet" in run("adapters").stderr
    assert run("adapters", "show", id_).exit_code == 3


def test_a_folder_gets_a_name(run, tmp_path, data_dir):
    """A link in the data folder, which the service then lists; its files stay where they are."""
    folder = write_adapter_files(tmp_path / "trained")

    added = run("adapters", "add", "mine", folder)

    assert added.exit_code == 0, added.output
    assert json.loads(run("adapters", "--json").stdout)[0]["id"] == "mine"
    assert json.loads(run("adapters", "show", "mine").stdout)["parameters"] == 1344
    assert (
        "the operator has them"
        in run("adapters", "download", "mine", "-o", tmp_path / "x").stderr
    )
    (folder / WEIGHTS).unlink()
    assert f"holds no {WEIGHTS}" in run("adapters", "add", "other", folder).stderr
