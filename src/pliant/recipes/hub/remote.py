"""`Remote`: one commit of a repository of the hub; what the hub's client raises, as sentences."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pliant.artifact.folder import disk_errors
from pliant.errors import ArtifactError, PliantError, UsageError


class Remote:
    """Files of a repository at one commit, so that all that is fetched belongs together."""

    def __init__(self, repo: str, revision: str | None = None, endpoint: str | None = None) -> None:
        """Asks the hub once; `revision` is a branch, tag or commit (the main branch)."""
        from huggingface_hub import HfApi
        from huggingface_hub.hf_api import RepoFile

        self.repo = repo
        self._endpoint = endpoint
        with hub_errors(repo):
            api = HfApi(endpoint=endpoint)
            commit = api.model_info(repo, revision=revision).sha
            if not commit:
                raise ArtifactError(f"The hub names no commit of {repo}; give another --revision.")
            self.commit: str = commit
            entries = api.list_repo_tree(repo, revision=commit, recursive=True)
            #: Bytes of each file by its path in the repository.
            self.sizes = {one.path: one.size for one in entries if isinstance(one, RepoFile)}

    def fetch(
        self, name: str, part: Path, arrived: Callable[[int], None] = lambda count: None
    ) -> None:
        """Download a file to `part`, on from what an earlier download left there.

        `arrived` is told of every piece, and of what was there already, in bytes. The client's own
        downloads begin anew in each process, which is why its lower half is used.
        """
        from huggingface_hub import hf_hub_url
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        size = self.sizes[name]
        with disk_errors(part), part.open("ab") as made:
            before = made.tell()
            if before > size:
                made.truncate(before := 0)
        arrived(before)
        if before == size:
            return
        with hub_errors(self.repo), part.open("r+b") as file, _without_bars():
            file.seek(before)
            http_get(
                hf_hub_url(self.repo, name, revision=self.commit, endpoint=self._endpoint),
                _Counted(file, size, arrived),  # type: ignore[arg-type]
                resume_size=before,
                headers=build_hf_headers(),
                expected_size=size,
                displayed_filename=name,
            )

    def read(self, name: str, folder: Path, most_bytes: int) -> bytes:
        """The content of a small file; `ArtifactError` where it is missing or too large."""
        size = self.sizes.get(name)
        if size is None:
            raise ArtifactError(
                f"{self.repo} has no {name}, so it holds no artifact; look at the name and the "
                "--revision."
            )
        if size > most_bytes:
            raise ArtifactError(
                f"{name} of {self.repo} has {size} bytes; {most_bytes} are allowed."
            )
        place = folder / name
        place.parent.mkdir(exist_ok=True)
        self.fetch(name, place)
        return place.read_bytes()


@contextmanager
def hub_errors(repo: str) -> Iterator[None]:
    """Turn what the client of the hub raises into an error of pliant."""
    try:
        yield
    except Exception as error:
        said = _said(error, repo)
        if said is None:
            raise
        raise said from error


def _said(error: Exception, repo: str) -> PliantError | None:
    """A failure of the client in a sentence; None where it is not the client's."""
    from huggingface_hub import errors

    if isinstance(error, PliantError):
        return None
    if isinstance(error, errors.HFValidationError):
        return UsageError(f"{repo!r} is no hub id; write it like owner/name.")
    # The first that fits: a gated repository is one that is not found.
    sentences: list[tuple[type[Exception], str]] = [
        (errors.GatedRepoError, f"{repo} is gated; ask for access on its page, then log in with "
                                "`hf auth login`."),
        (errors.RepositoryNotFoundError, f"The hub has no repository {repo}, or it is private; "
                                         "look at the name, or log in with `hf auth login`."),
        (errors.LocalTokenNotFoundError, f"{repo} needs a login; run `hf auth login` first."),
        (errors.RevisionNotFoundError, f"{repo} has no such revision; look at --revision."),
        (errors.OfflineModeIsEnabled, f"{repo} cannot be reached: HF_HUB_OFFLINE is set. Unset it "
                                      "to use the network."),
    ]  # fmt: skip
    for kind, sentence in sentences:
        if isinstance(error, kind):
            return PliantError(sentence)
    # The client's own root of all failures to connect; its module differs between versions.
    transport: type[Exception] = errors.HfHubHTTPError.__bases__[0]
    first = (str(error).splitlines() or [type(error).__name__])[0]
    # How the client says that an upload of a large file failed.
    if isinstance(error, RuntimeError) and isinstance(
        error.__cause__, (errors.HfHubHTTPError, transport)
    ):
        return PliantError(f"An upload to {repo} broke off ({first}). The hub keeps what it took; "
                           "run it again.")  # fmt: skip
    if isinstance(error, (errors.HfHubHTTPError, transport)):
        return PliantError(f"The hub failed for {repo}: {first}. What arrived is kept; run it "
                           "again.")  # fmt: skip
    if isinstance(error, OSError) and error.errno is None:
        # How the client says that a file has another length than was announced.
        return PliantError(f"A file of {repo} did not arrive as announced ({first}); run it again.")
    return None


class _Counted:
    """A file that tells of what is written to it, and takes no more than it was promised."""

    def __init__(self, file: BinaryIO, most: int, arrived: Callable[[int], None]) -> None:
        self._file, self._most, self._arrived = file, most, arrived
        self.tell, self.truncate = file.tell, file.truncate

    def seek(self, place: int) -> int:
        """Go to a byte; the client goes back where a server knows no ranges."""
        self._arrived(place - self._file.tell())
        return self._file.seek(place)

    def write(self, piece: bytes) -> int:
        """Write a piece at the end."""
        if self._file.tell() + len(piece) > self._most:
            raise ArtifactError(
                f"The hub sends more than the {self._most} bytes it announced; run it again."
            )
        self._arrived(len(piece))
        return self._file.write(piece)


@contextmanager
def _without_bars() -> Iterator[None]:
    """The hub's client draws nothing; commands draw a bar of their own."""
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    were_disabled = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not were_disabled:
            enable_progress_bars()
