"""Who may import whom, read from the source."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = {p.stem: p for p in (ROOT / "attribution").glob("*.py")}
PAGES = [ROOT / "app.py", *(ROOT / "pages").rglob("*.py")]


def imports(path: Path) -> set[str]:
    """Every module a file imports, wherever in it; those for type checking only left aside."""
    tree = ast.parse(path.read_text())
    aside: set[ast.AST] = set()
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            aside |= {inner for part in node.body for inner in ast.walk(part)}
        if node in aside:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = "attribution" if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            found.add(module)
            if module in ("attribution", "pages", "pages.parts"):  # from . import index
                found |= {f"{module}.{alias.name}" for alias in node.names}
    return found


def libraries(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


def ours(path: Path) -> set[str]:
    """The modules of the package that a file imports."""
    names = {n.removeprefix("attribution.") for n in imports(path) if n.startswith("attribution.")}
    return names & MODULES.keys()


def test_the_reader_of_imports_sees_them(tmp_path):
    path = tmp_path / "some.py"
    path.write_text(
        "import a.b, c\nfrom d.e import f\nfrom . import index\nfrom .store import Store\n"
        "if TYPE_CHECKING:\n    import g\ndef later():\n    import h\n"
    )
    assert libraries(path) == {"a", "c", "d", "attribution", "h"}
    assert ours(path) == {"index", "store"}
    assert {"engine", "records", "index"} <= MODULES.keys() and len(PAGES) > 4


def test_only_the_app_and_its_pages_import_streamlit():
    files = {*PAGES, *MODULES.values(), *(ROOT / "bench").rglob("*.py")}
    # They open pages as tests do, and as a browser does, in Streamlit's messages.
    opens = {ROOT / "bench" / name for name in ("questions.py", "visitor.py")}
    assert {p for p in files if "streamlit" in libraries(p)} <= {*PAGES, *opens}
    assert any("streamlit" in libraries(p) for p in PAGES)


def test_only_index_and_its_rows_import_faiss():
    assert {name for name, p in MODULES.items() if "faiss" in libraries(p)} == {"index", "rows"}
    assert not any("faiss" in libraries(p) for p in PAGES)


@pytest.mark.parametrize("name", ["gradients", "projection", "estimators", "metrics"])
def test_arithmetic_knows_no_paths_and_no_progress(name):
    assert not libraries(MODULES[name]) & {"pathlib", "os", "io", "shutil", "tempfile", "rich"}
    assert not ours(MODULES[name]) & {"store", "engine", "jobs", "decisions"}


def test_records_imports_nothing_of_ours_and_no_heavy_library():
    assert ours(MODULES["records"]) == set()
    assert libraries(MODULES["records"]) <= sys.stdlib_module_names


def test_there_are_no_cycles():
    graph = {name: ours(path) for name, path in MODULES.items()}
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError with the cycle
    assert order.index("records") < order.index("store") < order.index("engine")


WRITES = {"write_text", "write_bytes", "mkdir", "touch", "rename", "unlink", "rmtree"}


def test_only_the_store_jobs_decisions_and_the_command_line_write():
    writing = set()
    for name, path in MODULES.items():
        called = {
            n.attr for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Attribute)
        }
        if called & WRITES or "sqlite3" in libraries(path):
            writing.add(name)
    # adapters has peft write into the folder of an artifact in the making; tracking, MLflow's files
    assert writing == {
        "store", "jobs", "decisions", "notes", "archives", "adapters", "tracking", "__main__",
    }  # fmt: skip


def test_pages_talk_to_the_engine_and_records():
    # to export, for files to download, and to plain functions of what the engine gave them
    used = set().union(*(ours(p) for p in PAGES))
    plain = {
        "export", "exchange", "imports", "compare", "strategies", "groups", "changes", "revision",
        "report", "audit", "decisions", "evidence", "whatif", "testlabels", "pictures", "archives",
        "estimate", "proposal", "remote", "quantities",
    }  # fmt: skip
    assert used <= {"engine", "making", "build", "stored", "records", "jobs"} | plain


@pytest.mark.parametrize("module", ["attribution", "attribution.engine"])
def test_the_package_loads_without_the_web(module):
    web = ("streamlit", "altair", "plotly", "starlette", "app", "pages")
    script = f"import sys, {module}; print(*({set(web)} & sys.modules.keys()))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "\n"
