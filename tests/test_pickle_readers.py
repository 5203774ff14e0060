"""No module but io/weights.py reads files that can hold code, and that one as data."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
FORBIDDEN = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
PICKLE_LIVES_IN = Path("basicsr_quant/io/weights.py")
DATA_CALLS = {"torch.load": "weights_only"}
NO_CALLS = {"eval", "exec", "__import__", "compile", "os.system", "os.popen", "yaml.load", "yaml.load_all",
            "yaml.full_load", "yaml.unsafe_load", "torch.jit.load", "torch.package.PackageImporter",
            "torch.export.load", "torch.hub.load", "pd.read_pickle", "pandas.read_pickle"}
LOOKED_AT = (ast.Import, ast.ImportFrom, ast.Attribute, ast.Constant, ast.Call)
NO_KEYWORDS = {"allow_pickle", "trust_remote_code", "shell"}


def sources() -> Iterator[tuple[Path, ast.AST]]:
    for path in [*(REPOSITORY / "basicsr_quant").rglob("*.py"), REPOSITORY / "train.py", REPOSITORY / "test.py"]:
        yield path.relative_to(REPOSITORY), ast.parse(path.read_text())


def dotted(node: ast.AST) -> str:
    """Return ``a.b.c`` of a called name, or an empty text."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def findings(path: Path, node: ast.AST) -> Iterator[str]:
    """Yield what in a node could run the code of a file, or could hide it from this test."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
        if {name.partition(".")[0] for name in names} & FORBIDDEN and path != PICKLE_LIVES_IN:
            yield f"imports {names}"
        if isinstance(node, ast.ImportFrom) and node.module == "torch" and {"load", "jit"} & set(names):
            yield f"imports {names} from torch"
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "pickle" \
            and node.attr != "UnpicklingError":
        yield f"uses pickle.{node.attr}"
    if isinstance(node, ast.Constant) and node.value in FORBIDDEN:
        yield f"names {node.value}"
    if isinstance(node, ast.Call):
        name, keywords = dotted(node.func), {word.arg: word.value for word in node.keywords}
        if name in NO_CALLS or NO_KEYWORDS & set(keywords):
            yield f"calls {ast.unparse(node)}"
        if name in DATA_CALLS:
            safe = keywords.get(DATA_CALLS[name])
            if not (isinstance(safe, ast.Constant) and safe.value is True):
                yield f"calls {ast.unparse(node)}"


def test_no_other_reader_of_pickles_in_the_package() -> None:
    read = list(sources())
    found = [f"{path}: {finding}" for path, tree in read for node in ast.walk(tree) if isinstance(node, LOOKED_AT)
             for finding in findings(path, node)]
    assert not found and len(read) > 100


@pytest.mark.parametrize("code", [
    "import pickle", "from dill import loads", "torch.load(f)", "torch.load(f, weights_only=False)", "eval(x)",
    "torch.load(f, weights_only=flag)", "np.load(f, allow_pickle=True)", "from torch import load", "yaml.load(f)",
    "importlib.import_module('pickle')", "pickle.loads(x)", "torch.jit.load(f)"])
def test_the_search_finds(code: str) -> None:
    assert any(finding for node in ast.walk(ast.parse(code)) for finding in findings(Path("x.py"), node))
