"""What an image network is for: the images it gets and the classes it tells apart."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from befit.errors import IllegalArch


@dataclass(frozen=True, kw_only=True)
class ImageTask:
    """Classification of images of one size."""

    channels: int
    """Of an image: 1 grey, 3 colour."""
    height: int
    """Pixels."""
    width: int
    """Pixels."""
    classes: int
    """At least 2."""

    def __post_init__(self) -> None:
        for name, least in (("channels", 1), ("height", 1), ("width", 1), ("classes", 2)):
            if (told := getattr(self, name)) < least:
                raise IllegalArch(f"task: {name} must be at least {least}, got {told}")

    def to_json(self) -> dict[str, int]:
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "ImageTask":
        """Read what `to_json` wrote. Raises `IllegalArch` for an unknown or missing key."""
        names = [field.name for field in fields(ImageTask)]
        if sorted(data) != sorted(names):
            raise IllegalArch(f"task: expected the keys {', '.join(names)}, got {', '.join(data)}")
        return ImageTask(**data)
