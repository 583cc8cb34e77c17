"""One JSON object a line on standard error; never the content or the name of an image."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Final

_LOGGER: Final = logging.getLogger("kresnet.serve")


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def start() -> None:
    """Write the events of the server, and the warnings of its libraries, to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines())
    for logger, level in (
        (_LOGGER, logging.INFO),
        # What these warn of is what clients send, and they may quote it.
        (logging.getLogger("uvicorn"), logging.ERROR),
        (logging.getLogger("python_multipart"), logging.ERROR),
        (logging.getLogger("grpc"), logging.ERROR),
        (logging.getLogger("asyncio"), logging.ERROR),
    ):
        logger.handlers[:] = [handler]
        logger.setLevel(level)
        logger.propagate = False


def event(name: str, **fields: object) -> None:
    """Log something that went as it should."""
    _LOGGER.info(name, extra={"fields": fields})


def warning(name: str, **fields: object) -> None:
    """Log something that an operator should look at."""
    _LOGGER.warning(name, extra={"fields": fields})


def error(name: str, **fields: object) -> None:
    """Log a fault of the server, with its traceback."""
    _LOGGER.error(name, exc_info=True, extra={"fields": fields})
