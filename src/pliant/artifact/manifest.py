"""`Manifest`: what `pliant.json` says, as values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated

import msgspec
from msgspec import Meta

from pliant.adapters import AdapterSpec
from pliant.artifact.limits import check_spec
from pliant.artifact.tensors import TensorType, matrix_shapes, tensor_files
from pliant.bits import GROUP_COLUMNS, MAX_PLANES, codecs
from pliant.errors import ArtifactError, PliantError, UnsupportedError
from pliant.receipt import Receipt
from pliant.sensitivities import Sensitivities
from pliant.shape import DepthPath, WidthOrders, WidthRanking
from pliant.spec import ModelSpec

MANIFEST_FILE = "pliant.json"
#: What artifacts are written as; with adapters; and where matrices have planes of their own.
FORMAT_VERSION = 1
ADAPTERS_VERSION = 2
MATRIX_PLANES_VERSION = 3
#: The orders of 200 blocks of 100 000 neurons are 120 MB of digits.
MAX_MANIFEST_BYTES = 256 * 1024 * 1024

_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
_Planes = Annotated[int, Meta(ge=1, le=MAX_PLANES)]


class CodecRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How matrices became planes: the codec's name, columns that share a scale, planes stored.

    `matrix_planes` are those of matrices with fewer than `planes`, by name; left out where there
    are none.
    """

    name: str
    planes: _Planes
    group_columns: int = GROUP_COLUMNS
    matrix_planes: dict[str, _Planes] | msgspec.UnsetType = msgspec.UNSET

    @classmethod
    def of(cls, name: str, planes: int, matrix_planes: Mapping[str, int]) -> CodecRecord:
        """The record where each matrix of `matrix_planes` has so many planes, at most `planes`."""
        fewer = {matrix: count for matrix, count in matrix_planes.items() if count < planes}
        return cls(name, planes, matrix_planes=fewer or msgspec.UNSET)

    @property
    def fewer_planes(self) -> dict[str, int]:
        """Planes of the matrices that have fewer than `planes`."""
        return {} if isinstance(self.matrix_planes, msgspec.UnsetType) else self.matrix_planes

    def planes_of(self, matrix: str) -> int:
        """Planes stored of a matrix, by its name."""
        return self.fewer_planes.get(matrix, self.planes)


class Alignment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Units in which widths are cut: neurons by this multiple, KV groups one by one."""

    neurons: Annotated[int, Meta(ge=1, le=1 << 16)] = 64


class SpecialTokens(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Token ids that begin a text (or None) and that end one."""

    bos: int | None = None
    eos: tuple[int, ...] = ()


class SourceRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The dense checkpoint: the name it was given by, and a hash of its config and weights."""

    name: str
    fingerprint: str


class CalibrationRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The text that orders and depth paths were found on."""

    description: str
    tokens: int
    fingerprint: str


