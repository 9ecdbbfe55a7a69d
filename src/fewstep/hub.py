"""Models on the Hugging Face Hub: what ``hub:OWNER/NAME`` means, downloads and uploads.

Only data is downloaded, never code. Importing this imports neither torch nor huggingface_hub.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from fewstep.errors import UsageError
from fewstep.version import __version__

PREFIX = "hub:"
"""What the name of a model on the Hub begins with."""

CONFIG = "config.json"
FILES = (
    *(CONFIG, "model.safetensors", "README.md", "samples.png"),
    *("adapter/*", "codec/*", "text/*", "text/*/*"),
)
"""The files of a model folder that are downloaded and uploaded."""

WEIGHTS = (".safetensors", ".pt", ".pkl")
"""Endings of the checkpoints that ``fewstep import`` downloads, beside descriptions in JSON."""

NETWORKS = ("unet/config.json", "transformer/config.json")
"""Of a repository that holds a pipeline of diffusers, one is there."""

PIPELINE = ("model_index.json", "*/*.json", "*/merges.txt", "*/spiece.model", "*/*.safetensors")
UNUSED = ("*.fp16.*", "*.non_ema*", "safety_checker/*", "image_encoder/*")
"""Files of a pipeline that are downloaded, and those of them that are not."""

LOGIN = "log in with hf auth login, or set HF_TOKEN"

_NAME = re.compile(
    r"hub:(?P<repository>[\w.-]+/[\w.-]+)(?:/(?P<file>[^@]+))?(?:@(?P<revision>[\w./-]+))?",
    re.ASCII,
)
_TRANSPORTS = {"httpx", "httpx2", "httpcore", "requests", "urllib3"}


@dataclass(frozen=True)
class Place:
    """What a name says.

    Args:
        repository: ``OWNER/NAME``.
        file: a path in it; empty for all of it.
        revision: a branch, a tag or a commit; None is the newest commit of ``main``.
    """

    repository: str
    file: str
    revision: str | None

    def __str__(self) -> str:
        file = f"/{self.file}" if self.file else ""
        return f"{PREFIX}{self.repository}{file}" + (f"@{self.revision}" if self.revision else "")


def names(model: object) -> bool:
    """Whether this names something on the Hub, and not a folder or a bundled model."""
    return str(model).startswith(PREFIX)


def parse(name: str) -> Place:
    """The parts of ``hub:OWNER/NAME[/FILE][@REVISION]``.

    Raises:
        UsageError: it looks otherwise.
    """
    match = _NAME.fullmatch(name)
    if match is None or {".", ".."} & {*PurePosixPath(match["file"] or "").parts}:
        raise UsageError(f"a model on the Hub is named hub:OWNER/NAME[@REVISION], got {name!r}")
    return Place(match["repository"], match["file"] or "", match["revision"])


def model_folder(name: str) -> Path:
    """The model folder of a name, downloaded into the Hub's cache where it is not there yet.

    Its last part is the commit that the revision means.

    Raises:
        UsageError: it is no model of this library, or cannot be had.
    """
    place = parse(name)
    if place.file:
        raise UsageError(f"{name} names a file; a model is named hub:OWNER/NAME[@REVISION]")
    hub = _library()
    with _explained(place):
        config = Path(hub.hf_hub_download(filename=CONFIG, **_of(place)))
    _check_ours(place, config)
    with _explained(place):
        # The commit of the description, so that both are of one.
        own = {**_of(place), "revision": config.parent.name}
        return Path(hub.snapshot_download(allow_patterns=[*FILES], **own))


def pinned(name: str, commit: str | None = None) -> str:
    """The name of the same model at a commit; by default at the one that the name means now."""
    return str(replace(parse(name), revision=commit or model_folder(name).name))


def checkpoint(name: str) -> Path:
    """Another project's checkpoint: the folder of a repository, or the one file in it.

    Args:
        name: ``hub:OWNER/NAME[@REVISION]``, of which safetensors, JSON, .pt and .pkl are
            downloaded (of a pipeline the parts that are read), or
            ``hub:OWNER/NAME/FILE[@REVISION]``.

    Raises:
        UsageError: it holds no or several checkpoints, or cannot be had.
    """
    place, hub = parse(name), _library()
    if place.file:
        with _explained(place):
            return Path(hub.hf_hub_download(filename=place.file, **_of(place)))
    wanted, unused = [f"*{suffix}" for suffix in (*WEIGHTS, ".json")], None
    with _explained(place):
        if not hub.constants.HF_HUB_OFFLINE:
            info = hub.HfApi(library_name="fewstep").model_info(
                place.repository, revision=place.revision
            )
            files = [one.rfilename for one in info.siblings or ()]
            _one_of(place, files)
            if {*NETWORKS} & {*files}:
                wanted, unused = [*PIPELINE], [*UNUSED]
        folder = Path(
            hub.snapshot_download(allow_patterns=wanted, ignore_patterns=unused, **_of(place))
        )
    there = [str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()]
    return folder / _one_of(place, there)


def at_commit(name: str, downloaded: Path) -> str:
    """The same name with the commit that was downloaded, by the place of what was."""
    parts = downloaded.parts
    commit = parts[len(parts) - parts[::-1].index("snapshots")]
    return str(replace(parse(name), revision=commit))


def upload(folder: Path, repository: str, token: str | None, private: bool, message: str) -> str:
    """Upload the files of a model folder in one commit.

    Args:
        folder: of the model.
        repository: ``OWNER/NAME``; it is made where there is none.
        token: that may write there; None is the one of HF_TOKEN or of the login.
        private: whether a repository that is made is private.
        message: of the commit.

    Returns:
        The address of the commit.

    Raises:
        UsageError: there is no token, or the Hub refuses.
    """
    place, hub = parse(f"{PREFIX}{repository}"), _library()
    if place.file or place.revision:
        raise UsageError(f"a model is pushed to OWNER/NAME, got {repository!r}")
    if token is None and hub.get_token() is None:
        raise UsageError(f"pushing to {repository} needs a token: {LOGIN}")
    files = (file for pattern in FILES for file in folder.glob(pattern) if file.is_file())
    there = [file.relative_to(folder).as_posix() for file in files]
    api = hub.HfApi(token=token, library_name="fewstep", library_version=__version__)
    with _explained(place):
        api.create_repo(repository, private=private, exist_ok=True)
        made = api.create_commit(
            repository,
            [hub.CommitOperationAdd(name, str(folder / name)) for name in there],
            commit_message=message,
        )
    return str(made.commit_url)


def _of(place: Place) -> dict[str, Any]:
    return {
        "repo_id": place.repository,
        "revision": place.revision,
        "library_name": "fewstep",
        "library_version": __version__,
    }


def _library() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
    except ImportError as error:
        raise UsageError("models on the Hub need the extra: pip install 'fewstep[hub]'") from error
    return huggingface_hub


def _check_ours(place: Place, config: Path) -> None:
    """Refuse other projects' models before their weights are downloaded."""
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict) or not {"format", "denoiser"} <= content.keys():
        raise UsageError(
            f"{place} is no model of fewstep, by its config.json; checkpoints of other projects "
            f"are read by: fewstep import {place} --out MODEL"
        )


