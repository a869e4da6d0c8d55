"""What docs/security.md promises of the package's own code: nothing that came from outside is run."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "sapwood"
MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "dill",
    "cloudpickle",
    "marshal",
    "shelve",
    "joblib",
    "code",
    "codeop",
    "xmlrpc",
}
CALLS = {"eval", "exec", "compile", "__import__"}
METHODS = {"os.system", "os.popen", "os.execv", "torch.load", "yaml.load", "yaml.unsafe_load", "numpy.load", "np.load"}
WORDS = {"trust_remote_code", "allow_pickle", "shell"}


def dangers(source: str) -> Iterator[tuple[int, str]]:
    """Lines that run, or may run, what they are given."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                found = {name.name.partition(".")[0] for name in names} & MODULES
            case ast.ImportFrom(module=str(module)):
                found = {module.partition(".")[0]} & MODULES
            case ast.Call(func=ast.Name(id=name)) if name in CALLS:
                found = {name}
            case ast.Attribute() if ast.unparse(node) in METHODS:
                found = {ast.unparse(node)}
            case ast.keyword(arg=str(word), value=value):
                said = isinstance(value, ast.Constant) and not value.value
                found = set() if said else {word} & WORDS
            case ast.Constant(value="trust_remote_code"):
                found = {"trust_remote_code"}
            case _:
                continue
        for one in sorted(found):
            yield getattr(node, "lineno", 0), one


def test_nothing_from_outside_is_run() -> None:
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 200
    found = [
        f"{path.relative_to(PACKAGE)}:{line}: {what}"
        for path in files
        for line, what in dangers(path.read_text("utf-8"))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import marshal as m",
        "eval('1')",
        "exec(text)",
        "compile(text, '', 'exec')",
        "os.system(x)",
        "torch.load(path)",
        "subprocess.run(x, shell=True)",
        "load(trust_remote_code=given)",
        "np.load(path, allow_pickle=True)",
        "options = {'trust_remote_code': True}",
    ],
)
def test_what_would_is_seen(source: str) -> None:
    assert [*dangers(source)]


def test_what_would_not_is_not() -> None:
    assert not [*dangers("re.compile('x'); run(x, shell=False); model.eval(); loop.create_subprocess_exec(x)")]
