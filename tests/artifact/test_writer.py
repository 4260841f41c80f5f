"""Writing: killed anywhere and run again it gives the same bytes, and nothing is ever lost."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import shutil
import signal
import subprocess
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from small_artifact import build, random_weights, small_spec, some_findings, write_all

from pliant.artifact import Artifact, ArtifactWriter, Findings, SourceRecord, verify
from pliant.artifact.tensors import matrix_shapes
from pliant.bits import UniformCodec
from pliant.errors import ArtifactError, CheckpointError, OutOfSpaceError, UsageError

#: Calls by which the writer changes the disk; each is a point at which it may die.
DISK_CALLS = ["open", "ftruncate", "posix_fallocate", "pwrite", "fsync", "replace", "rename",
              "unlink", "mkdir", "rmdir"]  # fmt: skip


def fingerprints(folder):
    """Hash of every file of an artifact."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


class Killer:
    """Counts disk calls and dies, by SIGKILL, at call number `at`; half a write is done first."""

    def __init__(self, at=None):
        self.calls = 0
        self.at = at

    def install(self, patch):
        for name in DISK_CALLS:
            patch.setattr(os, name, self.wrapped(name, getattr(os, name)))

    def wrapped(self, name, call):
        def counted(*arguments, **options):
            self.calls += 1
            if self.calls == self.at:
                if name == "pwrite":
                    descriptor, content, offset = arguments
                    call(descriptor, content[: len(content) // 2], offset)
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **options)

        return counted


def killed_build(path, at, **arguments):
    """Build in a child process that dies at disk call `at`."""
    child = os.fork()
    if child == 0:
        try:
            with pytest.MonkeyPatch.context() as patch:
                Killer(at).install(patch)
                build(path, **arguments)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), f"the child finished before call {at}"


def build_or_find(path, **arguments):
    """What a user does after a kill: run it again; if it says that it exists, it is done."""
    try:
        build(path, **arguments)
    except UsageError as error:
        assert "exists already" in str(error)


def num_disk_calls(path, **arguments):
    killer = Killer()
    with pytest.MonkeyPatch.context() as patch:
        killer.install(patch)
        build(path, **arguments)
    return killer.calls


def kill_points(calls, seed):
    """20 random ones, and each of the last dozen, where the artifact is published."""
    chosen = random.Random(seed).sample(range(1, calls - 12), 20)
    return sorted(chosen) + list(range(calls - 12, calls + 1))


def test_killed_anywhere_and_run_again_gives_identical_bytes(pristine, tmp_path):
    expected = fingerprints(pristine)
    calls = num_disk_calls(tmp_path / "counted.pliant")
    points = kill_points(calls, seed=5)
    print(f"seed 5, {calls} disk calls, killed at {points}")
    resumed = 0
    for point in points:
        path = tmp_path / f"{point}.pliant"
        killed_build(path, point)
        if not path.exists():
            with pytest.raises(ArtifactError, match=r"unfinished build|does not exist"):
                Artifact.open(path)
        resumed += (tmp_path / f"{point}.pliant.partial" / "state.json").exists()
        build_or_find(path)
        assert fingerprints(path) == expected
        shutil.rmtree(path)
        shutil.rmtree(tmp_path / f"{point}.pliant.partial", ignore_errors=True)
    assert resumed >= 10