def _one_of(place: Place, files: Sequence[str]) -> str:
    """The checkpoint among the files of a repository; empty where it is the whole folder."""
    if {"model_index.json", CONFIG} & {*files}:
        return ""
    known = sorted(file for file in files if file.endswith(WEIGHTS))
    if len(known) == 1:
        return known[0]
    if not known:
        raise UsageError(f"{place} holds no checkpoint; expected one of {', '.join(WEIGHTS)}")
    whole = Place(place.repository, known[0], place.revision)
    more = ", ..." if len(known) > 6 else ""
    raise UsageError(
        f"{place} holds several checkpoints ({', '.join(known[:6])}{more}); name one, as {whole}"
    )


@contextmanager
def _explained(place: Place) -> Iterator[None]:
    """Say in one message what kept the Hub from answering."""
    from huggingface_hub import constants, errors

    repository, address = place.repository, f"{constants.ENDPOINT}/{place.repository}"
    try:
        yield
    except UsageError:
        raise
    except errors.GatedRepoError as error:
        raise UsageError(
            f"{repository} is gated: ask for access at {address}, then {LOGIN}"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UsageError(
            f"there is no {address}, or it is private; check the name, or {LOGIN}"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UsageError(f"{repository} has no revision {place.revision!r}") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise UsageError(
            f"{place} is not in the cache {constants.HF_HUB_CACHE}, and " + _unreached(error)
        ) from error
    except errors.EntryNotFoundError as error:
        raise UsageError(
            f"{address} has no file {place.file or CONFIG}; a model of fewstep has a config.json, "
            f"and checkpoints of other projects are read by: fewstep import {place} --out MODEL"
        ) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        advice = f"; {LOGIN}, with a token that may write there" if status in (401, 403) else ""
        said = f" ({error.server_message})" if error.server_message else ""
        raise UsageError(f"the Hub answered {status} for {address}{said}{advice}") from error
    except ValueError as error:  # a card that the Hub does not accept, for instance
        raise UsageError(f"the Hub refuses {repository}: {' '.join(str(error).split())}") from error
    except Exception as error:
        # Uploads pack a request's error; which library carries requests depends on the version.
        cause = error.__cause__ if isinstance(error, RuntimeError) else error
        if type(cause).__module__.split(".")[0] not in {*_TRANSPORTS, "huggingface_hub"}:
            raise
        raise UsageError(f"{constants.ENDPOINT} cannot be reached: {cause}") from error


def _unreached(error: BaseException) -> str:
    """Why nothing was downloaded."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE forbids to download it; unset it, or load the model once without it"
    cause = error.__cause__ or error
    first = (str(cause).splitlines() or [""])[0]
    return f"{constants.ENDPOINT} cannot be reached ({type(cause).__name__}: {first[:200]})"
