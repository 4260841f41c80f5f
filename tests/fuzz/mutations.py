"""Ways to damage an artifact: bytes, JSON, tables of tensors, the folder itself."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
from pathlib import Path

#: Values that programs get wrong: bounds of integer types, signs, types, paths, nesting.
VALUES = [
    0, 1, -1, 2, 7, 31, 32, 63, 64, 65, 127, 128, 255, 1000, 65_535, 1 << 20, (1 << 24) + 1,
    (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 53) + 1, (1 << 63) - 1, 1 << 63, 1 << 64,
    -(1 << 31), -(1 << 63), 10**30, 10**400, 0.5, -0.5, 1e-300, 1e30, 1e300, -1e300, True, False,
    None, "", "x", "../../etc/passwd", "/dev/zero", "\0", "é" * 300, [], [0], [[[]]], {}, {"a": {}},
    [0] * 1000,
]  # fmt: skip
SNIPPETS = [b"NaN", b"Infinity", b"1e999", b"-1", b"}", b"]", b'"', b",", b":", b"[" * 5000, b"\0",
            b"\xff\xfe", b'{"a":1,"a":2}', b"9" * 5000, b"_pad.0", b"\\ud800"]  # fmt: skip


SUPPRESSED = (OSError, ValueError, TypeError, LookupError, RecursionError, AttributeError)


#: What readers look for beside the files that a manifest lists.
STRAYS = ["special_tokens_map.json", "generation_config.json", "chat_template.jinja",
          "additional_chat_templates", "tokenizer_config.json", "tokenizer.model", "subnets",
          "studies"]  # fmt: skip


def regular_files(folder: Path) -> list[Path]:
    """What may be read without waiting for ever, as a pipe or `/dev/zero` would make us."""
    return sorted(file for file in folder.rglob("*") if file.is_file() and not file.is_symlink())


def mutate(folder: Path, source: random.Random) -> str:
    """Damage the artifact in `folder` one to three times; says how."""
    done = []
    for _ in range(source.choice((1, 1, 1, 2, 3))):
        files = regular_files(folder)
        if not files:
            break
        weights = [3 if file.name == "pliant.json" else 1 for file in files]
        file = source.choices(files, weights)[0]
        change = source.choices(list(CHANGES), list(CHANGES.values()))[0]
        # What an earlier change broke may not be changed further.
        with contextlib.suppress(*SUPPRESSED):
            done.append(f"{change.__name__} {file.name} {change(file, source) or ''}")
    if source.random() < 0.7:
        with contextlib.suppress(*SUPPRESSED):
            repair(folder)
            done.append("repair")
    return "; ".join(done)


def repair(folder: Path) -> None:
    """Make sizes and hashes of the manifest true again, as an attacker would."""
    files = regular_files(folder)
    if folder / "pliant.json" not in files:
        return
    manifest = json.loads((folder / "pliant.json").read_bytes())
    for name, record in manifest["files"].items():
        if folder / name not in files:
            continue
        content = (folder / name).read_bytes()
        record |= {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        if "table_sha256" in record:
            end = 8 + int.from_bytes(content[:8], "little")
            record["table_sha256"] = hashlib.sha256(content[:end]).hexdigest()
    write(folder / "pliant.json", json.dumps(manifest).encode())


def write(file: Path, content: bytes) -> None:
    """Replace a file; files of the folder may be links to the pristine ones."""
    file.unlink()
    file.write_bytes(content)


def flip(file, source):
    content = bytearray(file.read_bytes())
    header = min(len(content), 8 + int.from_bytes(content[:8], "little"))
    table = file.suffix == ".safetensors" and source.random() < 0.3
    begin, end = (0, header) if table else (header if header < len(content) else 0, len(content))
    for _ in range(source.choice((1, 1, 2, 5, 50, 1000))):
        content[source.randrange(begin, end)] = source.choice(
            (0, 1, 127, 128, 255, source.randrange(256))
        )
    write(file, bytes(content))


def truncate(file, source):
    content = file.read_bytes()
    write(file, content[: source.choice((0, 1, 7, 8, source.randrange(len(content))))])


def grow(file, source):
    write(file, file.read_bytes() + source.randbytes(source.choice((1, 8, 64, 4096))))


def splice(file, source):
    content = file.read_bytes()
    at, begin = source.randrange(len(content)), source.randrange(len(content))
    piece = source.choice((*SNIPPETS, content[begin : begin + source.choice((1, 8, 64, 1000))]))
    cut = source.choice((0, len(piece), source.randrange(100)))
    write(file, content[:at] + piece + content[at + cut :])


def header_length(file, source):
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    value = source.choice((0, 1, length - 1, length + 1, length + 64, len(content), 1 << 24,
                           (1 << 32) + length, (1 << 63) + length, (1 << 64) - 1))  # fmt: skip
    # Of a length that was damaged before, the neighbours may not fit into 64 bits.
    write(file, (value % (1 << 64)).to_bytes(8, "little") + content[8:])


def edit_json(file, source):
    """Edit the manifest, or the table of a tensor file, keeping it JSON."""
    content = file.read_bytes()
    if file.suffix != ".safetensors":
        table = json.loads(content)
        how = edit(table, source)
        write(file, json.dumps(table).encode())
        return how
    end = 8 + int.from_bytes(content[:8], "little")
    table = json.loads(content[8:end])
    how = edit(table, source)
    text = json.dumps(table, separators=(",", ":")).encode()
    text = text.ljust(max(end - 8, -(-(8 + len(text)) // 64) * 64 - 8))
    write(file, len(text).to_bytes(8, "little") + text + content[end:])
    return how


def edit(table, source) -> str:
    """Change one value somewhere inside; the name of the place."""
    place, names = table, []
    while True:
        key = source.choice(list(place) if isinstance(place, dict) else range(len(place)))
        names.append(str(key))
        value = place[key]
        if not (isinstance(value, dict | list) and value and source.random() < 0.9):
            break
        place = value
    action = source.random()
    if action < 0.1:
        del place[key]
    elif action < 0.2:
        other = source.choice(list(place) if isinstance(place, dict) else range(len(place)))
        place[key], place[other] = place[other], place[key]
    elif action < 0.3 and isinstance(place, dict):
        place[source.choice(("x", "_pad.1", "../x", "embedding", key + "x"))] = place.pop(key)
    elif action < 0.5 and type(value) is int:
        place[key] = value + source.choice((-64, -1, 1, 64, value))
    elif action < 0.6 and isinstance(value, float | int):
        place[key] = value * source.choice((-1, 2, 1000, 1e10))
    else:
        place[key] = source.choice(VALUES)
    return ".".join(names)


def rearrange(file, source):
    """Change what the folder holds rather than what a file says."""
    other = source.choice(regular_files(file.parent))
    match source.randrange(8):
        case 0:
            file.unlink()
        case 1:
            content = other.read_bytes()
            write(file, content)
        case 2:
            file.unlink()
            file.mkdir()
        case 3:
            file.unlink()
            os.mkfifo(file)
        case 4:
            file.unlink()
            file.symlink_to(source.choice(("/etc/passwd", "/dev/zero", file.name, other.name)))
        case 5:
            write(file, b"")
        case 6:
            (file.parent / "subnets").mkdir(exist_ok=True)
            shutil.copy(other, file.parent / "subnets" / "saved.json")
        case 7:
            return stray(file.parent / source.choice(STRAYS), other, source)
    return ""


def stray(path, other, source):
    """Put something under a name that a reader may look for."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    match source.randrange(5):
        case 0:
            os.mkfifo(path)
        case 1:
            path.symlink_to(source.choice(("/etc/passwd", "/dev/zero", path.name, other.name)))
        case 2:
            path.mkdir()
            os.mkfifo(path / source.choice(("x.json", "0123456789abcdef.json", "x.jinja")))
        case 3:
            path.mkdir()
            shutil.copy(other, path / "x.jinja")
        case 4:
            shutil.copy(other, path)
    return path.name


CHANGES = {flip: 20, truncate: 2, grow: 1, splice: 3, header_length: 1, edit_json: 10, rearrange: 2}
