"""Which device each of several workers has, and that they are kept running and stopped together."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fimlora_worker.process.several import Several
from fimlora_worker.process.slots import (
    DriverSilent,
    Slot,
    SlotError,
    at_slot,
    gpus_of,
    list_gpus,
    n_workers,
    read_slot,
)
from fimlora_worker.settings import Settings
from support.workers import PYTHONPATH, is_alive, wait_dead

FOUR = ["0", "1", "2", "3"]


def settings(**given) -> Settings:
    return Settings(redis_url="redis://localhost", **given)


@pytest.mark.parametrize("text", ["1/1", "2/4", "64/64"])
def test_a_slot_is_read_as_it_is_written(text):
    """Which worker of how many."""
    assert str(read_slot(text)) == text


@pytest.mark.parametrize(
    "text", ["", "0/2", "3/2", "2", "1/65", "a/b", "1/2/3", "-1/2", "01/2"]
)
def test_what_is_no_slot_is_refused(text):
    """With an example of one."""
    with pytest.raises(SlotError, match="such as 2/4"):
        read_slot(text)


def test_each_worker_has_a_gpu_of_its_own():
    """All of the machine, or those that are visible, by index or id."""
    names = [at_slot(settings(), Slot(n, 4), ask=lambda: FOUR) for n in range(1, 5)]
    assert [each.cuda_visible_devices for each in names] == FOUR

    some = settings(cuda_visible_devices="2,GPU-ab")
    assert gpus_of(some, ask=lambda: FOUR) == ["2", "GPU-ab"]
    assert at_slot(some, Slot(2, 2), ask=lambda: FOUR).cuda_visible_devices == "GPU-ab"
    for given, gpus in {"0,0": ["0"], "-1": [], "1,-1,2": ["1"]}.items():
        assert gpus_of(settings(cuda_visible_devices=given), ask=lambda: FOUR) == gpus


@pytest.mark.parametrize("given", [{"device": "cpu"}, {"cuda_visible_devices": ""}])
def test_without_a_gpu_workers_share_the_cores(given):
    """At least one thread each; the operator's own number stands."""
    shares = [
        at_slot(settings(**given), Slot(1, n), ask=lambda: FOUR, cores=lambda: 8).torch_threads
        for n in (1, 3, 16)
    ]
    own = at_slot(settings(**given, torch_threads=5), Slot(1, 4), ask=list)

    assert shares == [8, 2, 1]
    assert own.torch_threads == 5


def test_more_workers_than_gpus_are_refused():
    """The second one would wait for the first for ever."""
    with pytest.raises(SlotError, match="3 workers, and 2 GPUs") as refused:
        n_workers("3", settings(), ask=lambda: ["0", "1"])
    assert "FIMLORA_DEVICE=cpu" in str(refused.value)
    with pytest.raises(SlotError, match="2 workers, and 1 GPU "):
        at_slot(settings(), Slot(1, 2), ask=lambda: ["0"])
    assert n_workers("3", settings(device="cpu"), ask=lambda: ["0", "1"]) == 3


@pytest.mark.parametrize(("gpus", "n"), [(FOUR, 4), ([], 1)])
def test_auto_is_one_worker_on_every_gpu(gpus, n):
    """And one where there is none."""
    assert n_workers("auto", settings(), ask=lambda: gpus) == n


@pytest.mark.parametrize("wanted", ["0", "65", "many", "-1", "", "2.0"])
def test_what_is_no_number_of_workers_is_refused(wanted):
    """It says what is."""
    with pytest.raises(SlotError, match="--workers"):
        n_workers(wanted, settings(), ask=list)


def test_the_driver_is_asked_for_the_gpus(tmp_path):
    """By its own tool; where there is none, there are no GPUs, and one that fails is not none."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nprintf '0\\n1\\n'\n")
    tool.chmod(0o755)
    assert list_gpus(nvidia_smi=str(tool)) == ["0", "1"]
    tool.write_text("#!/bin/sh\necho No devices were found\n")
    assert list_gpus(nvidia_smi=str(tool)) == []
    tool.write_text("#!/bin/sh\nexit 9\n")
    with pytest.raises(DriverSilent, match="does not say which GPUs"):
        list_gpus(nvidia_smi=str(tool))
    assert list_gpus(nvidia_smi=str(tmp_path / "none")) == []


SCRIPT = """
import sys
from fimlora_worker.process.several import Several
sys.exit(Several([[sys.executable, "-c", code] for code in sys.argv[1:]]).run())
"""
WAITS = """
import os, sys, time, pathlib
pathlib.Path({folder!r}, str(os.getpid())).touch()
time.sleep(60)
"""


def start(*codes: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *codes], env={**os.environ, "PYTHONPATH": PYTHONPATH}
    )


def wait_for_pids(folder: Path, n: int) -> set[int]:
    deadline = time.monotonic() + 60
    while len(list(folder.iterdir())) < n:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return {int(path.name) for path in folder.iterdir()}


def test_workers_are_started_again_and_stopped_together(tmp_path):
    """One that dies comes back; a signal goes to all."""
    code = WAITS.format(folder=str(tmp_path))
    parent = start(code, code)
    first = wait_for_pids(tmp_path, 2)
    killed = min(first)
    os.kill(killed, signal.SIGKILL)
    again = wait_for_pids(tmp_path, 3)

    parent.send_signal(signal.SIGTERM)

    assert parent.wait(30) == 0
    for pid in again:
        wait_dead(pid)
    assert killed in again
    assert not any(map(is_alive, again))


def test_settings_that_cannot_be_used_end_all(tmp_path):
    """With the status that says so, not again and again."""
    code = WAITS.format(folder=str(tmp_path))
    parent = start(code, "import os, sys; sys.exit(os.EX_CONFIG)")

    assert parent.wait(60) == os.EX_CONFIG
    for path in tmp_path.iterdir():
        wait_dead(int(path.name))


def test_several_that_end_by_themselves_are_not_started_again():
    """As workers do that were told to work off the queue."""
    done = [sys.executable, "-c", ""]
    handlers = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        assert Several([done, done], ends_by_itself=True).run() == 0
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def test_a_worker_that_leaves_its_queue_in_good_order_is_started_again(tmp_path):
    """Nobody has told it to: the others are not to do its work for ever."""
    code = WAITS.format(folder=str(tmp_path)).replace("sleep(60)", "sleep(0)")
    parent = start(code)
    wait_for_pids(tmp_path, 2)
    assert parent.poll() is None

    parent.send_signal(signal.SIGTERM)

    assert parent.wait(30) == 0


def test_a_worker_that_cannot_be_started_now_leaves_the_others_at_work(tmp_path):
    """It is tried again, until all are stopped."""
    code = WAITS.format(folder=str(tmp_path))
    script = SCRIPT.replace("sys.argv[1:]]).run", 'sys.argv[1:]] + [["/nowhere/at/all"]]).run')
    parent = subprocess.Popen(
        [sys.executable, "-c", script, code], env={**os.environ, "PYTHONPATH": PYTHONPATH}
    )
    (pid,) = wait_for_pids(tmp_path, 1)
    time.sleep(0.5)
    assert parent.poll() is None

    parent.send_signal(signal.SIGTERM)

    assert parent.wait(30) == 0
    wait_dead(pid)
