"""Free text in which tags hold JSON: a grammar in which a trigger, once written, goes on as one of its tags.

Knows Lark and what llguidance has for it (docs/syntax.md, "Tool calling"); compiles nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mlxq_worker.dialects.forcing import Literals
from mlxq_worker.schema.rule import Rule, json_rule

_TEXT = "MLXQ_TEXT"


def tagged_text(value: Mapping[str, Any], added: Mapping[str, int]) -> Rule:
    """What stands behind a Lark rule's name, and the rules that it needs.

    Args:
        value: `structures` and `triggers`, as `mlxq.contract.Structure` has them.
        added: the model's added tokens by their texts, which a grammar has to ask for by their ids.

    Raises:
        SchemaError: a tag's schema can't be enforced.
    """
    tags: dict[str, list[Mapping[str, Any]]] = {trigger: [] for trigger in value["triggers"]}
    for tag in value["structures"]:
        tags[max((each for each in tags if tag["begin"].startswith(each)), key=len)].append(tag)
    names: list[str] = []
    lines: list[str] = []
    rules: list[Rule] = []
    for trigger, its_tags in tags.items():
        if its_tags:
            names.append(f"mlxq_tag_{len(names)}")
            inside = [json_rule(tag["schema"]) for tag in its_tags]
            rules += inside
            lines += _rules_of_trigger(names[-1], trigger, its_tags, inside, added)
    source = "\n".join((f"({' | '.join(names)})* mlxq_rest", f"mlxq_rest: {_TEXT}", f"{_TEXT}: /(.|\\n)*/", *lines))
    probes = tuple(probe for rule in rules for probe in rule.probes)
    return Rule(source, probes, tuple(sorted({name for rule in rules for name in rule.formats})))


def _rules_of_trigger(
    name: str, trigger: str, tags: Sequence[Mapping[str, Any]], inside: Sequence[Rule], added: Mapping[str, int]
) -> list[str]:
    parts = [f"{name}_{index}" for index in range(len(tags))]
    literal = Literals(added)
    if trigger in added:  # text never gives such a token, so it needs no looking out for
        head = [f"{name}: {_TEXT} {literal(trigger)} ({' | '.join(parts)})"]
    else:
        head = [
            f"{name}: {name}_trigger ({' | '.join(parts)})",
            f"{name}_trigger[lazy]: {_TEXT} {json.dumps(trigger)}",
        ]
    return head + [
        f"{part}: {literal(tag['begin'][len(trigger) :])} {rule.source} {literal(tag['end'])}"
        for part, tag, rule in zip(parts, tags, inside, strict=True)
    ]
