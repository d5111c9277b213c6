"""Children that are kept running: restarted, given up, stopped in order, never left behind."""

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fimlora_client.stack.children import Program, RestartPolicy, describe_exit, ordinal
from fimlora_client.stack.errors import StackError
from fimlora_client.stack.given_store import check_reachable
from fimlora_client.stack.ownership import Running, announce, find_running, own
from fimlora_client.stack.server_binary import choose, find_server_binary
from fimlora_client.stack.supervisor import Stopped, Supervisor
from fimlora_client.stack.up import choose_port, describe_access, fresh_log, read_workers
from fimlora_client.stack.valkey import (
    SOCKET_PATH_LIMIT,
    answers,
    server_command,
    socket_folder,
)
from fimlora_contract.service import Health
from support.workers import PYTHONPATH, is_alive, wait_dead

# Says its pid and that it was asked to stop.
POLITE = """
import os, signal, sys, time
def stop(*_):
    open({notes!r}, "a").write("{name}\\n")
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
open({notes!r} + ".{name}", "a").write(f"{{os.getpid()}}\\n")
time.sleep(60)
"""


def polite(name, folder):
    """A program that notes its start and its stop."""
    code = POLITE.format(notes=str(folder / "notes"), name=name)
    return Program(name, [sys.executable, "-I", "-S", "-c", code], folder / f"{name}.log")


def pids(folder, name):
    """Process ids that a polite program had."""
    file = folder / f"notes.{name}"
    return [int(pid) for pid in file.read_text().split()] if file.exists() else []


def wait_until(condition, *, timeout_s=10):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_pauses_grow_with_each_death_in_a_row():
    """Half a second, doubled each time, up to half a minute: nobody gives up by himself."""
    policy = RestartPolicy()

    assert [policy.pause(n) for n in (1, 2, 3, 6, 7, 8, 10_000)] == [
        0.5, 1, 2, 16, 30, 30, 30,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, "ended with status 0"),
        (-9, "was killed by SIGKILL"),
        (-99, "was killed by signal 99"),
    ],
)
def test_an_exit_status_is_said_in_words(code, words):
    """An operator should not have to look numbers up."""
    assert describe_exit(code) == words


def test_children_are_stopped_in_the_opposite_order(tmp_path):
    """What was started last may need what was started first until its end."""
    with Supervisor(say=print) as supervisor:
        for name in ("first", "second", "third"):
            supervisor.start(polite(name, tmp_path))
            wait_until(lambda name=name: pids(tmp_path, name))

    assert (tmp_path / "notes").read_text().split() == ["third", "second", "first"]
    assert not any(is_alive(pid) for n in ("first", "second") for pid in pids(tmp_path, n))


def test_a_child_that_dies_is_started_again(tmp_path):
    """And the operator is told both times."""
    news = []

    def say(sentence):
        news.append(sentence)
        if "restarted" in sentence:
            raise Stopped

    with Supervisor(say=say, policy=RestartPolicy(first_pause_s=0.05)) as supervisor:
        supervisor.start(polite("child", tmp_path))
        wait_until(lambda: pids(tmp_path, "child"))
        os.kill(pids(tmp_path, "child")[0], signal.SIGKILL)
        with pytest.raises(Stopped):
            supervisor.watch()
        wait_until(lambda: len(pids(tmp_path, "child")) == 2)

    first, second = pids(tmp_path, "child")
    assert news[0] == "child was killed by SIGKILL; restarting in 0.05 s"
    assert news[1] == f"child restarted as process {second}"
    assert not is_alive(first)
    assert not is_alive(second)


def test_a_child_that_all_need_is_given_up_with_its_log(tmp_path):
    """When it dies too often; the last lines of its log are what the operator needs."""
    command = [sys.executable, "-c", "raise SystemExit('no such file: rows')"]
    policy = RestartPolicy(max_deaths=2, first_pause_s=0.01)

    with Supervisor(say=lambda _: None, policy=policy) as supervisor:
        supervisor.start(Program("valkey", command, tmp_path / "log", is_essential=True))
        with pytest.raises(StackError, match="valkey died 3 times") as caught:
            supervisor.watch()

    assert str(caught.value).count("no such file: rows") == 3
    assert str(tmp_path / "log") in caught.value.next_step


