"""Which verb is meant, and how errors are said."""

from __future__ import annotations

import errno
import inspect
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import tyro

from fewstep.cli.average import average
from fewstep.cli.bench import bench
from fewstep.cli.check import check
from fewstep.cli.codec import codec
from fewstep.cli.compare import compare
from fewstep.cli.doctor import doctor
from fewstep.cli.edit import VERBS as EDITS
from fewstep.cli.encode import encode
from fewstep.cli.evaluate import evaluate
from fewstep.cli.export import export
from fewstep.cli.import_ import import_
from fewstep.cli.merge import merge
from fewstep.cli.pairs import pairs
from fewstep.cli.plot import plot
from fewstep.cli.prepare import prepare
from fewstep.cli.push import push
from fewstep.cli.recipes import show_recipes
from fewstep.cli.sample import sample
from fewstep.cli.search import search
from fewstep.cli.serve import serve
from fewstep.cli.status import status
from fewstep.cli.train import train_recipe
from fewstep.errors import Interrupted, UsageError, UsageWarning, nearest
from fewstep.system.files import TEMPORARY

USAGE = """\
fewstep: generative models that need one to four network calls

  fewstep recipes [WORD ...]                    what can be trained, by name, method or data
  fewstep train RECIPE [--train.steps N ...]    train or distil; the same command resumes
  fewstep status RUN                            how far a run is, and its last picture
  fewstep sample MODEL -n 64 --out grid.png     draw
  fewstep edit VERB MODEL PHOTO --out FILE      inpaint, colourise, upscale, deblur, denoise, ...
  fewstep evaluate MODEL --steps 1,2            distances to data, and speed
  fewstep plot RUN|MODEL ...                    curves of runs; samples on their way from noise
  fewstep doctor MODEL                          whether a teacher may be distilled, and what to do
  fewstep compare --data digits --budget 60s    every method on equal terms
  fewstep search MODEL --steps 2,3,4            better times for few steps
  fewstep import FILE --out MODEL               make a model of another project's checkpoint
  fewstep average RUN --std 0.1 --out MODEL     another average of a run's weights
  fewstep merge MODEL ADAPTER ... --out MODEL   add LoRA adapters to a model's weights
  fewstep export MODEL --to onnx --out DIR      for other programs, compared with torch at once
  fewstep push MODEL OWNER/NAME                 upload a model to the Hugging Face Hub
  fewstep serve MODEL ...                       a page and an HTTP API of models
  fewstep bench                                 what the library costs on this machine
  fewstep data check SOURCE                     what would be read, and a picture of it
  fewstep data prepare SOURCE --out FILE ...    any images into one file to train on
  fewstep data codec SOURCE --out CODEC         a small autoencoder that is fitted to images
  fewstep data encode SOURCE --out DIR ...      images and captions into latents and numbers
  fewstep data pairs MODEL -n N --out DIR       noise and what a diffusion model makes of it

MODEL is a model folder, a run folder, a bundled name (digits-cd, digits-edm, fashion-cd,
fashion-edm), or a model on the Hugging Face Hub: hub:OWNER/NAME or hub:OWNER/NAME@REVISION.
Every verb explains itself with --help. --debug shows the traceback of an error.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command; exits with 0, with 2 for bad input, or with 128 + signal."""
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args
    args = [arg for arg in args if arg != "--debug"]
    try:
        with _plain_warnings():
            _dispatch(args)
    except UsageError as error:
        _stop(debug, str(error), 2)
    except BrokenPipeError:
        # The reader of a pipe (head, less) has left; nothing more can be said to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if error.errno not in _OF_THE_DISK:
            raise
        # Files are written beside their place first; the caller knows the place.
        name = str(error.filename2 or error.filename or "").replace(TEMPORARY, "")
        where = f": {name}" if name else ""
        _stop(debug, f"{error.strerror}{where}; {_OF_THE_DISK[error.errno]}", 2)
    except Interrupted as stopped:
        _stop(debug, str(stopped), 128 + stopped.signum)
    except KeyboardInterrupt:
        _stop(debug, "interrupted", 130)
    except RuntimeError as error:
        _runtime(debug, error)


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Print the library's warnings about what was asked for as a line of their own."""
    with warnings.catch_warnings():
        warnings.simplefilter("default", UsageWarning)
        usual = warnings.showwarning

        def show(message: Any, category: type[Warning], *place: Any, **further: Any) -> None:
            if issubclass(category, UsageWarning):
                print(f"note: {message}", file=sys.stderr, flush=True)
            else:
                usual(message, category, *place, **further)

        warnings.showwarning = show
        yield