def test_killed_while_replacing_never_loses_the_old_artifact(tmp_path):
    old = fingerprints(build(tmp_path / "old.pliant", small_spec(num_blocks=2)).path)
    new = fingerprints(build(tmp_path / "new.pliant", small_spec(num_blocks=1)).path)
    path = tmp_path / "x.pliant"

    def begin():
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(tmp_path / "old.pliant", path)

    arguments = {"spec": small_spec(num_blocks=1), "replace": True}
    begin()
    calls = num_disk_calls(path, **arguments)
    between = 0
    for point in [1, 2, 3, calls // 2, *range(calls - 38, calls + 1, 2)]:
        begin()
        killed_build(path, point, **arguments)
        if path.exists():
            assert fingerprints(path) in (old, new)
        else:
            between += 1
            assert fingerprints(tmp_path / "x.pliant.partial" / "replaced") == old
        build(path, **arguments)
        assert fingerprints(path) == new
        assert not (tmp_path / "x.pliant.partial").exists()
    assert between <= 2


def test_finished_blocks_are_not_asked_for_again(tmp_path):
    path = tmp_path / "x.pliant"
    spec = small_spec()
    with ArtifactWriter(path, spec) as writer:
        assert not writer.is_resumed
        for name, weight in random_weights(spec):
            if name.startswith(("embedding", "blocks.1.")):
                if weight.ndim == 2:
                    writer.write_matrix(name, UniformCodec().encode(weight))
                else:
                    writer.write_vector(name, weight)
        assert writer.is_done("blocks.1.q")
        assert writer.is_done("blocks.1.q_norm")
        assert not writer.is_done("blocks.0.q")
        writer.save_stage("orders", b"[1]")
        writer.write_file("leftover.txt", b"not written by the second run")
    with ArtifactWriter(path, spec) as writer:
        assert writer.is_resumed
        assert writer.load_stage("orders") == b"[1]"
        assert writer.load_stage("path") is None
        assert writer.is_done("blocks.1.down")
        assert writer.is_done("embedding")
        assert not writer.is_done("head")
        write_all(writer)
        artifact = writer.finish(some_findings(spec))
    assert "leftover.txt" not in artifact.manifest.files
    assert not (path / "leftover.txt").exists()
    verify(path)


def test_a_preview_can_be_measured_before_publishing(tmp_path):
    path, spec = tmp_path / "x.pliant", small_spec()
    with ArtifactWriter(path, spec) as writer:
        write_all(writer)
        preview = writer.preview(some_findings(spec))
        assert not path.exists()
        assert preview.subnet("d1-b2").effective_bits > 2
        plane = preview.planes("embedding")[0].copy()
        writer.write_file("golden.json", b"{}")
        artifact = writer.finish(some_findings(spec, tokenizer_files=()))
    np.testing.assert_array_equal(preview.planes("embedding")[0], plane)
    assert artifact.read_file("golden.json") == b"{}"
    assert artifact.path == path
    verify(path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["x.pliant"]


def test_other_inputs_do_not_mix(tmp_path):
    path = tmp_path / "x.pliant"
    with ArtifactWriter(path, small_spec(), fingerprint="a") as writer:
        writer.save_stage("orders", b"a")
    for other in ({"fingerprint": "b"}, {"fingerprint": "a", "planes": 4}):
        with pytest.raises(UsageError, match=r"begun from other inputs\. Remove it or .*--force"):
            ArtifactWriter(path, small_spec(), **other)
    with ArtifactWriter(path, small_spec(), fingerprint="a") as writer:
        assert writer.load_stage("orders") == b"a"
    with ArtifactWriter(path, small_spec(), fingerprint="b", replace=True) as writer:
        assert not writer.is_resumed
        assert writer.load_stage("orders") is None


def test_two_writers_do_not_mix(tmp_path):
    with (
        ArtifactWriter(tmp_path / "x.pliant", small_spec()),
        pytest.raises(UsageError, match="Another process is building"),
    ):
        ArtifactWriter(tmp_path / "x.pliant", small_spec())


@pytest.mark.parametrize("state", [b"", b"{}", b"\xff", b'{"fingerprint": 3}'])
def test_a_damaged_state_begins_anew(tmp_path, pristine, state):
    path = tmp_path / "x.pliant"
    ArtifactWriter(path, small_spec()).close()
    (tmp_path / "x.pliant.partial" / "state.json").write_bytes(state)
    assert fingerprints(build(path).path) == fingerprints(pristine)


def test_existing_names_are_replaced_only_on_request(tmp_path):
    path = build(tmp_path / "x.pliant", small_spec(num_blocks=1)).path
    before = fingerprints(path)
    with pytest.raises(UsageError, match=r"exists already; .*--force"):
        build(path)
    assert fingerprints(path) == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["x.pliant"]
    assert build(path, replace=True).spec.num_blocks == 3
    assert sorted(file.name for file in tmp_path.iterdir()) == ["x.pliant"]
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "me.jpg").write_text("precious")
    with pytest.raises(UsageError, match="is not an artifact, so it will not be replaced"):
        build(tmp_path / "photos", replace=True)
    assert (tmp_path / "photos" / "me.jpg").read_text() == "precious"


@pytest.mark.parametrize("name", ["", "x.partial", "x@b3.pliant"])
def test_names_that_cannot_be_built(tmp_path, name):
    with pytest.raises(UsageError):
        ArtifactWriter(Path(name) if not name else tmp_path / name, small_spec())


def test_a_replaced_link_leaves_what_it_leads_to(tmp_path):
    real = build(tmp_path / "real.pliant", small_spec(num_blocks=1)).path
    (tmp_path / "x.pliant").symlink_to(real)
    assert build(tmp_path / "x.pliant", replace=True).spec.num_blocks == 3
    assert Artifact.open(real).spec.num_blocks == 1


# --- Wrong input


def test_tensors_that_do_not_fit_the_spec(tmp_path):
    with ArtifactWriter(tmp_path / "x.pliant", small_spec(), planes=4) as writer:
        small = UniformCodec(4).encode(np.ones((3, 5), np.float32))
        with pytest.raises(ValueError, match="head is 3 x 5; the spec has"):
            writer.write_matrix("head", small)
        with pytest.raises(ValueError, match="no such matrix"):
            writer.write_matrix("tail", small)
        whole = np.ones(matrix_shapes(writer.spec)["head"], np.float32)
        with pytest.raises(ValueError, match="has 8 planes, not 4"):
            writer.write_matrix("head", UniformCodec().encode(whole))
        with pytest.raises(ValueError, match="has shape"):
            writer.write_vector("final_norm", np.ones(3, np.float32))
        with pytest.raises(CheckpointError, match="final_norm holds NaN"):
            writer.write_vector("final_norm", np.full(40, np.nan, np.float32))
        with pytest.raises(ArtifactError, match="tensors are missing"):
            writer.finish(some_findings(writer.spec))
        for name in ("pliant.json", "plane-0.safetensors", "../x", ".x", "a/b", ""):
            with pytest.raises(UsageError, match="is not a name"):
                writer.write_file(name, b"")
        with pytest.raises(ArtifactError, match="cannot be read"):
            writer.copy_file(tmp_path / "missing.json")


def test_findings_that_could_not_be_read_back_are_refused(tmp_path):
    with ArtifactWriter(tmp_path / "x.pliant", small_spec()) as writer:
        write_all(writer)
        with pytest.raises(ArtifactError, match="special token 100"):
            writer.finish(Findings(source=SourceRecord("", ""), tokens={"eos": [100]}))
        with pytest.raises(ArtifactError, match=r"does not list 'golden\.json'"):
            writer.finish(some_findings(writer.spec, tokenizer_files=("golden.json",)))
        assert not (tmp_path / "x.pliant").exists()
        writer.finish(some_findings(writer.spec))


# --- The disk


@pytest.mark.parametrize("call", ["pwrite", "posix_fallocate", "fsync"])
def test_a_disk_that_fills_up_is_a_sentence_and_the_work_goes_on(
    tmp_path, pristine, monkeypatch, call
):
    path = build(tmp_path / "x.pliant", small_spec(num_blocks=1)).path
    old, calls = fingerprints(path), iter(range(10**6))
    real = getattr(os, call)

    def full(*arguments):
        if next(calls) > 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments)

    monkeypatch.setattr(os, call, full)
    with pytest.raises(OutOfSpaceError, match=r"disk is full while writing .* are free"):
        build(path, replace=True)
    assert fingerprints(path) == old
    monkeypatch.undo()
    build(path, replace=True)
    assert fingerprints(path) == fingerprints(pristine)


