"""What a figure says about the machine."""

import pytest

from utils import machine
from utils.chips import Chip, Peak


def test_a_machine_names_chip_versions_and_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "this_chip", lambda: Chip("Apple M3 Max", "metal", "bfloat16", {"float32": 14.2e12}))
    monkeypatch.setattr(machine, "PACKAGES", ("numpy", "a-package-that-nobody-wrote"))
    described = machine.describe_machine({"float32"})
    assert described.peaks == {"float32": Peak(14.2e12, "published")}
    assert (described.row["chip"], described.row["backend"]) == ("Apple M3 Max", "metal")
    assert list(described.row["versions"]) == ["pippin", "python", "numpy"]
    assert described.heading.startswith(f"Apple M3 Max, {described.row['date']}, pippin 0.")
    assert described.row["memory_bytes"] > 0
