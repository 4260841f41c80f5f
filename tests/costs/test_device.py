"""Profiles: every one that comes with pliant is whole, and strangers' are read or refused."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from pliant.costs import device as devices
from pliant.costs.device import PROFILES, Device, Figure, device_names, load_device, read_device
from pliant.errors import UsageError

ASKED_FOR = (
    "raspberry-pi-4", "raspberry-pi-5", "orange-pi-5", "jetson-orin-nano", "jetson-agx-orin",
    "apple-m1", "apple-m2", "apple-m3", "apple-m4", "snapdragon-8-gen-2", "snapdragon-8-gen-3",
    "dimensity-9300", "laptop-x86", "server-x86", "rtx-3060", "rtx-4090", "l4", "a100", "h100",
    "h200", "mi300x", "tpu-v5e", "gaudi-3",
)  # fmt: skip


@pytest.fixture(autouse=True)
def no_profiles_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(devices, "user_folder", lambda: tmp_path)
    return tmp_path


@pytest.mark.parametrize("path", sorted(PROFILES.glob("*.toml")), ids=lambda path: path.stem)
def test_profiles_are_whole(path: Path) -> None:
    device = read_device(path)
    assert device.name == path.stem
    figures = [device.memory, device.bandwidth, *device.rates.values()]
    figures += [device.watts] if device.watts else []
    assert all(len(figure.source) > 2 and figure.date[:2] == "20" for figure in figures)
    for arithmetic in ("int8", "fp16", "fp32"):
        assert device.rate(arithmetic) > 0  # type: ignore[arg-type]
    assert 0 < device.memory_bytes < device.memory.value


def test_the_devices_that_plans_are_asked_for() -> None:
    assert set(device_names()) == set(ASKED_FOR)


def test_a_copied_file_is_a_device(no_profiles_of_the_user: Path) -> None:
    text = (PROFILES / "l4.toml").read_text().replace('name = "l4"', 'name = "mine"')
    (no_profiles_of_the_user / "mine.toml").write_text(text)
    assert "mine" in device_names()
    assert load_device("mine").name == "mine"
    assert load_device(str(no_profiles_of_the_user / "mine.toml")) == load_device("mine")


def test_json_goes_both_ways(tmp_path: Path) -> None:
    device = load_device("raspberry-pi-5")
    path = tmp_path / "carried.json"
    path.write_bytes(msgspec.json.encode(device))
    assert load_device(str(path)) == device


@pytest.mark.parametrize(
    "change, word",
    [
        (("bandwidth = ", "breadth = "), "breadth"),
        (("bandwidth = { value = 300e9", "bandwidth = { value = 0.0"), "above 0"),
        (('source = "NVIDIA L4 data sheet"', 'source = ""'), "source"),
        (("[rates]", "[rates"), "l4"),
    ],
)
def test_profiles_that_lack_something(tmp_path: Path, change: tuple[str, str], word: str) -> None:
    path = tmp_path / "l4.toml"
    path.write_text((PROFILES / "l4.toml").read_text().replace(*change))
    with pytest.raises(UsageError, match=word):
        read_device(path)


def test_a_device_without_bandwidth_is_refused(tmp_path: Path) -> None:
    lines = (PROFILES / "l4.toml").read_text().splitlines()
    path = tmp_path / "l4.toml"
    path.write_text("\n".join(line for line in lines if not line.startswith("bandwidth")))
    with pytest.raises(UsageError, match="bandwidth"):
        load_device(str(path))


def test_unknown_devices_name_the_known_ones() -> None:
    with pytest.raises(UsageError, match="raspberry-pi-5"):
        load_device("abacus")
    with pytest.raises(UsageError, match="cannot be read"):
        load_device("missing.toml")


def test_rates_fall_back_to_the_next_best() -> None:
    figure = Figure(value=2.0, source="a test", date="2026")
    device = Device(
        name="x", title="x", kind="board", memory=figure, bandwidth=figure, rates={"fp32": figure}
    )
    assert device.rate("int8") == 2.0
    with pytest.raises(UsageError, match="no rate"):
        msgspec.structs.replace(device, rates={}).rate("int8")
