#!/usr/bin/env python3
"""Runs the commands of README.md and docs/events.md as a newcomer would: the blocks of the pages themselves, in their order.

Blocks marked `sh` run in one shell, one after the other; a command that fails ends the run. A comment above a block says
what else a person would do:

    <!-- newcomer: background=NAME, until=TEXT -->  a terminal of its own; go on once it has printed TEXT
    <!-- newcomer: stop=NAME -->                    end that terminal's program (Ctrl-C) first
    <!-- newcomer: until=TEXT -->                   repeat the block until it prints TEXT
    <!-- newcomer: expect=TEXT, expect=TEXT -->     its output contains each TEXT
    <!-- newcomer: seconds=N -->                    interrupt it after N seconds
    <!-- newcomer: needs=PROGRAM -->                only where that program is installed
    <!-- newcomer: file=NAME, env=NAME=VALUE -->    a receiver: save the block, run it, and send it an event
    <!-- newcomer: skip -->                         not run

WEFT names the binary, WEFT_NATS_SERVER nats-server; both are found where `make` puts them. The pages name fixed ports, so
the run has a network namespace of its own where the system allows that.
"""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGES = ["README.md", "docs/events.md"]
# Sections whose commands measure, build or test.
SECTIONS_SKIPPED = {"Measure it", "Develop it"}
# How long a program may take to start, and a block to print what it should.
PATIENCE = 90
MARKER = re.compile(r"^<!-- newcomer: (.*) -->$")


class Block:
    def __init__(self, page, line, language, text, options):
        self.place = f"{page}:{line}"
        self.language = language
        self.text = text
        self.options = options

    def all(self, name):
        return [value for key, value in self.options if key == name]

    def one(self, name):
        values = self.all(name)
        return values[0] if values else None


def options_of(text):
    pairs = []
    for part in re.split(r", (?=[a-z]+(?:=|,|$))", text):
        name, _, value = part.partition("=")
        pairs.append((name.strip(), value))
    return pairs


def blocks_of(page):
    """The fenced blocks of a page, with their markers."""
    lines = (ROOT / page).read_text().splitlines()
    found, options, section, at = [], [], "", 0
    while at < len(lines):
        line = lines[at]
        if line.startswith("## "):
            section = line[3:]
        marker = MARKER.match(line)
        if marker:
            options = options_of(marker[1])
        elif line.startswith("```"):
            language, start = line[3:].strip(), at + 1
            at = start
            while lines[at] != "```":
                at += 1
            if section not in SECTIONS_SKIPPED:
                found.append(Block(page, start, language, "\n".join(lines[start:at]), options))
            options = []
        at += 1
    return found


class Program:
    """A program in a terminal of its own."""

    def __init__(self, command, cwd, env, name):
        self.name, self.output, self.lock = name, "", threading.Lock()
        # Its own process group: an interrupt reaches what the shell started, as Ctrl-C does.
        self.process = subprocess.Popen(
            command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self):
        while chunk := self.process.stdout.read1(65536):
            with self.lock:
                self.output += chunk.decode(errors="replace")

    def text(self):
        with self.lock:
            return self.output

    def until(self, wanted, patience=PATIENCE):
        deadline = time.monotonic() + patience
        while wanted not in self.text():
            if self.process.poll() is not None:
                self.reader.join()
                if wanted in self.text():
                    return
                fail(f"{self.name} ended with {self.process.returncode} before it printed {wanted!r}:\n{self.text()}")
            if time.monotonic() > deadline:
                fail(f"{self.name} has not printed {wanted!r} in {patience} s:\n{self.text()}")
            time.sleep(0.05)

    def stop(self):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGINT)
            try:
                self.process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                fail(f"{self.name} does not end when it is interrupted:\n{self.text()}")
        self.reader.join(timeout=10)


def fail(problem):
    raise SystemExit(f"newcomer: {problem}")


