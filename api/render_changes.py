"""How documents and settings that differ look to a person at a terminal."""

import json
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape

SHOWN = 12


def print_changes(console: Console, documents: Mapping[str, Any], limit: int | None = SHOWN) -> None:
    """Documents or files by what became of them."""
    styles = {"added": "green", "changed": "yellow", "deleted": "red", "renamed": "blue"}
    for verb, style in styles.items():
        rows = documents[verb]
        for row in rows[:limit]:
            text = f"{row['from']} -> {row['to']}" if isinstance(row, dict) else row
            console.print(f"[{style}]{verb:>8}[/]  {escape(text)}")
        if limit and len(rows) > limit:
            console.print(f"[dim]          and {len(rows) - limit} more {verb}[/]")


def print_settings(console: Console, settings: Mapping[str, Any]) -> None:
    """Settings that differ."""
    for key, change in settings.items():
        before, after = setting(change["from"]), setting(change["to"])
        console.print(f"[magenta] setting[/]  {escape(f'{key}: {before} -> {after}')}")


def setting(value: Any) -> str:
    """A value as plumbline.toml writes it; a table in braces, and what is not set as a dash."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {setting(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(setting, value)) + "]"
    return "-" if value is None else json.dumps(value, ensure_ascii=False)