def test_a_disk_too_small_is_noticed_before_anything_is_written(tmp_path, monkeypatch):
    path = build(tmp_path / "x.pliant").path
    old = fingerprints(path)
    disk = os.statvfs(tmp_path)

    class Small:
        f_bavail, f_frsize = 1000, disk.f_frsize

    monkeypatch.setattr(os, "statvfs", lambda path: Small())
    message = rf"needs \d+ more bytes .* and {1000 * disk.f_frsize} .* are free"
    with pytest.raises(OutOfSpaceError, match=message):
        build(path, replace=True)
    assert fingerprints(path) == old


def test_a_really_full_disk(tmp_path, pristine):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small disk needs root")
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this system lets nobody mount")
    try:
        path = build(disk / "x.pliant", small_spec(num_blocks=1)).path
        old = fingerprints(path)
        (disk / "ballast").write_bytes(bytes(1_900_000))
        with pytest.raises(OutOfSpaceError, match="are free"):
            build(path, replace=True)
        # Past the first check, a small file of five megabytes is what no longer fits.
        (disk / "ballast").unlink()
        with ArtifactWriter(path, small_spec(), replace=True) as writer:
            write_all(writer)
            with pytest.raises(OutOfSpaceError, match="disk is full while writing"):
                writer.write_file("golden.json", bytes(7_000_000))
            writer.write_file("golden.json", b"{}")
            assert fingerprints(path) == old
            writer.finish(some_findings(writer.spec))
        verify(path)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtifactError, match="is not a folder"):
        ArtifactWriter(tmp_path / "file" / "x.pliant", small_spec())


def test_the_writer_holds_no_tensor(tmp_path):
    spec = small_spec(vocab_size=4096, hidden_size=512)
    encoded = UniformCodec().encode(np.ones((4096, 512), np.float32))
    with ArtifactWriter(tmp_path / "x.pliant", spec) as writer:
        tracemalloc.start()
        writer.write_matrix("embedding", encoded)
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    print(f"{peak_bytes} bytes held to write {encoded.num_bytes}")
    assert peak_bytes < 100_000
