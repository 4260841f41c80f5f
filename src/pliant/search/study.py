"""`Study`: what was measured while fitting an artifact, kept so that nothing is measured twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from pliant.bits import BitPlan
from pliant.errors import DataError
from pliant.shape import SubnetShape
from pliant.spec import ModelSpec
from pliant.subnet import Subnet


class StudiedSubnet(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A subnet and its measured loss, bits per byte of the text of the study."""

    shape: SubnetShape
    bits: BitPlan
    loss: float


class Timing(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Seconds a token takes to decode under a subnet."""

    shape: SubnetShape
    bits: BitPlan
    seconds: float


class Study(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Measured losses of subnets of one artifact on one text, and speeds by machine and threads.

    `text` and `weights` are fingerprints of what was measured. A study lies in the artifact as
    `studies/TEXT.json`; docs/format.md has it.
    """

    text: str
    weights: str
    measured: tuple[StudiedSubnet, ...] = ()
    speeds: dict[str, tuple[Timing, ...]] = {}

    def losses(self, spec: ModelSpec) -> dict[Subnet, float]:
        """All measured losses."""
        return {Subnet(spec, found.shape, found.bits): found.loss for found in self.measured}

    def seconds(self, spec: ModelSpec, machine: str) -> dict[Subnet, float]:
        """Seconds per token measured on a machine."""
        timings = self.speeds.get(machine, ())
        return {Subnet(spec, found.shape, found.bits): found.seconds for found in timings}

    def with_loss(self, subnet: Subnet, loss: float) -> Study:
        """The study with one measured loss more."""
        found = StudiedSubnet(shape=subnet.shape, bits=subnet.bits, loss=loss)
        return msgspec.structs.replace(self, measured=(*self.measured, found))

    def with_seconds(self, subnet: Subnet, machine: str, seconds: float) -> Study:
        """The study with one measured speed more."""
        found = Timing(shape=subnet.shape, bits=subnet.bits, seconds=seconds)
        speeds = {**self.speeds, machine: (*self.speeds.get(machine, ()), found)}
        return msgspec.structs.replace(self, speeds=speeds)

    def to_json(self) -> bytes:
        """This study as JSON."""
        return msgspec.json.encode(self)

    @classmethod
    def from_json(cls, text: bytes) -> Study:
        """The study that `to_json` wrote; `DataError` where the JSON is not one."""
        try:
            return msgspec.json.decode(text, type=cls)
        except (ValueError, RecursionError) as error:
            raise DataError(f"A saved study is damaged ({error}); delete it.") from error


def spread_design(points_NA: NDArray[np.float64], count: int, first: int = 0) -> list[int]:
    """Indices of at most `count` points that lie far apart, `first` and on from there.

    Each next one is the point farthest from all before it (Gonzalez 1985), so every region gets
    its measurement before any gets its second.
    """
    chosen = [first]
    distance_N = np.square(points_NA - points_NA[first]).sum(axis=1)
    while len(chosen) < min(count, len(points_NA)) and distance_N.max() > 0:
        chosen.append(int(distance_N.argmax()))
        farther_N = np.square(points_NA - points_NA[chosen[-1]]).sum(axis=1)
        distance_N = np.minimum(distance_N, farther_N)
    return chosen


class SpeedPredictor:
    """Seconds per decoded token from measured ones: a constant, bytes read, and halves of blocks.

    Decoding is bound by the bytes it reads; what a half costs besides is its barriers. Coefficients
    below 0 mean nothing and are left out.
    """

    def __init__(self, measured: Mapping[Subnet, float]) -> None:
        """Needs three measured subnets or more; `DataError` otherwise."""
        if len(measured) < 3:
            raise DataError(f"A speed needs 3 measured subnets or more; {len(measured)} are there.")
        features_NF = _read_and_run(list(measured))
        seconds_N = np.array(list(measured.values()))
        kept = list(range(features_NF.shape[1]))
        while True:
            found, *_ = np.linalg.lstsq(features_NF[:, kept], seconds_N, rcond=None)
            if (found >= 0).all() or len(kept) == 1:
                break
            kept.pop(int(found.argmin()))
        self._coefficients = np.zeros(features_NF.shape[1])
        self._coefficients[kept] = np.maximum(found, 0)
        #: The largest relative error on what was measured: what a promise must leave room for.
        self.error = float(np.max(np.abs(self.predict(list(measured)) / seconds_N - 1)))

    def predict(self, subnets: Sequence[Subnet]) -> NDArray[np.float64]:
        """Seconds per decoded token, `[M]`."""
        return np.asarray(_read_and_run(subnets) @ self._coefficients)


def _read_and_run(subnets: Sequence[Subnet]) -> NDArray[np.float64]:
    """1, megabytes of weights and halves of blocks of each subnet, `[N, 3]`."""
    rows = [(1, subnet.weight_bytes / 1e6, subnet.shape.num_halves) for subnet in subnets]
    return np.array(rows, np.float64)
