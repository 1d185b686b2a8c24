"""What the configs name with ``_target_`` and MONAI lacks. Ships with every shared bundle; imports no data_gen."""

import sys
import traceback
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent


def _show_cause(kind, error, trace) -> None:
    """Print what went wrong as the last line; for a mistake that our own code found, as the only one.

    ``python -m monai.bundle run`` wraps each error in several of its own, and shows the one that matters first.
    """
    cause = error
    while cause.__cause__ or (cause.__context__ and not cause.__suppress_context__):
        cause = cause.__cause__ or cause.__context__
    frames = traceback.extract_tb(cause.__traceback__)
    ours = (
        bool(frames) and Path(frames[-1].filename).is_relative_to(_ROOT) and "site-packages" not in frames[-1].filename
    )
    if not (ours and isinstance(cause, (ValueError, OSError))):
        sys.__excepthook__(kind, error, trace)
    print(f"error: {cause}" if ours else f"error: {type(cause).__name__}: {cause}", file=sys.stderr)


if Path(sys.argv[0]).parts[-3:] == ("monai", "bundle", "__main__.py"):
    sys.excepthook = _show_cause
