"""The rules that keep the house readable, checked on every file: arrow, sizes, names, no second copy."""

import ast
import hashlib
import re
from collections import defaultdict
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
PACKAGES = ("core", "models", "optimizers", "distributed", "data", "utils")
SIBLINGS = {"models", "optimizers", "data", "distributed"}
MAY_IMPORT = {
    "utils": {"utils"},
    **{sibling: {sibling, "utils"} for sibling in SIBLINGS},
    "core": {"core", "utils", *SIBLINGS},
    **dict.fromkeys(("tools", "modal", "scripts"), {"core", "utils", *SIBLINGS}),
}
OTHER_FOLDERS = (".ci", ".github", "configs", "docs", "tests")
LARGEST_FILE, LARGEST_FUNCTION, LARGEST_LOOP = 400, 60, 100
LOOP_FILE = "core/training.py"
TESTS_WITHOUT_A_FILE = {"architecture", "configs", "contracts", "golden", "pipeline", "readme", "optimizers_rules"}
TESTS_WITHOUT_A_FILE |= {"bad_input", "full_disk", "interrupts", "kills", "ranks", "every_optimizer"}
MACHINE_PATH = re.compile(r"(?<![\w.~/{}$])/(?:home|Users|root|work|mnt|opt)/\w")


def list_files() -> list[str]:
    """Every file of the project, as paths from the repository; found without git, which a tarball lacks."""
    found = [path for path in REPOSITORY.iterdir() if path.is_file()]
    for folder in (*MAY_IMPORT, *OTHER_FOLDERS):
        found += [path for path in (REPOSITORY / folder).rglob("*") if path.is_file()]
    names = [path.relative_to(REPOSITORY).as_posix() for path in found]
    return sorted(name for name in names if not name.startswith(".git/") and "__pycache__" not in name)


FILES = list_files()
PYTHON_FILES = [name for name in FILES if name.endswith(".py")]
TREES = {name: ast.parse((REPOSITORY / name).read_text(encoding="utf-8"), name) for name in PYTHON_FILES}


def imported_modules(tree: ast.AST) -> list[tuple[int, str]]:
    """Line and dotted name of every import, also those inside functions."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.lineno, "." * node.level + (node.module or "")))
    return found


def find_wrong_imports(name: str, tree: ast.AST) -> list[str]:
    """Imports of a file that go against the arrow; relative ones are wrong everywhere."""
    folder = name.split("/")[0]
    if folder not in MAY_IMPORT:
        return []
    wrong = []
    for line, module in imported_modules(tree):
        top = module.split(".")[0]
        is_ours = top in {*PACKAGES, "tools", "scripts", "tests", ""}
        if is_ours and top not in MAY_IMPORT[folder]:
            wrong.append(f"{name}:{line}: {folder} may not import {module}")
    return wrong


def find_long_functions(name: str, tree: ast.AST) -> list[str]:
    """Functions above the ceiling; one function of the training loop's file may be longer."""
    sizes = [
        ((node.end_lineno or node.lineno) - node.lineno + 1, f"{name}:{node.lineno}: {node.name}")
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    long = sorted((size, where) for size, where in sizes if size > LARGEST_FUNCTION)
    if name == LOOP_FILE and len(long) == 1 and long[0][0] <= LARGEST_LOOP:
        return []
    return [f"{where} has {size} lines" for size, where in long]


def find_duplicates(texts: dict[str, str]) -> list[list[str]]:
    """Groups of files whose code is the same but for blank lines, spaces and comments of their own line."""
    groups = defaultdict(list)
    for name, text in texts.items():
        lines = [" ".join(line.split()) for line in text.splitlines()]
        code = "\n".join(line for line in lines if line and not line.startswith("#"))
        if code:
            groups[hashlib.sha256(code.encode()).hexdigest()].append(name)
    return [sorted(names) for names in groups.values() if len(names) > 1]


def subjects_of(files: list[str]) -> set[str]:
    """The names a test file may carry after `test_`: folder_file, with or without the packages between them.

    What stands beside the tests to help them, and is large enough to be tested itself, goes by its own name.
    """
    subjects = set(TESTS_WITHOUT_A_FILE)
    for name in files:
        path = Path(name)
        if path.parts[0] == "tests" and not path.name.startswith("test_"):
            subjects.add(path.stem)
        if path.parts[0] in MAY_IMPORT and path.suffix in (".py", ".sh"):
            parts = [part.replace("-", "_") for part in path.with_suffix("").parts if part != "__init__"]
            subjects |= {"_".join(parts), f"{parts[0]}_{parts[-1]}"}
    return subjects


def find_machine_paths(text: str) -> list[int]:
    """Lines that hold an absolute path of somebody's machine."""
    return [number for number, line in enumerate(text.splitlines(), 1) if MACHINE_PATH.search(line)]


def test_imports_follow_the_arrow() -> None:
    assert [wrong for name, tree in TREES.items() for wrong in find_wrong_imports(name, tree)] == []


def test_files_stay_below_the_ceiling() -> None:
    sizes = {name: (REPOSITORY / name).read_text().count("\n") for name in PYTHON_FILES}
    assert {name: size for name, size in sizes.items() if size > LARGEST_FILE} == {}


def test_functions_stay_below_the_ceiling() -> None:
    assert [long for name, tree in TREES.items() for long in find_long_functions(name, tree)] == []


def test_every_python_file_says_what_it_is() -> None:
    assert [name for name, tree in TREES.items() if not ast.get_docstring(tree)] == []


def test_source_is_ascii() -> None:
    assert [name for name in PYTHON_FILES if not (REPOSITORY / name).read_bytes().isascii()] == []


def test_nothing_hides_the_modal_client() -> None:
    """A package `modal` of ours, or a module, would be imported in place of the installed one."""
    assert {"modal/__init__.py", "modal/modal.py", "modal.py"}.isdisjoint(FILES)


def test_there_is_no_second_copy() -> None:
    assert find_duplicates({name: (REPOSITORY / name).read_text() for name in PYTHON_FILES}) == []


def test_no_file_names_a_folder_of_one_machine() -> None:
    wrong = {}
    for name in FILES:
        content = (REPOSITORY / name).read_bytes()
        if b"\0" not in content and name != "tests/test_architecture.py":
            wrong[name] = find_machine_paths(content.decode("utf-8", errors="replace"))
    assert {name: lines for name, lines in wrong.items() if lines} == {}


def test_test_files_are_named_after_what_they_test() -> None:
    names = {Path(name).stem for name in PYTHON_FILES if name.startswith("tests/test_")}
    assert {name for name in names if name.removeprefix("test_") not in subjects_of(FILES)} == set()


def test_tables_name_what_exists() -> None:
    """Rows are loaded lazily, so a misspelt one would wait for its first user."""
    rows = {
        (name, node.value)
        for name, tree in TREES.items()
        if name.endswith("__init__.py")
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"[\w.]+:\w+", node.value)
    }
    missing = []
    for name, row in sorted(rows):
        module, _, attribute = row.partition(":")
        tree = TREES.get(module.replace(".", "/") + ".py") or TREES.get(module.replace(".", "/") + "/__init__.py")
        classes = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)} if tree else set()
        if attribute not in classes:
            missing.append(f"{name}: {row}")
    assert missing == []


