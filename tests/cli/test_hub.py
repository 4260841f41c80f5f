"""`pliant push` and `pull` against a server on this machine: what travels, and what is refused."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pliant.artifact import Artifact, verify
from pliant.artifact.fewer_planes import reads_at_most, with_fewer_planes
from pliant.errors import UsageError
from pliant.receipt import Conditions, Receipt

Run = Callable[..., Any]
REPO = "someone/tiny"


@pytest.fixture
def hub(empty_hub: Any, pristine: Path, artifact: Path) -> Any:
    """A hub with the tiny artifact and two saved cuts."""
    opened = Artifact.open(artifact)
    opened.save_subnet("phone", opened.subnet("d2-b3-e3"))
    opened.save_subnet("desk", opened.subnet("b7"))
    files = [path for path in artifact.rglob("*") if path.is_file()]
    empty_hub.files = {str(path.relative_to(artifact)): path.read_bytes() for path in files}
    return empty_hub


def _planes(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("plane-*"))


def test_only_the_planes_of_a_cut_travel(pliant: Run, hub: Any, tmp_path: Path) -> None:
    out = tmp_path / "x.pliant"
    ran = pliant("pull", f"{REPO}@phone", "-o", out, "--json")
    assert ran.code == 0, ran.err
    assert "3 of 8 planes" in ran.err and ran.data["num_bytes"] < ran.data["whole_bytes"]
    assert _planes(out) == [f"plane-{place}.safetensors" for place in range(3)]
    assert not {f"plane-{place}.safetensors" for place in range(3, 8)} & hub.asked_for()
    pulled = Artifact.open(out)
    assert pulled.num_planes == 3 and pulled.subnet_names() == ["phone"]
    assert pulled.manifest.sensitivities is not None
    assert sorted(pulled.manifest.sensitivities.planes) == [1, 2, 3]
    assert verify(out).files == len(pulled.manifest.files)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.pliant", "x.pliant"]
    assert {path.name for path in out.iterdir()} == {
        *pulled.manifest.files,
        "pliant.json",
        "subnets",
    }
    # It runs, and gives what the whole artifact gives under the same cut.
    texts = {
        pliant("run", f"{place}@phone", "The fox", "--max-tokens", 8, "--json").data["text"]
        for place in (out, tmp_path / "tiny.pliant")
    }
    assert len(texts) == 1
    assert "not checked" in pliant("verify", out).out


def test_the_whole_artifact_arrives_bit_by_bit(
    pliant: Run, hub: Any, artifact: Path, tmp_path: Path
) -> None:
    out = tmp_path / "x.pliant"
    assert pliant("pull", REPO, "-o", out, "--quiet").code == 0
    for name, content in hub.files.items():
        if name.startswith("subnets/"):
            assert json.loads((out / name).read_bytes()) == json.loads(content)
        else:
            assert (out / name).read_bytes() == content
    assert pliant("verify", out).code == 0


def test_a_dry_run_shows_sizes_and_fetches_none(pliant: Run, hub: Any, tmp_path: Path) -> None:
    ran = pliant("pull", f"{REPO}@b4", "-o", tmp_path / "x.pliant", "--dry-run")
    assert ran.code == 0 and "4 of 8 planes" in ran.out and "plane-3" in ran.out
    assert "plane-4" not in ran.out and not any("safetensors" in name for name in hub.asked_for())
    assert not (tmp_path / "x.pliant.pull").exists()


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_a_broken_transfer_goes_on_where_it_broke(
    pliant: Run, hub: Any, tmp_path: Path, knows_ranges: bool
) -> None:
    out, name = tmp_path / "x.pliant", "plane-1.safetensors"
    size = len(hub.files[name])
    hub.cut_off = {name: size // 2}
    ran = pliant("pull", f"{REPO}@b4", "-o", out, "--json")
    assert ran.code == 1 and "run" in ran.err.lower() and not out.exists()
    before = dict(hub.sent)
    hub.cut_off, hub.knows_ranges = {}, knows_ranges
    ran = pliant("pull", f"{REPO}@b4", "-o", out, "--json")
    assert ran.code == 0, ran.err
    assert ran.data["missing_bytes"] < ran.data["num_bytes"]
    ranges = [asked for verb, path, asked in hub.log if path.endswith(name) and verb == "GET"]
    kept = size // 2 // 1024 * 1024
    assert ranges[-1] == f"bytes={kept}-" and kept > 0
    assert hub.sent[name] - before[name] == (size - kept if knows_ranges else size)
    assert hub.sent["plane-0.safetensors"] == before["plane-0.safetensors"]


def test_more_planes_later_fetch_only_those(pliant: Run, hub: Any, tmp_path: Path) -> None:
    out = tmp_path / "x.pliant"
    assert pliant("pull", f"{REPO}@b4", "-o", out).code == 0
    opened = Artifact.open(out)
    opened.save_subnet("mine", opened.subnet("d2-b4"))
    hub.sent.clear()
    assert pliant("pull", f"{REPO}@b6", "-o", out).code == 2
    ran = pliant("pull", f"{REPO}@b6", "-o", out, "--force", "--json")
    assert ran.code == 0, ran.err
    fetched = {name for name in hub.asked_for() if name.endswith("safetensors")}
    assert fetched == {"plane-4.safetensors", "plane-5.safetensors"}
    assert Artifact.open(out).subnet_names() == ["mine", "phone"]
    verify(out)


def test_bytes_that_are_not_the_manifests_are_refused(
    pliant: Run, hub: Any, tmp_path: Path
) -> None:
    name = "plane-0.safetensors"
    damaged = bytearray(hub.files[name])
    damaged[-1] ^= 1
    hub.replaced = {name: bytes(damaged)}
    out = tmp_path / "x.pliant"
    ran = pliant("pull", f"{REPO}@b4", "-o", out)
    assert ran.code == 6 and name in ran.err and not out.exists()
    assert not (tmp_path / "x.pliant.pull" / name).exists()
    hub.replaced = {}
    assert pliant("pull", f"{REPO}@b4", "-o", out).code == 0


@pytest.mark.parametrize("name", ["../evil", "a/b", ".hidden", "/etc/x", "pliant.json"])
def test_names_that_leave_the_folder_are_refused(
    pliant: Run, hub: Any, tmp_path: Path, name: str
) -> None:
    manifest = json.loads(hub.files["pliant.json"])
    manifest["files"][name] = {"size": 1, "sha256": "0" * 64}
    hub.files["pliant.json"] = json.dumps(manifest).encode()
    hub.files[name] = hub.files.get(name, b"x")
    ran = pliant("pull", REPO, "-o", tmp_path / "x.pliant")
    assert ran.code == 1 and "not a name" in ran.err
    assert not (tmp_path / "evil").exists() and not (tmp_path / "x.pliant.pull").exists()


def test_what_the_hub_lacks_is_said_before_anything_large(
    pliant: Run, hub: Any, tmp_path: Path
) -> None:
    out = tmp_path / "x.pliant"
    for address, code, says in (
        (f"{REPO}@nothing", 2, f"{REPO} has no cut 'nothing'"),
        (f"{REPO}@b9", 2, "planes"),
        (f"{REPO}@d9", 2, "9 blocks"),
        ("someone/other", 1, "no repository"),
        ("a/b/c", 2, "owner/name"),
    ):
        ran = pliant("pull", address, "-o", out)
        assert (ran.code, says in ran.err) == (code, True), ran.err
    ran = pliant("pull", REPO, "-o", out, "--revision", "elsewhere")
    assert ran.code == 1 and "revision" in ran.err
    hub.files["plane-7.safetensors"] += b"x"
    ran = pliant("pull", f"{REPO}@b4", "-o", out)
    assert ran.code == 1 and "plane-7" in ran.err
    del hub.files["pliant.json"]
    ran = pliant("pull", REPO, "-o", out)
    assert ran.code == 1 and "no artifact" in ran.err
    assert not any("safetensors" in name for name in hub.asked_for())


def test_a_heap_of_saved_cuts_does_not_travel(pliant: Run, hub: Any, tmp_path: Path) -> None:
    for number in range(3):
        hub.files[f"subnets/heap{number}.json"] = b" " * (12 << 20)
    hub.files["subnets/../evil.json"] = b"{}"
    ran = pliant("pull", f"{REPO}@phone", "-o", tmp_path / "x.pliant", "--dry-run", "--json")
    assert ran.code == 0 and ran.data["cuts"] == ["phone"]
    assert "subnets/phone.json" in hub.asked_for()
    assert not {"subnets/heap2.json", "subnets/../evil.json"} & hub.asked_for()


def test_only_artifacts_are_replaced(pliant: Run, hub: Any, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    ran = pliant("pull", REPO, "-o", tmp_path / "mine", "--force")
    assert ran.code == 2 and "no artifact" in ran.err
    (tmp_path / "link").symlink_to(tmp_path / "tiny.pliant")
    assert pliant("pull", REPO, "-o", tmp_path / "link", "--force").code == 2


def test_pushed_is_what_can_be_pulled(
    pliant: Run, empty_hub: Any, artifact: Path, tmp_path: Path
) -> None:
    opened = Artifact.open(artifact)
    opened.save_subnet("phone", opened.subnet("b3"))
    opened.save_study("0" * 16, b"names a machine")
    (artifact / "diary.txt").write_text("private")
    ran = pliant("push", artifact, REPO, "--dry-run", "--json")
    assert ran.code == 0 and "plane-7.safetensors" in ran.data["files"]
    assert empty_hub.files is None
    ran = pliant("push", artifact, REPO, "--private", "--message", "First", "--json")
    assert ran.code == 0, ran.err
    assert empty_hub.private is True and empty_hub.commits == ["First"]
    assert set(empty_hub.files) == {*opened.manifest.files, "pliant.json", "subnets/phone.json",
                                    "README.md"}  # fmt: skip
    assert f"pliant pull {REPO}@b8" in empty_hub.files["README.md"].decode()
    empty_hub.files["README.md"] = b"my own"
    before = len([one for one in empty_hub.log if one[0] == "PUT"])
    assert pliant("push", artifact, REPO).code == 0
    assert empty_hub.files["README.md"] == b"my own"
    # Large files that the hub has do not travel again.
    assert before == len([one for one in empty_hub.log if one[0] == "PUT"]) > 0
    assert pliant("pull", f"{REPO}@phone", "-o", tmp_path / "x.pliant").code == 0


def test_a_push_that_was_cut_off_goes_on(pliant: Run, empty_hub: Any, artifact: Path) -> None:
    """Nothing shows before the commit; what the hub has taken does not travel again."""
    empty_hub.uploads = 4
    ran = pliant("push", artifact, REPO)
    assert ran.code == 1 and "run it again" in ran.err
    assert empty_hub.files == {} and not empty_hub.commits and len(empty_hub.large) == 4
    taken = set(empty_hub.large)
    empty_hub.uploads, empty_hub.log = None, []
    assert pliant("push", artifact, REPO).code == 0
    sent = {path.rpartition("/")[2] for verb, path, _ in empty_hub.log if verb == "PUT"}
    assert sent and not sent & taken and len(empty_hub.commits) == 1
    for name in Artifact.open(artifact).manifest.files:
        assert empty_hub.files[name] == (artifact / name).read_bytes()


def test_without_room_nothing_is_fetched(
    pliant: Run, hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("pliant.recipes.hub.pull")
    monkeypatch.setattr(module, "free_bytes", lambda path: 1000)
    ran = pliant("pull", f"{REPO}@b4", "-o", tmp_path / "x.pliant")
    assert ran.code == 1 and "1.00 kB are free" in ran.err and "fewer planes" in ran.err
    assert not any("safetensors" in name for name in hub.asked_for())


def test_a_damaged_artifact_is_not_pushed(pliant: Run, empty_hub: Any, artifact: Path) -> None:
    path = artifact / "plane-2.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(bytes(raw))
    assert pliant("push", artifact, REPO).code == 6
    assert empty_hub.files is None


def test_offline_is_a_sentence(pliant: Run, tmp_path: Path) -> None:
    ran = pliant("pull", REPO, "-o", tmp_path / "x.pliant")
    assert ran.code == 1 and "HF_HUB_OFFLINE" in ran.err


def test_a_manifest_of_fewer_planes(pristine: Path) -> None:
    manifest = Artifact.open(pristine).manifest
    conditions = Conditions(text="t", tokens=1, context=1)
    receipts = tuple(
        Receipt(address=address, weight_bytes=1, memory_bytes=1, bits_per_byte=1.0, perplexity=2.0,
                conditions=conditions)
        for address in ("full", "d2", "b4", "b3-e6", "d2-w0.5-b2")
    )  # fmt: skip
    manifest = msgspec.structs.replace(manifest, receipts=receipts)
    few = with_fewer_planes(manifest, 4)
    assert [one.address for one in few.receipts] == ["b4", "d2-w0.5-b2"]
    assert few.from_json(few.to_json()) == few
    assert with_fewer_planes(manifest, 8).files == manifest.files
    # The tiny model's losses of the vocabulary begin at two planes.
    assert with_fewer_planes(manifest, 1).sensitivities is None
    assert not reads_at_most("b2", 3) and reads_at_most("b2-e2", 2)
    with pytest.raises(UsageError, match="stores 8"):
        with_fewer_planes(manifest, 9)
