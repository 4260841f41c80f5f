"""The error tree. Every message says what was asked, what was found, and what to do.

PliantError                exit 1   anything that went wrong in a foreseen way
├── UsageError             exit 2   the request itself makes no sense
├── DoesNotFitError        exit 3   no subnet satisfies the budget
├── QualityFloorError      exit 4   a measured loss is worse than the bound asked for
├── UnsupportedError       exit 5   an architecture, format or feature pliant cannot handle
├── VerificationError      exit 6   bytes or logits are not what the receipt says
├── CheckpointError        exit 1   a source checkpoint is missing, damaged or contradictory
├── ArtifactError          exit 1   an artifact is missing, damaged or hostile
├── DataError              exit 1   text or token data cannot be used
├── GenerationError        exit 1   a prompt or an option cannot be generated from
├── OutOfSpaceError        exit 1   the disk or the memory granted is too small
└── InterruptedJobError    exit 75  stopped on request; running it again goes on from there
"""

from __future__ import annotations

from typing import ClassVar


class PliantError(Exception):
    """Root of all foreseen failures; `exit_code` is what the command line returns for it."""

    exit_code: ClassVar[int] = 1


class UsageError(PliantError):
    """The request contradicts itself or names something that cannot exist."""

    exit_code = 2


class DoesNotFitError(PliantError):
    """No subnet satisfies the budget; the message names the smallest that exists."""

    exit_code = 3


class QualityFloorError(PliantError):
    """A measured loss is worse than the bound that was asked for."""

    exit_code = 4


class UnsupportedError(PliantError):
    """An architecture, format or feature that pliant refuses, with the reason."""

    exit_code = 5


class VerificationError(PliantError):
    """Bytes or logits differ from what the artifact's receipts state."""

    exit_code = 6


class CheckpointError(PliantError):
    """A source checkpoint is missing, damaged, or its config and weights disagree."""


class ArtifactError(PliantError):
    """An artifact is missing, damaged or hostile; nothing of it was handed to native code."""


class DataError(PliantError):
    """Text or token data is missing, empty, too short or not valid UTF-8."""


class GenerationError(PliantError):
    """A prompt or a sampling option that cannot be generated from."""


class OutOfSpaceError(PliantError):
    """The disk is full, or the memory that was granted is too small for the work."""


class InterruptedJobError(PliantError):
    """The job was stopped on request and can be resumed by running the same command."""

    exit_code = 75
