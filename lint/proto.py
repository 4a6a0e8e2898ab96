#!/usr/bin/env python3
"""Prints breaches of the rules for proto files, and exits with 1 if there is one.

The rules are those of buf's category STANDARD, but for the exceptions in `buf.yaml`, and one for lists:

* the package is the folder, and ends with a version; a file's name is lower_snake_case
* messages, enums, services and methods are PascalCase, fields lower_snake_case, values of enums UPPER_SNAKE_CASE with the
  enum's name before them; the first is <ENUM>_UNSPECIFIED = 0
* services end with `Service`, but for the one that users implement
* a file that clients compile imports none of `weft.internal`: records of the log, and what the roles send each other
* a request with `page_token` has `uint32 page_size`, and its response a list and `string next_page_token`
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent / "proto" / "proto"
# Implemented by receivers, and named by the contract.
SERVICES_WITHOUT_SUFFIX = {"EventHandler"}
PASCAL = re.compile(r"[A-Z][A-Za-z0-9]*$")
SNAKE = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*$")
BLOCK = re.compile(r"^\s*(message|enum|service|oneof)\s+(\w+)\s*\{")
FIELD = re.compile(r"^\s*(optional\s+|repeated\s+)?([\w.]+(?:<[^>]*>)?)\s+(\w+)\s*=\s*\d+")
VALUE = re.compile(r"^\s*(\w+)\s*=\s*(-?\d+)")
IMPORT = re.compile(r'^\s*import\s+(?:public\s+|weak\s+)?"([^"]+)"')
INTERNAL = "weft/internal/"
METHOD = re.compile(r"^\s*rpc\s+(\w+)\s*\((?:stream\s+)?([\w.]+)\)\s*returns\s*\((?:stream\s+)?([\w.]+)\)")


def upper_snake(name):
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).upper()


def check(path):
    """The breaches of a file, and its messages and methods."""
    folder, breaches, stack = path.parent.relative_to(ROOT), [], []
    messages, methods = {}, []
    package = None

    def breach(line, text):
        breaches.append(f"{path.relative_to(ROOT.parent.parent)}:{line}: {text}")

    if not SNAKE.match(path.stem):
        breach(1, "a file's name is lower_snake_case")
    for number, text in enumerate(path.read_text().splitlines(), 1):
        code = text.split("//")[0]
        if found := re.match(r"\s*package\s+([\w.]+);", code):
            package = found[1]
            if package.replace(".", "/") != str(folder) or not re.search(r"\.v\d+$", package):
                breach(number, f"package {package} is not that of its folder, or has no version")
        if (found := IMPORT.match(code)) and found[1].startswith(INTERNAL) and not f"{folder}/".startswith(INTERNAL):
            breach(number, f"imports {found[1]}, which is not for clients")
        if found := BLOCK.match(code):
            kind, name = found.groups()
            stack.append((kind, name))
            if kind != "oneof" and not PASCAL.match(name):
                breach(number, f"{kind} {name} is not PascalCase")
            if kind == "service" and not name.endswith("Service") and name not in SERVICES_WITHOUT_SUFFIX:
                breach(number, f"service {name} does not end with Service")
            if kind == "message":
                messages[name] = {}
            code = code[found.end() :]
        if not stack:
            continue
        kind, name = stack[-1]
        if kind == "enum" and (found := VALUE.match(code)):
            prefix = upper_snake(name) + "_"
            if not found[1].startswith(prefix):
                breach(number, f"{found[1]} does not begin with {prefix}")
            if found[2] == "0" and found[1] != prefix + "UNSPECIFIED":
                breach(number, f"the value 0 of {name} is not {prefix}UNSPECIFIED")
        elif kind == "service" and (found := METHOD.match(code)):
            methods.append((number, *found.groups()))
            if not PASCAL.match(found[1]):
                breach(number, f"method {found[1]} is not PascalCase")
        elif kind in ("message", "oneof") and (found := FIELD.match(code)):
            if not SNAKE.match(found[3]):
                breach(number, f"field {found[3]} is not lower_snake_case")
            owner = next((name for kind, name in reversed(stack) if kind == "message"), None)
            if owner:
                messages[owner][found[3]] = ((found[1] or "").strip(), found[2])
        for char in code:
            if char == "}" and stack:
                stack.pop()
            elif char == "{":
                stack.append(("other", ""))
    if package is None:
        breach(1, "has no package")
    for number, name, request, response in methods:
        fields = messages.get(request, {})
        if "page_token" not in fields:
            if "next_page_token" in messages.get(response, {}):
                breach(number, f"{name} answers next_page_token, but {request} takes no page_token")
            continue
        if fields.get("page_size") != ("", "uint32") or fields["page_token"] != ("", "string"):
            breach(number, f"{request} has no uint32 page_size, or page_token is no string")
        answer = messages.get(response, {})
        if answer.get("next_page_token") != ("", "string") or not any(kind == "repeated" for kind, _ in answer.values()):
            breach(number, f"{response} has no list, or no string next_page_token")
    return breaches


def main():
    files = sorted(ROOT.rglob("*.proto"))
    breaches = [breach for path in files for breach in check(path)]
    print("\n".join(breaches) if breaches else f"{len(files)} proto files keep the rules")
    sys.exit(1 if breaches else 0)


main()
