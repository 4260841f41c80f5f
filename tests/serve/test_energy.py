"""Joules of a machine that reports them, written here as Linux writes them."""

from __future__ import annotations

from pathlib import Path

from pliant.serve.energy import EnergyMeter


def zone(root: Path, name: str, spent: int) -> Path:
    folder = root / name
    folder.mkdir()
    (folder / "max_energy_range_uj").write_text("9000000\n")
    (folder / "energy_uj").write_text(f"{spent}\n")
    return folder


def test_packages_are_added_up_and_their_parts_left_out(tmp_path: Path) -> None:
    first, second = zone(tmp_path, "intel-rapl:0", 100), zone(tmp_path, "intel-rapl:1", 8_000_000)
    core = zone(tmp_path, "intel-rapl:0:0", 50)
    meter = EnergyMeter(tmp_path)
    assert meter.joules() == 0
    (first / "energy_uj").write_text("2000100")
    (core / "energy_uj").write_text("1500000")
    assert meter.joules() == 2
    # A counter that has come to its end begins anew.
    (second / "energy_uj").write_text("500000")
    assert meter.joules() == 3.5


def test_a_machine_that_does_not_say(tmp_path: Path) -> None:
    assert EnergyMeter(tmp_path / "nowhere").joules() is None
    folder = zone(tmp_path, "intel-rapl:0", 1)
    meter = EnergyMeter(tmp_path)
    (folder / "energy_uj").unlink()
    assert meter.joules() is None
    assert EnergyMeter(tmp_path).joules() is None
