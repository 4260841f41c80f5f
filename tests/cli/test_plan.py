"""`plan`, `devices`, `doctor`, `probe`, and limits of `fit` on devices, as they are typed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pliant.costs import device as devices
from pliant.costs.device import PROFILES, read_device
from pliant.recipes import plan as plan_recipe
from pliant.recipes.doctor import Finding

Run = Callable[..., Any]


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "user_folder", lambda: tmp_path)


def test_a_plan_says_what_fits_where(pliant: Run) -> None:
    ran = pliant(
        "plan", "qwen2.5-0.5b", "--device", "raspberry-pi-5,l4", "--tokens-per-second", 25, "--json"
    )
    assert ran.code == 0
    board, card = ran.data["devices"]
    assert (board["device"], card["device"]) == ("raspberry-pi-5", "l4")
    chosen = board["chosen"]
    assert chosen["tokens_per_second"] >= 25 and chosen["fits"]
    parts = ("weight_bytes", "cache_bytes", "scratch_bytes", "runtime_bytes")
    assert sum(chosen[part] for part in parts) == chosen["total_bytes"]
    assert chosen["decode"]["bound_seconds"] < chosen["decode"]["seconds"]
    assert board["commands"][0] == "pliant build Qwen/Qwen2.5-0.5B --output qwen2.5-0.5b.pliant"
    assert "--tokens-per-second 25" in board["commands"][1]
    assert chosen["joules_per_token"] is None
    assert card["chosen"]["joules_per_token"] > 0
    assert {line["name"] for line in board["operators"]} >= {"embedding", "scores", "head"}
    assert any("data sheet" in line for line in card["assumptions"])


@pytest.mark.parametrize(("memory", "is_coded"), [("800MB", True), ("4GB", False)])
def test_the_fit_it_suggests_has_the_cache_it_chose(
    pliant: Run, memory: str, is_coded: bool
) -> None:
    flags = ("--device", "l4", "--context", 32768, "--memory", memory, "--json")
    planned = pliant("plan", "qwen2.5-0.5b", *flags).data["devices"][0]
    bits, command = planned["chosen"]["cache_bits"], planned["commands"][1]
    assert (bits < 16) == is_coded
    assert (f" --kv-bits {bits}" in command) == is_coded == ("--kv-bits" in command)


def test_it_is_readable_too(pliant: Run) -> None:
    ran = pliant("plan", "mixtral-8x7b-v0.1", "-d", "a100,l4", "--operators", "--context", 512)
    assert ran.code == 0
    assert "on each device" in ran.out and "router" in ran.out and "experts" in ran.out


def test_an_artifact_is_planned_by_its_sensitivities(pliant: Run, pristine: Path) -> None:
    ran = pliant("plan", pristine, "-d", "raspberry-pi-4", "--context", 100, "--json")
    assert ran.code == 0
    assert "sensitivities" in ran.data["ranked_by"]
    assert ran.data["devices"][0]["chosen"]["planes"] >= 1
    assert ran.data["devices"][0]["commands"][0].startswith("pliant fit ")


def test_a_folder_is_planned(pliant: Run, tmp_path: Path, pristine: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_bytes((pristine / "config.json").read_bytes())
    ran = pliant("plan", folder, "-d", "raspberry-pi-4", "--json")
    assert ran.code == 0
    assert ran.data["origin"] == "local config"
    assert ran.data["request"]["context"] == 256


def test_nothing_satisfies(pliant: Run) -> None:
    small = pliant("plan", "llama-3.1-8b", "-d", "raspberry-pi-4", "--memory", "300MB", "--json")
    assert small.code == 3
    assert small.data["devices"][0]["chosen"] is None
    assert small.data["devices"][0]["nearest"]["total_bytes"] > 300e6
    assert "nearest" in small.err
    # One of two devices is enough.
    one = pliant("plan", "llama-3.1-8b", "-d", "raspberry-pi-4,h100", "--tokens-per-second", 50)
    assert one.code == 0 and "nothing fits" in one.out
    assert "fast enough" in one.err


@pytest.mark.parametrize(
    "arguments, code, word",
    [
        (("plan", "nothing-like-it", "-d", "l4"), 2, "catalogue"),
        (("plan", "qwen2.5-0.5", "-d", "l4"), 2, "Qwen2.5-0.5B"),
        (("plan", "some/where-else", "-d", "l4", "--offline"), 1, "--offline"),
        (("plan", "qwen2.5-0.5b", "-d", "abacus"), 2, "abacus"),
        (("plan", "qwen2.5-0.5b", "-d", "l4", "--context", 99_999_999), 2, "at most"),
        (("plan", "qwen2.5-0.5b", "-d", "l4", "--joules", -1), 2, "allows nothing"),
        (("plan", "qwen2.5-0.5b", "-d", "l4", "--chart", "x.txt"), 2, "x.txt"),
        (("devices", "abacus"), 2, "abacus"),
        (("probe", "--output", "here.txt"), 2, "here.txt"),
    ],
)
def test_bad_requests(pliant: Run, arguments: tuple[Any, ...], code: int, word: str) -> None:
    ran = pliant(*arguments)
    assert ran.code == code
    assert word in ran.err


@pytest.mark.parametrize(
    "config, code, word",
    [("[]", 1, "object"), ("{", 1, "JSON"), ('{"model_type": "rwkv"}', 5, "rwkv"),
     ('{"model_type": "llama"}', 1, "vocab_size")],
)  # fmt: skip
def test_bad_configs(pliant: Run, tmp_path: Path, config: str, code: int, word: str) -> None:
    (tmp_path / "config.json").write_text(config)
    ran = pliant("plan", tmp_path, "-d", "l4")
    assert ran.code == code
    assert word in ran.err
    (tmp_path / "config.json").unlink()
    assert "config.json" in pliant("plan", tmp_path, "-d", "l4").err


def test_a_plan_is_drawn(pliant: Run, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "plan.svg"
    ran = pliant("plan", "qwen3-0.6b", "-d", "raspberry-pi-5,l4", "--chart", path)
    assert ran.code == 0
    assert "<svg" in path.read_text()


def test_devices_are_listed_with_sources(pliant: Run) -> None:
    listed = pliant("devices", "--json").data["devices"]
    assert len(listed) >= 20
    assert "raspberry-pi-5" in pliant("devices").out
    one = pliant("devices", "h100")
    assert "H100" in one.out and "2023" in one.out and "checked" in one.out


def test_this_machine_is_probed_when_it_is_first_asked_for(
    pliant: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "this.json"
    monkeypatch.setattr(plan_recipe, "probe", lambda: read_device(PROFILES / "l4.toml"))
    monkeypatch.setattr(plan_recipe, "profile_path", lambda: kept)
    monkeypatch.setattr("pliant.recipes.probe.profile_path", lambda: kept)
    first = pliant("plan", "qwen2.5-0.5b")
    assert first.code == 0 and "not probed yet" in first.err
    assert kept.exists()
    assert "not probed" not in pliant("plan", "qwen2.5-0.5b").err


def test_a_probe_is_written_and_shown(
    pliant: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = read_device(PROFILES / "l4.toml")
    monkeypatch.setattr("pliant.recipes.probe.probe", lambda threads, progress: device)
    path = tmp_path / "carried.json"
    ran = pliant("probe", "--output", path, "--json")
    assert ran.data["name"] == "l4" == json.loads(path.read_text())["name"]
    assert "Gop/s" in pliant("probe", "--output", path).out


def test_a_doctor_has_an_exit_code(pliant: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [Finding(topic="pages", state="advice", found="none", advice="Turn them on.")]
    monkeypatch.setattr("pliant.recipes.doctor.examine", lambda progress: found)
    assert pliant("doctor").code == 0
    strict = pliant("doctor", "--strict", "--json")
    assert strict.code == 1 and strict.data["state"] == "advice"
    found[0] = Finding(topic="kernels", state="problem", found="scalar", advice="Rebuild.")
    bad = pliant("doctor")
    assert bad.code == 1 and "kernels" in bad.err and "Rebuild" in bad.out


def test_fits_keep_limits_on_a_device(pliant: Run, pristine: Path) -> None:
    flags = ("fit", pristine, "--memory", "10MB", "--dry-run", "--device", "l4", "--json")
    free = pliant("fit", pristine, "--memory", "10MB", "--dry-run", "--json").data
    assert pliant(*flags, "--tokens-per-second", 1).data["candidates"] == free["candidates"]
    fast = pliant("plan", pristine, "-d", "l4", "--context", 128, "--json").data["devices"][0]
    speeds = sorted(option["tokens_per_second"] for option in fast["options"])
    some = pliant(*flags, "--tokens-per-second", speeds[len(speeds) // 2]).data
    assert 0 < some["candidates"] < free["candidates"]
    none = pliant(*flags, "--first-token", "0.000000001s")
    assert none.code == 3 and "fastest" in none.err
    assert pliant(*flags, "--joules", 1e-12).code == 3
    assert pliant(*flags).code == 2
    assert pliant(*flags[:-2], "raspberry-pi-4", "--joules", 1).code == 2
    assert pliant(*flags, "--tokens-per-second", -1).code == 2
