"""Who may import whom, read off the syntax trees of both packages: nothing is imported to find out.

Every rule is a function from `Module`s to a list of violations, so that it is also tried on small sources that
break it. An allow-list that has to grow is a decision: extend it here, in the change that needs it.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {"mlxq": ROOT / "producer" / "mlxq", "mlxq_worker": ROOT / "worker" / "mlxq_worker"}

ENGINE = "mlxq_worker.engine"
ENGINE_MAY_SEE = frozenset({"mlxq.contract", "mlxq.errors", "mlxq_worker.blas"})
"""What `engine/` may import of our own code, beside itself."""
ENGINE_NEVER_SEES = frozenset({"click", "fakeredis", "redis", "rq"})

ENGINE_DOOR = f"{ENGINE}.api"
"""What everybody else sees of the engine."""
ENGINE_BUILDER = "mlxq_worker.backend"
"""The one module that sees more of it, since it builds one."""

FLOORS: Mapping[str, tuple[frozenset[str], ...]] = {
    "mlxq": (
        frozenset(
            {"contract", "errors", "jobs", "keys", "logs", "machine", "passing", "printable", "sentinel", "storage"}
            | {"versions"}
        ),
        frozenset({"deploying", "formats", "requests", "results"}),
        frozenset({"offline", "queue", "tables"}),
        frozenset({"aio", "files", "metrics"}),
        frozenset({"serve"}),
        frozenset({"cli"}),
        frozenset({"__main__"}),
    ),
    "mlxq.serve": (
        frozenset({"store"}),
        frozenset({"live", "work"}),
        frozenset({"api"}),
        frozenset({"http_server"}),
        frozenset({"server"}),
    ),
    "mlxq_worker": (
        frozenset({"blas"}),
        frozenset({"engine", "exits", "host", "processes", "schema", "startup", "step_watch", "timing", "traces"}),
        frozenset({"demo", "messages", "metrics"}),
        frozenset({"decoding", "model", "prepared"}),
        frozenset({"dialects"}),
        frozenset({"config", "text"}),
        frozenset({"backend", "jobs"}),
        frozenset({"offline", "supervision", "worker"}),
        frozenset({"commands"}),
    ),
    ENGINE: (
        frozenset({"constraint", "reasoning"}),
        frozenset({"api"}),
        frozenset({"kvcache"}),
        frozenset({"rows"}),
        frozenset({"plan"}),
        frozenset({"scheduling", "sampling"}),
        frozenset({"runners"}),
        frozenset({"engine"}),
    ),
}
"""The folders and modules right inside a package, from the ground up. Each may import those of lower floors and
itself; the package's own `__init__`, its public face, may import all. In the engine, who decides (`scheduling`) and who
computes (`runners`, over `sampling`) meet in the plan, and only `engine` knows both."""

MAX_LINES = 400
MAX_MODULES = 13
"""In one folder, its `__init__` apart."""

MLX = frozenset({"mlx", "mlx_lm"})
MLX_FOLDERS = frozenset(
    {f"{ENGINE}.kvcache", f"{ENGINE}.runners", f"{ENGINE}.sampling", "mlxq_worker.model", "mlxq_worker.demo"}
)
"""Who may import MLX."""
WITHOUT_MLX = frozenset(
    {
        f"{ENGINE}.kvcache.budget",
        f"{ENGINE}.kvcache.fit",
        f"{ENGINE}.kvcache.gpu_costs",
        f"{ENGINE}.kvcache.prefix",
        f"{ENGINE}.kvcache.row_numbers",
        f"{ENGINE}.kvcache.slot_allocator",
        f"{ENGINE}.sampling.edits",
        f"{ENGINE}.sampling.uniform",
        "mlxq_worker.demo.tasks",
        "mlxq_worker.model.chat",
        "mlxq_worker.model.chat_shape",
        "mlxq_worker.model.config_json.layers",
        "mlxq_worker.model.config_json.rope",
        "mlxq_worker.model.config_json.words",
        "mlxq_worker.model.eos",
        "mlxq_worker.model.generation",
        "mlxq_worker.model.safetensors",
        "mlxq_worker.model.turn_end",
    }
)
"""Modules of those folders that decide things without arrays, and stay plain Python."""

WORKER_NAMES_LIVE_IN = frozenset({"mlxq", "mlxq.cli"})
"""The light modules that name worker modules: as strings, for what is imported when it is asked for. The former also
does so for type checkers."""
WORKER_NAME = re.compile(r"mlxq_worker(\.\w+)*(:\w+)?")

PRINTERS = frozenset({"mlxq.cli", "mlxq.cli.terminal"})
"""Who may write to a terminal: the latter, and who prints the version before anything else is imported."""

RQ_PUBLIC = frozenset(
    {"rq", "rq.command", "rq.defaults", "rq.exceptions", "rq.job", "rq.queue", "rq.serializers", "rq.worker"}
)
RQ_INTERNALS: Mapping[str, frozenset[str]] = {
    "mlxq.queue": frozenset({"rq.registry", "rq.results", "rq.utils", "rq.worker_registration"}),
    "mlxq_worker.jobs": frozenset({"rq.utils", "rq.worker_registration"}),
    "mlxq_worker.supervision": frozenset({"rq.utils", "rq.worker_registration"}),
    "mlxq_worker.worker": frozenset({"rq.logutils"}),
}
"""Which other modules of RQ a folder may touch: they change between RQ's releases."""
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
    num_lines: int = 0
    is_package: bool = False

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
    return [_read(_dotted(name, path.relative_to(folder)), path) for path in sorted(folder.rglob("*.py"))]


