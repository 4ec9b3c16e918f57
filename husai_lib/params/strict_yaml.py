"""YAML as strictly as parameters need it: plain values under identifiers, each given once."""

import copy
import reprlib
from collections.abc import Hashable, Iterable
from typing import Any

import yaml

from husai_lib.errors import ParameterError


class _Loader(yaml.SafeLoader):
    """Refuses anchors, aliases, tags, endless numbers, and keys that are no identifiers or given twice."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]  # PyYAML's stubs leave it out
        if isinstance(event, yaml.AliasEvent) or event.anchor or event.tag:
            line = event.start_mark.line + 1
            raise ParameterError(f"line {line}: anchors, aliases and tags are not allowed; write the plain value")
        return super().compose_node(parent, index)

    def construct_yaml_int(self, node: Any) -> int:
        number: int = super().construct_yaml_int(node)
        if abs(number) >= 2**63:
            line = node.start_mark.line + 1
            raise ParameterError(f"line {line}: {reprlib.repr(node.value)} is too large; numbers have at most 63 bits")
        return number

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            where = f"line {key.start_mark.line + 1}: the key {reprlib.repr(key.value)}"
            if key.tag != "tag:yaml.org,2002:str" or not key.value.isidentifier():
                raise ParameterError(f"{where} is not a plain name; keys are identifiers")
            if key.value in seen:
                raise ParameterError(f"{where} is given twice; keep one")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def parse_yaml(text: str, source: str) -> dict[str, Any]:
    """`text` as a mapping, under the strict rules; error messages call it `source`."""
    try:
        data = yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader that allows less
    except ParameterError as error:
        raise ParameterError(f"{source}, {error}") from None
    except RecursionError:
        raise ParameterError(f"{source}: nested too deeply; write the parameters flat") from None
    except (yaml.YAMLError, ValueError) as error:
        problem = " ".join(str(error).split())
        raise ParameterError(f"{source}: not valid YAML ({problem}); compare params/quickstart.yaml") from None
    if not isinstance(data, dict):
        raise ParameterError(f"{source}: holds no mapping of keys to values; start from params/quickstart.yaml")
    return data


def override(data: dict[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """`data` with each `a.b=value` of the command line applied; the value is read as YAML."""
    data = copy.deepcopy(data)
    for assignment in assignments:
        dotted, equals, text = assignment.partition("=")
        *sections, key = dotted.strip().split(".")
        if not equals or not all(part.isidentifier() for part in [*sections, key]):
            raise ParameterError(f"--set {assignment}: write key=value, such as --set sae.k=16")
        place = data
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise ParameterError(f"--set {assignment}: {section!r} has no keys of its own; set it whole")
        place[key] = parse_yaml(f"value: {' '.join(text.splitlines())}", f"--set {assignment}")["value"]
    return data
