"""`pliant inspect`: what an artifact, or one subnet of it, is and needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from pliant.cli.options import Address, Context, Json, Quiet
from pliant.cli.output import Output, facts, table
from pliant.measurement import format_bytes

if TYPE_CHECKING:
    from pliant.artifact import Artifact
    from pliant.subnet import Subnet


def inspect(
    address: Address,
    context: Context = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show an artifact, its saved cuts and sensitivities, and the subnet that is addressed."""
    from pliant.artifact import Artifact, split_address

    output = Output(as_json, quiet)
    path, cut = split_address(address)
    artifact = Artifact.open(path)
    subnet = artifact.subnet(cut)
    tokens = context or min(artifact.spec.max_context, 128)
    fields = {
        "artifact": _artifact_fields(artifact),
        "subnet": {"cut": cut, "context": tokens, **_subnet_fields(artifact, subnet, tokens)},
    }
    output.emit(
        fields,
        facts(_artifact_lines(artifact)),
        *_tables(artifact),
        f"subnet {address} at {tokens} tokens of context",
        facts(_subnet_lines(subnet, fields["subnet"])),
    )


def _artifact_fields(artifact: Artifact) -> dict[str, Any]:
    from pliant.recipes.measure import largest_member_bytes

    manifest = artifact.manifest
    return {
        "path": str(artifact.path),
        "num_bytes": artifact.num_bytes,
        "largest_member_bytes": largest_member_bytes(artifact),
        "source": manifest.source.name,
        "pliant_version": manifest.pliant_version,
        "format_version": manifest.format_version,
        "codec": msgspec.to_builtins(manifest.codec),
        "adapters": msgspec.to_builtins(manifest.adapters),
        "spec": msgspec.to_builtins(artifact.spec),
        "cuts": artifact.subnet_names(),
        "depths": {str(depth): list(blocks) for depth, blocks in artifact.depth_path().items()},
        "depth_methods": sorted(manifest.depth_paths),
        "sensitivities": msgspec.to_builtins(manifest.sensitivities, str_keys=True),
        "receipts": msgspec.to_builtins(manifest.receipts),
    }


def _artifact_lines(artifact: Artifact) -> list[tuple[str, object]]:
    from pliant.recipes.measure import largest_member_bytes

    spec, manifest = artifact.spec, artifact.manifest
    full = artifact.subnet()
    ratio = artifact.num_bytes / largest_member_bytes(artifact)
    return [
        ("artifact", artifact.path),
        ("on disk", f"{format_bytes(artifact.num_bytes)}, {ratio:.3f} x its largest member"),
        ("made from", f"{manifest.source.name} by pliant {manifest.pliant_version}"),
        (
            "spec",
            f"{spec.architecture}, {full.num_parameters:,} parameters: {spec.num_blocks} blocks, "
            f"hidden {spec.hidden_size}, {spec.num_heads} heads of {spec.head_dim} in "
            f"{spec.num_groups} groups, FFN {spec.ffn_size}, vocabulary {spec.vocab_size}, "
            f"context {spec.max_context}",
        ),
        ("codec", _codec_line(artifact)),
        ("adapters", _adapters_line(artifact)),
        ("saved cuts", ", ".join(artifact.subnet_names()) or "none"),
        ("receipts", "; ".join(map(_receipt_line, manifest.receipts)) or "none"),
    ]


def _codec_line(artifact: Artifact) -> str:
    from pliant.bits import codecs

    name = artifact.manifest.codec.name
    together = "" if codecs[name].nested else ", chosen to be read together"
    fewer = artifact.manifest.codec.fewer_planes
    own = f" at most, {min(fewer.values())} at least" if fewer else ""
    return f"{name}, {artifact.num_planes} planes{own}{together}"


def _adapters_line(artifact: Artifact) -> str:
    from pliant.adapters import num_adapter_parameters

    adapters = artifact.adapters
    if adapters is None:
        return "none"
    count = num_adapter_parameters(artifact.spec, adapters)
    spared = " but the full one" if adapters.anchored else ""
    return (
        f"rank {adapters.rank}, {adapters.top_k} of {adapters.experts} experts for a shape"
        f"{spared}, {count:,} parameters"
    )


