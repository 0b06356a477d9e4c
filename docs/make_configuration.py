"""Write docs/configuration.md from the one table of fields: ``python docs/make_configuration.py``."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from infi.ramen_client.config import ConfigField, QueueReaderConfig, QueueWriterConfig

TARGET = Path(__file__).with_name("configuration.md")

HEAD = """\
# Configuration

<!-- Written by docs/make_configuration.py from the table in infi.ramen_client.config; change that, not this. -->

`QueueWriterConfig` and `QueueReaderConfig` take their fields as keywords, as one mapping, or both. Fields are plain
attributes and may be assigned later; `validate()` checks them all, and so does every writer and reader that is built with
them. A `ValidationError` lists each wrong field, its value (never the token's) and what is allowed.

`QueueReaderConfig.load(path)` reads a TOML file (its `[ramen]` table, or its top-level keys), then the environment
(`RAMEN_HOSTNAME` is `hostname`, and so on), then its own keywords, each over the former. One file serves writers and readers.

```toml
[ramen]
sender = "imx"
system_serial = 1099
system_version = "3.0.0.1"
hostname = "ramen.example.com"
auth_token_file = "/etc/ramen/token"
```
"""


def _type(field: ConfigField) -> str:
    names = {str: "text", int: "integer", float: "number", bool: "true or false"}
    kinds = [names[kind] for kind in (field.type, *get_args(field.type)) if kind in names]
    return kinds[0] if kinds else "text"


def _default(field: ConfigField) -> str:
    if field.required:
        return "required"
    if field.default is None:
        return "none"
    if isinstance(field.default, bool):
        return f"`{str(field.default).lower()}`"
    return f"`{field.default:g}`" if isinstance(field.default, float) else f"`{field.default}`"


def _section(title: str, fields: list[ConfigField]) -> str:
    parts = [f"\n## {title}\n"]
    for field in fields:
        unit = f", in {field.unit}" if field.unit else ""
        parts.append(
            f"\n**`{field.name}`** ({_type(field)}{unit}; default: {_default(field)}). {field.meaning}  \n"
            f"Allowed: {field.allowed.replace('|', chr(92) + '|')}. Environment: `RAMEN_{field.name.upper()}`.\n"
        )
    return "".join(parts)


def reference() -> str:
    """The whole document."""
    writer = list(QueueWriterConfig.FIELDS.values())
    reader = [
        field for name, field in QueueReaderConfig.FIELDS.items() if name not in QueueWriterConfig.FIELDS
    ]
    return HEAD + _section("Writers and readers", writer) + _section("Readers", reader)


if __name__ == "__main__":
    TARGET.write_text(reference(), encoding="utf-8")
