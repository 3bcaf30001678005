"""The stories that are told again on PostgreSQL come together in one module, where the second of a name would take the first one's place."""

import ast
from collections import Counter
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]


def test_no_two_stories_have_one_name():
    gathered = ast.parse((TESTS / "live" / "test_stories.py").read_text(encoding="utf-8"))
    modules = [
        node.module
        for node in gathered.body
        if isinstance(node, ast.ImportFrom) and node.module and any(name.name == "*" for name in node.names)
    ]
    assert len(modules) > 10
    names = Counter(
        node.name
        for module in modules
        for node in ast.parse(
            (TESTS.parent / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
        ).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    )
    assert [name for name, times in names.items() if times > 1] == []
