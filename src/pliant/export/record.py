"""`ExportRecord`: where an exported file or folder comes from, kept inside it."""

from __future__ import annotations

import msgspec

import pliant
from pliant.artifact import Artifact
from pliant.receipt import Receipt
from pliant.subnet import Subnet


class ExportRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What was exported, of which artifact, and how its weights are stored.

    `storage` is the number type or the tensor types of the target; `weight_bytes` are those of its
    tensors, `subnet_bytes` those that the artifact reads for the same subnet. `receipt` is the
    measured one of the artifact, where there is one at this address.
    """

    target: str
    address: str
    source: str
    source_fingerprint: str
    pliant_version: str
    storage: str
    num_parameters: int
    weight_bytes: int
    subnet_bytes: int
    effective_bits: float
    receipt: Receipt | None = None

    def to_json(self) -> bytes:
        """This record as readable JSON."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"


def record_of(
    artifact: Artifact,
    subnet: Subnet,
    address: str,
    target: str,
    storage: str,
    weight_bytes: int,
) -> ExportRecord:
    """The record of an export of the subnet at `address`."""
    manifest = artifact.manifest
    receipts = {receipt.address: receipt for receipt in manifest.receipts}
    return ExportRecord(
        target=target,
        address=address or "full",
        source=manifest.source.name,
        source_fingerprint=manifest.source.fingerprint,
        pliant_version=pliant.__version__,
        storage=storage,
        num_parameters=subnet.num_parameters,
        weight_bytes=weight_bytes,
        subnet_bytes=subnet.weight_bytes,
        effective_bits=subnet.effective_bits,
        receipt=receipts.get(address or "full"),
    )
