"""A headless Chromium over its debugging pipe, for tests of pages: no package, no port, no network."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

PATH = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage", "--hide-scrollbars",
    "--proxy-server=127.0.0.1:9", "--remote-debugging-pipe",
)  # fmt: skip
TIMEOUT_S = 60


class Browser:
    """One tab; every event that the browser tells of it is kept in ``events``."""

    def __init__(self, folder: Path) -> None:
        assert PATH is not None
        # Chromium reads commands from descriptor 3 and answers on 4; high numbers here cannot collide with these.
        (command_in, command_out), (answer_in, answer_out) = (
            [fcntl.fcntl(end, fcntl.F_DUPFD, 20) for end in os.pipe()] for _ in range(2)
        )
        self.process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{command_in} 4>&{answer_out}', "bash", PATH, *FLAGS,
             f"--user-data-dir={folder}", "about:blank"],
            pass_fds=(command_in, answer_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(command_in)
        os.close(answer_out)
        self._out, self._in, self._count, self._rest = command_out, answer_in, 0, b""
        self.events: list[dict[str, Any]] = []
        self.session = ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._out)
        self.process.kill()
        self.process.wait()
        os.close(self._in)

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            chunk = os.read(self._in, 1 << 20)
            if not chunk:
                raise RuntimeError("the browser ended")
            self._rest += chunk
        text, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(text))

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a command of the debugging protocol."""
        self._count += 1
        command = {"id": self._count, "method": method, "params": parameters}
        if self.session:
            command["sessionId"] = self.session
        os.write(self._out, json.dumps(command).encode() + b"\0")
        while True:
            message = self._message()
            if message.get("id") == self._count:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                return dict(message["result"])
            self.events.append(message)

    def open(self, page: Path, width: int, scheme: str = "light") -> None:
        """Load a page at a width in CSS pixels (below 600: as a phone) and a colour scheme."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=800 if width > 600 else 740,
                  deviceScaleFactor=1 if width > 600 else 2, mobile=width < 600)  # fmt: skip
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.events.clear()
        self.call("Page.navigate", url=page.as_uri())
        until = time.monotonic() + TIMEOUT_S
        while self.evaluate("document.readyState + location.protocol") != "completefile:":
            if time.monotonic() > until:
                raise TimeoutError(f"{page} did not load")
            time.sleep(0.02)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"])
        return found["result"].get("value")

    def wait_until(self, expression: str) -> bool:
        """True as soon as a JavaScript expression is; False if it is not within the time-out.

        The page answers some events, a change of the address among them, only after the command that caused them.
        """
        until = time.monotonic() + TIMEOUT_S
        while not self.evaluate(expression):
            if time.monotonic() > until:
                return False
            time.sleep(0.01)
        return True

    def press(self, key: str, text: str = "") -> None:
        """Press and release a key where the focus is."""
        code = {"Enter": 13, "Tab": 9}[key]
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code,
                      **({"text": text} if text and kind == "keyDown" else {}))  # fmt: skip

    def click(self, selector: str) -> None:
        """Click in the middle of an element, as a mouse does."""
        x, y = self.evaluate(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            "e.scrollIntoView({block: 'center', behavior: 'instant'});"
            "const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def screenshot(self, target: Path, whole: bool = True) -> None:
        """The page as PNG, whole or what is in view."""
        found = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        target.write_bytes(base64.b64decode(found["data"]))

    def printed(self, target: Path) -> None:
        """The page as PDF."""
        found = self.call("Page.printToPDF", preferCSSPageSize=True)
        target.write_bytes(base64.b64decode(found["data"]))

    def trouble(self) -> list[str]:
        """Errors of the console and requests to anything but files and data since the page was opened."""
        self.evaluate("0")  # what happened before this has been told when it is answered
        found = []
        for event in self.events:
            what = event.get("params", {})
            if event.get("method") == "Network.requestWillBeSent":
                address = what["request"]["url"]
                found += [] if address.startswith(("file:", "data:")) else [f"request: {address}"]
            told = {"Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled"}
            found += [json.dumps(what)] if event.get("method") in told else []
        return found
