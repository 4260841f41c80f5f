"""The README.md of an exported folder: what it is, where it comes from, what was measured."""

from __future__ import annotations

import json
from collections.abc import Sequence

from pliant.artifact import Artifact
from pliant.export.record import ExportRecord
from pliant.measurement import format_bytes
from pliant.receipt import Receipt
from pliant.subnet import Subnet


def model_card(
    artifact: Artifact, subnet: Subnet, record: ExportRecord, notes: Sequence[str]
) -> str:
    """The card in Markdown, with the header that the hub reads."""
    spec, shape = artifact.spec, subnet.shape
    # A name is any text; as JSON it cannot break out of its line of the YAML header.
    header_name = json.dumps(record.source)
    name = " ".join(record.source.replace("`", "'").split())
    facts = [
        ("cut", f"`{record.address}`"),
        ("of", f"`{name}` (SHA-256 `{record.source_fingerprint[:16]}…`)"),
        ("blocks", f"{len(shape.blocks)} of {spec.num_blocks}: {_list(shape.blocks)}"),
        ("KV groups", f"{_range(shape.groups)} of {spec.num_groups}"),
        ("neurons", f"{_range(shape.neurons)} of {spec.ffn_size}"),
        ("parameters", f"{record.num_parameters:,}"),
        ("weights here", f"{format_bytes(record.weight_bytes)}, stored as {record.storage}"),
        ("weights in the artifact", f"{format_bytes(record.subnet_bytes)}, "
                                    f"{record.effective_bits:.2f} bits per parameter"),
        ("made by", f"pliant {record.pliant_version}"),
    ]  # fmt: skip
    lines = [
        "---", "library_name: transformers", "pipeline_tag: text-generation",
        f"base_model: {header_name}", "tags: [pliant]", "---", "",
        f"# {name}, cut to `{record.address}`", "",
        "This model was cut out of a pliant artifact: whole blocks, KV groups and neurons were "
        "left out, and the weights are what the bit-planes that were read stand for. Stored wider "
        "than those bits, they hold nothing more.", "",
        "| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in facts), "",
    ]  # fmt: skip
    lines += [f"- {note[:1].upper()}{note[1:]}." for note in notes]
    lines += ["", "## Measured", "", *_measured(record.receipt), ""]
    return "\n".join(lines)


def _measured(receipt: Receipt | None) -> list[str]:
    if receipt is None:
        return [
            "The artifact holds no receipt of this cut; `pliant fit` or `pliant eval` measures it."
        ]
    conditions = receipt.conditions
    rows = [
        ("bits per byte", f"{receipt.bits_per_byte:.4f}"),
        ("perplexity", f"{receipt.perplexity:.4f}"),
    ]
    if receipt.kl_nats is not None:
        rows.append(("KL to the dense model", f"{receipt.kl_nats:.4f} nats per token"))
    if receipt.top1_agreement is not None:
        rows.append(("same first token as the dense model", f"{receipt.top1_agreement:.2%}"))
    table = ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows)]
    return [*table, "", f"On {conditions.text}, {conditions.tokens:,} tokens, by pliant's engine."]


def _list(numbers: Sequence[int]) -> str:
    return " ".join(map(str, numbers))


def _range(numbers: Sequence[int]) -> str:
    return str(numbers[0]) if len(set(numbers)) == 1 else f"{min(numbers)} to {max(numbers)}"
