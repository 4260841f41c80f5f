"""A peer is asked by lines; what goes wrong on its side becomes a sentence on ours."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

ECHO = """
import json, sys
for line in sys.stdin:
    request = json.loads(line)
    if request["action"] == "die":
        sys.exit("the end")
    answer = {"error": "no"} if request["action"] == "refuse" else {"got": request}
    print(json.dumps(answer), flush=True)
"""
HINT = "Do this instead."


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "peer_echo.py"
    path.write_text(ECHO)
    return path


def test_answers_belong_to_requests(script: Path) -> None:
    from peer_process import PeerProcess

    with PeerProcess(sys.executable, script, HINT) as peer:
        assert peer.ask("run", tokens=3) == {"got": {"action": "run", "tokens": 3}}
        assert peer.ask("run", tokens=4)["got"]["tokens"] == 4


@pytest.mark.parametrize(
    ("action", "says"), [("refuse", "refused 'refuse': no"), ("die", "the end. Do this instead.")]
)
def test_failures_are_sentences(script: Path, action: str, says: str) -> None:
    from peer_process import PeerError, PeerProcess

    with PeerProcess(sys.executable, script, HINT) as peer, pytest.raises(PeerError, match=says):
        peer.ask(action)


def test_a_missing_interpreter_is_named(script: Path, tmp_path: Path) -> None:
    from peer_process import PeerError, PeerProcess

    with pytest.raises(PeerError, match=r"nowhere/python cannot be run.*Do this instead"):
        PeerProcess(str(tmp_path / "nowhere" / "python"), script, HINT)


def test_llama_cpp_falls_back_where_a_width_does_not_fit_its_types(tmp_path: Path) -> None:
    """288 columns are no multiple of 256: only `down` (768) has the type that was asked for."""
    import random_models
    from peer_process import PeerProcess

    python = os.environ.get("PEER_PYTHON")
    if not python:
        pytest.skip("PEER_PYTHON names no interpreter with llama-cpp-python and gguf")
    config = random_models.CONFIGS["15M"]
    path = tmp_path / "15M.gguf"
    script = Path(random_models.__file__).with_name("peer_llama_cpp.py")
    with PeerProcess(python, script, HINT) as peer:
        found = peer.ask("prepare", path=str(path), config=config, file_type="TQ2_0")
        peer.ask("load", name="a", path=str(path), context=32)
        ran = peer.ask("run", name="a", threads=1, prompt_tokens=8, decode_tokens=2)
    # 12.8 MB, as llama-quantize makes it; 2.06 bits for every weight would be 3.9 MB.
    assert found["weight_bytes"] == pytest.approx(12.8e6, rel=0.01)
    assert ran["first_seconds"] > 0 < ran["decode_seconds"]
    assert json.dumps(found)
