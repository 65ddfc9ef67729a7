"""What a run trains on: from a batch to a loss, one file each."""

from nsaug.methods.clean import Clean
from nsaug.methods.method import Method
from nsaug.methods.nullspace import Nullspace

__all__ = ["Clean", "Method", "Nullspace"]