_OF_THE_DISK = {
    errno.ENOSPC: "free some space, then repeat the command",
    errno.EDQUOT: "free some space, then repeat the command",
    errno.EFBIG: "the system limits the size of files; raise the limit or choose another --out",
    errno.EACCES: "choose a place you may write to with --out",
    errno.EPERM: "choose a place you may write to with --out",
    errno.EROFS: "choose a place you may write to with --out",
    errno.ENOTDIR: "a part of the path is a file; choose another --out",
    errno.EEXIST: "a file is in the way; choose another --out",
    errno.EISDIR: "a folder is in the way; choose another --out",
    errno.ENOTEMPTY: "a folder is in the way; choose another --out",
    errno.ENAMETOOLONG: "choose a shorter --out",
    errno.ENOENT: "a part of the path does not exist",
}


def _stop(debug: bool, message: str, code: int) -> None:
    if debug:
        raise
    rank = os.environ.get("RANK", "0")
    print(f"fewstep: {message}" if rank == "0" else f"[{rank}] {message}", file=sys.stderr)
    raise SystemExit(code)


def _runtime(debug: bool, error: RuntimeError) -> None:
    import torch

    from fewstep.training.trainer import Diverged

    if isinstance(error, Diverged):
        _stop(debug, str(error), 1)
    if isinstance(error, torch.OutOfMemoryError):
        advice = "lower --train.batch and raise --train.accumulation by the same factor"
        _stop(debug, f"out of memory on the device; {advice}", 1)
    raise error


def _dispatch(args: list[str]) -> None:
    verbs: dict[str, Callable[[list[str]], None]] = {
        "recipes": show_recipes,
        "train": train_recipe,
        "sample": lambda rest: _call("fewstep sample", sample, rest),
        "evaluate": lambda rest: _call("fewstep evaluate", evaluate, rest),
        "export": lambda rest: _call("fewstep export", export, rest),
        "status": lambda rest: _call("fewstep status", status, rest),
        "doctor": lambda rest: _call("fewstep doctor", doctor, rest),
        "import": lambda rest: _call("fewstep import", import_, rest),
        "average": lambda rest: _call("fewstep average", average, rest),
        "merge": lambda rest: _call("fewstep merge", merge, rest),
        "compare": lambda rest: _call("fewstep compare", compare, rest),
        "plot": lambda rest: _call("fewstep plot", plot, rest),
        "push": lambda rest: _call("fewstep push", push, rest),
        "search": lambda rest: _call("fewstep search", search, rest),
        "serve": lambda rest: _call("fewstep serve", serve, rest),
        "bench": lambda rest: _call("fewstep bench", bench, rest),
        "data": _data,
        "edit": _edit,
    }
    if not args or args[0] in {"-h", "--help", "help"}:
        print(USAGE, end="")
    elif args[0] == "--version":
        from fewstep import __version__

        print(__version__)
    elif args[0] in verbs:
        verbs[args[0]](args[1:])
    else:
        raise UsageError(f"unknown command {args[0]!r}; {nearest(args[0], verbs)}")


def _call(prog: str, function: Callable[..., Any], args: list[str]) -> Any:
    """Call a function with what the command line says.

    tyro keeps the line breaks inside a description of an argument, and then wraps it again.
    """
    function.__doc__ = re.sub(r"\n {8,}", " ", inspect.cleandoc(function.__doc__ or ""))
    return tyro.cli(function, prog=prog, args=args)


def _edit(args: list[str]) -> None:
    if not args or args[0] in {"-h", "--help"}:
        for verb in EDITS:
            photo = "" if verb == "interpolate" else " PHOTO"
            print(f"{'usage:' if verb == 'inpaint' else '      '} fewstep edit {verb} MODEL{photo}")
        print("--help after a verb explains it")
    elif args[0] in EDITS:
        _call(f"fewstep edit {args[0]}", EDITS[args[0]], args[1:])
    else:
        raise UsageError(f"unknown command {'edit ' + args[0]!r}; {nearest(args[0], EDITS)}")


def _data(args: list[str]) -> None:
    verbs = {"check": check, "prepare": prepare, "codec": codec, "encode": encode, "pairs": pairs}
    if not args or args[0] in {"-h", "--help"}:
        print("usage: fewstep data check SOURCE; --help explains it")
        print("       fewstep data prepare SOURCE --out FILE --resolution N; --help explains it")
        print("       fewstep data codec SOURCE --out CODEC; --help explains it")
        print("       fewstep data encode SOURCE --out DIR --codec CODEC; --help explains it")
        print("       fewstep data pairs TEACHER -n N --out DIR; --help explains it")
    elif args[0] in verbs:
        _call(f"fewstep data {args[0]}", verbs[args[0]], args[1:])
    else:
        raise UsageError(f"unknown command {'data ' + args[0]!r}; {nearest(args[0], verbs)}")
