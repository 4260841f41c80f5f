"""Profiles: every one that comes with pliant is whole, and strangers' are read or refused."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import msgspec
import numpy as np
import pytest

from pliant.costs import device as devices
from pliant.costs.device import (
    PROFILES,
    UNCONFIRMED,
    Device,
    Figure,
    device_names,
    known_devices,
    load_device,
    read_device,
)
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
    for arithmetic in ("int8", "fp16", "fp32"):
        assert device.rate(arithmetic) > 0  # type: ignore[arg-type]
    assert 0 < device.memory_bytes < device.memory.value


@pytest.mark.parametrize("path", sorted(PROFILES.glob("*.toml")), ids=lambda path: path.stem)
def test_each_number_has_a_document_and_a_day_or_says_that_it_has_none(path: Path) -> None:
    device = read_device(path)
    figures = [device.memory, device.bandwidth, *device.rates.values()]
    figures += [device.watts] if device.watts else []
    for figure in figures:
        assert len(figure.source.removeprefix(UNCONFIRMED)) > 2
        assert date.fromisoformat(f"{figure.date}-01") < date.fromisoformat(figure.checked)
        assert figure.url.startswith("http") == bool(figure.url)
        assert figure.url or not figure.confirmed, "a number without a document says so"
        for parts in figure.derived:
            assert len(parts) > 1
        if figure.derived:
            made = sum(np.prod(parts) for parts in figure.derived)
            assert made == pytest.approx(figure.value, rel=0.01)


def test_most_numbers_were_found_in_a_document() -> None:
    every = [read_device(path) for path in PROFILES.glob("*.toml")]
    figures = [f for d in every for f in (d.memory, d.bandwidth, *d.rates.values())]
    assert sum(figure.confirmed for figure in figures) > 0.75 * len(figures)


def test_parts_that_do_not_make_the_value_are_refused() -> None:
    msgspec.convert({"value": 12.8, "source": "x", "date": "y", "derived": [[4, 3.2]]}, Figure)
    with pytest.raises(msgspec.ValidationError, match=r"make 6.4, not its value 12.8"):
        msgspec.convert({"value": 12.8, "source": "x", "date": "y", "derived": [[2, 3.2]]}, Figure)


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
        (("[bandwidth]", "[breadth]"), "breadth"),
        (("value = 300e9", "value = 0.0"), "above 0"),
        (('source = "NVIDIA L4 figures in a dealer\'s comparison"', 'source = ""'), "source"),
        (("[[485e12, 0.5]]", "[[485e12, 0.25]]"), "parts of a figure"),
        (("[rates.fp32]", "[rates.fp32"), "l4"),
    ],
)
def test_profiles_that_lack_something(tmp_path: Path, change: tuple[str, str], word: str) -> None:
    path = tmp_path / "l4.toml"
    path.write_text((PROFILES / "l4.toml").read_text().replace(*change))
    with pytest.raises(UsageError, match=word):
        read_device(path)


def test_a_device_without_bandwidth_is_refused(tmp_path: Path) -> None:
    tables = (PROFILES / "l4.toml").read_text().split("\n\n")
    path = tmp_path / "l4.toml"
    path.write_text("\n\n".join(part for part in tables if not part.startswith("[bandwidth]")))
    with pytest.raises(UsageError, match="bandwidth"):
        load_device(str(path))


def test_unknown_devices_name_the_known_ones() -> None:
    with pytest.raises(UsageError, match="raspberry-pi-5"):
        load_device("abacus")
    with pytest.raises(UsageError, match="cannot be read"):
        load_device("missing.toml")


def test_a_profile_that_cannot_be_read_does_not_hide_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pliant.costs.device.user_folder", lambda: tmp_path)
    (tmp_path / "this.json").write_text('{"name": "this", "cups": 3}')
    warnings: list[str] = []
    names = [device.name for device in known_devices(warnings.append)]
    assert "l4" in names and "this" not in names
    assert len(warnings) == 1 and "this.json" in warnings[0]


def test_rates_fall_back_to_the_next_best() -> None:
    figure = Figure(value=2.0, source="a test", date="2026")
    device = Device(
        name="x", title="x", kind="board", memory=figure, bandwidth=figure, rates={"fp32": figure}
    )
    assert device.rate("int8") == 2.0
    with pytest.raises(UsageError, match="no rate"):
        msgspec.structs.replace(device, rates={}).rate("int8")


def test_a_disturbed_probe_says_so() -> None:
    figure = Figure(value=2.0, source="a test", date="2026")
    device = Device(
        name="x", title="x", kind="this", memory=figure, bandwidth=figure, rates={"fp32": figure},
        others_share=0.42,
    )  # fmt: skip
    assert "42%" in device.disturbance
    assert not msgspec.structs.replace(device, others_share=0.02).disturbance
