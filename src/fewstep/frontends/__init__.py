"""What stands between users and a network: codecs of images, and readers of texts.

A network may learn latents instead of images, and numbers instead of words. A model folder then
holds ``codec/`` and ``text/``, so that ``sample`` returns images and takes prompts.
"""

from __future__ import annotations

from fewstep.frontends.codec import Autoencoder, Codec
from fewstep.frontends.files import Frontend, read_frontend
from fewstep.frontends.sources import open_codec, open_text
from fewstep.frontends.texts import TextReader

__all__ = [
    "Autoencoder",
    "Codec",
    "Frontend",
    "TextReader",
    "open_codec",
    "open_text",
    "read_frontend",
]
