"""What is known of mutants that nothing killed is readable; scenarios are tried in a fair order."""

from __future__ import annotations

import json
import re

from mutation import SURVIVORS, known_survivors
from mutation_build import FILES, PARTS
from mutation_kill import names_to_try, scenario_named, spread

_NAME = re.compile(r"([\w-]+\.c):\d+:\d+:[a-z-]+")


def test_each_survivor_is_a_mutant_of_a_file_that_is_mutated_and_has_its_reason() -> None:
    known = known_survivors()
    for name, survivor in known.items():
        found = _NAME.fullmatch(name)
        assert found is not None and found[1] in {*FILES, *PARTS}, name
        assert type(survivor.equivalent) is bool, name
        kind, colon, detail = survivor.reason.partition(": ")
        assert kind and colon and len(detail) > 20, f"{name}: 'KIND: why' is its reason"
    assert list(json.loads(SURVIVORS.read_text())) == sorted(known), "in the order of their names"


def test_every_chain_comes_soon() -> None:
    scenarios = [one for one in names_to_try() if not one.startswith(("directed/", "verify/"))]
    order = spread(scenarios)
    assert sorted(order) == sorted(scenarios)
    assert order == spread(scenarios)
    first = [scenario_named(name) for name in order[:8]]  # two chains have no qcow2 disks
    assert len({(one.form, one.secondary) for one in first}) == 8, order[:8]
