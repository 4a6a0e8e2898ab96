#!/usr/bin/env python3
"""Finds words to avoid in documents, comments, texts and tests, with the better form beside each.

Reads *.md (without code), *.proto and *.rs (comments and string literals).
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

AVOID = [
    (r"\bnobody\b", "name the role: no client, no gateway, no process"),
    (r"\b(who|whom|what|which|whose)(so)?ever\b", "name the role; any; regardless of"),
    (r"(?<!Secret to )(?<!\")\b(every|some|any)body\b|\beveryone\b", "name the role: all clients, any caller"),
    (r"\bheed(s|ed|ing)?\b", "apply, enforce, process; ignored"),
    (r"\banew\b", "again; from scratch"),
    (r"\b(go|goes|going|went|gone) on\b", "continue"),
    (r"\bso many\b", "the number; `n`"),
    (r"\bof (its|their|his|her|one's) own\b", "separate, dedicated, local"),
    (r"\bbeside\b", "with, next to; besides"),
    (r"\bmend(s|ed|ing)?\b", "fix, correct, repair"),
    (r"\b(is|are|was|were|be|been|gets|one's) told\b", "is notified, is answered, is given"),
    (r"\btells?\b", "states, reports, shows, distinguishes"),
    (r"\bby (itself|themselves|himself)\b", "automatically; alone"),
    (r"\bin vain\b", "without effect; wasted"),
    (r"\bat the (most|least)\b", "at most, at least"),
    (r"\bheld against\b", "counted as a failure"),
    (r"\b(hand|hands|handed|handing) on\b", "forward"),
    (r"\b(that|what|which) (is|are|was|were) no (?!longer|more)", "that is not a …"),
    (r"\bthe own\b", "the local, its"),
    (r"\bonce more\b", "again"),
    (r"\b(him|his|he|she|her)\b", "it, they; name the role"),
    (r"(?<!for )\bbehind (it|them|that|which|the (first|last|one|end|cursor|commit|position))\b", "after"),
    (r"^ *//[/!] (What|Who|Whom|Whose) ", "begin with what the item is: a noun"),
    (r"^ *//[/!] (Which|Its \w+|Whose|Who)\.$", "say what it is, or leave it out"),
    (r"\bone \w+ an? (shard|stream|lane|request|scheme|role)\b", "per"),
]
# A module's documentation.
TITLE = re.compile(r"//! (Whether|How|Which|That|When|Where)\b")
PATTERNS = [(re.compile(pattern, re.IGNORECASE if pattern[0] != "^" else 0), better) for pattern, better in AVOID]


def prose(path, text):
    """The lines of a file without what is not prose."""
    if path.endswith(".md"):
        text = re.sub(r"^( *)```.*?^\1```$", lambda match: "\n" * match[0].count("\n"), text, flags=re.DOTALL | re.MULTILINE)
        return re.sub(r"`[^`\n]*`", "`", text).split("\n")
    pieces = r'//.*|"(?:\\.|[^"\\])*"' if path.endswith(".rs") else r"//.*"
    return [" ".join(re.findall(pieces, line)) for line in text.split("\n")]


def main():
    files = subprocess.run(["git", "ls-files", "*.md", "*.rs", "*.proto"], cwd=ROOT, capture_output=True, text=True, check=True)
    failed = False
    for path in files.stdout.split():
        if not (ROOT / path).exists():
            continue
        for number, line in enumerate(prose(path, (ROOT / path).read_text()), 1):
            if number == 1 and (found := TITLE.match(line)):
                print(f"{path}:1: “{found[0]}”: begin with what the module is: a noun")
                failed = True
            for pattern, better in PATTERNS:
                if found := pattern.search(line):
                    print(f"{path}:{number}: “{found[0].strip()}”: {better}")
                    failed = True
    return failed


if __name__ == "__main__":
    sys.exit(main())
