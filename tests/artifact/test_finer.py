"""Cuts of half blocks and ranked widths: addresses, files of them, and manifests that lie."""

from __future__ import annotations

import json

import pytest
from small_artifact import build, small_spec, some_findings

from pliant.artifact import Artifact
from pliant.errors import ArtifactError, UsageError
from pliant.shape import DepthPath, SubnetShape, WidthRanking, shape_of_halves
from pliant.shape.depth import DepthChoice
from pliant.subnet import CutAddress

HALVES = (tuple(range(6)), (0, 1, 2, 4, 5), (0, 1, 4, 5))
RANKING = WidthRanking((1, 0, 5, 3, 4, 2, 5, 0, 1, 4, 2, 3))


@pytest.fixture
def finer(tmp_path):
    path = DepthPath("greedy", tuple(DepthChoice(halves, 2.0) for halves in HALVES), 9)
    findings = some_findings(small_spec(), half_path=path, width_ranking=RANKING)
    return build(tmp_path / "finer.pliant", findings=findings)


def test_addresses_of_finer_cuts(finer):
    spec = finer.spec
    assert finer.subnet("h6").shape == SubnetShape.full(spec)
    assert finer.subnet("h5-b3").shape == SubnetShape((0, 1, 2), (2, 2, 2), (100, 0, 100))
    assert finer.subnet("h4").shape == SubnetShape((0, 2), (2, 2), (100, 100))
    assert finer.subnet("h5-w0.5").shape == shape_of_halves(spec, HALVES[1], 0.5)
    full = SubnetShape.full(spec)
    assert finer.subnet("g0.8").shape == RANKING.shape(spec, full, 0.8) != full
    assert not finer.subnet("g0.8").shape.is_uniform
    assert finer.subnet("g1") == finer.subnet("")
    halved = finer.subnet("h5-g0.7-b4-e6")
    assert halved.shape == RANKING.shape(spec, shape_of_halves(spec, HALVES[1]), 0.7)
    assert halved.bits.embedding == 6
    d2 = SubnetShape.uniform(spec, (0, 1), 1.0)
    assert finer.subnet("d2-g0.7").shape == RANKING.shape(spec, d2, 0.7)


@pytest.mark.parametrize(
    "text",
    [
        "h13-w0.75-b3",
        "h5",
        "d2-g0.7-b3-e4",
        "g0.5",
        "h6-g0.25-e2",
        "d8-w0.75-b3",
        "",
        "k4",
        "d2-b3-e4-k16",
    ],
)
def test_addresses_are_read_and_written(text):
    assert str(CutAddress.parse(text)) == text


@pytest.mark.parametrize(
    "text", ["h3-d2", "d2-h3", "g0.5-w0.5", "h", "g", "h2.5", "k", "k4-b3", "k4.5"]
)
def test_what_is_no_address(text):
    with pytest.raises(UsageError, match="is not a subnet address"):
        CutAddress.parse(text)


def test_cuts_that_are_not_offered(finer, tmp_path):
    with pytest.raises(UsageError, match="cannot be cut to 3 halves; it knows which to keep for 4"):
        finer.subnet("h3")
    plain = build(tmp_path / "plain.pliant")
    for text in ("h6", "g0.5"):
        with pytest.raises(UsageError, match="--finer"):
            plain.subnet(text)


def test_a_saved_finer_cut(finer):
    subnet = finer.subnet("h5-g0.7-b4")
    finer.save_subnet("fine", subnet)
    again = Artifact.open(finer.path)
    assert again.subnet("fine") == subnet
    names = {cut.name for cut in subnet.matrices()}
    assert "blocks.1.q" in names
    assert "blocks.1.down" not in names


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["half_path"]["choices"].append({"blocks": [6], "loss": 1.0}),
         "not ascending halves of 6"),
        (lambda m: m["half_path"]["choices"].append({"blocks": [], "loss": 1.0}),
         "not ascending halves"),
        (lambda m: m["half_path"]["choices"].append({"blocks": [-1, 2], "loss": 1.0}),
         "not ascending halves"),
        (lambda m: m["width_ranking"]["units"].append(0), "contradicts itself"),
        (lambda m: m["width_ranking"]["units"].append(10**9), "contradicts itself"),
        (lambda m: m["width_ranking"].update(alignment=32), "contradicts itself"),
        (lambda m: m["width_ranking"].update(alignment=0), "contradicts itself"),
        (lambda m: m["width_ranking"].update(units=[]), "contradicts itself"),
        (lambda m: m["alignment"].update(neurons=32), "32"),
    ],
)  # fmt: skip
def test_manifests_that_contradict_themselves(finer, change, message):
    manifest = json.loads((finer.path / "pliant.json").read_bytes())
    change(manifest)
    (finer.path / "pliant.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match=message):
        Artifact.open(finer.path)
