"""Published images that were corrupted once at every severity, so that all results are on the same pixels."""

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor

from nsaug.corruptions.corruption import CorruptionName
from nsaug.data.testsets.published import PublishedDataset
from nsaug.data.transforms import InputConfig, PerSeverity
from nsaug.utils.types import Integer, UniqueTuple, validate_args

SEVERITIES = range(1, 6)
Severity = Annotated[Integer, Field(ge=1, le=5)]


class StoredCorruption(PublishedDataset):
    """The images of one corruption, with all severities in one tensor: (severities, 3, H, W).

    Args:
        corruption: its name.
        severities: which of 1 to 5, in this order.
        kwargs: see `PublishedDataset`.
    """

    condition = "corrupted"

    @validate_args
    def __init__(
        self, *, corruption: CorruptionName, severities: UniqueTuple[Severity] = (*SEVERITIES,), **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.corruption = str(corruption)
        self.severities = severities

    @property
    def cache_fields(self) -> dict[str, Any]:
        return super().cache_fields | {"corruption": self.corruption, "severities": list(self.severities)}

    @property
    def notes(self) -> list[str]:
        return ["stored", *super().notes]

    def transform(self, config: InputConfig) -> Callable[[Any], Tensor]:
        return PerSeverity(super().transform(config))