def _receipt_line(record: Any) -> str:
    speed = f" at {record.speed}" if record.speed else ""
    return f"{record.address or 'full'} {record.bits_per_byte:.3f} bits/byte{speed}"


def _tables(artifact: Artifact) -> list[object]:
    """Blocks kept at each depth, and the loss of each cut of one axis."""
    measured = artifact.manifest.sensitivities
    losses = measured.depth if measured else {}
    dense = measured.dense_loss if measured else 0.0

    def increase(loss: float | None) -> str:
        return "" if loss is None else f"{loss / dense - 1:+.1%}"

    depths = [
        (str(depth), increase(losses.get(depth)), " ".join(map(str, blocks)))
        for depth, blocks in sorted(artifact.depth_path().items(), reverse=True)
    ]
    tables: list[object] = [table("depth path", (">blocks", ">loss", "kept"), depths)]
    if measured is not None:
        axes = (
            ("width", measured.width),
            ("planes", measured.planes),
            ("vocabulary planes", measured.vocabulary_planes),
        )
        rows = [
            (name, "  ".join(f"{key:g}: {increase(loss)}" for key, loss in sorted(axis.items())))
            for name, axis in axes
        ]
        tables.append(table("loss of one axis cut alone", ("axis", "loss"), rows))
    return tables


def _subnet_fields(artifact: Artifact, subnet: Subnet, context: int) -> dict[str, Any]:
    from pliant.costs import WorkingSet, decode_traffic, subnet_memory
    from pliant.runtime.generation import PREFILL_TOKENS

    rank = artifact.adapter_rank(subnet.shape)
    cost = subnet_memory(subnet, WorkingSet(context=context), rank)
    prefill = subnet_memory(subnet, WorkingSet(context=context, chunk=PREFILL_TOKENS), rank)
    return {
        "blocks": list(subnet.shape.blocks),
        "groups": list(subnet.shape.groups),
        "neurons": list(subnet.shape.neurons),
        "parameters": subnet.num_parameters,
        "effective_bits": subnet.effective_bits,
        "weight_bytes": cost.weight_bytes,
        "adapter_bytes": cost.adapter_bytes,
        "experts": {str(expert): gate for expert, gate in artifact.gates(subnet.shape).items()},
        "cache": msgspec.to_builtins(subnet.bits.cache),
        "cache_bytes": cost.cache_bytes,
        "scratch_bytes": cost.scratch_bytes,
        "memory_bytes": cost.total_bytes,
        "prefill_scratch_bytes": prefill.scratch_bytes,
        "decode_bytes_per_token": decode_traffic(subnet, context, rank=rank).total_bytes,
    }


def _subnet_lines(subnet: Subnet, fields: dict[str, Any]) -> list[tuple[str, object]]:
    def sizes(counts: list[int]) -> str:
        return str(counts[0]) if len(set(counts)) == 1 else " ".join(map(str, counts))

    bits = subnet.bits
    experts = ", ".join(f"{number} x {gate:.2f}" for number, gate in fields["experts"].items())
    adapters = f"adapters {format_bytes(fields['adapter_bytes'])} + " if experts else ""
    block = sorted({count for one in bits.blocks for count in msgspec.structs.astuple(one)})
    return [
        ("blocks", " ".join(map(str, fields["blocks"]))),
        ("width", f"{sizes(fields['groups'])} KV groups, {sizes(fields['neurons'])} neurons"),
        (
            "planes",
            f"{' '.join(map(str, block))}; embedding {bits.embedding}, head {bits.head}",
        ),
        ("cache", bits.cache),
        ("parameters", f"{fields['parameters']:,} at {fields['effective_bits']:.2f} bits each"),
        (
            "memory",
            f"{format_bytes(fields['memory_bytes'])} = weights "
            f"{format_bytes(fields['weight_bytes'])} + {adapters}cache "
            f"{format_bytes(fields['cache_bytes'])} + scratch "
            f"{format_bytes(fields['scratch_bytes'])} "
            f"(prefill {format_bytes(fields['prefill_scratch_bytes'])})",
        ),
        ("read per token", format_bytes(fields["decode_bytes_per_token"])),
        *([("experts", experts)] if experts else []),
    ]
