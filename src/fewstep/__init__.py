"""fewstep: generative models that need one to four network calls."""

__version__ = "0.1.0"