def test_a_child_that_dies_again_and_again_takes_no_other_with_it(tmp_path):
    """It is started again for ever, the others go on, and the operator is told why it died."""
    news = []

    def say(sentence):
        news.append(sentence)
        if "8th" in sentence:
            raise Stopped

    policy = RestartPolicy(max_deaths=2, first_pause_s=0.01, max_pause_s=0.02)
    command = [sys.executable, "-S", "-c", "raise SystemExit('no space left')"]
    with Supervisor(say=say, policy=policy) as supervisor:
        supervisor.start(polite("store", tmp_path))
        wait_until(lambda: pids(tmp_path, "store"))
        supervisor.start(Program("worker", command, tmp_path / "log"))
        with pytest.raises(Stopped):
            supervisor.watch()
        alive = is_alive(pids(tmp_path, "store")[0])

    assert alive
    assert news[0] == "worker ended with status 1; restarting in 0.01 s"
    assert news[-1] == (
        "worker ended with status 1 for the 8th time in a row, having said 'no space left'; "
        "restarting in 0.02 s"
    )


def test_a_child_that_cannot_be_started_again_is_tried_later(tmp_path):
    """Its log cannot be written and its program has gone for a while: nothing else ends."""
    program = tmp_path / "worker"
    program.write_text("#!/bin/sh\nsleep 0.2\n")
    program.chmod(0o755)
    news = []

    def say(sentence):
        news.append(sentence)
        if len(news) == 1:
            program.rename(tmp_path / "gone")
            (tmp_path / "logs").rename(tmp_path / "old")
        if len(news) == 3:
            (tmp_path / "gone").rename(program)
        if "restarted" in sentence:
            raise Stopped
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "logs").mkdir()
    policy = RestartPolicy(first_pause_s=0.01, max_pause_s=0.02)
    with Supervisor(say=say, policy=policy) as supervisor:
        supervisor.start(Program("worker", [str(program)], tmp_path / "logs" / "worker.log"))
        with pytest.raises(Stopped):
            supervisor.watch()

    assert (
        news[1] == "worker cannot be started: No such file or directory; trying again in 0.02 s"
    )


def test_a_child_that_was_sound_for_a_while_is_forgiven(tmp_path):
    """Its next death is its first."""
    news = []

    def say(sentence):
        news.append(sentence)
        if len(news) == 3:
            raise Stopped

    policy = RestartPolicy(sound_s=0.2, max_deaths=0, first_pause_s=0.01)
    command = [sys.executable, "-S", "-c", "import time; time.sleep(0.4); raise SystemExit(3)"]
    with Supervisor(say=say, policy=policy) as supervisor:
        supervisor.start(Program("worker", command, tmp_path / "log"))
        with pytest.raises(Stopped):
            supervisor.watch()

    assert news[0] == news[2] == "worker ended with status 3; restarting in 0.01 s"


@pytest.mark.parametrize(
    ("n", "place"),
    [
        (1, "1st"),
        (2, "2nd"),
        (3, "3rd"),
        (4, "4th"),
        (11, "11th"),
        (112, "112th"),
        (21, "21st"),
    ],
)
def test_a_place_in_a_row_is_said_in_words(n, place):
    """As a person would."""
    assert ordinal(n) == place


def test_a_child_that_dies_while_starting_ends_the_start(tmp_path):
    """Nobody waits three minutes for an API that cannot listen."""
    command = [sys.executable, "-c", "raise SystemExit('address in use')"]

    with Supervisor(say=print) as supervisor:
        supervisor.start(Program("service", command, tmp_path / "log"))
        with pytest.raises(StackError, match=r"ended with status 1 while(.|\n)*address in use"):
            supervisor.wait_for(lambda: False, what="it", timeout_s=30)


def test_a_stack_that_is_never_ready_is_given_up(tmp_path):
    """With the name of what did not answer."""
    with Supervisor(say=print) as supervisor:
        supervisor.start(polite("service", tmp_path))
        with pytest.raises(
            StackError, match=r"not ready after 0\.1 s; http://x does not answer"
        ):
            supervisor.wait_for(lambda: False, what="http://x", timeout_s=0.1)


def test_a_child_that_will_not_end_is_forced_with_all_it_started(tmp_path):
    """Its grace is over after a while, and its own children do not outlive it."""
    code = (
        "import os, signal, subprocess, sys, time, pathlib\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "p = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(60)'])\n"
        f"pathlib.Path({str(tmp_path / 'pids')!r}).write_text(f'{{os.getpid()}} {{p.pid}}\\n')\n"
        "time.sleep(60)\n"
    )
    program = Program("stubborn", [sys.executable, "-c", code], tmp_path / "log", grace_s=0.2)
    noted = tmp_path / "pids"

    with Supervisor(say=print) as supervisor:
        supervisor.start(program)
        wait_until(lambda: noted.exists() and noted.read_text().endswith("\n"))
        below = [int(pid) for pid in noted.read_text().split()]
        lived = [is_alive(pid) for pid in below]
        left_at = time.monotonic()

    assert time.monotonic() - left_at >= 0.2  # it was given its grace
    assert lived == [True, True]
    for pid in below:
        wait_dead(pid)
    assert not any(is_alive(pid) for pid in below)


