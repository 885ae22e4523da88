"""promptsource's YAML files: a safe reader that names file, template and field."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from t0x.prompts.template import FILE_NAME, Metadata, Template

_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_SafeLoader):
    """Plain YAML plus promptsource's two tags, read as mappings; no repeated keys."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        # What PyYAML raises for `!!bool maybe`, `!!timestamp foo`, the 40th of May, 5,000 digits.
        except (ValueError, KeyError, AttributeError, OverflowError) as error:
            kind = node.tag.rpartition(":")[2]
            raise yaml.constructor.ConstructorError(
                None, None, f"{node.value!r:.40} is no {kind}", node.start_mark
            ) from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping = super().construct_mapping(node, deep=deep)
        if len(mapping) != len(node.value):
            keys = [key.value for key, _ in node.value]
            repeated = next((key for key in keys if keys.count(key) > 1), "?")
            raise yaml.constructor.ConstructorError(
                None, None, f"key {repeated!r} occurs twice", node.start_mark
            )
        return mapping


def _construct(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    return loader.construct_mapping(node, deep=True)


LARGEST_DOCUMENT = 1 << 23  # characters, and 32 for each node
_Loader.add_constructor("!Template", _construct)
_Loader.add_constructor("!TemplateMetadata", _construct)


def _load(text: str | bytes) -> Any:
    """The document, built only once it is known how large it is with its aliases written out."""
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        size, pending = 0, [root] if root else []
        while pending:
            node = pending.pop()
            size += 32
            if isinstance(node, yaml.ScalarNode):
                size += len(node.value)
            elif isinstance(node, yaml.MappingNode):
                pending += [part for pair in node.value for part in pair]
            else:
                pending += node.value
            if size > LARGEST_DOCUMENT:
                raise ValueError(f"more than {LARGEST_DOCUMENT:,} characters, aliases written out")
        return loader.construct_document(root) if root else None
    finally:
        loader.dispose()


def parse_templates(text: str | bytes, origin: str) -> list[Template]:
    """The templates of a YAML text in the order of the file, duplicate names included.

    Raises ValueError, one line that names `origin`, the template and the field.
    """
    try:
        document = _load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ValueError(f"{origin}: {' '.join(str(error).split())[:200]}") from error
    entries = document.get("templates") if isinstance(document, dict) else None
    if not isinstance(entries, dict):
        raise ValueError(f"{origin}: no mapping `templates:` of id to !Template")
    return [_parse_template(key, entry, origin) for key, entry in entries.items()]


def _parse_template(key: Any, entry: Any, origin: str) -> Template:
    def take(
        source: dict[Any, Any], name: str, kinds: type | tuple[type, ...], default: Any = None
    ) -> Any:
        value = source.get(name, default)
        if not isinstance(value, kinds):
            shown = entry.get("name", key)
            raise ValueError(f"{origin}: template {shown!r}: field {name} is {value!r:.60}")
        return value

    none = type(None)
    if not isinstance(entry, dict):
        raise ValueError(f"{origin}: template {key!r} is not a !Template")
    metadata = take(entry, "metadata", (dict, none)) or {}
    lists = {name: take(metadata, name, (list, none)) or [] for name in ("metrics", "languages")}
    return Template(
        name=take(entry, "name", str),
        jinja=take(entry, "jinja", str),
        answer_choices=take(entry, "answer_choices", (str, none)),
        reference=take(entry, "reference", (str, none)) or "",
        id=str(entry.get("id", key)),
        metadata=Metadata(
            original_task=take(metadata, "original_task", (bool, none)),
            choices_in_prompt=take(metadata, "choices_in_prompt", (bool, none)),
            **{name: tuple(map(str, values)) for name, values in lists.items()},
        ),
    )


def read_templates(path: str | Path) -> dict[str, Template]:
    """The templates of a file (or of the templates.yaml in a folder) by name, names sorted.

    Raises FileNotFoundError, or ValueError naming file and field.
    """
    path = Path(path)
    path = path / FILE_NAME if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"no template file at {path}")
    if path.stat().st_size > LARGEST_DOCUMENT:
        raise ValueError(f"{path}: more than {LARGEST_DOCUMENT:,} bytes")
    return by_name(parse_templates(path.read_bytes(), str(path)), str(path))


def by_name(templates: Sequence[Template], origin: str) -> dict[str, Template]:
    """Templates by name, names sorted. Raises ValueError where a name occurs twice."""
    named = {template.name: template for template in templates}
    if len(named) != len(templates):
        names = [template.name for template in templates]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{origin}: two templates are named {repeated!r}; rename one")
    return {name: named[name] for name in sorted(named)}