def _read(name: str, path: Path) -> Module:
    source = path.read_text(encoding="utf-8")
    return Module(name, ast.parse(source, str(path)), len(source.splitlines()), path.stem == "__init__")


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
        if found.is_of("mlxq_worker") and not (module.name in WORKER_NAMES_LIVE_IN and found.for_types_only)
    ]


def light_names_worker(modules: Iterable[Module]) -> list[str]:
    """A module name in a string is an import that the rule above can't see, so there is one place for them."""
    return [
        f"{module.name}:{node.lineno} names {node.value}"
        for module in modules
        if module.is_inside("mlxq") and module.name not in WORKER_NAMES_LIVE_IN
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


def engine_seen_from_outside(modules: Iterable[Module]) -> list[str]:
    """Everybody else knows the engine by its interface, so that its inside can change."""
    return [
        f"{module.name}:{found.line} imports {found.full_name}"
        for module in modules
        if not module.is_inside(ENGINE) and module.name != ENGINE_BUILDER
        for found in module.imports
        if f"{found.full_name}.".startswith(f"{ENGINE}.") and not f"{found.full_name}.".startswith(f"{ENGINE_DOOR}.")
    ]


def imports_upwards(modules: Iterable[Module]) -> list[str]:
    """Arrows between the folders of a package point downwards; an import for types alone is an arrow, too."""
    listed = list(modules)
    return [violation for package in FLOORS for violation in _upwards_in(package, listed)]


def _upwards_in(package: str, modules: Iterable[Module]) -> Iterator[str]:
    floor_of = {name: number for number, floor in enumerate(FLOORS[package]) for name in floor}
    for module in modules:
        own = _part_of(package, module.name)
        if not own:
            continue
        if own not in floor_of:
            yield f"{module.name} is on no floor"
            continue
        for found in module.imports:
            target = _part_of(package, found.full_name)
            if target and target != own and floor_of[own] <= floor_of.get(target, len(floor_of)):
                yield f"{module.name}:{found.line} imports {found.full_name}"


def _part_of(package: str, name: str) -> str:
    """The folder or module right inside the package that a dotted name is in; empty if none."""
    return name.removeprefix(f"{package}.").split(".")[0] if name.startswith(f"{package}.") else ""


def too_long(modules: Iterable[Module]) -> list[str]:
    """A module that takes an hour to read has more than one job."""
    return [f"{module.name} has {module.num_lines} lines" for module in modules if module.num_lines > MAX_LINES]


def too_full(modules: Iterable[Module]) -> list[str]:
    """A folder is taken in at a glance."""
    counts = Counter(module.name.rpartition(".")[0] for module in modules if not module.is_package)
    return [f"{folder} has {count} modules" for folder, count in counts.items() if count > MAX_MODULES]


def class_names_twice(modules: Iterable[Module]) -> list[str]:
    """A name that means two things has to be told apart by its import."""
    homes: dict[str, list[str]] = {}
    for module in modules:
        for node in module.tree.body:
            if isinstance(node, ast.ClassDef):
                homes.setdefault(node.name, []).append(module.name)
    return [f"{name} is in {' and in '.join(where)}" for name, where in homes.items() if len(where) > 1]


def prints_unescaped(modules: Iterable[Module]) -> list[str]:
    """Foreign text must not reach a terminal as it is: only one module writes there."""
    return [
        f"{module.name}:{node.lineno} calls {name}"
        for module in modules
        if (module.is_inside("mlxq.cli") or module.is_inside("mlxq_worker.commands")) and module.name not in PRINTERS
        for node in ast.walk(module.tree)
        if (name := ast.unparse(node)) in ("click.echo", "click.secho", "print", "Text") and isinstance(node, ast.expr)
    ]


def mlx_imported_elsewhere(modules: Iterable[Module]) -> list[str]:
    """Everything else runs, and is tested, without MLX."""
    return [
        f"{module.name}:{found.line} imports {found.full_name}"
        for module in modules
        if module.name in WITHOUT_MLX or not any(module.is_inside(folder) for folder in MLX_FOLDERS)
        for found in module.imports
        if found.is_of(*MLX)
    ]


def rq_internals_imported_elsewhere(modules: Iterable[Module]) -> list[str]:
    """What a new RQ may break is known by folder."""
    return [
        f"{module.name}:{found.line} imports {found.full_name}"
        for module in modules
        if module.name != RQ_WRITER
        for found in module.imports
        if found.is_of("rq") and _rq_module(found) not in RQ_PUBLIC | _internals_for(module)
    ]


def _internals_for(module: Module) -> frozenset[str]:
    return frozenset().union(*(allowed for folder, allowed in RQ_INTERNALS.items() if module.is_inside(folder)))


def _rq_module(found: Import) -> str:
    """What ``from rq import ...`` takes is a class by its capital, and otherwise counts as a module."""
    is_module = found.module == "rq" and found.name is not None and found.name.islower()
    return found.full_name if is_module else found.module


def import_cycles(modules: Iterable[Module]) -> list[str]:
    """Every way back to a module on the path from it. Imports inside functions count, and those for types alone: what
    is late, or only read by a type checker, is still in a circle."""
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
            target for found in module.imports if (target := found.target(names)) in names and target != module.name
        }
        for module in modules
    }


