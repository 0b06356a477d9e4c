"""The configuration of a writer and of a reader.

The two classes are the one table of all fields: an annotation gives a field's type, bounds and meaning, the class
attribute its default (none: required). ``FIELDS`` is this table as values, from which the reference is generated.

- The objects are plain. Assigning an attribute never raises and converts nothing; ``validate()`` checks all fields
  and puts the converted values (``"1099"`` becomes 1099) in place of the given ones: all of them, or none when
  a single field is wrong. A writer or a reader validates its configuration when it is built.
- ``validate()`` touches no file, network or user database: whether the queue's directory, the CA file, the group
  or the token's file are there is found out by whoever uses them.
- Delays and time-outs are read when they are used, so an assignment to a living reader's configuration counts from
  its next wait on.
- The token, and the user name and password of a proxy, stand in no ``repr``, error or log record. They are in
  a pickle, which would be of no use without them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from infi.ramen_client._config_fields import (
    MAX_GROUP_CHARS,
    MAX_SENDER_CHARS,
    MAX_TOKEN_CHARS,
    MAX_VERSION_CHARS,
    About,
    ConfigField,
    FilePath,
    Group,
    HeaderText,
    Hostname,
    Integer,
    ProxyUrl,
    Seconds,
    Sender,
    Version,
    Wrong,
    did_you_mean,
    fields_of,
    hidden,
    shown,
    shown_url,
    suggestion,
)
from infi.ramen_client._config_sources import logger, read_environ, read_token_file, read_toml, variable_of
from infi.ramen_client.errors import ValidationError
from infi.ramen_protocol.url import MAX_SYSTEM_SERIAL

__all__ = ["ConfigField", "QueueReaderConfig", "QueueWriterConfig", "ValidationError", "load_fields"]

_KIB, _MIB, _GIB = 1024, 1024**2, 1024**3
_MAX_INTEGER = 2**63 - 1  # SQLite's largest
_TOKEN_FIELDS = ("auth_token", "auth_token_file")
_A_PATH = "a path: UTF-8 text without control characters"
_FOLLOWED = "A change is noticed within two seconds, and counts from the next request on."

# How like a field an attribute must be named to be taken for a misspelt one; programs may add attributes of their own.
_MISSPELT = 0.8


class QueueWriterConfig:
    """What a ``QueueWriter`` needs to know.

    ``raw_data`` is a mapping of field names to values; keywords win over it. Raises ``ValidationError`` for a name
    that is no field; values are checked by ``validate()``.
    """

    FIELDS: ClassVar[Mapping[str, ConfigField]]
    """All fields by name, in the order of the reference."""

    sender: Annotated[
        Sender,
        About(
            "The program that sends, such as imx; a part of each message's URL and of the queue's file name.",
            allowed=f"one or more of A-Z a-z 0-9 _ - (at most {MAX_SENDER_CHARS} characters)",
        ),
    ]
    system_serial: Annotated[
        Integer,
        About(
            "The serial number of the system; a part of each message's URL and of the queue's file name.",
            low=0,
            high=MAX_SYSTEM_SERIAL,
        ),
    ]
    system_version: Annotated[
        Version,
        About(
            "The version of the system; each message keeps the one that it was pushed with.",
            allowed=f"one or more of A-Z a-z 0-9 . _ - (at most {MAX_VERSION_CHARS} characters)",
        ),
    ]
    queue_dir: Annotated[
        FilePath,
        About(
            "The directory of the queue's file; created if missing, shared by any number of queues.", _A_PATH
        ),
    ] = "/var/ramen_client/"
    max_queue_size: Annotated[
        Integer,
        About(
            "How large the queue may grow on disk; overflow says what happens past it.",
            unit="bytes",
            low=10 * _KIB,
            high=_MAX_INTEGER,
        ),
    ] = 5 * _GIB
    overflow: Annotated[
        Literal["drop_oldest", "reject"],
        About(
            "What push() does when the queue is at max_queue_size. drop_oldest: stores the message and removes the oldest "
            "ones, counted and logged. reject: raises QueueFull and stores nothing; a queue in which nothing waits takes "
            "any message.",
            allowed="drop_oldest or reject",
        ),
    ] = "drop_oldest"
    min_free_disk: Annotated[
        Integer,
        About(
            "How much of the file system the queue leaves free for others. While less is free, the queue's file does not "
            "grow: push() makes room in it by removing the oldest messages, or raises QueueFull, as overflow says. It "
            "is looked at once a second and once for each MiB that is pushed. 0: never.",
            unit="bytes",
            low=0,
            high=_MAX_INTEGER,
        ),
    ] = 0
    max_message_bytes: Annotated[
        Integer,
        About(
            "The largest message that push() takes, as serialised JSON before it is compressed; max_queue_size "
            "limits it further.",
            unit="bytes",
            low=1,
            high=_MAX_INTEGER,
        ),
    ] = 64 * _MIB
    durability: Annotated[
        Literal["full", "normal"],
        About(
            "full: a message is on the disk's platter when push() returns. normal: it survives a killed process, "
            "not a power cut, and push() is several times faster.",
            allowed="full or normal",
        ),
    ] = "full"
    unserialisable: Annotated[
        Literal["null", "raise"],
        About(
            "What push() does with a value that JSON cannot express. null: sends null in its place, counts it and "
            "logs it once for each path. raise: raises a TypeError that names the path.",
            allowed="null or raise",
        ),
    ] = "null"
    queue_group: Annotated[
        Group | None,
        About(
            "The group that may use the queue beside its owner; none: the owner alone. Applies to what is newly made.",
            allowed=f"the name of a group (at most {MAX_GROUP_CHARS} characters) or none",
        ),
    ] = None

    def __init__(self, raw_data: Mapping[str, Any] | None = None, **fields: Any) -> None:
        if not isinstance(raw_data, Mapping | None):
            raise ValidationError(
                f"a configuration is made from a mapping of fields, not from {shown(raw_data)}"
            )
        given = {**(raw_data or {}), **fields}
        unknown = [_unknown(name, self.FIELDS) for name in given if name not in self.FIELDS]
        if unknown:
            raise ValidationError(f"{type(self).__name__} has no field " + ", ".join(unknown))
        for name in self.FIELDS:
            # The class, not the table, so that a subclass may set a default of its own.
            setattr(self, name, given.get(name, getattr(type(self), name, None)))

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str] | None = None,
        *,
        environ: Mapping[str, str] | None = None,
        **fields: Any,
    ) -> Self:
        """A validated configuration from a TOML file, the environment and keywords, each over the former.

        ``path``: the file's ``[ramen]`` table, or its top-level keys when it has none; None: no file.
        ``environ``: ``RAMEN_SENDER`` and so on; None: ``os.environ``; ``{}``: none. ``fields``: as at construction.
        One file or environment may serve writers and readers: a writer passes over a reader's fields. A source that
        gives a token in one way (``auth_token``, ``auth_token_file``) puts aside the other way of those before it.

        Raises ``ValidationError``, which names the file or variable of each wrong value; misspelt variables
        are only warned of.
        """
        values, sources = _from_file_and_environ(path, environ)
        values = {name: value for name, value in values.items() if name in cls.FIELDS}
        _put_over(values, fields)
        sources.update(dict.fromkeys(fields, ""))
        config = cls(values)
        config._validate(sources)
        return config

    def validate(self) -> None:
        """Check all fields and convert their values to the fields' types.

        Raises ``ValidationError``, which lists every wrong field; then nothing is converted. Never touches a file.
        """
        self._validate({})

    def _validate(self, sources: Mapping[str, str]) -> None:
        problems = self._convert(sources)
        if problems:
            raise ValidationError("\n  ".join([f"{type(self).__name__} is not valid:", *problems]))
        for name in vars(self).keys() - self.FIELDS.keys():
            if near := suggestion(name, self.FIELDS, likeness=_MISSPELT):
                logger.warning("%s has no field %s%s", type(self).__name__, shown(name), did_you_mean(near))

    def _convert(self, sources: Mapping[str, str]) -> list[str]:
        """Convert all fields; or none, and say what is wrong with them."""
        converted = {}
        problems = []
        for name, field in self.FIELDS.items():
            value = getattr(self, name, None)
            outcome = field.check(value)
            if isinstance(outcome, Wrong):
                problems.append(field.problem(value, sources.get(name, "")))
            elif outcome is not value:
                converted[name] = outcome
        problems += self._contradictions()
        if not problems:
            for name, value in converted.items():
                setattr(self, name, value)
        return problems

    def _contradictions(self) -> list[str]:
        """What is wrong with fields that are well-formed, each by itself."""
        return []

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(getattr(self, name, None) == getattr(other, name, None) for name in self.FIELDS)

    # It can be changed, so it cannot be a key.
    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        values = (f"{name}={field.show(getattr(self, name, None))}" for name, field in self.FIELDS.items())
        return f"{type(self).__name__}({', '.join(values)})"


class QueueReaderConfig(QueueWriterConfig):
    """What a ``QueueReader`` needs to know: a writer's fields, and how to reach the server."""

    hostname: Annotated[
        Hostname,
        About(
            "The server, as a name or an address, and its port where it is not the usual one.",
            allowed="host, host:port, [IPv6] or [IPv6]:port (ASCII, a port from 1 to 65535), without scheme, "
            "path and user name",
            show=shown_url,
        ),
    ]
    auth_token: Annotated[
        HeaderText | None,
        About(
            "The token that the server asks for. Either this or auth_token_file.",
            allowed=f"1 to {MAX_TOKEN_CHARS} printable Latin-1 characters without blank space around them",
            show=hidden,
        ),
    ] = None
    auth_token_file: Annotated[
        FilePath | None,
        About(
            "A file that holds the token and nothing else (blank space at its end is taken off). Either this or "
            f"auth_token. A file that every user can read is used, with a warning. {_FOLLOWED}",
            allowed=f"{_A_PATH}; or none",
        ),
    ] = None
    ssl: Annotated[
        bool,
        About("Whether to use HTTPS.", allowed="true or false"),
    ] = True
    ca_file: Annotated[
        FilePath | None,
        About(
            "The certificates of the authorities that a server's certificate is checked against: a PEM file, or a directory "
            "in which `openssl rehash` has named one file for each; none: what REQUESTS_CA_BUNDLE or SSL_CERT_FILE names, "
            f"else the system's own ones. {_FOLLOWED}",
            allowed=f"{_A_PATH}; or none",
        ),
    ] = None
    client_certificate: Annotated[
        FilePath | None,
        About(
            "A PEM file with the certificate that this client shows to a server that asks for one, followed by those between "
            "it and its authority; it may hold the private key, too. Not shown to a proxy. "
            f"{_FOLLOWED} So that certificate and key change as one, keep them in one file, or write both within a second.",
            allowed=f"{_A_PATH}; or none",
        ),
    ] = None
    client_key: Annotated[
        FilePath | None,
        About(
            "A PEM file with the private key of client_certificate, not encrypted; none: it is in that file. A file that "
            f"every user can read is used, with a warning. {_FOLLOWED}",
            allowed=f"{_A_PATH}; or none",
        ),
    ] = None
    min_tls_version: Annotated[
        Literal["1.2", "1.3"],
        About(
            "The oldest version of TLS that is spoken with the server and with an https proxy.",
            allowed="1.2 or 1.3 (as text)",
        ),
    ] = "1.2"
    proxy: Annotated[
        ProxyUrl,
        About(
            "The proxy to use, whatever the environment says; none: what the environment says. With socks4a and socks5h the proxy "
            "looks the server's name up; with socks4 and socks5 this machine does, and its first address alone is tried.",
            allowed="http://host:port, with https, socks4, socks4a, socks5 or socks5h in place of http, without path; "
            "user:password@ before the host must be percent-encoded; or none",
            show=shown_url,
        ),
    ] = None
    server_timeout: Annotated[
        Seconds,
        About(
            "How long one request to the server may take, from start to end.",
            unit="seconds",
            low=1,
            high=3600,
        ),
    ] = 20.0
    polling_delay: Annotated[
        Seconds,
        About(
            "How long an idle reader waits at most before it looks at its queue again.",
            unit="seconds",
            low=0.01,
            high=3600,
        ),
    ] = 5.0
    retry_delay: Annotated[
        Seconds,
        About("How long a reader waits at most after a failure.", unit="seconds", low=0.01, high=3600),
    ] = 30.0
    max_in_flight: Annotated[
        Integer,
        About(
            "How many requests may be under way at once. 1: one after the other, everything in the order of its push, as in 1.x.",
            low=1,
            high=256,
        ),
    ] = 8
    ordering: Annotated[
        Literal["stream", "none"],
        About(
            "stream: messages of one category and data_type are delivered in the order of their push, those of different ones "
            "side by side. none: everything side by side.",
            allowed="stream or none",
        ),
    ] = "stream"
    protocol: Annotated[
        Literal["auto", "1"],
        About(
            "auto: batches (version 2 of the protocol) as soon as the server offers them. 1: one message a request.",
            allowed="auto or 1 (as text)",
        ),
    ] = "auto"
    content_coding: Annotated[
        Literal["auto", "legacy", "gzip", "zstd", "identity"],
        About(
            "How bodies are compressed. auto: as 1.x did (legacy: zlib under the label gzip) until the server says that it reads "
            "gzip or zstd. The others: always so; zstd needs Python 3.14 or the extra zstd.",
            allowed="auto, legacy, gzip, zstd or identity",
        ),
    ] = "auto"
    max_attempts: Annotated[
        Integer | None,
        About(
            "How often a message is tried that holds up its stream while the server takes others, before it becomes a dead "
            "letter; none: for ever. An outage is no attempt.",
            allowed="a number from 1 to 1000000; or none",
            low=1,
            high=1_000_000,
        ),
    ] = None
    max_bytes_per_second: Annotated[
        Integer | None,
        About(
            "How much is sent at most, bodies as they are on the wire; none: as fast as it goes.",
            allowed="a number from 1 to 9223372036854775807; or none",
            unit="bytes",
            low=1,
            high=_MAX_INTEGER,
        ),
    ] = None
    blacklist_ttl: Annotated[
        Seconds,
        About(
            "How long a rule of the server is kept after it was last received.",
            unit="seconds",
            low=1,
            high=86400,
        ),
    ] = 3600.0
    max_message_age_seconds: Annotated[
        Seconds | None,
        About(
            "How old a message may become before the reader removes it unsent, counted (expired) and logged; none: it never "
            "does. Looked at when messages are taken to be sent, so not during an outage. In doubt about the clock a "
            "message is kept: see docs/guarantees.md.",
            allowed="a number from 1 to 315360000 (seconds, ten years); or none",
            unit="seconds",
            low=1,
            high=315_360_000,
        ),
    ] = None

    def read_auth_token(self) -> str:
        """The token: ``auth_token``, or what ``auth_token_file`` holds now (it is read at each call).

        Raises ``ValidationError`` when neither or both are given, or one is wrong; for the file also when it is
        missing, unreadable, empty, too large, or holds what no HTTP header can carry.
        """
        problems = self._token_contradictions()
        for name in _TOKEN_FIELDS:
            field, value = self.FIELDS[name], getattr(self, name, None)
            if isinstance(field.check(value), Wrong):
                problems.append(field.problem(value, ""))
        if problems:
            raise ValidationError("; ".join(problems))
        rule = self.FIELDS["auth_token"]
        if self.auth_token_file is None:
            return str(rule.check(self.auth_token))
        file = os.fspath(self.auth_token_file)
        token = rule.check(read_token_file(file))
        if isinstance(token, Wrong):
            raise ValidationError(
                f"auth_token_file {shown(file)} does not hold a token; it must be {rule.allowed}"
            )
        return str(token)

    def _token_contradictions(self) -> list[str]:
        given = [name for name in _TOKEN_FIELDS if getattr(self, name, None) is not None]
        if len(given) == 1:
            return []
        return [
            f"auth_token, auth_token_file: exactly one of them is needed, {'both are' if given else 'none is'} given"
        ]

    def _contradictions(self) -> list[str]:
        problems = self._token_contradictions()
        if (
            getattr(self, "client_key", None) is not None
            and getattr(self, "client_certificate", None) is None
        ):
            problems.append("client_key: it is of no use without client_certificate")
        return problems


