"""Load what befit wrote, whichever verb wrote it."""

from pathlib import Path
from typing import Any

from befit.vision.checkpoint import ARCH, load_classifier


def load(folder: str | Path, **options: Any) -> Any:
    """A child of `befit puzzle` as a transformers model, or the classifier of `befit search` with its `predict`.

    `options` are those of `befit.lm.child.load` (`dtype`) or of `befit.vision.checkpoint.load_classifier` (`build`, `device`).
    Raises `UnsupportedModel` or `RunConflict` for a folder that holds neither. Cuts of `befit elastic` are ordinary checkpoints:
    load them with transformers.
    """
    place = Path(folder)
    if (place / ARCH).is_file() or (place / "best" / ARCH).is_file():
        return load_classifier(place, **options)
    from befit.lm.child import load as load_child

    return load_child(place, **options)
