"""The manifest of an artifact whose last planes are left out, as docs/format.md allows it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import msgspec

from pliant.artifact.manifest import CodecRecord, FileRecord, Manifest, version_of
from pliant.artifact.tensors import plane_file
from pliant.bits import BitPlan
from pliant.errors import UsageError
from pliant.sensitivities import Sensitivities
from pliant.subnet import CutAddress

_Value = TypeVar("_Value")


def with_fewer_planes(
    manifest: Manifest, planes: int, changed: Mapping[str, FileRecord] | None = None
) -> Manifest:
    """The manifest of the first `planes` planes; `changed` are small files with other content.

    Losses at planes that are gone are left out, and receipts of subnets that read them; what stays
    was measured on the whole artifact. `UsageError` where so many planes are not stored.
    """
    stored = manifest.codec.planes
    if not 1 <= planes <= stored:
        raise UsageError(f"{planes} planes were asked for; the artifact stores {stored}.")
    gone = {plane_file(place) for place in range(planes, stored)}
    files = {name: record for name, record in manifest.files.items() if name not in gone}
    known = manifest.sensitivities
    codec = CodecRecord.of(manifest.codec.name, planes, manifest.codec.fewer_planes)
    return msgspec.structs.replace(
        manifest,
        format_version=version_of(codec, manifest.adapters),
        codec=codec,
        files=files | dict(changed or {}),
        sensitivities=known and _without(known, planes),
        receipts=tuple(
            receipt for receipt in manifest.receipts if reads_at_most(receipt.address, planes)
        ),
    )


def reads_at_most(address: str, planes: int) -> bool:
    """Whether an address names a number of planes that is no more than `planes`.

    Addresses without one mean all planes of the artifact they were written for; names of saved
    cuts are not known here: both are False.
    """
    try:
        cut = CutAddress.parse(address)
        if cut.planes is None:
            return False
        return BitPlan.uniform(1, cut.planes, cut.vocabulary_planes).most_planes <= planes
    except UsageError:
        return False


def _without(known: Sensitivities, planes: int) -> Sensitivities | None:
    """Sensitivities without planes beyond `planes`; None where an axis is empty then."""
    block, vocabulary = _up_to(known.planes, planes), _up_to(known.vocabulary_planes, planes)
    if not block or not vocabulary:
        return None
    matrices = {name: _up_to(losses, planes) for name, losses in known.matrices.items()}
    return msgspec.structs.replace(
        known, planes=block, vocabulary_planes=vocabulary, matrices=matrices
    )


def _up_to(axis: Mapping[int, _Value], planes: int) -> dict[int, _Value]:
    return {count: value for count, value in axis.items() if count <= planes}
