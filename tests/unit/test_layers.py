"""Who may import whom, read off the syntax trees of both packages: nothing is imported to find out.

Every rule is a function from `Module`s to a list of violations, so that it is also tried on small sources that
break it. An allow-list that has to grow is a decision: extend it here, in the change that needs it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {"mlxq": ROOT / "producer" / "mlxq", "mlxq_worker": ROOT / "worker" / "mlxq_worker"}

ENGINE = "mlxq_worker.engine"
ENGINE_MAY_SEE = frozenset({"mlxq.contract", "mlxq.errors"})
"""What `engine/` may import of our own code, beside itself."""
ENGINE_NEVER_SEES = frozenset({"click", "fakeredis", "redis", "rq"})

ENGINE_FLOORS: tuple[frozenset[str], ...] = (
    frozenset({"constraint", "reasoning"}),
    frozenset({"api"}),
    frozenset({"kvcache"}),
    frozenset({"rows"}),
    frozenset({"plan"}),
    frozenset({"scheduling", "sampling"}),
    frozenset({"runners"}),
    frozenset({"engine"}),
)
"""The folders and modules of `engine/`, from the ground up. Each may import those of lower floors and itself: who
decides (`scheduling`) and who computes (`runners`, over `sampling`) meet in the plan, and only `engine` knows both."""

MLX = frozenset({"mlx", "mlx_lm"})
MLX_CALLERS = frozenset(
    {
        "mlxq_worker.model.load",
        "mlxq_worker.model.reasoning",
        "mlxq_worker.model.tool_formats",
        "mlxq_worker.engine.runners.activation",
        "mlxq_worker.engine.runners.attention",
        "mlxq_worker.engine.sampling.token_sampler",
        "mlxq_worker.engine.runners.layout",
        "mlxq_worker.engine.sampling.logprobs",
        "mlxq_worker.engine.sampling.masks",
        "mlxq_worker.engine.kvcache.memory",
        "mlxq_worker.engine.runners.packed",
        "mlxq_worker.engine.runners.padded",
        "mlxq_worker.engine.sampling.processors",
        "mlxq_worker.engine.runners.runner",
        "mlxq_worker.engine.kvcache.slab",
        "mlxq_worker.engine.kvcache.slots",
        "mlxq_worker.engine.runners.slot_cache",
        "mlxq_worker.engine.runners.step_timing",
        "mlxq_worker.engine.sampling.batch_sampler",
        "mlxq_worker.demo.evaluate",
        "mlxq_worker.demo.training",
    }
)

WORKER_NAMES_LIVE_IN = "mlxq.cli"
"""The light module that names worker modules: as strings, for commands that are imported when they are called."""
WORKER_NAME = re.compile(r"mlxq_worker(\.\w+)*(:\w+)?")

RQ_PUBLIC = frozenset(
    {"rq", "rq.command", "rq.defaults", "rq.exceptions", "rq.job", "rq.queue", "rq.serializers", "rq.worker"}
)
RQ_INTERNALS: Mapping[str, frozenset[str]] = {
    "mlxq.queue.answers": frozenset({"rq.registry", "rq.results"}),
    "mlxq.queue.cancel": frozenset({"rq.registry", "rq.results", "rq.utils"}),
    "mlxq.queue.client": frozenset({"rq.worker_registration"}),
    "mlxq.queue.reconcile": frozenset({"rq.registry"}),
    "mlxq_worker.jobs.claimed": frozenset({"rq.utils"}),
    "mlxq_worker.jobs.presence": frozenset({"rq.worker_registration"}),
    "mlxq_worker.supervision.dead_workers": frozenset({"rq.utils", "rq.worker_registration"}),
    "mlxq_worker.worker": frozenset({"rq.logutils"}),
}
"""Which other modules of RQ a module may touch: they change between RQ's releases."""
RQ_WRITER = "mlxq_worker.jobs.store"
"""The one module that may touch all of RQ."""


@dataclass(frozen=True)
class Import:
    """One import statement's target: a dotted module name, and maybe the name taken from it."""

    module: str
    name: str | None
    line: int
    for_types_only: bool

    def is_of(self, *tops: str) -> bool:
        return self.module.split(".")[0] in tops

    @property
    def full_name(self) -> str:
        return f"{self.module}.{self.name}" if self.name else self.module

    def target(self, modules: Iterable[str]) -> str:
        """The module that is meant: ``from a import b`` means ``a.b`` if that is a module."""
        return self.full_name if self.full_name in modules else self.module