# --- They hold ------------------------------------------------------------------------------------------------


@cache
def modules() -> list[Module]:
    """Those of both packages, read when a test first asks, so that nobody else who collects this file reads them."""
    return [module for name, folder in PACKAGES.items() for module in read_package(name, folder)]


def test_both_packages_are_found() -> None:
    names = {module.name for module in modules()}

    assert {"mlxq", "mlxq.contract", "mlxq_worker", "mlxq_worker.engine.rows.row"} <= names


def test_the_light_package_never_imports_the_worker() -> None:
    assert light_imports_worker(modules()) == []


def test_only_the_command_table_names_worker_modules() -> None:
    assert light_names_worker(modules()) == []


def test_the_engine_sees_no_queue_no_command_line_and_nothing_of_the_worker_around_it() -> None:
    assert engine_imports_outside(modules()) == []


def test_nobody_else_sees_more_of_the_engine_than_its_interface() -> None:
    assert engine_seen_from_outside(modules()) == []


def test_folders_import_downwards_only() -> None:
    assert imports_upwards(modules()) == []


def test_no_class_of_either_package_has_the_name_of_another() -> None:
    assert class_names_twice(modules()) == []


def test_no_test_connects_to_redis_with_the_short_patience_that_redis_py_has_by_itself() -> None:
    own = [
        f"{path.name}: {line.strip()}"
        for path in (ROOT / "tests").rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(r"\bRedis(\.from_url\(|\((port|host|unix_socket_path)=)", line) and "socket_timeout=" not in line
        if path.parent.name != "bench"
    ]
    assert own == [], "take redis_at, of tests.support.redis_at"


@pytest.mark.parametrize("package", FLOORS)
def test_every_floor_is_there(package: str) -> None:
    names = {_part_of(package, module.name) for module in modules()} - {""}

    assert names == frozenset().union(*FLOORS[package])


def test_commands_print_through_the_one_module_that_escapes() -> None:
    assert prints_unescaped(modules()) == []


def test_no_module_is_too_long_and_no_folder_too_full() -> None:
    assert too_long(modules()) == []
    assert too_full(modules()) == []


def test_only_a_few_folders_import_mlx() -> None:
    assert mlx_imported_elsewhere(modules()) == []


def test_rq_internals_are_touched_in_known_folders_only() -> None:
    assert rq_internals_imported_elsewhere(modules()) == []


def test_no_module_imports_itself_in_a_circle() -> None:
    assert import_cycles(modules()) == []


def test_no_allow_list_names_a_module_that_is_gone() -> None:
    names = {module.name for module in modules()}
    listed = {*MLX_FOLDERS, *WITHOUT_MLX, *RQ_INTERNALS, *ENGINE_MAY_SEE, ENGINE_DOOR, ENGINE_BUILDER}

    assert (listed | WORKER_NAMES_LIVE_IN | {RQ_WRITER}) - names == set()


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

    assert len(imports_upwards([guilty])) == 1