SUPERVISED = """
import sys
from pathlib import Path
from fimlora_client.stack.children import Program
from fimlora_client.stack.supervisor import Supervisor
code, folder = sys.argv[1], Path(sys.argv[2])
with Supervisor(say=print) as supervisor:
    supervisor.start(Program("child", [sys.executable, "-c", code], folder / "log"))
    supervisor.watch()
"""


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL]
)
def test_no_child_outlives_its_supervisor(tmp_path, number):
    """Whatever ends the supervisor; a kill leaves the clearing up to the guardian."""
    code = POLITE.format(notes=str(tmp_path / "notes"), name="child")
    supervisor = subprocess.Popen(
        [sys.executable, "-c", SUPERVISED, code, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": PYTHONPATH},
        stderr=subprocess.DEVNULL,
    )
    wait_until(lambda: pids(tmp_path, "child"))

    supervisor.send_signal(number)
    supervisor.wait(20)

    [child] = pids(tmp_path, "child")
    wait_dead(child)
    assert not is_alive(child)
    assert (tmp_path / "notes").read_text().split() == ["child"]  # asked, not killed


def test_a_data_folder_has_one_owner(tmp_path):
    """The second one is told who has it, and gets it when the first has gone."""
    running = Running(pid=7, url="http://127.0.0.1:1", redis_url="unix:///s", data_dir="d")
    with own(tmp_path):
        announce(tmp_path, running)
        assert find_running(tmp_path) == running
        with (
            pytest.raises(StackError, match=r"in use by process 7 at http://127\.0\.0\.1:1"),
            own(tmp_path),
        ):
            pass

    assert find_running(tmp_path) is None
    announce(tmp_path, running)  # one that was killed leaves its note
    with own(tmp_path):
        assert find_running(tmp_path) is None


def test_a_data_folder_that_cannot_be_made_is_an_error(tmp_path):
    """It names the folder."""
    (tmp_path / "file").write_text("")

    with (
        pytest.raises(StackError, match="cannot write to the data folder"),
        own(tmp_path / "file"),
    ):
        pass


def server(folder, name, shown):
    """A program that prints a version."""
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{shown}'\n")
    path.chmod(0o755)
    return path


def test_a_server_on_path_comes_before_the_one_we_bring(tmp_path, monkeypatch):
    """Unless it is too old."""
    monkeypatch.setenv("PATH", str(tmp_path))
    server(tmp_path, "redis-server", "Redis server v=5.0.7 sha=0 malloc=libc bits=64")
    assert find_server_binary().path.parent != tmp_path

    server(tmp_path, "valkey-server", "Valkey server v=7.2.5 sha=0 malloc=libc bits=64")
    assert find_server_binary().name == "Valkey 7.2.5"


def test_without_a_server_the_error_says_what_was_looked_at(tmp_path):
    """And the three ways out."""
    old = server(tmp_path, "redis-server", "Redis server v=5.0.7 sha=0")
    odd = server(tmp_path, "valkey-server", "hello")

    with pytest.raises(StackError, match=r"is 5\.0\.7; .* is not a server") as caught:
        choose([old, odd])

    for way in ("fimlora[embedded]", "PATH", "REDIS_URL"):
        assert way in caught.value.next_step


def test_the_embedded_server_keeps_what_it_is_told(tmp_path):
    """Killed without warning and started again, it has the same data and only a socket."""
    with socket_folder(None) as folder:
        path = folder / "s"
        command = server_command(find_server_binary(), socket_path=path, folder=tmp_path)
        program = Program("valkey", [*command, "--appendfsync", "always"], tmp_path / "log")
        with Supervisor(say=print) as supervisor:
            supervisor.start(program)
            supervisor.wait_for(lambda: answers(path), what="valkey", timeout_s=10)
            assert talk(path, "SET a kept") == "+OK"
            pid = int(talk(path, "INFO server").partition("process_id:")[2].split()[0])
            os.kill(pid, signal.SIGKILL)
            wait_dead(pid)
        with Supervisor(say=print) as supervisor:
            supervisor.start(program)
            supervisor.wait_for(lambda: answers(path), what="valkey", timeout_s=10)
            assert "kept" in talk(path, "GET a")
            assert "noeviction" in talk(path, "CONFIG GET maxmemory-policy")

    assert not folder.exists()


def talk(path, command):
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        connection.sendall(f"{command}\r\n".encode())
        return connection.recv(65536).decode().strip()


def test_a_socket_folder_is_private_and_short(tmp_path):
    """A path that the kernel would refuse is not taken, even if it is preferred."""
    long = tmp_path / ("x" * 120)
    long.mkdir()

    for preferred in (long, tmp_path / "none", None):
        with socket_folder(preferred) as folder:
            assert len(str(folder / "s")) < SOCKET_PATH_LIMIT
            assert folder.stat().st_mode & 0o777 == 0o700
            assert Path(folder).is_dir()


def test_a_port_in_use_is_refused_and_0_finds_another():
    """Before anything is started."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]

        with pytest.raises(StackError, match=f"cannot listen on 127.0.0.1:{port}") as caught:
            choose_port("127.0.0.1", port)
        assert "--port 0" in caught.value.next_step
        assert choose_port("127.0.0.1", 0) not in {0, port}


@pytest.mark.parametrize("host", ["999.1.1.1", "192.0.2.1", "no..host", "::g"])
def test_a_host_that_is_not_ours_is_named(host):
    """Another port would not help."""
    with pytest.raises(
        StackError, match=f"--host {host} is no address of this machine"
    ) as caught:
        choose_port(host, 0)

    assert "port" not in caught.value.next_step


def test_the_log_of_the_run_before_is_kept(tmp_path):
    """One run back, so that the reason of a crash is still there."""
    fresh_log(tmp_path, "worker").write_text("first")
    fresh_log(tmp_path, "worker").write_text("second")

    assert (tmp_path / "worker.previous.log").read_text() == "first"
    assert (tmp_path / "worker.log").read_text() == "second"


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("localhost:6379", "it must begin with redis://, rediss:// or unix://"),
        ("http://localhost", "it must begin with redis://, rediss:// or unix://"),
        ("redis://127.0.0.1:1/0", "Connection refused"),
        ("redis://127.0.0.1:99999", "Port out of range"),
        ("redis://[::1", "Invalid IPv6 URL"),
        ("unix:///nonexistent/s", "No such file or directory"),
    ],
)
def test_a_redis_that_is_not_there_is_named_at_once(url, reason):
    """Not after minutes of waiting for processes that cannot start."""
    with pytest.raises(StackError, match="REDIS_URL") as refused:
        check_reachable(url)

    assert reason in str(refused.value)
    assert "unset it" in refused.value.next_step


def test_a_redis_that_is_there_is_accepted(valkey_url):
    """By whatever address the tests' own server has."""
    check_reachable(valkey_url)


def test_a_password_is_not_told():
    """It may be wrong, but it is secret."""
    with pytest.raises(StackError) as refused:
        check_reachable("redis://me:s3cret@127.0.0.1:1/0?password=s3cret")

    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    ("access", "host", "words"),
    [
        ("this_machine", "127.0.0.1", "this machine only, until there is a key"),
        ("this_machine", "0.0.0.0", "although it listens on 0.0.0.0: others are refused"),
        ("api_keys", "0.0.0.0", "who has an API key"),
        (None, "127.0.0.1", "unknown"),
    ],
)
def test_who_is_served_is_said_in_words(access, host, words):
    """And what is to be done, where others could reach it."""
    said = describe_access(Health(status="ok", access=access), host)

    assert words in said
    assert ("fimlora keys create" in said) is (access == "this_machine")


