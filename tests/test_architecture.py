"""The house rules that a machine can check: layers, one public door, documented public names."""

import ast
import dataclasses
import inspect
import os
import pathlib
import re
import shutil
import subprocess
import sys
import textwrap

import pytest

import bilevel
from bilevel import (
    diagnostics,
    discrete,
    linear,
    programs,
    projections,
    proximal,
    sampling,
    sharding,
    testing,
    training,
)

ROOT = pathlib.Path(__file__).parent.parent

# Imports point down: a module may import its own layer's package or a lower layer.
LAYERS = {
    "bilevel._bytecode": 0,
    "bilevel._carried": 0,
    "bilevel._check": 0,
    "bilevel._describe": 0,
    "bilevel._fingerprint": 0,
    "bilevel._version": 0,
    "bilevel._tree": 0,
    "bilevel._derivatives": 0,
    "bilevel._vector": 0,
    "bilevel._hidden_state": 0,
    "bilevel._permutation": 0,
    "bilevel._problem": 0,
    "bilevel._stateful": 0,
    "bilevel._algorithm": 0,
    "bilevel._cpu_operations": 0,
    "bilevel._fast_on_cpu": 0,
    "bilevel.discrete": 0,
    "bilevel.programs": 0,
    "bilevel.projections": 0,
    "bilevel.proximal": 0,
    "bilevel.sampling": 0,
    "bilevel.linear": 1,
    "bilevel.solvers": 1,
    "bilevel.rules": 2,
    "bilevel._hypergrad_status": 1,
    "bilevel._summary": 1,
    "bilevel._hypergradient": 3,
    "bilevel._rounding": 3,
    "bilevel._corrected": 3,
    "bilevel._evolution": 3,
    "bilevel._settings": 3,
    "bilevel._descent": 3,
    "bilevel._directions": 3,
    "bilevel._finite_sum": 3,
    "bilevel._momentum": 3,
    "bilevel._series": 3,
    "bilevel._penalty": 3,
    "bilevel.algorithms": 4,
    "bilevel.diagnostics": 5,
    "bilevel.testing": 5,
    "bilevel.sharding": 6,
    "bilevel.training": 6,
    "bilevel._command": 6,
}
# Siblings in these packages must not know each other.
INDEPENDENT = ("bilevel.algorithms",)

MODULES = sorted((ROOT / "bilevel").rglob("*.py"))
PUBLIC_DOOR = ROOT / "bilevel" / "__init__.py"


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def unit(name):
    """The entry of LAYERS that `name` belongs to: its first two components."""
    return ".".join(name.split(".")[:2])


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            # `from bilevel import _tree` names a module, `from bilevel.x import y` a member.
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            private = [n for n in names if re.search(r"\._[a-z]\w*$", n)]
            yield from names if node.module == "bilevel" else private or (node.module,)


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_point_down(path):
    if path == PUBLIC_DOOR:
        return
    own = module_name(path)
    assert unit(own) in LAYERS, f"{own} has no layer: add it to LAYERS and to docs/design.md"
    for target in (name for name in imports(path) if name.startswith("bilevel")):
        assert LAYERS[unit(target)] <= LAYERS[unit(own)], f"{own} imports {target} from above"
        if unit(own) in INDEPENDENT and own != unit(own):
            assert unit(target) != unit(own), f"{own} imports its sibling {target}"


def test_the_design_shows_these_layers():
    page = (ROOT / "docs" / "design.md").read_text()
    shown, layer = {}, None
    for row in re.search(r"-- bilevel -+\n(.*?)\n\n", page, re.DOTALL).group(1).splitlines():
        layer = int(row[4]) if row[4].isdigit() else layer
        names = row[7:].split("(")[0].split()
        shown |= {f"bilevel.{name.removesuffix('/*')}": layer for name in names}
    assert shown == LAYERS


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_no_private_module_is_imported_across_packages(path):
    """Of another package only what its `__init__` offers; `bilevel._x` is everybody's."""
    own = module_name(path)
    for target in imports(path):
        inside = target.startswith("bilevel.") and "._" in target.removeprefix("bilevel.")
        assert not inside or unit(target) == unit(own), f"{own} imports {target}"


APPLICATIONS = sorted((ROOT / "applications").rglob("*.py"))
FAMILIES = (
    "unlearning",
    "coresets",
    "condensing",
    "transfer_pruning",
    "calibrating",
    "bounding",
    "keys",
    "rehearsal",
    "attributing",
    "language",
)
"""Of methods: they know `components` and themselves; pages know all of these and no other page."""
STAND_ON = {"rehearsal": {"coresets", "condensing"}}