class Walk:
    def __init__(self, folder, env):
        self.folder, self.env = folder, env
        self.state = folder / ".shell"
        self.before = f"[ ! -e {self.state} ] || . {self.state}\n"
        self.programs = {}

    def shell(self, text, seconds=None):
        """Runs a block in the shell that all blocks share: variables and exports stay."""
        script = f"""{self.before}
set -e
{text}
set +e
declare -p $(compgen -v | grep -vE '^(BASH|EUID|PPID|SHELLOPTS|UID|FUNCNAME|GROUPS|DIRSTACK|PIPESTATUS|_$|RANDOM|SRANDOM|SECONDS|EPOCH|LINENO|COMP_|HISTCMD|OPT|IFS|PWD|OLDPWD|SHLVL)') > {self.state} 2>/dev/null
exit 0
"""
        program = Program(["bash", "-c", script], self.folder, self.env, "the block")
        if seconds:
            time.sleep(seconds)
            if program.process.poll() is None:
                os.killpg(program.process.pid, signal.SIGINT)
            program.process.wait(timeout=PATIENCE)
            program.reader.join()
            return 0, program.text()
        try:
            code = program.process.wait(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(program.process.pid, signal.SIGKILL)
            fail(f"a command has not ended in {PATIENCE} s:\n{text}\n{program.text()}")
        program.reader.join()
        return code, program.text()

    def run(self, block):
        text = block.text
        if block.one("skip") is not None or not (block.language == "sh" or block.one("file")):
            return
        needed = block.all("needs") or [name for name in ["nats"] if re.search(rf"^{name} ", text, re.MULTILINE)]
        missing = [name for name in needed if shutil.which(name, path=self.env["PATH"]) is None]
        if missing:
            print(f"newcomer: {block.place}: not run: no {missing[0]} here", flush=True)
            return
        print(f"newcomer: {block.place}", flush=True)
        for name in block.all("stop"):
            self.programs.pop(name).stop()
        if block.one("file"):
            self.receive(block)
        elif block.one("background") is not None:
            self.start(block)
        elif block.one("until"):
            self.repeat(block)
        else:
            seconds = block.one("seconds")
            code, output = self.shell(text, float(seconds) if seconds else None)
            if code != 0:
                fail(f"{block.place}: exit code {code}:\n{text}\n{output}")
            self.check(block, output)

    def check(self, block, output):
        for wanted in block.all("expect"):
            if wanted not in output:
                fail(f"{block.place}: {wanted!r} is not in the output of\n{block.text}\n{output}")

    def start(self, block):
        name = block.one("background") or "mesh"
        if name in self.programs:
            self.programs.pop(name).stop()
        self.programs[name] = Program(["bash", "-c", f"{self.before}{block.text}"], self.folder, self.env, f"{block.place} ({name})")
        self.programs[name].until(block.one("until"))

    def repeat(self, block):
        deadline = time.monotonic() + PATIENCE
        while True:
            code, output = self.shell(block.text)
            if code == 0 and block.one("until") in output:
                return
            if time.monotonic() > deadline:
                fail(f"{block.place}: {block.one('until')!r} is not printed in {PATIENCE} s by\n{block.text}\n{output}")
            time.sleep(0.2)

    def receive(self, block):
        """Runs a receiver of the page in place of the one before, and sends an event to it."""
        if "receiver" in self.programs:
            self.programs.pop("receiver").stop()
        name = block.one("file")
        (self.folder / name).write_text(block.text + "\n")
        env = dict(self.env)
        env.update(pair.split("=", 1) for pair in block.all("env"))
        runner = {".py": sys.executable, ".mjs": "node"}[pathlib.Path(name).suffix]
        receiver = Program([runner, name], self.folder, env, block.place)
        self.programs["receiver"] = receiver
        workflow = f"order-{name.replace('.', '-')}"
        secret = re.search(r'verify = .*secrets = \["(.*?)"\]', (ROOT / "examples/quickstart.toml").read_text())[1]
        code, output = self.shell(
            f"weft event send --source shop --workflow {workflow} --type order.paid --data '{{\"total\":100}}' --secret {secret}"
        )
        if code != 0:
            fail(f"{block.place}: {output}")
        receiver.until(workflow)
        receiver.until("100")

    def end(self):
        for name in reversed(list(self.programs)):
            self.programs.pop(name).stop()


def install(blocks, folder):
    """What the pages' receivers say that they need."""
    packages = {"pip": set(), "npm": set()}
    for block in blocks:
        for manager, names in re.findall(r"(pip|npm) install ([a-z0-9 -]+)", block.text if block.one("file") else ""):
            packages[manager].update(names.split())
    if packages["pip"]:
        os.environ["PIP_ROOT_USER_ACTION"] = "ignore"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target"]
        subprocess.run([*command, str(folder / "python"), *packages["pip"]], check=True)
    if packages["npm"]:
        command = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(folder)]
        subprocess.run([*command, *packages["npm"]], check=True)


def lay_out(folder, weft, server):
    """A folder that looks like the repository after `make debug`."""
    for name in ["Makefile", "examples", "nats"]:
        (folder / name).symlink_to(ROOT / name)
    (folder / "target/debug").mkdir(parents=True)
    (folder / "target/debug/weft").symlink_to(weft)
    (folder / "bin").mkdir()
    # `make` with its build done already.
    make = folder / "bin/make"
    make.write_text(f'#!/bin/sh\nexec {shutil.which("make")} -o debug WEFT_NATS_SERVER={server} "$@"\n')
    make.chmod(0o755)
    (folder / "tmp").mkdir()


def main():
    weft = pathlib.Path(os.environ.get("WEFT", ROOT / "target/debug/weft")).resolve()
    server = os.environ.get("WEFT_NATS_SERVER") or subprocess.check_output([ROOT / "nats/server.sh"], text=True).strip()
    blocks = [block for page in PAGES for block in blocks_of(page)]
    if len(sys.argv) == 3 and sys.argv[1] == "--in":
        folder = pathlib.Path(sys.argv[2])
        subprocess.run(["ip", "link", "set", "lo", "up"], check=False)
        return walk(blocks, folder, server)
    folder = pathlib.Path(tempfile.mkdtemp(prefix="weft-newcomer-"))
    try:
        lay_out(folder, weft, server)
        install(blocks, folder)
        unshare = ["unshare", "--net", "--map-root-user"]
        try:
            isolated = subprocess.run([*unshare, "ip", "link", "set", "lo", "up"], capture_output=True).returncode == 0
        except FileNotFoundError:
            isolated = False
        command = [sys.executable, __file__, "--in", str(folder)]
        return subprocess.run([*unshare, *command] if isolated else command).returncode
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def walk(blocks, folder, server):
    env = {name: value for name, value in os.environ.items() if not name.startswith("WEFT_")}
    env["PATH"] = f"{folder / 'bin'}:{env['PATH']}"
    env["PYTHONPATH"] = str(folder / "python")
    env["WEFT_NATS_SERVER"] = server
    walked = Walk(folder, env)
    try:
        for block in blocks:
            walked.run(block)
        walked.end()
    except SystemExit:
        mesh = walked.programs.get("mesh")
        print(f"newcomer: the mesh has printed\n{mesh.text()[-8000:]}" if mesh else "", file=sys.stderr)
        for program in walked.programs.values():
            if program.process.poll() is None:
                os.killpg(program.process.pid, signal.SIGKILL)
        raise
    print("newcomer: every command of the pages works as it is written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
