"""Published images that were corrupted once, so that all results are on the same pixels."""

from typing import Annotated, Any, ClassVar

from pydantic import Field

from nsaug.corruptions.severities import IMAGENET, TEST_CORRUPTIONS
from nsaug.data.testsets.published import PublishedDataset
from nsaug.utils.errors import UserError
from nsaug.utils.types import Integer, validate_args

NUM_SEVERITIES = 5


class StoredCorruption(PublishedDataset):
    """The images of one corruption at one severity.

    Args:
        corruption: its name, one of `corruptions` and `extra_corruptions`.
        severity: 1 to 5.
        kwargs: see `PublishedDataset`.

    Attributes:
        corruptions: names of the corruptions that count in the set's mean; by default the 15 of ImageNet-C.
        extra_corruptions: names of those that were published besides; by default the other four of ImageNet-C.
    """

    condition = "corrupted"
    corruptions: ClassVar[tuple[str, ...]] = TEST_CORRUPTIONS
    extra_corruptions: ClassVar[tuple[str, ...]] = tuple(name for name in IMAGENET if name not in TEST_CORRUPTIONS)

    @validate_args
    def __init__(
        self, *, corruption: str, severity: Annotated[Integer, Field(ge=1, le=NUM_SEVERITIES)], **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        names = self.corruptions + self.extra_corruptions
        if corruption not in names:
            raise UserError(f"{self.title} has no corruption {corruption!r}: choose one of {', '.join(names)}")
        self.corruption = corruption
        self.severity = severity

    @property
    def cache_fields(self) -> dict[str, Any]:
        return super().cache_fields | {"corruption": self.corruption, "severity": self.severity}

    @property
    def notes(self) -> list[str]:
        return ["stored", *super().notes]
