"""The folder `X.pliant` of nested planes: written, read, verified; its law is docs/format.md."""

from pliant.artifact.address import split_address
from pliant.artifact.manifest import (
    FORMAT_VERSION,
    Alignment,
    CalibrationRecord,
    CodecRecord,
    FileRecord,
    Findings,
    Manifest,
    SourceRecord,
    SpecialTokens,
)
from pliant.artifact.reader import Artifact
from pliant.artifact.verification import Verification, verify
from pliant.artifact.writer import ArtifactWriter, tensor_file_plan

__all__ = [
    "FORMAT_VERSION",
    "Alignment",
    "Artifact",
    "ArtifactWriter",
    "CalibrationRecord",
    "CodecRecord",
    "FileRecord",
    "Findings",
    "Manifest",
    "SourceRecord",
    "SpecialTokens",
    "Verification",
    "split_address",
    "tensor_file_plan",
    "verify",
]