@dataclass(frozen=True)
class Module:
    """One source file by its dotted name."""

    name: str
    tree: ast.Module

    @cached_property
    def imports(self) -> list[Import]:
        return list(_imports(self.tree, for_types_only=False))

    def is_inside(self, package: str) -> bool:
        return self.name == package or self.name.startswith(f"{package}.")


def _imports(node: ast.AST, *, for_types_only: bool) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        yield from (Import(alias.name, None, node.lineno, for_types_only) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield from (Import(node.module or "", alias.name, node.lineno, for_types_only) for alias in node.names)
    elif isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
        for guarded in node.body:
            yield from _imports(guarded, for_types_only=True)
        for otherwise in node.orelse:
            yield from _imports(otherwise, for_types_only=for_types_only)
    else:
        for child in ast.iter_child_nodes(node):
            yield from _imports(child, for_types_only=for_types_only)


def read_package(name: str, folder: Path) -> list[Module]:
    """Every module of one package."""
    return [
        Module(_dotted(name, path.relative_to(folder)), ast.parse(path.read_text(encoding="utf-8"), str(path)))
        for path in sorted(folder.rglob("*.py"))
    ]


def _dotted(package: str, path: Path) -> str:
    parts = (package, *path.with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


# --- The rules ------------------------------------------------------------------------------------------------


def light_imports_worker(modules: Iterable[Module]) -> list[str]:
    """Producers never need the worker package."""
    return [
        f"{module.name}:{found.line} imports {found.full_name}"
        for module in modules
        if module.is_inside("mlxq")
        for found in module.imports
        if found.is_of("mlxq_worker")
    ]


def light_names_worker(modules: Iterable[Module]) -> list[str]:
    """A module name in a string is an import that the rule above can't see, so there is one place for them."""
    return [
        f"{module.name}:{node.lineno} names {node.value}"
        for module in modules
        if module.is_inside("mlxq") and module.name != WORKER_NAMES_LIVE_IN
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and WORKER_NAME.fullmatch(node.value)
    ]


def engine_imports_outside(modules: Iterable[Module]) -> list[str]:
    """The engine knows rows and arrays; queues, commands and configuration are somebody else's."""
    return [
        f"{module.name}:{found.line} imports {found.full_name}"
        for module in modules
        if module.is_inside(ENGINE)
        for found in module.imports
        if not _engine_may_import(found)
    ]


def _engine_may_import(found: Import) -> bool:
    if found.is_of("mlxq", "mlxq_worker"):
        inside = f"{found.module}.".startswith(f"{ENGINE}.")
        return inside or not ENGINE_MAY_SEE.isdisjoint({found.module, found.full_name})
    return not found.is_of(*ENGINE_NEVER_SEES)


def engine_imports_upwards(modules: Iterable[Module]) -> list[str]:
    """Arrows between the folders of the engine point downwards; an import for types alone is an arrow, too."""
    violations = []
    for module in modules:
        own = _engine_folder(module.name)
        if own and own not in _FLOOR_OF:
            violations.append(f"{module.name} is on no floor")
            continue
        for found in module.imports:
            target = _engine_folder(found.full_name)
            if own and target and target != own and _FLOOR_OF[own] <= _FLOOR_OF.get(target, len(ENGINE_FLOORS)):
                violations.append(f"{module.name}:{found.line} imports {found.full_name}")
    return violations


_FLOOR_OF = {name: number for number, floor in enumerate(ENGINE_FLOORS) for name in floor}


def _engine_folder(name: str) -> str:
    """The folder or module right inside the engine that a dotted name is in; empty if none."""
    return name.removeprefix(f"{ENGINE}.").split(".")[0] if name.startswith(f"{ENGINE}.") else ""


def mlx_imported_elsewhere(modules: Iterable[Module]) -> list[str]:
    """Everything else runs, and is tested, without MLX."""
    return [
        f"{module.name}:{found.line} imports {found.full_name}"
        for module in modules
        if module.name not in MLX_CALLERS
        for found in module.imports
        if found.is_of(*MLX)
    ]


def rq_internals_imported_elsewhere(modules: Iterable[Module]) -> list[str]:
    """What a new RQ may break is known by file."""
    return [
        f"{module.name}:{found.line} imports {found.full_name}"
        for module in modules
        if module.name != RQ_WRITER
        for found in module.imports
        if found.is_of("rq") and _rq_module(found) not in RQ_PUBLIC | RQ_INTERNALS.get(module.name, frozenset())
    ]


def _rq_module(found: Import) -> str:
    """What ``from rq import ...`` takes is a class by its capital, and otherwise counts as a module."""
    is_module = found.module == "rq" and found.name is not None and found.name.islower()
    return found.full_name if is_module else found.module


def import_cycles(modules: Iterable[Module]) -> list[str]:
    """Every way back to a module on the path from it. Imports inside functions count: late is still in a circle."""
    graph = _graph(list(modules))
    cycles: list[str] = []
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            cycles.append(" -> ".join((*path[path.index(name) :], name)))
        elif name not in done:
            for target in sorted(graph[name]):
                visit(target, (*path, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())
    return cycles


def _graph(modules: list[Module]) -> dict[str, set[str]]:
    names = {module.name for module in modules}
    return {
        module.name: {
            target for found in module.imports if not found.for_types_only and (target := found.target(names)) in names
        }
        for module in modules
    }


# --- They hold ------------------------------------------------------------------------------------------------

MODULES = [module for name, folder in PACKAGES.items() for module in read_package(name, folder)]


def test_both_packages_are_found() -> None:
    names = {module.name for module in MODULES}

    assert {"mlxq", "mlxq.contract", "mlxq_worker", "mlxq_worker.engine.rows.row"} <= names


def test_the_light_package_never_imports_the_worker() -> None:
    assert light_imports_worker(MODULES) == []


def test_only_the_command_table_names_worker_modules() -> None:
    assert light_names_worker(MODULES) == []


def test_the_engine_sees_no_queue_no_command_line_and_nothing_of_the_worker_around_it() -> None:
    assert engine_imports_outside(MODULES) == []


def test_the_folders_of_the_engine_import_downwards_only() -> None:
    assert engine_imports_upwards(MODULES) == []


def test_every_floor_of_the_engine_is_there() -> None:
    names = {_engine_folder(module.name) for module in MODULES} - {""}

    assert names == _FLOOR_OF.keys()


def test_only_a_few_modules_import_mlx() -> None:
    assert mlx_imported_elsewhere(MODULES) == []


def test_rq_internals_are_touched_in_known_files_only() -> None:
    assert rq_internals_imported_elsewhere(MODULES) == []


def test_no_module_imports_itself_in_a_circle() -> None:
    assert import_cycles(MODULES) == []


def test_no_allow_list_names_a_module_that_is_gone() -> None:
    names = {module.name for module in MODULES}

    assert {*MLX_CALLERS, *RQ_INTERNALS, *ENGINE_MAY_SEE, WORKER_NAMES_LIVE_IN, RQ_WRITER} - names == set()


# --- They can fail --------------------------------------------------------------------------------------------


def module(name: str, source: str) -> Module:
    return Module(name, ast.parse(source))


def test_a_light_module_that_imports_the_worker_is_found_also_inside_a_function() -> None:
    guilty = module("mlxq.bulk", "def run():\n    from mlxq_worker.worker import BatchWorker\n")

    assert light_imports_worker([guilty]) == ["mlxq.bulk:2 imports mlxq_worker.worker.BatchWorker"]


def test_a_light_module_that_names_a_worker_module_in_a_string_is_found() -> None:
    source = "import_module('mlxq_worker.main')"

    assert light_names_worker([module("mlxq.bulk", source)]) == ["mlxq.bulk:1 names mlxq_worker.main"]
    assert light_names_worker([module("mlxq.cli", source)]) == []


def test_a_sentence_that_mentions_the_worker_package_is_no_module_name() -> None:
    assert light_names_worker([module("mlxq.bulk", "'mlxq_worker decodes them'")]) == []


def test_an_engine_module_that_imports_a_queue_or_its_surroundings_is_found() -> None:
    source = "import redis.client\nfrom mlxq_worker import config\nfrom mlxq.client import Client\n"

    assert engine_imports_outside([module("mlxq_worker.engine.runner", source)]) == [
        "mlxq_worker.engine.runner:1 imports redis.client",
        "mlxq_worker.engine.runner:2 imports mlxq_worker.config",
        "mlxq_worker.engine.runner:3 imports mlxq.client.Client",
    ]


def test_the_engine_may_import_itself_the_contract_and_arrays() -> None:
    ours = "from mlxq_worker.engine import row\nfrom mlxq.contract import Usage\nfrom mlxq import contract\n"
    source = ours + "import mlx.core"

    assert engine_imports_outside([module("mlxq_worker.engine.runner", source)]) == []


@pytest.mark.parametrize(
    ("name", "upwards"),
    [
        (f"{ENGINE}.constraint", "api"),
        (f"{ENGINE}.api", "rows.row"),
        (f"{ENGINE}.kvcache.prefix", "rows.row"),
        (f"{ENGINE}.rows.row", "plan"),
        (f"{ENGINE}.plan", "scheduling.scheduler"),
        (f"{ENGINE}.scheduling.scheduler", "sampling.masks"),
        (f"{ENGINE}.sampling.masks", "scheduling.scheduler"),
        (f"{ENGINE}.sampling.masks", "runners.packed"),
        (f"{ENGINE}.runners.packed", "engine"),
    ],
)
@pytest.mark.parametrize("source", ["from {} import x", "if TYPE_CHECKING:\n    from {} import x"])
def test_an_engine_module_that_imports_one_of_a_higher_floor_is_found_also_for_types_alone(
    name: str, upwards: str, source: str
) -> None:
    guilty = module(name, source.format(f"{ENGINE}.{upwards}"))

    assert len(engine_imports_upwards([guilty])) == 1


def test_an_engine_module_may_import_its_own_folder_and_lower_floors() -> None:
    source = f"from {ENGINE}.runners import layout\nfrom {ENGINE}.plan import Plan\nfrom {ENGINE}.api import RowSpec"

    assert engine_imports_upwards([module(f"{ENGINE}.runners.packed", source)]) == []


def test_an_engine_folder_that_is_on_no_floor_is_found() -> None:
    assert engine_imports_upwards([module(f"{ENGINE}.attic.box", "import numpy")]) == [
        f"{ENGINE}.attic.box is on no floor"
    ]


def test_a_module_that_imports_mlx_without_leave_is_found() -> None:
    source = "import mlx.core as mx\nfrom mlx_lm import load\nimport mlxq"

    assert mlx_imported_elsewhere([module("mlxq_worker.worker", source)]) == [
        "mlxq_worker.worker:1 imports mlx.core",
        "mlxq_worker.worker:2 imports mlx_lm.load",
    ]


def test_a_module_that_imports_rq_internals_without_leave_is_found() -> None:
    source = (
        "from rq.job import Job\nfrom rq import Queue\nfrom rq.registry import StartedJobRegistry\nfrom rq import utils"
    )

    assert rq_internals_imported_elsewhere([module("mlxq_worker.worker", source)]) == [
        "mlxq_worker.worker:3 imports rq.registry.StartedJobRegistry",
        "mlxq_worker.worker:4 imports rq.utils",
    ]


def test_the_writer_of_jobs_may_import_all_of_rq() -> None:
    assert rq_internals_imported_elsewhere([module("mlxq_worker.jobs.store", "import rq.executions")]) == []


def test_a_cycle_over_three_modules_is_found_once() -> None:
    a = module("p.a", "from p import b")
    b = module("p.b", "import p.c")
    c = module("p.c", "def late():\n    from p.a import thing")

    assert import_cycles([a, b, c]) == ["p.a -> p.b -> p.c -> p.a"]


def test_a_package_may_reexport_a_module_that_imports_its_sibling() -> None:
    package = module("p", "from p.a import A")
    a = module("p.a", "from p import b")
    b = module("p.b", "")

    assert import_cycles([package, a, b]) == []


def test_an_import_for_types_alone_makes_no_cycle_but_is_seen_by_the_other_rules() -> None:
    a = module("mlxq.a", "from mlxq import b")
    b = module("mlxq.b", "if TYPE_CHECKING:\n    from mlxq import a\n    from mlxq_worker.model import Model\n")

    assert import_cycles([a, b]) == []
    assert light_imports_worker([a, b]) == ["mlxq.b:3 imports mlxq_worker.model.Model"]
