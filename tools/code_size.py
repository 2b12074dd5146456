"""Print the size of the code in src: public names, lengths of functions, and long files; docstrings are not counted.

    python tools/code_size.py
    python tools/code_size.py --names

Exits with 1 if a limit is exceeded: 138 public top-level names, a median of 6 and a 90th percentile of 20 lines per
function, 300 lines per file. Public names are functions, classes and constants of modules without a leading underscore.
"""

import ast
import statistics
import sys
from pathlib import Path

MAX_NAMES, MAX_MEDIAN, MAX_P90, MAX_FILE = 138, 6, 20, 300


def docstring_lines(node: ast.AST) -> int:
    """Return the number of lines of the docstring of a module, class or function."""
    body = getattr(node, "body", [])
    first = body[0] if isinstance(body, list) and body else None
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        return (first.end_lineno or first.lineno) - first.lineno + 1
    return 0


def public_names(tree: ast.Module) -> list[str]:
    """Return the public top-level functions, classes and constants of a module."""
    names: list[str] = []
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.append(node.name)
        elif isinstance(node, ast.Assign):
            names += [target.id for target in node.targets if isinstance(target, ast.Name)]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.append(node.target.id)
    return [name for name in dict.fromkeys(names) if not name.startswith("_")]


def code_lines(source: str, tree: ast.Module) -> int:
    """Return the lines of a file without docstrings."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    return len(source.splitlines()) - sum(
        docstring_lines(node) for node in ast.walk(tree) if isinstance(node, documented)
    )


def function_lengths(tree: ast.Module) -> list[int]:
    """Return the lines of the body of each function, without its docstring, with nested functions counted twice."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return [(node.end_lineno or 0) - node.body[0].lineno + 1 - docstring_lines(node) for node in functions]


def main() -> None:
    """Print the figures and check the limits."""
    lengths: list[int] = []
    names: list[str] = []
    too_long: list[str] = []
    for path in sorted(Path("src").rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        tree = ast.parse(source)
        lengths += function_lengths(tree)
        module = path.relative_to("src").with_suffix("").as_posix().replace("/", ".")
        if not any(part.startswith("_") for part in module.replace("__init__", "init").split(".")):
            names += [f"{module}.{name}" for name in public_names(tree)]
        if (size := code_lines(source, tree)) > MAX_FILE:
            too_long.append(f"{path}: {size} lines")
    median, p90 = statistics.median(lengths), statistics.quantiles(lengths, n=10)[-1]
    if "--names" in sys.argv:
        print("\n".join(names))
    print(f"{len(names)} public names, {len(lengths)} functions: median {median:g}, 90th percentile {p90:g} lines")
    print("\n".join(too_long) or f"no file over {MAX_FILE} lines")
    sys.exit(len(names) > MAX_NAMES or median > MAX_MEDIAN or p90 > MAX_P90 or bool(too_long))


if __name__ == "__main__":
    main()