QueueWriterConfig.FIELDS = fields_of(QueueWriterConfig)
QueueReaderConfig.FIELDS = {**QueueWriterConfig.FIELDS, **fields_of(QueueReaderConfig)}


def load_fields(
    names: Iterable[str],
    path: str | os.PathLike[str] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    **fields: Any,
) -> dict[str, Any]:
    """Some fields alone, by name, from the sources of ``load``: for tools that can do without the others.

    A field that no source gives is left out. Raises ``ValidationError`` as ``load`` does, for these fields.
    """
    values, sources = _from_file_and_environ(path, environ)
    values.update(fields)
    sources.update(dict.fromkeys(fields, ""))
    found: dict[str, Any] = {}
    problems = []
    for name in names:
        if name not in values:
            continue
        field = QueueReaderConfig.FIELDS[name]
        found[name] = field.check(values[name])
        if isinstance(found[name], Wrong):
            problems.append(field.problem(values[name], sources[name]))
    if problems:
        raise ValidationError("\n  ".join(["the configuration is not valid:", *problems]))
    return found


def _from_file_and_environ(
    path: str | os.PathLike[str] | None, environ: Mapping[str, str] | None
) -> tuple[dict[str, Any], dict[str, str]]:
    """What a TOML file and then the environment give, not yet checked, and where each value is from."""
    known = QueueReaderConfig.FIELDS
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    if path is not None:
        file = os.fspath(path)
        from_file = read_toml(file, known)
        _put_over(values, from_file)
        sources.update(dict.fromkeys(from_file, f"from {shown(file)}"))
    from_environ = read_environ(os.environ if environ is None else environ, known)
    _put_over(values, from_environ)
    sources.update({name: f"from {variable_of(name)}" for name in from_environ})
    return values, sources


def _unknown(name: object, known: Mapping[str, ConfigField]) -> str:
    return f"{shown(name)}{did_you_mean(suggestion(name, known) if isinstance(name, str) else '')}"


def _put_over(values: dict[str, Any], newer: Mapping[str, Any]) -> None:
    """Lay the values of a source over those of the sources before it."""
    if any(newer.get(name) is not None for name in _TOKEN_FIELDS):
        for name in _TOKEN_FIELDS:
            values.pop(name, None)
    values.update(newer)
