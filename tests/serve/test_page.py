"""The chat page in a headless browser: type, read the stream, stop, switch the subnet."""

from __future__ import annotations

import shutil
from typing import Any

import pytest

playwright = pytest.importorskip("playwright.sync_api")
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium on this machine")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_talk(live: Any, scheme: str) -> None:
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_context(color_scheme=scheme).new_page()
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda said: problems.append(said.text) if said.type == "error" else 0)
        page.goto(live.url)
        page.wait_for_function("document.querySelectorAll('#model option').length >= 2")
        page.select_option("#model", "tiny@auto")
        page.fill("#said", "Tell me of the fox.")
        page.press("#said", "Enter")
        page.wait_for_selector(".facts")
        facts = page.inner_text(".facts")
        assert "token/s" in facts and "first token" in facts and facts.startswith("tiny ")
        assert page.inner_text(".user") == "Tell me of the fox."
        assert not problems
        page.click("#clear")
        assert page.query_selector(".message") is None
        assert unreadable(page) == []
        browser.close()
    live.wait_idle()


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium on this machine")
def test_stopping_and_failing(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    own = serve()
    step = own.service.room._step

    def slowly(plan: Any) -> None:
        time.sleep(0.1)
        step(plan)

    monkeypatch.setattr(own.service.room, "_step", slowly)
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(own.url)
        page.wait_for_function("document.querySelectorAll('#model option').length >= 2")
        page.fill("#said", "a")
        page.click("#send")
        page.wait_for_selector(".assistant span:not(:empty)")
        page.click("#stop")
        page.wait_for_selector(".facts")
        own.wait_idle()
        page.fill("#said", "far too long " * 30)
        page.click("#send")
        page.wait_for_selector(".error")
        assert "context" in page.inner_text(".error")
        # What was refused is left out of the talk, so a shorter message is answered.
        page.click("#clear")
        page.fill("#said", "far too long " * 30)
        page.click("#send")
        page.wait_for_selector(".error")
        page.fill("#said", "b")
        page.click("#send")
        page.wait_for_selector(".assistant span:not(:empty)")
        # A new talk while the old one is answered begins with nothing.
        page.click("#clear")
        page.wait_for_function("document.getElementById('stop').disabled")
        own.wait_idle()
        assert page.evaluate("messages.length") == 0
        assert page.query_selector(".message") is None
        browser.close()


#: The contrast of every text with what is behind it, and controls without a name.
_UNREADABLE = """() => {
  const line = v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = text => {
    const [r, g, b] = text.match(/[\\d.]+/g).map(v => line(v / 255));
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const behind = node => {
    for (; node; node = node.parentElement) {
      const color = getComputedStyle(node).backgroundColor;
      if (!/, 0\\)$/.test(color)) return color;
    }
    return "rgb(255, 255, 255)";
  };
  const found = [], texts = "h1, label, button:enabled, select, textarea, #speed";
  for (const node of document.querySelectorAll(texts)) {
    const both = [light(getComputedStyle(node).color), light(behind(node))];
    if ((Math.max(...both) + .05) / (Math.min(...both) + .05) < 4.5) found.push(node.id);
  }
  for (const node of document.querySelectorAll("button, select, textarea, input, main, canvas")) {
    const own = node.tagName === "BUTTON" && node.textContent.trim();
    if (!own && !node.ariaLabel && !node.labels?.length) found.push("unnamed " + node.id);
  }
  return found;
}"""


def unreadable(page: Any) -> Any:
    return page.evaluate(_UNREADABLE)
