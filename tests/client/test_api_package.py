"""api-1x.md, "Packaging" and the names that 1.x programs import."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import pytest

import infi.ramen_client
from infi.ramen_client import utils
from infi.ramen_client.errors import RamenError, ValidationError
from infi.ramen_client.queue_reader import AuthenticationError, AutheticationError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    RunPython = Callable[..., str]


def test_every_name_that_a_1x_program_imports_is_where_it_was():
    from infi.ramen_client.config import QueueReaderConfig, QueueWriterConfig
    from infi.ramen_client.queue_reader import Blacklist, QueueReader
    from infi.ramen_client.queue_writer import QueueWriter
    from infi.ramen_client.utils import (
        compress,
        create_queue_reader_and_writer,
        dump_json,
        logger,
        validate_name,
        validate_version,
    )

    assert issubclass(QueueReaderConfig, QueueWriterConfig)
    assert all(
        callable(thing)
        for thing in (
            Blacklist,
            QueueReader,
            QueueWriter,
            compress,
            create_queue_reader_and_writer,
            dump_json,
            validate_name,
            validate_version,
        )
    )
    assert isinstance(logger, logging.Logger)


@pytest.mark.parametrize("name", infi.ramen_client.__all__)
def test_the_package_itself_offers_its_public_names(name: str):
    assert getattr(infi.ramen_client, name) is not None


def test_the_package_has_no_name_that_nobody_gave_it():
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        infi.ramen_client.nonsense  # noqa: B018


def test_the_misspelt_authentication_error_is_the_well_spelt_one():
    assert AutheticationError is AuthenticationError
    assert issubclass(AuthenticationError, RamenError)


def test_infi_is_a_namespace_that_other_distributions_install_into(tmp_path: Path, run_python: RunPython):
    (tmp_path / "infi" / "other").mkdir(parents=True)
    (tmp_path / "infi" / "other" / "__init__.py").write_text("here = True\n")
    program = """
        import sys
        sys.path.append(sys.argv[1])
        import infi, infi.other, infi.ramen_client.queue_writer, infi.ramen_client.queue_reader
        assert infi.other.here
        assert getattr(infi, "__file__", None) is None, "infi has an __init__.py"
    """
    run_python(program, str(tmp_path))
    run_python(program.replace("append(sys.argv[1])", "insert(0, sys.argv[1])"), str(tmp_path))


def test_the_version_sorts_above_the_last_of_1x():
    packaging = pytest.importorskip("packaging.version")

    assert packaging.Version(infi.ramen_client.__version__) > packaging.Version("1.40.post3")


def test_it_works_without_setuptools_and_pkg_resources(run_python: RunPython):
    run_python(
        """
        import sys
        for name in ("setuptools", "pkg_resources", "distutils", "_distutils_hack", "requests", "schematics", "six", "future"):
            sys.modules[name] = None  # importing it is an ImportError now
        import infi.ramen_client.config, infi.ramen_client.queue_writer, infi.ramen_client.queue_reader
        import infi.ramen_client.utils, infi.ramen_client.testing
        """
    )


def test_a_program_that_only_pushes_loads_no_network_code(run_python: RunPython, queue_dir: Path):
    run_python(
        """
        import sys
        from infi.ramen_client.config import QueueWriterConfig
        from infi.ramen_client.queue_writer import QueueWriter
        with QueueWriter(QueueWriterConfig(sender="imx", system_serial=1, system_version="1", queue_dir=sys.argv[1])) as writer:
            writer.push("metrics", "x", "v1", {"a": 1})
        loaded = {"pycurl", "ssl", "http.client", "asyncio"} & set(sys.modules)
        assert not loaded, loaded
        """,
        str(queue_dir),
    )


def test_every_check_holds_under_python_dash_o(run_python: RunPython, fields: dict[str, Any]):
    run_python(
        """
        import json, sys
        from infi.ramen_client.config import QueueReaderConfig, QueueWriterConfig
        from infi.ramen_client.queue_reader import QueueReader
        from infi.ramen_client.queue_writer import QueueWriter

        if __debug__:
            raise SystemExit("asserts are on: this shows nothing")
        fields = json.loads(sys.argv[1])

        def refuses(error, call, *arguments, **keywords):
            try:
                call(*arguments, **keywords)
            except error:
                return
            raise SystemExit(f"{call} took {arguments} {keywords}")

        writer_fields = {name: fields[name] for name in ("sender", "system_serial", "system_version", "queue_dir")}
        refuses(AssertionError, QueueReader, QueueWriterConfig(writer_fields))
        refuses(AssertionError, QueueWriter, writer_fields)
        for name in fields:
            if name not in ("queue_dir", "ssl"):
                refuses(ValueError, QueueReaderConfig(fields | {name: ""}).validate)
        writer = QueueWriter(QueueWriterConfig(writer_fields))
        for bad in (None, "", "a b", "a/b", "a\\n", b"a", "é"):
            refuses(AssertionError, writer.push, bad, "x", "v1", {})
            refuses(AssertionError, writer.push, "metrics", bad, "v1", {})
            refuses(AssertionError, writer.push, "metrics", "x", bad, {})
        refuses(AssertionError, writer.push, "metrics", "x", True, {})
        refuses(AssertionError, writer.push, "metrics", "x", "v1", {}, reqid="r" * 3000)
        if writer.queue_size():
            raise SystemExit("something was stored")
        """,
        json.dumps(fields),
        options=("-O",),
    )


# utils


@pytest.mark.parametrize("name", ["a", "A-Z_09", "-", "x" * 300])
def test_validate_name_takes_letters_digits_dashes_and_underscores(name: str):
    utils.validate_name(name)


@pytest.mark.parametrize("name", ["", " ", "a b", "a.b", "a/b", "a\n", "\na", "é", "٣", "a\0", "a&b"])
def test_validate_name_refuses_everything_else_with_a_validation_error(name: str):
    with pytest.raises(ValidationError):
        utils.validate_name(name)


@pytest.mark.parametrize("version", ["3.0.0.1", "a-b_c.D", "."])
def test_validate_version_takes_periods_too(version: str):
    utils.validate_version(version)


@pytest.mark.parametrize("version", ["", "3.0\n", "3 0", "3/0", "٣.0"])
def test_validate_version_refuses_everything_else_with_a_validation_error(version: str):
    with pytest.raises(ValidationError):
        utils.validate_version(version)


@pytest.mark.parametrize("check", [utils.validate_name, utils.validate_version])
@pytest.mark.parametrize("value", [None, 1, b"a", ["a"]])
def test_validating_what_is_no_text_is_a_validation_error_too(check: Callable[[Any], None], value: object):
    with pytest.raises(ValidationError):
        check(value)


def test_dump_json_gives_the_text_that_push_stores():
    text = utils.dump_json({"a": [1, 2.5, None, True], "ü": "ü"})

    assert isinstance(text, str)
    assert json.loads(text) == {"a": [1, 2.5, None, True], "ü": "ü"}
    assert " " not in text


def test_compress_gives_a_zlib_stream():
    import zlib

    assert zlib.decompress(utils.compress(b"abc" * 100)) == b"abc" * 100


def test_the_logger_is_the_stdlib_logger_ramen_client(writer: Any, caplog: pytest.LogCaptureFixture):
    assert utils.logger is logging.getLogger("ramen_client")

    with caplog.at_level(logging.WARNING, logger="ramen_client"):
        writer.push("metrics", "x", "v1", {"a": object()})

    assert [record.name for record in caplog.records] == ["ramen_client"]


def test_every_error_survives_pickling_as_a_pool_of_processes_does_it():
    import pickle

    from infi.ramen_client import errors

    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    for kind in kinds:
        error = kind("what happened", "r-1") if kind is errors.DurabilityError else kind("what happened")
        copy = pickle.loads(pickle.dumps(error))
        assert (type(copy), str(copy), vars(copy)) == (kind, "what happened", vars(error))