def test_the_readme_lists_every_file_of_the_house() -> None:
    readme = (REPOSITORY / "README.md").read_text()
    houses = [name for name in PYTHON_FILES if name.split("/")[0] in MAY_IMPORT]
    listed = [name for name in houses if not name.endswith("__init__.py") and Path(name).name not in readme]
    assert listed == []


class TestTheRulesThemselves:
    """Each check sees what it is there to see."""

    @pytest.mark.parametrize(
        ("name", "code", "num_wrong"),
        [
            ("utils/a.py", "from utils.b import c\nimport numpy", 0),
            ("utils/a.py", "import data", 1),
            ("data/a.py", "from models.llama import x", 1),
            ("models/attention/a.py", "def f():\n    import core.training", 1),
            ("core/a.py", "import modal\nfrom models import MODELS\nfrom data.batch import Batch", 0),
            ("core/a.py", "from tools import a\nimport tests.b", 2),
            ("optimizers/a.py", "from . import b", 1),
            ("tests/a.py", "import core, tools", 0),
        ],
    )
    def test_arrow(self, name: str, code: str, num_wrong: int) -> None:
        assert len(find_wrong_imports(name, ast.parse(code))) == num_wrong

    def test_function_ceiling(self) -> None:
        def tree(num_lines: int) -> ast.AST:
            return ast.parse("def f():\n" + "    x = 1\n" * (num_lines - 1))

        assert find_long_functions("core/a.py", tree(60)) == []
        assert len(find_long_functions("core/a.py", tree(61))) == 1
        assert find_long_functions(LOOP_FILE, tree(100)) == []
        assert len(find_long_functions(LOOP_FILE, tree(101))) == 1

    def test_copies(self) -> None:
        texts = {"a": "x = 1\n# why\ny = 2", "b": "\nx =  1\ny = 2\n", "c": "x = 1", "d": "", "e": ""}
        assert find_duplicates(texts) == [["a", "b"]]

    def test_machine_paths(self) -> None:
        text = "cd /home/ann/x\n'/Users/bob'\nsee core/opt/x\nhttps://a.b/home/x\n~/root/x"
        assert find_machine_paths(text) == [1, 2]
