"""YAML as people write it: keys in the order given, texts of several lines as blocks."""

from __future__ import annotations

from typing import Any


def yaml_text(*documents: Any, shared: object = None, name: str = "shared") -> str:
    """The documents, one after the other. `shared` is one object in them that is written once, under an anchor."""
    import yaml

    class Dumper(yaml.SafeDumper):
        def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
            super().increase_indent(flow, False)  # lists stand under their key, indented

        def ignore_aliases(self, data: Any) -> bool:
            return data is not shared

        def generate_anchor(self, node: yaml.Node) -> str:
            return name

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        style = "|" if "\n" in value else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    Dumper.add_representer(str, text)
    return "---\n".join(
        yaml.dump(document, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120) for document in documents
    )