class FileRecord(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """Size and hash of a file; for tensor files also the hash of the bytes before the data."""

    size: Annotated[int, Meta(ge=0, lt=1 << 53)]
    sha256: _Sha256
    table_sha256: _Sha256 | None = None


class Findings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The part of a manifest that calibration and measurement supply; `ArtifactWriter.finish`.

    `orders` are the permutations already baked into the stored weights, for provenance (None: as
    in the checkpoint). `depth_paths` holds one path per method, `default_depth_method` names the
    one that addresses such as `d8` mean. `half_path` chooses among halves of blocks, as
    `pliant.shape.finer` numbers them, and is what `h13` means; `width_ranking` is what `g0.75`
    means. `tokenizer_files` are names of files of the artifact.
    """

    source: SourceRecord
    tokens: SpecialTokens = SpecialTokens()
    alignment: Alignment = Alignment()
    calibration: CalibrationRecord | None = None
    depth_paths: dict[str, DepthPath] = {}
    default_depth_method: str | None = None
    half_path: DepthPath | None = None
    width_ranking: WidthRanking | None = None
    sensitivities: Sensitivities | None = None
    receipts: tuple[Receipt, ...] = ()
    tokenizer_files: tuple[str, ...] = ()
    orders: WidthOrders | None = None


class Manifest(Findings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All of `pliant.json`; `files` covers every file of the artifact except it and subnets.

    `adapters` are there in version 2, may be in version 3, which is that of `codec.matrix_planes`,
    and are in no other.
    """

    format_version: int
    pliant_version: str
    spec: ModelSpec
    codec: CodecRecord
    files: dict[str, FileRecord]
    adapters: AdapterSpec | None = None

    @classmethod
    def of(
        cls,
        findings: Findings,
        *,
        pliant_version: str,
        spec: ModelSpec,
        codec: CodecRecord,
        files: Mapping[str, FileRecord],
        adapters: AdapterSpec | None = None,
    ) -> Manifest:
        """The manifest that adds to `findings` what the writer knows."""
        return cls(
            **{name: getattr(findings, name) for name in Findings.__struct_fields__},
            format_version=version_of(codec, adapters),
            pliant_version=pliant_version,
            spec=spec,
            codec=codec,
            files=dict(sorted(files.items())),
            adapters=adapters,
        )

    def to_json(self) -> bytes:
        """The bytes of `pliant.json`: one line per field, so that people can read the head of it.

        `ArtifactError` where the values would not be accepted when read back, such as NaN.
        """
        fields = msgspec.json.decode(msgspec.json.encode(self), type=dict[str, msgspec.Raw])
        first = ["format_version", "pliant_version", "source", "spec", "codec"]
        if self.adapters is None:
            del fields["adapters"]  # which readers of version 1 do not know
        names = [*first, *(name for name in fields if name not in first)]
        lines = [b'"%s": %s' % (name.encode(), bytes(fields[name])) for name in names]
        text = b"{\n" + b",\n".join(lines) + b"\n}\n"
        Manifest.from_json(text)
        return text

    @classmethod
    def from_json(cls, text: bytes) -> Manifest:
        """The manifest in `text`, all of it checked; `ArtifactError`, `UnsupportedError`."""
        try:
            version = msgspec.json.decode(text, type=_Version).format_version
        except (ValueError, RecursionError) as error:
            raise ArtifactError(f"{MANIFEST_FILE} is not a manifest: {error}.") from error
        if not FORMAT_VERSION <= version <= MATRIX_PLANES_VERSION:
            raise UnsupportedError(
                f"The artifact has format version {version}; this pliant reads "
                f"{FORMAT_VERSION} to {MATRIX_PLANES_VERSION}. Use a newer pliant, or build the "
                "artifact again."
            )
        try:
            manifest = msgspec.json.decode(text, type=cls)
            _check(manifest)
        except (ValueError, RecursionError) as error:
            raise ArtifactError(f"{MANIFEST_FILE} is not a manifest: {error}.") from error
        except ArtifactError:
            raise
        except PliantError as error:
            raise ArtifactError(f"{MANIFEST_FILE} contradicts itself: {error}") from error
        _check_codec(manifest.codec)
        return manifest

    def tensor_files(self) -> dict[str, dict[str, TensorType]]:
        """The tensors that each file has to hold, in stored order."""
        codec = self.codec
        return tensor_files(self.spec, codec.planes, self.adapters, codec.fewer_planes)

    def depth_path(self, method: str | None = None) -> dict[int, tuple[int, ...]]:
        """Kept blocks by their number, of one method or of the default one; may be empty."""
        name = self.default_depth_method if method is None else method
        return self.depth_paths[name].blocks if name in self.depth_paths else {}


def version_of(codec: CodecRecord, adapters: AdapterSpec | None) -> int:
    """The format version of an artifact with these parts: the oldest that has them."""
    if codec.matrix_planes is not msgspec.UNSET:
        return MATRIX_PLANES_VERSION
    return FORMAT_VERSION if adapters is None else ADAPTERS_VERSION


class _Version(msgspec.Struct):
    """Read before anything else, so that a newer format is named as such."""

    format_version: int


def is_file_name(name: str) -> bool:
    """Whether a file of an artifact may have this name: no folders, nothing hidden."""
    return _FILE_NAME.fullmatch(name) is not None


def _check(manifest: Manifest) -> None:
    """What types cannot say."""
    check_spec(manifest.spec)
    for name in manifest.files:
        if not is_file_name(name) or name == MANIFEST_FILE:
            raise ArtifactError(f"{name[:80]!r} is not a name that a file of an artifact may have.")
    _check_version(manifest)
    _check_matrix_planes(manifest.spec, manifest.codec)
    files = manifest.tensor_files()
    required = ["config.json", *files]
    missing = [name for name in (*required, *manifest.tokenizer_files)
               if name not in manifest.files]  # fmt: skip
    if missing:
        raise ArtifactError(f"The manifest does not list {missing[0][:80]!r}.")
    _check_tokens(manifest)
    _check_shapes(manifest)


def _check_version(manifest: Manifest) -> None:
    """The version is the one that this manifest's parts have."""
    found, version = manifest.format_version, version_of(manifest.codec, manifest.adapters)
    if found == version:
        return
    is_of_planes = MATRIX_PLANES_VERSION in (found, version)
    part = "matrices with planes of their own" if is_of_planes else "adapters"
    raise ArtifactError(
        f"Version {found} of the format has {'no ' * (version > found)}{part}, unlike this "
        "manifest."
    )


def _check_codec(codec: CodecRecord) -> None:
    """`UnsupportedError` for a codec that this pliant cannot read."""
    if codec.name not in codecs or codec.group_columns != GROUP_COLUMNS:
        raise UnsupportedError(
            f"The codec is {codec.name[:40]!r} with groups of {codec.group_columns} columns; this "
            f"pliant knows {sorted(codecs)} with {GROUP_COLUMNS}. Use a newer pliant."
        )
    most = codecs[codec.name].planes
    if codec.planes > most:
        raise ArtifactError(
            f"The manifest tells of {codec.planes} planes; the codec {codec.name} has at most "
            f"{most}."
        )


def _check_matrix_planes(spec: ModelSpec, codec: CodecRecord) -> None:
    """Matrices with fewer planes exist, and not all of them have fewer."""
    matrices, fewer = matrix_shapes(spec), codec.fewer_planes
    if codec.matrix_planes is not msgspec.UNSET and not fewer:
        raise ArtifactError("The manifest has matrix_planes, and no matrix with fewer planes.")
    for name, count in fewer.items():
        if name not in matrices:
            raise ArtifactError(f"The manifest gives planes of {name[:80]!r}, which is no matrix.")
        if count >= codec.planes:
            raise ArtifactError(
                f"The manifest gives {name} {count} planes, which are not fewer than "
                f"{codec.planes}."
            )
    if len(fewer) == len(matrices):
        raise ArtifactError(f"The manifest tells of {codec.planes} planes; no matrix has so many.")


def _check_tokens(manifest: Manifest) -> None:
    """Token ids lie within the vocabulary."""
    tokens = [*manifest.tokens.eos]
    tokens += [] if manifest.tokens.bos is None else [manifest.tokens.bos]
    for token in tokens:
        if not 0 <= token < manifest.spec.vocab_size:
            raise ArtifactError(
                f"The special token {token} is not among {manifest.spec.vocab_size} tokens."
            )


def _check_shapes(manifest: Manifest) -> None:
    """Orders and depth paths are of this spec."""
    spec = manifest.spec
    if manifest.orders is not None:
        manifest.orders.check(spec)
    default = manifest.default_depth_method
    if default is not None and default not in manifest.depth_paths:
        raise ArtifactError(f"The default depth method {default[:40]!r} has no depth path.")
    for method, path in manifest.depth_paths.items():
        _check_path(path, f"depth path {method[:40]!r}", spec.num_blocks, "blocks")
    if manifest.half_path is not None:
        _check_path(manifest.half_path, "path of halves", 2 * spec.num_blocks, "halves")
    if manifest.width_ranking is not None:
        manifest.width_ranking.check(spec)
        if manifest.width_ranking.alignment != manifest.alignment.neurons:
            raise ArtifactError(
                f"Widths are ranked {manifest.width_ranking.alignment} neurons at a time and cut "
                f"in units of {manifest.alignment.neurons}."
            )


def _check_path(path: DepthPath, name: str, num_units: int, units: str) -> None:
    """Every choice names units that exist, ascending."""
    for choice in path.choices:
        kept = choice.blocks
        ascending = bool(kept) and list(kept) == sorted(set(kept))
        if not ascending or kept[0] < 0 or kept[-1] >= num_units:
            raise ArtifactError(
                f"The {name} keeps {list(kept)[:20]}, which are not ascending {units} of "
                f"{num_units}."
            )
