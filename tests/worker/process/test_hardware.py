"""What a worker says it runs on."""

import pytest

from fimlora_worker.process.hardware import find_hardware


@pytest.fixture
def driver(tmp_path):
    """Make a stand-in of the driver's tool that prints something."""

    def make(text: str, *, code: int = 0) -> str:
        tool = tmp_path / "nvidia-smi"
        tool.write_text(
            f'#!/bin/sh\necho "{text}"\necho "$@" > {tmp_path}/asked\nexit {code}\n'
        )
        tool.chmod(0o755)
        return str(tool)

    return make


def test_a_gpu_is_described_by_its_driver(driver, tmp_path):
    """Name and memory of the GPU that the worker may see."""
    tool = driver("NVIDIA Made-up, 80 GB, 81559")

    hardware = find_hardware("auto", visible="3", nvidia_smi=tool)

    assert (hardware.device, hardware.device_name) == ("cuda", "NVIDIA Made-up, 80 GB")
    assert hardware.memory_bytes == 81559 << 20
    assert "--id=3" in (tmp_path / "asked").read_text()


@pytest.mark.parametrize("text", ["", "No devices were found", "name, [N/A]"])
def test_without_a_usable_gpu_the_device_is_the_cpu(driver, text):
    """A driver without a device is no device."""
    hardware = find_hardware("auto", visible="0", nvidia_smi=driver(text, code=not text))

    assert (hardware.device, hardware.memory_bytes) == ("cpu", hardware.host_memory_bytes)


def test_what_the_operator_says_counts():
    """cpu asks no driver; cuda stands even where no tool can describe it."""
    cpu = find_hardware("cpu", visible="0", nvidia_smi="/nonexistent")
    cuda = find_hardware("cuda", visible="0", nvidia_smi="/nonexistent")

    assert (cpu.device, cuda.device, cuda.memory_bytes) == ("cpu", "cuda", None)
