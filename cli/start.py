"""What the console scripts start: from the first moment on Ctrl-C is one line and 130, also while Python imports."""

from __future__ import annotations

import os
import signal
from typing import NoReturn


def _leave(number: int, frame: object) -> NoReturn:
    os.write(2, b"error: interrupted.\n")
    os._exit(130)


if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _leave)  # until main.run takes it


def main() -> None:
    """`neutreno`."""
    from .main import main

    main()


def adapt_main() -> None:
    """`neutreno-adapt`."""
    from .main import adapt_main

    adapt_main()
