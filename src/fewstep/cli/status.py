"""``fewstep status``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro


def status(run: Annotated[Path, tyro.conf.arg(metavar="RUN")], /, *, json: bool = False) -> None:
    """Say how far a run is: its step, loss, time left, checkpoints and last picture.

    Args:
        run: a run folder; it may be training meanwhile.
        json: print everything as JSON.
    """
    from json import dumps

    from fewstep.system.status import status as read

    state = read(run)
    print(dumps(state.as_json(), indent=2) if json else state.text())
