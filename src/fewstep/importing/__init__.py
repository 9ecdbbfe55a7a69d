"""Checkpoints of other repositories: read without executing them, checked, and made into models."""

from fewstep.importing.importer import import_checkpoint, import_pair
from fewstep.importing.options import ImportOptions
from fewstep.importing.report import Report
from fewstep.importing.result import Imported

__all__ = ["ImportOptions", "Imported", "Report", "import_checkpoint", "import_pair"]