@pytest.mark.parametrize(
    ("driver", "n"),
    [("printf '0\\n1\\n2\\n'", 3), ("echo No devices were found", 1)],
    ids=["three GPUs", "no GPU"],
)
def test_auto_starts_a_worker_on_every_gpu(monkeypatch, tmp_path, driver, n):
    """The worker itself is asked, and asks the driver; what is visible is all of them."""
    with_driver(monkeypatch, tmp_path, driver)

    assert read_workers("auto") == n


def test_auto_with_a_silent_driver_starts_no_worker(monkeypatch, tmp_path):
    """All of them would take the first GPU; the next step is said."""
    with_driver(monkeypatch, tmp_path, "exit 9")

    with pytest.raises(StackError, match="does not say how many GPUs there are") as refused:
        read_workers("auto")
    assert "--workers 1" in str(refused.value.next_step)


@pytest.mark.parametrize("wanted", ["0", "65", "many", "-1", "2.0"])
def test_what_is_no_number_of_workers_is_refused(wanted):
    """It says what is."""
    with pytest.raises(StackError, match=r"give a number from 1 to 64, or auto"):
        read_workers(wanted)


def with_driver(monkeypatch, folder: Path, script: str) -> None:
    """Put a driver's tool where it is looked for first."""
    tool = folder / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", PYTHONPATH)
    for name in ("FIMLORA_DEVICE", "FIMLORA_CUDA_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
