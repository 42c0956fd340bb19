"""Prints the table of parameters in docs/reference.md: `python -m scripts.params_table`.

It is made from stages/params.py and params.yaml. With `--write` it goes into the page; a test
compares the two.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from ruamel.yaml import YAML

from stages import params
from stages.params import Params

__all__ = ["replace_table", "table"]

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/reference.md"
START, END = "<!-- python -m scripts.params_table --write -->\n", "<!-- end -->\n"


def table() -> str:
    """The table in Markdown: of each parameter the value in params.yaml, what it may be, what it means."""
    values = YAML(typ="safe").load(ROOT / "params.yaml")
    lines = ["| parameter | as committed | may be | |", "|---|---|---|---|"]
    for name, schema, meaning in _rows(Params, ""):
        value: Any = values
        for key in name.split("."):
            value = value[key]
        lines.append(f"| `{name}` | {_code(value)} | {_allowed(schema)} | {meaning} |")
    return "\n".join(lines) + "\n"


def replace_table(page: str) -> str:
    """The page with the table as it is to be, between the two comments."""
    before, _, rest = page.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n{table()}\n{END}{after}"


def _rows(section: type[BaseModel], prefix: str) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Dotted name, JSON schema and meaning of each parameter below a section."""
    meanings = _attributes(section)
    schemas = section.model_json_schema()
    for field, info in section.model_fields.items():
        name = info.alias or field
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from _rows(info.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, schemas["properties"][name], meanings[field]


def _attributes(section: type[BaseModel]) -> dict[str, str]:
    """Meaning of each attribute, from the docstring."""
    _, _, text = (section.__doc__ or "").partition("Attributes:\n")
    entries = re.findall(r"^ {8}(\w+): (.*(?:\n {12}.*)*)", text, re.MULTILINE)
    return {name: " ".join(meaning.split()) for name, meaning in entries}


def _allowed(schema: dict[str, Any]) -> str:
    """What a value may be, in words."""
    if "$ref" in schema:
        section: type[BaseModel] = getattr(params, schema["$ref"].rpartition("/")[2])
        return f"`{{{', '.join(f'{name}: ...' for name in section.model_fields)}}}`"
    if "anyOf" in schema:
        return ", ".join(map(_allowed, schema["anyOf"]))
    if values := schema.get("enum") or ([schema["const"]] if "const" in schema else None):
        return ", ".join(map(_code, values))
    kind = {"integer": "whole number", "number": "number", "boolean": "true, false", "string": "text"}
    if schema["type"] == "array":
        items = schema.get("prefixItems")
        each = _allowed(items[0] if items else schema["items"])
        return f"{len(items) if items else 'any number'} times {each}"
    bounds = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "below"}
    limits = [f"{word} {_number(schema[bound])}" for bound, word in bounds.items() if bound in schema]
    return " ".join([kind[schema["type"]], *limits])


def _number(value: float) -> str:
    return f"{int(value):,}" if value == int(value) else f"{value:g}"


def _code(value: Any) -> str:
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def main() -> None:
    """Prints or writes the table."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.params_table",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--write", action="store_true", help="into docs/reference.md")
    if parser.parse_args().write:
        PAGE.write_text(replace_table(PAGE.read_text()))
    else:
        print(table(), end="")


if __name__ == "__main__":
    main()
