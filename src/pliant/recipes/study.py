"""Measuring an artifact's cuts for a search, with every result kept in the artifact."""

from __future__ import annotations

import hashlib
import platform
import re
from collections.abc import Sequence

import numpy as np

from pliant.artifact import Artifact, FileRecord
from pliant.artifact.reader import STUDIES_FOLDER
from pliant.errors import (
    ArtifactError,
    DataError,
    OutOfSpaceError,
    PliantError,
    VerificationError,
)
from pliant.evaluate import Workload, measure_speed
from pliant.measurement import Progress, silent
from pliant.recipes.measure import text_loss
from pliant.runtime.text_engine import Pliant
from pliant.search import Candidate, LossPredictor, SpeedPredictor, Study, spread_design
from pliant.search.predictor import MIN_MEASURED, Increases
from pliant.subnet import Subnet

#: Cuts measured for a predictor unless told otherwise; benchmarks/search.py shows what more bring.
STUDIED = 32
#: Cuts predicted to lose more than this, relative to the dense model, are not worth a measurement.
WORST_STUDIED = 1.0
#: Cuts whose speed is measured before speeds are predicted.
TIMED = 6
_STUDY_NAME = re.compile(r"[0-9a-f]{16}")


class Bench:
    """An artifact on one text: losses and speeds of its cuts, measured once and kept.

    Results are written to the artifact after each measurement, so that a run that is stopped goes
    on where it was. `saved` is False where the artifact cannot be written; then they live as long
    as the bench. Nothing is measured twice.
    """

    def __init__(self, model: Pliant, documents: Sequence[str], threads: int | None = None) -> None:
        self._model = model
        self._documents = documents
        self._threads = threads
        self._name = _fingerprint(*documents)[:16]
        weights = _fingerprint(*(file.sha256 for file in _weight_files(model.artifact)))
        self.study = _stored(model.artifact, self._name, weights)
        self.saved = True
        self._losses = self.study.losses(model.artifact.spec)

    @property
    def artifact(self) -> Artifact:
        """The artifact that is measured."""
        return self._model.artifact

    @property
    def losses(self) -> dict[Subnet, float]:
        """Every loss measured so far, bits per byte."""
        return dict(self._losses)

    def loss(self, subnet: Subnet) -> float:
        """The loss of a subnet; infinity where its probabilities are no numbers."""
        if subnet not in self._losses:
            try:
                measured = text_loss(self._model, subnet, self._documents, self._threads)
                loss = measured.bits_per_byte
            except VerificationError:
                return float("inf")
            self._losses[subnet] = loss
            self._keep(self.study.with_loss(subnet, loss))
        return self._losses[subnet]

    def predictor(
        self,
        offered: Sequence[Candidate],
        increases: Increases,
        dense_loss: float,
        count: int,
        progress: Progress = silent,
    ) -> LossPredictor | None:
        """A predictor of losses over the full model's, from `count` cuts spread over `offered`.

        None where fewer than `MIN_MEASURED` cuts are asked for or worth measuring. `dense_loss` is
        in the unit of the candidates' predictions.
        """
        wanted = self.design(offered, increases, dense_loss, count)
        if len(wanted) < MIN_MEASURED:
            return None
        for done, subnet in enumerate(wanted):
            progress("measuring cuts", done, len(wanted))
            self.loss(subnet)
        progress("measuring cuts", len(wanted), len(wanted))
        full = self.loss(self._model.subnet())
        return LossPredictor(increases, {net: loss / full for net, loss in self._losses.items()})

    def design(
        self,
        offered: Sequence[Candidate],
        increases: Increases,
        dense_loss: float,
        count: int,
    ) -> list[Subnet]:
        """The cuts to measure: far apart in what their axes cost, none of them hopeless."""
        worth = [
            item for item in offered if item.predicted_loss <= dense_loss * (1 + WORST_STUDIED)
        ]
        if not worth or count < 1:
            return []
        best = min(range(len(worth)), key=lambda place: worth[place].predicted_loss)
        points = np.array([increases(item.subnet) for item in worth])
        return [worth[place].subnet for place in spread_design(points, count, best)]

    def seconds_per_token(self, subnet: Subnet) -> float:
        """Seconds to decode a token of one sequence on this machine, the median of a few runs."""
        machine, spec = self._machine(), self._model.artifact.spec
        known = self.study.seconds(spec, machine)
        if subnet not in known:
            tokens = min(32, spec.max_context // 2)
            with self._model.engine(subnet, threads=self._threads) as engine:
                workload = Workload(prompt_tokens=tokens, decode_tokens=tokens, repeats=3)
                speed = measure_speed(engine.engine, subnet, workload)
            known[subnet] = 1 / speed.decode.median
            self._keep(self.study.with_seconds(subnet, machine, known[subnet]))
        return known[subnet]

    def speed_predictor(
        self, offered: Sequence[Candidate], progress: Progress = silent
    ) -> SpeedPredictor:
        """Seconds per token of any cut, from a few measured ones between smallest and largest."""
        ordered = sorted({item.subnet.weight_bytes: item.subnet for item in offered}.items())
        places = np.linspace(0, len(ordered) - 1, min(TIMED, len(ordered))).round().astype(int)
        chosen = [ordered[place][1] for place in dict.fromkeys(places.tolist())]
        for done, subnet in enumerate(chosen):
            progress("measuring speed", done, len(chosen))
            self.seconds_per_token(subnet)
        progress("measuring speed", len(chosen), len(chosen))
        known = self.study.seconds(self._model.artifact.spec, self._machine())
        return SpeedPredictor(known)

    def _machine(self) -> str:
        processor = platform.processor() or platform.machine()
        return (
            f"{platform.node()} {platform.system()} {processor}, {self._threads or 'all'} threads"
        )

    def _keep(self, study: Study) -> None:
        self.study = study
        if not self.saved:
            return
        try:
            self._model.artifact.save_study(self._name, study.to_json())
        except (ArtifactError, OutOfSpaceError):
            self.saved = False


def kept_studies(artifact: Artifact) -> tuple[list[Study], list[str]]:
    """All studies kept in an artifact that are of its weights, and notes on the others.

    What is damaged, or of subnets that cannot be cut from this artifact, is left out.
    """
    weights = _fingerprint(*(file.sha256 for file in _weight_files(artifact)))
    found, notes = [], []
    for name in sorted(file.stem for file in (artifact.path / STUDIES_FOLDER).glob("*.json")):
        if not _STUDY_NAME.fullmatch(name):
            continue
        try:
            study = _stored(artifact, name, weights)
            for subnet in study.losses(artifact.spec):
                artifact.check(subnet)
            for machine in study.speeds:
                study.seconds(artifact.spec, machine)
        except PliantError:
            notes.append(f"study {name}: damaged; delete it")
            continue
        if study.measured:
            found.append(study)
        else:
            notes.append(f"study {name}: of other weights than these, or empty")
    return found, notes


def _weight_files(artifact: Artifact) -> list[FileRecord]:
    """The records of the files that decide what a cut computes, by name."""
    files = artifact.manifest.files
    return [files[name] for name in sorted(files) if files[name].table_sha256]


def _stored(artifact: Artifact, name: str, weights: str) -> Study:
    """The study kept under a name, or an empty one where there is none of these weights."""
    empty = Study(text=name, weights=weights)
    content = artifact.read_study(name)
    if content is None:
        return empty
    try:
        study = Study.from_json(content)
    except DataError as error:
        raise ArtifactError(
            f"studies/{name}.json of {artifact.path} is damaged: {error}"
        ) from error
    return study if (study.text, study.weights) == (name, weights) else empty


def _fingerprint(*texts: str) -> str:
    """The SHA-256 of texts and their borders, in hexadecimal."""
    digest = hashlib.sha256()
    for text in texts:
        raw = text.encode()
        digest.update(len(raw).to_bytes(8, "little") + raw)
    return digest.hexdigest()
