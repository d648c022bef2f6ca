"""The other end of `selkey.bench.dsa.worker`."""

import contextlib
import json
import subprocess
import sys
import tempfile


class Failed(Exception):
    """A worker could not do it.

    Attributes:
        state: "skip" where something is not installed, else "error".
    """

    def __init__(self, sentence, state="error"):
        super().__init__(sentence)
        self.state = state


class Worker:
    """A process with one implementation; ends with the block.

    Args:
        task: see `selkey.bench.dsa.worker`.

    Raises:
        Failed: it could not start.
    """

    def __init__(self, task):
        self.errors = tempfile.TemporaryFile("w+")
        words = [sys.executable, "-m", "selkey.bench.dsa.worker", json.dumps(task)]
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True)
        try:
            self._answer()
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.errors.close()

    def ask(self, do, **more):
        """The answer to a message. Raises Failed."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps({"do": do} | more) + "\n")
            self.process.stdin.flush()
        return self._answer()

    def time_us(self, do):
        """Microseconds of one call."""
        return self.ask(do)["us"]

    def _answer(self):
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            if code == -9:
                raise Failed("out of memory: the system ended the process")
            self.errors.seek(0)
            last = (self.errors.read().strip().splitlines() or ["no message"])[-1]
            raise Failed(f"its process ended: {last[:300]}")
        answer = json.loads(line)
        if "problem" in answer:
            problem = answer["problem"]
            out_of_memory = "not enough memory" in problem or problem.startswith("MemoryError")
            raise Failed(f"out of memory: {problem}" if out_of_memory else problem, "skip" if answer["missing"] else "error")
        return answer
