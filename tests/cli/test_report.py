"""`pliant report`: what the page says, that it loads nothing, that no stranger can write it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pliant.artifact import Artifact
from pliant.measurement import Measurement
from pliant.receipt import Conditions, Receipt
from pliant.recipes.study import Bench
from pliant.runtime.text_engine import open_artifact
from pliant.subnet import Subnet

Run = Callable[..., Any]
_EVIL = "\"><script>alert(1)</script><img src=x onerror='x'>"


class Page(HTMLParser):
    """The elements of a page with their attributes, and the text in each section."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.words: dict[str, str] = {"": ""}
        self.open: list[str] = []
        self._section = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag == "section":
            self._section = dict(attrs)["id"] or ""
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words[self._section] = self.words.get(self._section, "") + data + " "

    def count(self, tag: str, name: str) -> int:
        """Elements of a tag whose class begins with a word."""
        return sum(
            found == tag and (attributes.get("class") or "").startswith(name)
            for found, attributes in self.found
        )


def _receipt(address: str, loss: float, **more: Any) -> Receipt:
    conditions = Conditions(text="held out", tokens=1000, context=64, threads=1, machine="tiny box")
    return Receipt(
        address=address, weight_bytes=50_000, memory_bytes=60_000, bits_per_byte=loss,
        perplexity=9.5, conditions=conditions, **more,
    )  # fmt: skip


def _amended(path: Path, **findings: Any) -> None:
    artifact = Artifact.open(path)
    artifact.amend(msgspec.structs.replace(artifact.manifest, **findings))


def test_a_page_of_predictions(pliant: Run, pristine: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    ran = pliant("report", pristine, "-o", out, "-d", "raspberry-pi-5,rtx-4090", "--json")
    assert ran.code == 0, ran.err
    assert ran.data["measured"] == 0 and ran.data["predicted"] > 5
    assert ran.data["devices"] == {"raspberry-pi-5": True, "rtx-4090": True}
    page = Page(out)
    assert not page.open
    assert page.count("rect", "predicted dot") == ran.data["predicted"]
    assert page.count("circle", "measured") == 0
    assert "Raspberry Pi 5" in page.words["devices"] and "another engine" in page.words["devices"]
    assert "no receipts" in page.words["receipts"]
    # Full depth and width at 4 planes: the loss of four planes and of four vocabulary planes alone.
    assert f"{(0.5**2 + 0.2) / 6:+.1%}" in page.words["shapes"]
    assert page.count("td", "heat") == 3 * 2
    assert page.count("td", "planes") == 3 * 7 and "no cut is saved" in page.words["bits"]


def test_measured_cuts_are_told_from_predicted_ones(
    pliant: Run, artifact: Path, tmp_path: Path
) -> None:
    speed = Measurement.of([90.0, 100.0, 110.0], "token/s")
    _amended(artifact, receipts=(_receipt("full", 2.0), _receipt("d2-b4", 2.5, speed=speed)))
    with open_artifact(artifact) as model:
        bench = Bench(model, ["The fox and the dog."], threads=1)
        for address in ("", "d2-b3"):
            bench.loss(model.subnet(address))
        bench.seconds_per_token(model.subnet("d2-b3"))
    out = tmp_path / "report.html"
    ran = pliant("report", artifact, "-o", out, "-d", "none", "--json")
    assert ran.code == 0, ran.err
    assert ran.data["measured"] == 4 and ran.data["notes"] == []
    page = Page(out)
    # The second picture shows the one timed cut of the machine with most of them.
    assert page.count("circle", "measured dot") == 4 + 1
    assert "+25.00%" in page.words["frontier"] and "+25.0% •" in page.words["shapes"]
    assert "No devices" in page.words["devices"] and "100 token/s" in page.words["receipts"]


def test_what_cannot_be_compared_is_left_out(pliant: Run, artifact: Path, tmp_path: Path) -> None:
    with open_artifact(artifact) as model:
        bench = Bench(model, ["The fox."], threads=1)
        bench.loss(model.subnet("b3"))
    study = next((artifact / "studies").iterdir())
    (artifact / "studies" / f"{'0' * 16}.json").write_text("{")
    other = study.read_text().replace(study.stem, "1" * 16)
    (artifact / "studies" / f"{'1' * 16}.json").write_text(
        other.replace('"weights":"', '"weights":"0')
    )
    (artifact / "studies" / "notes.json").write_text("{}")
    _amended(artifact, receipts=(_receipt("b4", 2.0),))
    ran = pliant("report", artifact, "-o", tmp_path / "r.html", "-d", "none", "--json")
    assert ran.code == 0 and ran.data["measured"] == 0
    assert [note.split(":")[0] for note in ran.data["notes"]] == [
        f"study {'0' * 16}", f"study {'1' * 16}", f"study {study.stem}"
    ]  # fmt: skip
    assert "damaged" in ran.err and "full model was not measured" in ran.err


def test_a_mixed_cut_is_shown_first(pliant: Run, artifact: Path, tmp_path: Path) -> None:
    opened = Artifact.open(artifact)
    even = opened.subnet("d2-b3")
    first = msgspec.structs.replace(even.bits.blocks[0], down=7)
    bits = msgspec.structs.replace(even.bits, blocks=(first, *even.bits.blocks[1:]))
    opened.save_subnet("even", even)
    opened.save_subnet("mixed", Subnet(opened.spec, even.shape, bits))
    ran = pliant("report", artifact, "-o", tmp_path / "r.html", "-d", "none", "--json")
    assert ran.data["shown"] == "mixed"
    assert " 7 " in Page(tmp_path / "r.html").words["bits"]
    ran = pliant("report", f"{artifact}@even", "-o", tmp_path / "s.html", "-d", "none", "--json")
    assert ran.data["shown"] == "even"


def test_strangers_cannot_write_the_page(pliant: Run, artifact: Path, tmp_path: Path) -> None:
    source = msgspec.structs.replace(Artifact.open(artifact).manifest.source, name=_EVIL)
    receipts = (_receipt("full", 2.0), _receipt(_EVIL, 2.5, canary=_EVIL + "\u202e"))
    _amended(artifact, source=source, receipts=receipts)
    out = tmp_path / "report.html"
    assert pliant("report", artifact, "-o", out, "-d", "none").code == 0
    page = Page(out)
    assert not {"script", "img", "link", "iframe", "a"} & {tag for tag, _ in page.found}
    for _, attributes in page.found:
        assert not {"src", "href", "srcset"} & set(attributes)
        assert not any(name.startswith("on") for name in attributes)
    assert "alert(1)" in page.words["receipts"] and "\u202e" not in out.read_text("utf-8")
    policy = [found["content"] for _, found in page.found if "http-equiv" in found]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]
    assert "url(" not in out.read_text("utf-8") and "@import" not in out.read_text("utf-8")


