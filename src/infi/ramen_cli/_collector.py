"""What the commands for collectors share: the extra that they need, where the data is, and errors in words.

To be imported before ``infi.ramen_server``: where the extra is not installed, this says so.
"""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import apsw
import click

from infi.ramen_cli._exit import ExitCode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Unusable(click.ClickException):
    """Something that is needed is not there, or cannot be used."""

    exit_code = ExitCode.UNUSABLE

    def show(self, file: IO[Any] | None = None) -> None:
        """Write it as the other errors are written."""
        click.echo(f"ramen: {self.message}", file=file, err=file is None)


try:
    from infi.ramen_server import StoreInUse, UnusableFile
    from infi.ramen_server.config_file import DEFAULT_DATA_DIR
except ModuleNotFoundError as error:
    raise Unusable(
        f"the collector's packages are not installed ({error.name}): pip install 'infi.ramen_client[server]'"
    ) from None


def data_dir_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command ``--data-dir``, as ``data_dir``."""
    return click.option(
        "--data-dir",
        type=click.Path(path_type=Path),
        default=DEFAULT_DATA_DIR,
        show_default=True,
        metavar="DIR",
        help="The collector's directory; it may be running.",
    )(command)


@contextmanager
def in_words(data_dir: Path) -> Iterator[None]:
    """Turn what the files of a collector raise into errors for people."""
    try:
        yield
    except (StoreInUse, UnusableFile) as error:
        raise Unusable(str(error)) from None
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise Unusable(f"{where}{error.strerror or error}") from None
    except apsw.Error as error:
        raise Unusable(f"{data_dir}: the collector's files cannot be used: {error}") from None
