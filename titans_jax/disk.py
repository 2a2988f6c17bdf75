"""A full disk, while orbax saves: one error in place of the tracebacks of its threads."""

import contextlib
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def saving(folder: Path, what: str, size: int, kept: str) -> Iterator[None]:
    """Raise one OSError where the block cannot write to the folder, before it where fewer than `size` bytes are free.

    what: is saved in the block. kept: what there is without it, for the error.
    """
    failed = f"{folder}: {what} of {size:,} bytes could not be saved"
    if (free := shutil.disk_usage(folder).free) < size:
        raise OSError(f"{failed}, as {free:,} are free; {kept}; free some space to continue")
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    for logger in loggers:
        logger.addFilter(_has_no_traceback)
    try:
        yield
    except (OSError, ValueError) as error:
        if isinstance(error, ValueError) and "os_error_code" not in str(error):
            raise
        loggers.clear()  # the filters stay: threads of orbax go on to log the error
        why = isinstance(error, OSError) and error.strerror or str(error).rpartition(": ")[2].partition(" [")[0]
        raise OSError(f"{failed}: {why}; {kept}") from error
    finally:
        for logger in loggers:
            logger.removeFilter(_has_no_traceback)


def _has_no_traceback(record: logging.LogRecord) -> bool:
    return not record.exc_info
