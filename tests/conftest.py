"""For all tests: neither a busy machine nor the file system of the temporary directory is a finding."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

settings.register_profile("steady", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")


@pytest.fixture(scope="session", autouse=True)
def no_word_of_the_file_system() -> Iterator[None]:
    """In a container it is an overlay, which is warned of, where tests look at every line of the log."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("infi.ramen_client.storage._create.warn_of_unfit", lambda _: None)
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What a test logged may hold half characters, as hostile input does; the processes of a parallel run cannot hand them on."""
    report = yield
    report.sections = [
        (name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections
    ]
    return report