def test_an_engine_module_may_import_its_own_folder_and_lower_floors() -> None:
    source = f"from {ENGINE}.runners import layout\nfrom {ENGINE}.plan import Plan\nfrom {ENGINE}.api import RowSpec"

    assert imports_upwards([module(f"{ENGINE}.runners.packed", source)]) == []


@pytest.mark.parametrize(
    ("name", "upwards"),
    [
        ("mlxq.requests.fields", "mlxq.results"),
        ("mlxq.queue.batch", "mlxq.files.output.sink"),
        ("mlxq.files.bulk", "mlxq.cli.progress"),
        ("mlxq_worker.messages", "mlxq_worker.jobs.store"),
        ("mlxq_worker.text.prompt", "mlxq_worker.jobs.endings"),
        ("mlxq_worker.jobs.store", "mlxq_worker.supervision.supervisor"),
    ],
)
def test_a_module_outside_the_engine_that_imports_one_of_a_higher_floor_is_found(name: str, upwards: str) -> None:
    assert imports_upwards([module(name, f"from {upwards} import x")]) == [f"{name}:1 imports {upwards}.x"]


def test_a_module_that_sees_more_of_the_engine_than_its_interface_is_found() -> None:
    source = f"from {ENGINE}.api import RowSpec\nfrom {ENGINE}.rows.row import Row\nfrom {ENGINE} import plan\n"

    assert engine_seen_from_outside([module("mlxq_worker.decoding.loop", source)]) == [
        f"mlxq_worker.decoding.loop:2 imports {ENGINE}.rows.row.Row",
        f"mlxq_worker.decoding.loop:3 imports {ENGINE}.plan",
    ]
    assert engine_seen_from_outside([module(ENGINE_BUILDER, source)]) == []


def test_a_long_module_and_a_full_folder_are_found() -> None:
    empty = ast.parse("")
    folder = [Module(f"mlxq.queue.m{index}", empty) for index in range(MAX_MODULES + 1)]

    assert too_long([Module("mlxq.long", empty, MAX_LINES + 1)]) == [f"mlxq.long has {MAX_LINES + 1} lines"]
    assert too_full([*folder, Module("mlxq.queue", empty, is_package=True)]) == [
        f"mlxq.queue has {MAX_MODULES + 1} modules"
    ]
    assert too_full(folder[1:]) == []


def test_a_plain_module_of_a_folder_with_arrays_that_imports_mlx_is_found() -> None:
    assert mlx_imported_elsewhere([module(f"{ENGINE}.kvcache.slots", "import mlx.core")]) == []
    assert len(mlx_imported_elsewhere([module(f"{ENGINE}.kvcache.prefix", "import mlx.core")])) == 1


def test_an_engine_folder_that_is_on_no_floor_is_found() -> None:
    assert imports_upwards([module(f"{ENGINE}.attic.box", "import numpy")]) == [f"{ENGINE}.attic.box is on no floor"]


def test_a_class_name_that_two_modules_have_is_found() -> None:
    guilty = [module("mlxq.a", "class Batch: ..."), module("mlxq_worker.b", "class Batch: ...\nclass Row: ...")]

    assert class_names_twice(guilty) == ["Batch is in mlxq.a and in mlxq_worker.b"]


def test_a_module_that_imports_mlx_without_leave_is_found() -> None:
    source = "import mlx.core as mx\nfrom mlx_lm import load\nimport mlxq"

    assert mlx_imported_elsewhere([module("mlxq_worker.worker", source)]) == [
        "mlxq_worker.worker:1 imports mlx.core",
        "mlxq_worker.worker:2 imports mlx_lm.load",
    ]


def test_a_command_that_prints_by_itself_is_found() -> None:
    source = "import click\nfrom mlxq.cli.terminal import say\nclick.echo('x')\nsay('y')"

    assert prints_unescaped([module("mlxq.cli.status", source), module("mlxq.files.input", source)]) == [
        "mlxq.cli.status:3 calls click.echo"
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


def test_an_import_for_types_alone_is_an_import() -> None:
    a = module("mlxq.a", "from mlxq import b")
    b = module("mlxq.b", "if TYPE_CHECKING:\n    from mlxq import a\n    from mlxq_worker.model import Model\n")

    assert import_cycles([a, b]) == ["mlxq.a -> mlxq.b -> mlxq.a"]
    assert light_imports_worker([a, b]) == ["mlxq.b:3 imports mlxq_worker.model.Model"]
