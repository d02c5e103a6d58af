"""Headless Chromium, driven through chromedriver by WebDriver's HTTP and JSON; no further package."""

import contextlib
import json
import re
import shutil
import subprocess
from urllib.request import ProxyHandler, Request, build_opener

ARGUMENTS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run")
MISSING = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]


class Browser:
    """One window of a browser; base: the address of its session."""

    def __init__(self, base):
        self.base = base

    def post(self, command, **words):
        """What the driver answers to a command."""
        return ask(f"{self.base}/{command}", words)

    def tool(self, command, **words):
        """What the browser's DevTools answer to a command."""
        return self.post("goog/cdp/execute", cmd=command, params=words)

    def run(self, script, *words):
        """What a script, the body of a function, returns in the page."""
        return self.post("execute/sync", script=script, args=words)

    def open(self, place, width=1280, dark=False):
        """Show a file, or an address, in a window so wide, in the light or the dark scheme."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.tool("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.tool("Emulation.setEmulatedMedia", features=[scheme])
        self.post("url", url=place if isinstance(place, str) else place.resolve().as_uri())

    def press(self, key):
        """Press and release a key, such as Tab or Enter."""
        codes = {"Tab": (9, ""), "Enter": (13, "\r"), " ": (32, " ")}
        code, text = codes[key]
        words = {"key": key, "code": key.strip() or "Space", "windowsVirtualKeyCode": code}
        self.tool("Input.dispatchKeyEvent", type="keyDown", text=text, **words)
        self.tool("Input.dispatchKeyEvent", type="keyUp", **words)

    def log(self, kind):
        """What was logged since the last call: "browser", the console, or "performance", DevTools' events."""
        return [entry["message"] for entry in self.post("se/log", type=kind)]

    def addresses(self):
        """What the page asked for since the last call."""
        events = [json.loads(message)["message"] for message in self.log("performance")]
        sent = [event for event in events if event["method"] == "Network.requestWillBeSent"]
        return [event["params"]["request"]["url"] for event in sent]

    def picture(self):
        """A PNG of the whole page, in base64."""
        return self.tool("Page.captureScreenshot", captureBeyondViewport=True)["data"]


def ask(address, words, method="POST"):
    """The value in a driver's answer."""
    data = json.dumps(words).encode() if method == "POST" else None
    request = Request(address, data, {"Content-Type": "application/json"}, method=method)
    with build_opener(ProxyHandler({})).open(request, timeout=60) as answer:  # never through a proxy
        return json.load(answer)["value"]


@contextlib.contextmanager
def browser():
    """A Browser; it and its driver are gone at the end of the block."""
    driver = subprocess.Popen(
        ["chromedriver", "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        port = next(filter(None, (re.search(r"successfully on port (\d+)", line) for line in driver.stdout)))[
            1
        ]
        options = {"binary": shutil.which("chromium"), "args": ARGUMENTS}
        wanted = {
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }
        sessions = f"http://127.0.0.1:{port}/session"
        session = ask(sessions, {"capabilities": {"alwaysMatch": wanted}})["sessionId"]
        yield Browser(f"{sessions}/{session}")
        ask(f"{sessions}/{session}", None, "DELETE")
    finally:
        driver.terminate()
        driver.wait()