def own_imports(path):
    """The first component below `applications` of everything that a module imports from there."""
    depth = len(path.relative_to(ROOT / "applications").parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == depth:
            names = [node.module] if node.module else [alias.name for alias in node.names]
            yield from (name.split(".")[0] for name in names)


@pytest.mark.parametrize("path", APPLICATIONS, ids=module_name)
def test_the_applications_have_layers(path):
    targets = set(own_imports(path)) - {"PAGES"}
    room = path.relative_to(ROOT / "applications").parts[0]
    if room == "components":
        assert not targets, f"{path} imports {targets} from above"
    elif room in FAMILIES:
        below = {"components"} | STAND_ON.get(room, set())
        assert targets <= below, f"{path} imports {targets}"
    else:
        assert targets <= {"components", *FAMILIES}, f"{path} imports another page: {targets}"
    # So that they work from a source tree and from a wheel, where they lie elsewhere.
    assert not [n for n in imports(path) if n.startswith("applications")], "imports are relative"


@pytest.mark.parametrize("path", APPLICATIONS, ids=module_name)
def test_application_files_are_short_and_open_with_a_sentence(path):
    test_files_are_short_and_open_with_a_sentence(path)


@pytest.mark.parametrize("folder", ["applications", "benchmarks"])
def test_applications_use_the_public_door_only(folder):
    for path in sorted((ROOT / folder).rglob("*.py")):
        private = [n for n in imports(path) if n.startswith("bilevel") and "._" in n]
        assert not private, f"{path} imports {private}"


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_files_are_short_and_open_with_a_sentence(path):
    text = path.read_text()
    assert text.startswith('"""'), "a module opens with what it is"
    assert len(text.splitlines()) <= 260
    assert path.stem not in {"utils", "helpers", "misc", "base"}


PUBLIC_MODULES = (
    bilevel,
    diagnostics,
    discrete,
    linear,
    programs,
    projections,
    proximal,
    sampling,
    sharding,
    testing,
    training,
)


def public_objects():
    for module in PUBLIC_MODULES:
        names = getattr(module, "__all__", None) or [
            n for n, v in vars(module).items() if getattr(v, "__module__", "") == module.__name__
        ]
        for name in names:
            value = getattr(module, name)
            if not name.startswith("_") and callable(value):
                yield f"{module.__name__}.{name}", value


PUBLIC_NAMES = [name for name, _ in public_objects()]


@pytest.mark.parametrize(("name", "value"), list(public_objects()), ids=PUBLIC_NAMES)
def test_public_names_are_documented_and_annotated(name, value):
    assert value.__doc__ and len(value.__doc__) > 30
    if inspect.isfunction(value):
        signature = inspect.signature(value)
        assert signature.return_annotation is not inspect.Signature.empty
        for parameter in signature.parameters.values():
            assert parameter.annotation is not inspect.Parameter.empty, parameter.name
            assert f"{parameter.name}:" in value.__doc__, f"{parameter.name} is not explained"
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            assert field.name in value.__doc__, f"{field.name} is not explained"


def test_nothing_reads_pickles():
    for folder in ("bilevel", "applications", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text()
            assert "import pickle" not in text and "allow_pickle=True" not in text, path


# One of these words says what an array holds: its shape, or what it is shaped like.
SHAPE_WORDS = r"scalar|\blike\b|shape|pytree|\bleaf\b|\bleaves\b|axis|length|dimension|`\["


def raised_by(value):
    """Names of the exceptions that the source of a function or class raises by itself."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(value)))
    for node in ast.walk(tree):
        match node:
            case ast.Raise(exc=ast.Call(func=ast.Name(id=name))):
                yield name


def documented_text(value):
    """The docstring, with those of the public methods of a class."""
    methods = (
        [m for n, m in vars(value).items() if not n.startswith("_")]
        if inspect.isclass(value)
        else []
    )
    texts = [inspect.getdoc(v) for v in (value, *methods) if callable(v) or isinstance(v, property)]
    return "\n".join(filter(None, texts))


@pytest.mark.parametrize(("name", "value"), list(public_objects()), ids=PUBLIC_NAMES)
def test_public_names_say_their_shapes_and_errors(name, value):
    if not (inspect.isfunction(value) or inspect.isclass(value)):
        return
    text = documented_text(value)
    for error in set(raised_by(value)):
        assert "Raises:" in text and error in text, f"{name} raises {error} and does not say so"
    if inspect.isfunction(value):
        annotations = " ".join(
            str(p.annotation) for p in inspect.signature(value).parameters.values()
        )
        if re.search(r"Array|PyTree|typing\.Any", annotations):
            assert re.search(SHAPE_WORDS, text), f"{name} does not say the shapes of its arrays"


@pytest.mark.parametrize(("name", "value"), list(public_objects()), ids=PUBLIC_NAMES)
def test_public_methods_are_annotated(name, value):
    for method_name, method in vars(value).items() if inspect.isclass(value) else ():
        if method_name.startswith("_") or not inspect.isfunction(method):
            continue
        assert method.__doc__, f"{name}.{method_name} has no docstring"
        signature = inspect.signature(method)
        assert signature.return_annotation is not inspect.Signature.empty, method_name
        for parameter in list(signature.parameters.values())[1:]:
            assert parameter.annotation is not inspect.Parameter.empty, (method_name, parameter)


def test_importing_loads_nothing_heavy():
    """The core needs JAX, Optax and NumPy; the rest waits until it is used."""
    heavy = ("orbax", "flax", "matplotlib", "sklearn", "rich", "tyro", "tensorboardX", "torch")
    code = (
        "import sys, jax, optax; before = set(sys.modules); import bilevel;"
        f"print([m for m in set(sys.modules) - before if m.split('.')[0] in {heavy}])"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.stdout.strip() == "[]", run.stdout + run.stderr


def test_the_skeleton_works_when_copied_into_the_package(tmp_path):
    """As docs/new-algorithm.md and CONTRIBUTING.md say: its file, and a line in both doors."""
    page = (ROOT / "docs" / "new-algorithm.md").read_text()
    skeleton, check = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    shutil.copytree(ROOT / "bilevel", tmp_path / "bilevel")
    package = tmp_path / "bilevel" / "algorithms"
    (package / "_my_method.py").write_text(skeleton)
    for door, line in (
        (package / "__init__.py", "from bilevel.algorithms._my_method import Alternating\n"),
        (package.parent / "__init__.py", "from bilevel.algorithms import Alternating\n"),
    ):
        door.write_text(door.read_text() + line)
    for target in imports(package / "_my_method.py"):
        if target.startswith("bilevel"):
            assert LAYERS[unit(target)] <= LAYERS["bilevel.algorithms"]
    code = f"import optax\nfrom bilevel import Alternating\n{check}\nprint(Alternating.__module__)"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert run.stdout.strip() == "bilevel.algorithms._my_method", run.stdout + run.stderr
