"""What the hub's absence, refusals and answers become. A local server stands in for the hub."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Iterator

import pytest
from conftest import command

from src import hub

PROBE = "import time; s = time.time(); from src import hub; print(hub.prepare(), time.time() - s < 8)"


@pytest.fixture
def refusing_server() -> Iterator[str]:
    class Refuse(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_error(403)

        def log_message(self, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refuse)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def probe(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> bool:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    hub.prepare.cache_clear()
    try:
        return hub.prepare()
    finally:
        hub.prepare.cache_clear()


def test_a_hub_that_answers_anything_is_there(monkeypatch: pytest.MonkeyPatch, refusing_server: str) -> None:
    assert probe(monkeypatch, refusing_server)


def test_a_hub_that_does_not_answer_is_known_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    start = time.perf_counter()
    assert not probe(monkeypatch, "http://127.0.0.1:9")
    assert time.perf_counter() - start < hub.PROBE_SECONDS + 2


def test_an_unreachable_hub_ends_a_run_within_seconds_in_one_line() -> None:
    start = time.perf_counter()
    done = command(
        "src.run",
        "dataset.source=hub",
        "results_dir=/tmp/never-written",
        HF_ENDPOINT="http://127.0.0.1:9",
        HF_HUB_OFFLINE="0",
    )
    assert time.perf_counter() - start < 40  # most of it importing torch and datasets on a busy machine
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: dataset.source: cais/mmlu: http://127.0.0.1:9 cannot be reached and the cache does not hold it; "
        "use dataset.source=profile or dataset.source=file"
    ]


class GatedRepoError(Exception):
    """Named as the hub's own."""


class RepositoryNotFoundError(Exception):
    """Named as the hub's own."""


def test_refusals_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "prepare", lambda: True)

    def explained(error: Exception) -> hub.UserError:
        outer = OSError("could not load")
        outer.__cause__ = error
        return hub.explain(outer, "model.path", "some/model", "use model.weights=random")

    gated = explained(GatedRepoError("403"))
    assert isinstance(gated, hub.GatedError)
    assert "accept its licence on the hub and log in" in str(gated)
    assert "the hub has no 'some/model' that you may see" in str(explained(RepositoryNotFoundError("404")))
    assert "could not be loaded (OSError: could not load)" in str(explained(ValueError("?")))