def test_refusals(pliant: Run, pristine: Path, artifact: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    out.write_text("mine")
    ran = pliant("report", pristine, "-o", out)
    assert ran.code == 2 and "--force" in ran.err and out.read_text() == "mine"
    assert pliant("report", pristine, "-o", out, "--force", "-d", "none").code == 0
    ran = pliant("report", pristine, "-o", tmp_path / "x", "-d", "toaster")
    assert ran.code == 2 and "toaster" in ran.err
    ran = pliant("report", f"{pristine}@d9", "-o", tmp_path / "x", "-d", "none")
    assert ran.code == 2 and "9 blocks" in ran.err
    known = Artifact.open(artifact).manifest.sensitivities
    _amended(artifact, sensitivities=msgspec.structs.replace(known, vocabulary_planes={}))
    ran = pliant("report", artifact, "-o", tmp_path / "x", "-d", "none")
    assert ran.code == 1 and "vocabulary_planes" in ran.err and not (tmp_path / "x").exists()


def test_without_sensitivities(pliant: Run, artifact: Path, tmp_path: Path) -> None:
    _amended(artifact, sensitivities=None)
    ran = pliant("report", artifact, "-o", tmp_path / "r.html", "-d", "raspberry-pi-5", "--json")
    assert ran.code == 0 and ran.data["predicted"] == 0
    page = Page(tmp_path / "r.html")
    assert "no sensitivities" in page.words["shapes"] and "thumb" in page.words["devices"]


BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium on this machine")
def test_in_a_browser(pliant: Run, artifact: Path, tmp_path: Path) -> None:
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="the package playwright of the extra `browser` is missing"
    )
    speed = Measurement.of([90.0, 100.0, 110.0], "token/s")
    _amended(artifact, receipts=(_receipt("full", 2.0), _receipt("d2-b4", 2.5, speed=speed)))
    out = tmp_path / "report.html"
    assert pliant("report", artifact, "-o", out).code == 0
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        papers = set()
        for scheme in ("light", "dark"):
            viewport = {"width": 360, "height": 740}
            page = browser.new_context(color_scheme=scheme, viewport=viewport).new_page()
            said: list[str] = []
            asked: list[str] = []
            page.on("console", lambda one, said=said: said.append(one.text))
            page.on("request", lambda one, asked=asked: asked.append(one.url))
            page.goto(out.as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") <= 360
            assert (
                page.evaluate("document.querySelector('svg').getBoundingClientRect().width") > 300
            )
            shown = {
                name: page.evaluate(f"document.querySelectorAll('{name}').length")
                for name in ("#frontier svg .measured.dot", "#frontier tbody tr", "td.heat",
                             "td.planes", "#receipts tbody tr", "#devices tbody tr")
            }  # fmt: skip
            assert all(shown.values()), shown
            assert shown["td.heat"] == 3 * 2 and shown["td.planes"] == 3 * 7
            assert shown["#receipts tbody tr"] == 2 and shown["#devices tbody tr"] > 10
            papers.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
            assert said == [] and asked == [out.as_uri()]
        assert len(papers) == 2
        browser.close()
