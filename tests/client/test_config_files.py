"""Configuration files of project and user: what holds, where it comes from, what is refused."""

import json
import os

import pytest

from fimlora_client.errors import InvalidSettings
from fimlora_client.settings import read_defaults, read_settings
from support.scripted_service import scripted_service
from support.terminal import CommandLine

PROJECT, USER, VARIABLE = (f"http://{name}.test" for name in ("project", "user", "variable"))


class Place:
    """A project with a folder in it, and a home."""

    def __init__(self, folder):
        self.project, self.home = folder / "project", folder / "home"
        self.deep = self.project / "src" / "deep"
        self.deep.mkdir(parents=True)
        (self.home / ".config" / "fimlora").mkdir(parents=True)
        self.env = {"HOME": str(self.home)}

    def write(self, *, project=None, user=None, key=None):
        if project is not None:
            (self.project / "fimlora.toml").write_text(project)
        if user is not None:
            (self.home / ".config" / "fimlora" / "config.toml").write_text(user)
        if key is not None:
            (self.home / ".config" / "fimlora" / "key").write_text(key)

    def read(self, **env):
        return read_settings(self.env | env, folder=self.deep)

    def defaults(self):
        found = read_defaults(self.env, folder=self.deep)
        return {name: (default.value, default.origin) for name, default in found.items()}


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


def service_of(url):
    return f'[service]\nurl = "{url}"\n'


def test_the_environment_is_stronger_than_the_project_and_that_than_the_user(place):
    place.write(user=service_of(USER))
    assert place.read().url == USER
    place.write(project=service_of(PROJECT))
    assert place.read().url == PROJECT
    assert place.read(FIMLORA_URL=VARIABLE).url == VARIABLE
    assert read_settings({"HOME": "/nowhere"}, folder=place.home).url == "http://127.0.0.1:8000"


def test_each_default_is_that_of_the_strongest_file(place):
    place.write(
        project="[calibrate]\nbudget = 16\n", user="[calibrate]\nbudget = 8\nr-min = 2\n"
    )

    assert place.defaults() == {"budget": (16, "project file"), "r_min": (2, "user file")}


def test_another_folder_of_configuration_is_looked_into(place, tmp_path):
    place.write(user=service_of(USER))

    elsewhere = place.read(XDG_CONFIG_HOME=str(tmp_path / "xdg"))

    assert elsewhere.url == "http://127.0.0.1:8000"


def test_the_users_file_names_the_file_of_a_key(place):
    """Beside it, or by any path; a key of the environment is stronger, and needs no file."""
    place.write(user=service_of(USER) + 'api_key_file = "key"\n', key="fk_1\n")
    assert place.read().key_for(None) == "fk_1"
    (place.home / ".config" / "fimlora" / "key").unlink()

    assert place.read(FIMLORA_API_KEY="fk_2").key_for(None) == "fk_2"
    with pytest.raises(InvalidSettings, match="FIMLORA_API_KEY_FILE names a file that cannot"):
        place.read()


def test_no_key_goes_to_an_address_that_only_the_project_names(place):
    """Whoever wrote the file would get it; the same address of one's own is fine."""
    place.write(
        project=service_of(PROJECT), user='[service]\napi_key_file = "key"\n', key="fk_1"
    )

    with pytest.raises(InvalidSettings, match="a key is sent only to an address of your own"):
        place.read().key_for(None)

    assert place.read(FIMLORA_URL=PROJECT).key_for(None) == "fk_1"
    assert place.read().key_for(PROJECT) == "fk_1"  # given as an option
    place.write(project=service_of("http://localhost:8000"))
    assert place.read().key_for(None) == "fk_1"  # this machine


def test_a_folder_that_anybody_may_write_to_holds_no_project(place):
    place.write(project=service_of(PROJECT))
    place.project.chmod(0o777)

    assert place.read().url == "http://127.0.0.1:8000"


@pytest.mark.parametrize(
    ("project", "said"),
    [
        ("[servce]", "servce is no key here; did you mean service?"),
        ("[service]\nurll = 'x'", "service.urll is no key here; did you mean url?"),
        ("[service]\napi_key = 'fk_1'", "a key is kept in a file of its own"),
        ("[service]\napi_key_file = '/etc/passwd'", "only the user's own file may name a key"),
        ("[service]\nurl = 3", "service.url is a text"),
        ("service = 3", r"service is a section, written \[service\]"),
        ("[calibrate]\nbudget = {rank = 3}", "calibrate.budget is a text, a number"),
        ("[calibrate", "is no TOML"),
    ],
)
def test_what_nobody_understands_is_refused(place, project, said):
    place.write(project=project)

    with pytest.raises(InvalidSettings, match=said):
        place.read()


@pytest.fixture
def command(place):
    """A command in a process of its own, in the project's folder."""

    def command(*arguments, **environment):
        line = CommandLine(
            *arguments, folder=place.deep, environment=place.env | {"CI": "true"} | environment
        )
        return line.end(), line.output

    return command


def test_commands_read_the_files(place, command, tmp_path):
    """The service that a file names is asked; config says whose word it is; a slip is 78."""
    with scripted_service() as service:
        service.answers["/jobs?limit=20"] = [{"data": []}]
        place.write(project=service_of(service.url) + "[calibrate]\nbudget = 8\nbatches = 4\n")
        code, said = command("jobs")
        assert (code, service.asked) == (0, ["/jobs?limit=20"]), said

    code, said = command("config", "--json")
    rows = {row["name"]: row for row in json.loads(said)["client"]}
    assert rows["FIMLORA_URL"]["origin"] == "project file"
    assert rows["calibrate.batches"] == {
        "name": "calibrate.batches", "value": "4", "origin": "project file", "type": "option",
        "default": "", "description": os.fspath(place.project / "fimlora.toml"),
    }  # fmt: skip
    place.write(project="[calibrate]\nbudgt = 8\n")
    code, said = command("jobs")
    assert code == 78
    assert "calibrate.budgt is no key here; did you mean budget?" in said
    assert "Traceback" not in said


def test_defaults_are_weaker_than_options(run, rows, tmp_path, monkeypatch):
    """On the real app, in a folder with a file."""
    (tmp_path / "fimlora.toml").write_text(
        '[calibrate]\nbudget = 4\nbatches = 3\nr-max = 6\nlabel = ["team=nlp"]\nsignal = false\n'
    )
    monkeypatch.chdir(tmp_path)

    made = run("calibrate", "tiny", rows, "--batches", "2", "--no-wait", "--json")

    request = json.loads(made.stdout)["request"]
    assert request["budget"]["rank"] == 4
    assert request["calibration"]["n_batches"] == 2
    assert request["calibration"]["signal"] is False
    assert request["allocation"]["r_max"] == 6
    assert request["metadata"] == {"team": "nlp"}
