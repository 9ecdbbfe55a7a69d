"""The models that come with the package, by name; importing this imports no torch."""

from __future__ import annotations

from pathlib import Path

from fewstep import hub
from fewstep.errors import UsageError

BUNDLED = {
    "digits-cd": "digits-cd",
    "digits-edm": "digits-edm",
    "fashion-cd": "fashion-mnist-cd-small",
    "fashion-edm": "fashion-mnist-edm-small",
}
"""The bundled models, and the recipes that trained them."""


def check_model(name: str, trained_by: str, option: str = "teacher") -> None:
    """Refuse a name that is neither a folder nor bundled nor that of a model on the Hub.

    Args:
        name: of the model.
        trained_by: the recipe, perhaps with options, that trains such models.
        option: that names the model.

    Raises:
        UsageError: it is none of them; the message says how to train one.
    """
    if hub.names(name):
        hub.parse(name)
        return
    if not Path(name).exists() and name not in BUNDLED:
        raise UsageError(
            f"no {'teacher' if option == 'teacher' else 'model'} {name!r}: not a folder, and not "
            f"bundled ({', '.join(BUNDLED)}); name one with --{option}, or train one with: fewstep "
            f"train {trained_by} --out {name}"
        )
