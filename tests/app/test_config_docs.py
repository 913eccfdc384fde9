"""
Laws of the published form
1. The schema in the repository is the one the code makes.
2. docs/configuration.md lists every key with its default and its sentence, as the schema has them.
3. There are at most 80 leaf keys, of which at most 48 are tunable numbers.
4. What the loader accepts fits the schema, and what it refuses for its shape does not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tightrope.app.config import json_schema, parse_config, schema_text
from tightrope.flow.places import parse_yaml
from tightrope.model.errors import InvalidConfig

ROOT = Path(__file__).parents[2]

Key = tuple[str, str, str]
"""(path, default, sentence)"""


def test_1_the_published_schema_is_the_one_the_code_makes() -> None:
    published = (ROOT / "schema" / "tightrope.schema.json").read_text("utf-8")
    assert published == schema_text(), "run `tightrope check --schema > schema/tightrope.schema.json`"


def test_2_the_page_lists_every_key() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text("utf-8")
    missing = [line for line in table_lines() if line not in page]
    assert not missing, "docs/configuration.md lacks:\n" + "\n".join(missing)


def test_2_the_page_lists_no_key_twice_or_in_vain() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text("utf-8")
    listed = [line for line in page.splitlines() if line.startswith("| `")]
    assert sorted(listed) == sorted(table_lines())


def test_2_the_example_of_the_page_can_be_used() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text("utf-8")
    example = page.partition("```yaml\n")[2].partition("```")[0]
    jsonschema.validate(parse_yaml(example).tree, json_schema())
    assert parse_config(example, Path("tightrope.yaml"), {}).config.tenants[0].workflows == (
        "rag",
        "shopping",
    )


def test_3_the_form_stays_small() -> None:
    keys = [(path, node) for path, _, node in leaves(json_schema(), ())]
    names = {path for path, _ in keys}
    numbers = {path for path, node in keys if is_number(node)}
    assert len(names) <= 80
    assert len(numbers) <= 48


GOOD = """
version: 1
server: {listen: "[::1]:0", drain: 30s, timing_header: false}
accelerators: {fast: {cost: 3.90 USD/h, memory: 80GB, count: 2, share: 80%}}
models:
  small:
    engine: {kind: llamacpp, context: 4096 tok, args: {flash-attn: true, seed: 7}}
    place: {fast: {min: 2, cards: 1}}
  theirs:
    engine: {kind: openai}
    replicas: [{url: "http://h/v1", place: fast, key: "${env:KEY}"}]
  own:
    engine: {kind: command, command: [serve, "--port={port}"]}
    place: {fast: {min: 0, max: 1}}
tenants:
  shop: {slo_floor: {ttft: 400ms}, slo: {ttft: 1s}, models: [small], workflows: [rag, {name: shop, slo: {e2e: 3s}}]}
  desk: {floor: 0.5 req/s, models: [small]}
router: {policy: fmware-target}
provisioner: {mode: act, every: 2s, headroom: 0%, max_cost: 12 USD/h, target: 2}
"""


def test_4_what_is_accepted_fits_the_schema() -> None:
    parse_config(GOOD, Path("t.yaml"), {"KEY": "k"})
    jsonschema.validate(parse_yaml(GOOD).tree, json_schema())


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("drain: 30s", "drain: 30"),
        ("drain: 30s", "drian: 30s"),
        ("memory: 80GB", "memory: 80 apples"),
        ("policy: fmware-target", "policy: fmware"),
        ("kind: openai", "kind: opened"),
        ("min: 2", "min: two"),
        ("max: 1", "max: -1"),
        ("floor: 0.5 req/s", "floor: 0.5"),
        ("mode: act", "mode: acts"),
        ("max_cost: 12 USD/h", "max_cost: 12"),
        ("slo_floor: {ttft: 400ms}", "slo_floor: {ttft: 400}"),
        ("url:", "uri:"),
        ("{name: shop,", "{nome: shop,"),
    ],
)
def test_4_what_is_refused_for_its_shape_does_not_fit_the_schema(right: str, wrong: str) -> None:
    text = GOOD.replace(right, wrong)
    with pytest.raises(InvalidConfig):
        parse_config(text, Path("t.yaml"), {"KEY": "k"})
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(parse_yaml(text).tree, json_schema())


def table_lines() -> list[str]:
    """The rows of the table of keys, once each."""
    rows = (f"| `{path}` | {default} | {sentence} |" for path, default, sentence in documented())
    return list(dict.fromkeys(rows))


def documented() -> Iterator[Key]:
    """Every leaf key of the schema."""
    schema = json_schema()
    for path, owner, node in leaves(schema, ()):
        name = path.rsplit(".", 1)[-1]
        required = name in owner.get("required", ())
        yield path, "required" if required else shown(node.get("default")), node.get("description", "")


def leaves(schema: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any, Any]]:
    """(dotted path, the section it is in, its schema) of every leaf."""
    definitions = schema["$defs"]

    def walk(node: Any, path: tuple[str, ...], owner: Any) -> Iterator[tuple[str, Any, Any]]:
        sections = [one for one in (resolved(option) for option in options(node)) if "properties" in one]
        for section in sections:
            for name, child in section["properties"].items():
                yield from walk(child, (*path, name), section)
        if sections:
            return
        mapped = [*node.get("patternProperties", {}).values(), node.get("additionalProperties")]
        inner: Any = next((found for one in mapped if (found := resolved(one))), {})
        listed = resolved(node.get("items") or {})
        if "properties" in inner:
            yield from walk(inner, (*path, "NAME"), owner)
        elif any("properties" in resolved(option) for option in options(listed)):
            yield from walk(listed, (*path[:-1], f"{path[-1]}[]"), owner)
        else:
            yield ".".join(path), owner, node

    def options(node: Any) -> list[Any]:
        return [node, *node.get("anyOf", ()), *node.get("oneOf", ())]

    def resolved(node: Any) -> Any:
        if not isinstance(node, dict):
            return {}
        if "$ref" in node:
            return definitions[node["$ref"].rsplit("/", 1)[-1]]
        return node

    return walk(schema, path, schema)


def is_number(node: Any) -> bool:
    """A number that one may tune: counts, weights, and quantities with units."""
    kinds = [node, *node.get("anyOf", ())]
    return any(
        kind.get("type") in ("integer", "number") or "0-9" in kind.get("pattern", "")[:12] for kind in kinds
    )


def shown(default: Any) -> str:
    """A default as the page shows it."""
    if default is None:
        return "-"
    return f"`{default if isinstance(default, str) else json.dumps(default)}`"
