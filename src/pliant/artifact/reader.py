"""`Artifact`: an opened `X.pliant`, its weights mapped and not yet read."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pliant.adapters import (
    AdapterSpec,
    Factors,
    gates,
    merged,
    router_shapes,
    shape_code,
    update_rank,
)
from pliant.artifact.folder import file_size, map_inside, read_inside, write_atomically
from pliant.artifact.manifest import (
    MANIFEST_FILE,
    MAX_MANIFEST_BYTES,
    FileRecord,
    Findings,
    Manifest,
    is_file_name,
)
from pliant.artifact.tensor_file import TensorPlace, header_bytes, parse_header
from pliant.artifact.tensors import (
    ADAPTERS_FILE,
    SCALES_FILE,
    VECTORS_FILE,
    TensorType,
    adapter_types,
    plane_file,
)
from pliant.bits import BitPlan, EncodedMatrix, PlaneForm, codecs
from pliant.errors import ArtifactError, PliantError, UsageError
from pliant.shape import Keep, SubnetShape, shape_of_halves
from pliant.spec import ModelSpec
from pliant.subnet import CutAddress, Subnet

SUBNETS_FOLDER = "subnets"
STUDIES_FOLDER = "studies"
#: Tokenizers of 250 000 tokens are some 30 MB of JSON.
MAX_SMALL_FILE_BYTES = 256 * 1024 * 1024
_MAX_SUBNET_BYTES = 16 * 1024 * 1024
_SUBNET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Artifact:
    """An artifact whose structure has been checked from end to end, opened read-only.

    Arrays handed out are views of the mapped files: what is not read is never paged in, and they
    stay valid as long as they are referenced. Everything but the values of weights has been
    checked against the spec; values (hashes, NaN scales) are the work of `verify`, which has to
    read every byte. So an engine may index without fear, and may still meet a NaN.
    """

    def __init__(
        self, path: Path, manifest: Manifest, tensors: dict[str, dict[str, NDArray[np.uint8]]]
    ) -> None:
        """Use `Artifact.open`; `tensors[file][name]` are the bytes of each tensor."""
        self.path = path
        self.manifest = manifest
        self._tensors = tensors

    @classmethod
    def open(cls, path: str | Path) -> Artifact:
        """Open the folder `path`; `ArtifactError` for anything missing, damaged or hostile.

        `UnsupportedError` for a format version or codec that this pliant does not know.
        """
        folder = Path(path)
        _require_folder(folder)
        text = read_inside(folder, MANIFEST_FILE, MAX_MANIFEST_BYTES)
        manifest = Manifest.from_json(text)
        expected = manifest.tensor_files()
        for name, record in manifest.files.items():
            if name not in expected and (found := file_size(folder, name)) != record.size:
                raise ArtifactError(
                    f"{folder / name} is {found} bytes long; the manifest says {record.size}."
                )
        return cls(folder, manifest, _map_tensors(folder, manifest, expected))

    def __repr__(self) -> str:
        return f"Artifact({str(self.path)!r})"

    @property
    def spec(self) -> ModelSpec:
        """The spec of the dense model."""
        return self.manifest.spec

    @property
    def num_planes(self) -> int:
        """Planes stored of every matrix that has not fewer of its own."""
        return self.manifest.codec.planes

    @property
    def num_bytes(self) -> int:
        """Bytes on disk of the manifest and all files it lists."""
        listed = sum(record.size for record in self.manifest.files.values())
        return listed + file_size(self.path, MANIFEST_FILE)

    def planes(self, name: str) -> list[NDArray[np.uint8]]:
        """All stored planes of a matrix, most significant first: read-only mapped views.

        Each is uint8 `[plane_bytes(rows, columns)]` and starts at a multiple of 64 bytes.
        `UsageError` for a matrix that does not exist.
        """
        count = self.manifest.codec.planes_of(name)
        return [self._bytes(plane_file(index), name) for index in range(count)]

    def scales(self, name: str) -> NDArray[np.uint16]:
        """fp16 bits of the scales of a matrix, uint16 `[scale_bytes(rows, columns) / 2]`."""
        return self._bytes(SCALES_FILE, name).view(np.uint16)

    @property
    def plane_form(self) -> PlaneForm:
        """What planes and scales stand for, by the codec that made them."""
        return codecs[self.manifest.codec.name].form

    def encoded(self, name: str) -> EncodedMatrix:
        """A whole matrix as its codec decodes it; views of the mapped files."""
        rows, columns = self.spec.tensors()[name]
        return EncodedMatrix(rows, columns, self.planes(name), self.scales(name))

    def vector(self, name: str) -> NDArray[np.float32]:
        """A norm weight or bias, float32."""
        return self._bytes(VECTORS_FILE, name).view(np.float32)

    @property
    def adapters(self) -> AdapterSpec | None:
        """Numbers of the adapters stored beside the planes; None where there are none."""
        return self.manifest.adapters

    def adapter(self, name: str) -> NDArray[np.floating]:
        """A tensor of the adapters: a factor of all experts, float16, or of the router, float32.

        `UsageError` where there is none of this name.
        """
        if self.adapters is None:
            raise UsageError(f"{self.path} has no adapters, so no {name!r}.")
        kind = adapter_types(self.spec, self.adapters).get(name)
        content = self._bytes(ADAPTERS_FILE, name)
        assert kind is not None
        if kind.dtype == "F32":
            return content.view(np.float32).reshape(kind.shape)
        return content.view(np.float16).reshape(kind.shape)

    def gates(self, shape: SubnetShape) -> dict[int, float]:
        """Experts that a shape uses and their gates; empty where nothing is added to it."""
        if self.adapters is None:
            return {}
        names = router_shapes(self.spec, self.adapters)
        router = {name: self.adapter(name).astype(np.float32) for name in names}
        return gates(self.adapters, router, shape_code(self.spec, shape))

    def adapter_rank(self, shape: SubnetShape) -> int:
        """Rank of what adapters add to the matrices of a shape; 0 where they add nothing."""
        return update_rank(self.spec, self.adapters, shape)

    def low_rank(self, shape: SubnetShape) -> Callable[[str, int, int], Factors] | None:
        """Makes the update of a matrix for this shape from its name, rows and columns kept.

        Experts are gated once, here; of the factors only what is asked for is read. None where
        nothing is added: without adapters, and for the full shape where they are anchored.
        """
        adapters, chosen = self.adapters, self.gates(shape)
        if adapters is None or not chosen:
            return None

        def update(name: str, rows: int, columns: int) -> Factors:
            a_ERI, b_EOR = self.adapter(f"{name}.a"), self.adapter(f"{name}.b")
            return merged(adapters, chosen, a_ERI[:, :, :columns], b_EOR[:, :rows])

        return update

    def _bytes(self, file: str, name: str) -> NDArray[np.uint8]:
        if name not in self._tensors[file]:
            raise UsageError(
                f"{name!r} is not a tensor of {file}; it holds {', '.join(self._tensors[file])}."
            )
        return self._tensors[file][name]

    def read_file(self, name: str, most_bytes: int = MAX_SMALL_FILE_BYTES) -> bytes:
        """The content of a small file that the manifest lists, such as `tokenizer.json`."""
        if name not in self.manifest.files:
            raise UsageError(
                f"{self.path} has no file {name!r}; it has {', '.join(self.manifest.files)}."
            )
        return read_inside(self.path, name, most_bytes)

    def depth_path(self, method: str | None = None) -> dict[int, tuple[int, ...]]:
        """Kept blocks for each number of kept blocks, by one method or by the default one.

        The full depth is always there. `UsageError` for a method without a path.
        """
        paths = self.manifest.depth_paths
        if method is not None and method not in paths:
            raise UsageError(
                f"There is no depth path {method!r}; stored are {', '.join(paths) or 'none'}."
            )
        return {self.spec.num_blocks: tuple(range(self.spec.num_blocks))} | (
            self.manifest.depth_path(method)
        )

    def subnet_names(self) -> list[str]:
        """Names of the cuts saved in this artifact, sorted."""
        files = (self.path / SUBNETS_FOLDER).glob("*.json")
        return sorted(file.stem for file in files if _SUBNET_NAME.fullmatch(file.stem))

    def subnet(self, text: str = "") -> Subnet:
        """The cut saved under a name, or the one an address such as `d8-w0.75-b3` means.

        The empty text is the full shape with all planes. An address reads all planes of a matrix
        that has fewer than it says. `UsageError` where the text is neither, or asks for blocks or
        planes that are not stored.
        """
        names = self.subnet_names()
        if text in names:
            return self._saved_subnet(text)
        try:
            address = CutAddress.parse(text)
        except (UsageError, ValueError) as error:
            known = f"Saved cuts are {', '.join(names)}." if names else "No cuts are saved in it."
            raise UsageError(f"{self.path} has no cut {text!r}. {known} {error}") from error
        return self._cut(address)

    def _cut(self, address: CutAddress) -> Subnet:
        """The subnet of an address."""
        spec, stored = self.spec, self.num_planes
        shape = self._shape(address)
        depth = len(shape.blocks)
        planes = stored if address.planes is None else address.planes
        plan = BitPlan.uniform(depth, planes, address.vocabulary_planes)
        if address.vocabulary_planes is None and plan.embedding > stored >= planes:
            # The default asks for more than an artifact of few planes has.
            plan = BitPlan.uniform(depth, planes, stored)
        subnet = Subnet(spec, shape, plan)
        if self.manifest.codec.fewer_planes and plan.most_planes <= stored:
            subnet = subnet.reading_at_most(self.manifest.codec.planes_of)
        self.check(subnet)
        return subnet.with_cache(address.cache_bits)

    def _shape(self, address: CutAddress) -> SubnetShape:
        """The shape of an address: blocks or halves of a path, one width or the ranked ones."""
        spec, alignment = self.spec, self.manifest.alignment.neurons
        width = 1.0 if address.is_ranked else address.width
        if address.halves is not None:
            path = self.manifest.half_path
            halves = self._choice({} if path is None else path.blocks, address.halves, "halves")
            shape = shape_of_halves(spec, halves, width, alignment)
        else:
            depth = spec.num_blocks if address.depth is None else address.depth
            blocks = self._choice(self.depth_path(), depth, "blocks")
            shape = SubnetShape.uniform(spec, blocks, width, alignment)
        if not address.is_ranked:
            return shape
        if self.manifest.width_ranking is None:
            raise UsageError(
                f"{self.path} has no ranking of widths across blocks; build it with --finer, or "
                f"cut all blocks alike: w{address.width:g}."
            )
        return self.manifest.width_ranking.shape(spec, shape, address.width)

    def _choice(self, choices: Mapping[int, tuple[int, ...]], count: int, units: str) -> Keep:
        if count not in choices:
            known = ", ".join(map(str, sorted(choices))) or "none; build it with --finer"
            raise UsageError(
                f"{self.path} cannot be cut to {count} {units}; it knows which to keep for {known}."
            )
        return choices[count]

    def check(self, subnet: Subnet) -> None:
        """Raise `UsageError` where `subnet` cannot be cut from this artifact."""
        if subnet.spec != self.spec:
            raise UsageError(
                f"The subnet is of another model than {self.path}; cut it from its own."
            )
        for cut in subnet.matrices():
            if cut.planes > (stored := self.manifest.codec.planes_of(cut.name)):
                raise UsageError(
                    f"{cut.planes} planes asked for; {self.path} stores {stored} of {cut.name}. "
                    "Ask for fewer, or build with --planes."
                )

    def _saved_subnet(self, name: str) -> Subnet:
        text = read_inside(self.path, f"{SUBNETS_FOLDER}/{name}.json", _MAX_SUBNET_BYTES)
        try:
            subnet = Subnet.from_json(text)
            self.check(subnet)
        except (PliantError, RecursionError, ValueError) as error:
            raise ArtifactError(
                f"The saved cut {name!r} of {self.path} is damaged: {error}"
            ) from error
        return subnet

    def save_subnet(self, name: str, subnet: Subnet) -> Path:
        """Store a cut under a name: a small JSON file, no weights. Replaces one of that name.

        `UsageError` for a name that is not one or that reads as an address.
        """
        self.check(subnet)
        try:
            CutAddress.parse(name)
            is_address = True
        except UsageError:
            is_address = False
        if is_address or not _SUBNET_NAME.fullmatch(name):
            raise UsageError(
                f"{name!r} cannot name a cut; use letters, digits, '.', '_' and '-', up to 64, "
                "and nothing that reads as an address such as d8-b3."
            )
        path = self.path / SUBNETS_FOLDER / f"{name}.json"
        write_atomically(path, subnet.to_json())
        return path

    def read_study(self, name: str) -> bytes | None:
        """What `save_study` stored under a name, unchecked; None where nothing is."""
        if not (self.path / STUDIES_FOLDER / f"{name}.json").exists():
            return None
        return read_inside(self.path, f"{STUDIES_FOLDER}/{name}.json", _MAX_SUBNET_BYTES)

    def save_study(self, name: str, content: bytes) -> Path:
        """Store measurements of a search beside the weights; replaces those of that name."""
        path = self.path / STUDIES_FOLDER / f"{name}.json"
        write_atomically(path, content)
        return path

    def amend(self, findings: Findings, files: Mapping[str, bytes] | None = None) -> Artifact:
        """Add measured facts to a finished artifact: new findings, and small files such as golden.

        Weights cannot be changed. Each file is replaced atomically, the manifest last. Returns the
        artifact opened again.
        """
        records = dict(self.manifest.files)
        for name, content in (files or {}).items():
            known = records.get(name)
            if not is_file_name(name) or (known and known.table_sha256) or name == MANIFEST_FILE:
                raise UsageError(f"{name!r} is not a file that can be added to an artifact.")
            records[name] = FileRecord(len(content), hashlib.sha256(content).hexdigest())
        manifest = Manifest.of(
            findings,
            pliant_version=self.manifest.pliant_version,
            spec=self.spec,
            codec=self.manifest.codec,
            files=records,
            adapters=self.adapters,
        )
        text = manifest.to_json()
        for name, content in (files or {}).items():
            write_atomically(self.path / name, content)
        write_atomically(self.path / MANIFEST_FILE, text)
        return Artifact.open(self.path)


def _require_folder(folder: Path) -> None:
    """Say what is wrong with a path that is not an artifact."""
    try:
        exists = folder.exists()
        has_manifest = (folder / MANIFEST_FILE).is_file()
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{folder} cannot be read: {error}.") from error
    if not exists:
        partial = folder.with_name(folder.name + ".partial")
        hint = f" An unfinished build lies in {partial}; run it again." if partial.exists() else ""
        raise ArtifactError(f"{folder} does not exist; make it with `pliant build`.{hint}")
    if not has_manifest:
        raise ArtifactError(
            f"{folder} is not an artifact: it has no {MANIFEST_FILE}. Give the X.pliant folder "
            "that `pliant build` made."
        )


def _map_tensors(
    folder: Path, manifest: Manifest, expected: Mapping[str, Mapping[str, TensorType]]
) -> dict[str, dict[str, NDArray[np.uint8]]]:
    """The bytes of each tensor of each file, without a copy, after all checks of its table."""
    tensors = {}
    places_of: dict[tuple[int, int, bytes], dict[str, TensorPlace]] = {}
    for name, types in expected.items():
        content = map_inside(folder, name, manifest.files[name].size)
        header = content[: header_bytes(content[:8].tobytes(), content.size, name)].tobytes()
        # All planes are expected to hold the same (`id`); a table they share is parsed once.
        key = (id(types), content.size, header)
        if key not in places_of:
            places_of[key] = parse_header(header, content.size, types, name)
        if hashlib.sha256(header).hexdigest() != manifest.files[name].table_sha256:
            raise ArtifactError(
                f"The table of {folder / name} is not the one the manifest was written for; "
                "the file is damaged or of another artifact."
            )
        places = places_of[key].items()
        tensors[name] = {tensor: content[place.begin : place.end] for tensor, place in places}
    return tensors
