"""Seeds and shadow models over eight virtual devices: the same numbers, an eighth on each."""

import json
import os
import subprocess
import sys

import pytest

from applications.components.spreading import spread


def test_one_device_changes_nothing():
    tree = {"keys": object()}
    assert spread(tree) is tree


@pytest.mark.slow
def test_eight_devices_give_the_same_numbers():
    flags = f"--xla_force_host_platform_device_count=8 {os.environ.get('XLA_FLAGS', '')}"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    run = subprocess.run(
        [sys.executable, "-m", "tests.spread_run"], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-3000:]
    said = json.loads(run.stdout.splitlines()[-1])
    assert (said["devices"], said["rows on each"], said["odd"]) == (8, 1, 1)
    assert said["models"] < 1e-5 and said["scores"] < 1e-3
