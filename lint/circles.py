#!/usr/bin/env python3
"""Prints circles of imports between the files of a crate, and exits with 1 if there is one.

An edge is a path (`crate::`, `super::`, `self::`, or a child module) to an item of another file; names that a file imports or
re-exports lead to where they are defined. Tests do not count. A file and its own ancestors may name each other: a parent
declares its children, and they share its types.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
USE = re.compile(r"\b(pub(?:\([^)]*\))?\s+)?use\s+([^;]+);")
INLINE = re.compile(r"(?<![:\w])((?:crate|self|super)(?:::\w+)+)")
NOISE = re.compile(r'//[^\n]*|/\*.*?\*/|r#*".*?"#*|"(?:\\.|[^"\\])*"', re.DOTALL)


def flatten(tree, prefix=()):
    """The paths of a `use` tree, each with the name it binds: `a::{b, c as d}` is (a, b) as b and (a, c) as d."""
    depth, start, parts = 0, 0, []
    for i, char in enumerate(tree):
        depth += (char == "{") - (char == "}")
        if char == "," and depth == 0:
            parts.append(tree[start:i])
            start = i + 1
    for part in filter(None, (part.strip() for part in [*parts, tree[start:]])):
        head, brace, rest = part.partition("{")
        if brace:
            yield from flatten(rest.rpartition("}")[0], prefix + tuple(filter(None, re.split(r"::|\s", head))))
            continue
        path, _, alias = part.partition(" as ")
        path = prefix + tuple(step.strip() for step in path.split("::"))
        if path[-1] == "self":
            path = path[:-1]
        yield path, alias.strip() or path[-1]


class Crate:
    def __init__(self, source):
        self.texts, self.names, self.uses = {}, {}, {}
        for file in sorted(source.rglob("*.rs")):
            parts = file.relative_to(source).with_suffix("").parts
            if not {"tests", "bin"} & set(parts) and parts != ("main",):
                text = re.split(r"#\[cfg\(test\)\]\s*mod \w+ \{", NOISE.sub(" ", file.read_text()))[0]
                self.texts[parts[:-1] if parts[-1] in ("lib", "mod") else parts] = text
        for module, text in self.texts.items():
            found = [entry for match in USE.finditer(text) for entry in flatten(match[2])]
            self.names[module] = {name: path for path, name in found}
            inline = [tuple(path.split("::")) for path in INLINE.findall(USE.sub("", text))]
            self.uses[module] = {path for path, _ in found} | set(inline)

    def resolve(self, module, path, depth=0):
        """The file that defines what `path` names, as seen from `module`."""
        at = module
        if path[0] == "crate":
            at, path = (), path[1:]
        elif path[0] in ("self", "super"):
            while path and path[0] in ("self", "super"):
                at, path = (at[:-1] if path[0] == "super" else at), path[1:]
        elif module + path[:1] not in self.texts:
            return None
        while path and at + path[:1] in self.texts:
            at, path = at + path[:1], path[1:]
        further = self.names.get(at, {}).get(path[0]) if path else None
        if further and further[0] != path[0] and depth < 8:
            return self.resolve(at, further, depth + 1)
        return at if at in self.texts else None

    def circles(self):
        edges = {}
        for module, paths in self.uses.items():
            targets = {self.resolve(module, path) for path in paths} - {None, module}
            edges[module] = {to for to in targets if module[: len(to)] != to and to[: len(module)] != module}
        reach = {module: self.reachable(edges, module) for module in edges}
        groups = {frozenset(m for m in reach[n] if n in reach[m]) for n in edges if n in reach[n]}
        return sorted(sorted("::".join(module) for module in group) for group in groups)

    @staticmethod
    def reachable(edges, start):
        seen, todo = set(), list(edges[start])
        while todo:
            module = todo.pop()
            if module not in seen:
                seen.add(module)
                todo += edges[module]
        return seen


def main():
    found = [
        f"circle of imports: {source.parent.name}: {' '.join(group)}"
        for source in sorted(ROOT.glob("*/src"))
        for group in Crate(source).circles()
    ]
    print(*found, sep="\n", end="\n" if found else "")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
