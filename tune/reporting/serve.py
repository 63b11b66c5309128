"""Serves a run's page on this machine alone, and tells it when trials have reported. Read-only.

Starlette and uvicorn serve it; news go to the browser as server-sent events (EventSource in the HTML standard).
"""

import asyncio
import html
import json
import os
import secrets
import socket
import threading
import webbrowser
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from myllm.system.errors import InputError
from tune.config.spec import FILE_NAME, read_search
from tune.reporting.html_report import asset, document, page_body, page_data, page_title
from tune.reporting.render import Report, render
from tune.store.journal import FILE_NAME as JOURNAL

HOST = "127.0.0.1"
FIRST_PORT, PORTS = 8421, 100  # the ports that are tried, one after the other
POLL_SECONDS = 1.0  # between two looks at the journal
SILENT_SECONDS = 15.0  # after which a browser hears that the server is still there
RULES = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; img-src data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Content-Security-Policy: no request leaves this machine; plotly's parallel coordinates compile a function"""
HEADERS = {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer", "Content-Security-Policy": RULES}


class LivePage:
    """The page of a run as it stands, computed anew when its journal has changed."""

    def __init__(self, run_dir: Path):
        self.run_dir = run_dir
        self._lock, self._at = threading.Lock(), -1
        self._report: Report | None = None

    @property
    def version(self) -> int:
        """The journal's size in bytes, 0 while there is none."""
        try:
            return (self.run_dir / JOURNAL).stat().st_size
        except OSError:
            return 0

    def report(self) -> Report | None:
        """The report of the run as it stands; None where nothing has happened yet."""
        with self._lock:
            version = self.version
            if version and version != self._at:
                self._report, self._at = render(self.run_dir, whole=False), version
            return self._report

    def html(self) -> str:
        """The whole page."""
        report = self.report()
        if report is None or not report.figures:
            again = '<meta http-equiv="refresh" content="2">'
            waiting = f"<h1>Search {html.escape(self.run_dir.name)}</h1><p role=status>No trial has reported yet.</p>"
            return document("waiting", waiting, json.dumps({"columns": [], "rows": [], "figures": {}}), again)
        data = page_data(report.table, report.figures)
        return document(page_title(report), page_body(report), data, more_script=asset("live.js"))

    def news(self) -> str:
        """The page's body and data as JSON."""
        report = self.report()
        assert report is not None, "only a page with trials asks for news"
        data = page_data(report.table, report.figures)
        return f'{{"body": {json.dumps(page_body(report))}, "data": {data}}}'


def application(live: LivePage, token: str) -> Any:
    """The server's application: everything lies below the secret `token`, everything else is not found."""
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.requests import Request
    from starlette.responses import HTMLResponse, Response, StreamingResponse
    from starlette.routing import Route

    async def page(request: Request) -> Response:
        return HTMLResponse(await run_in_threadpool(live.html), headers=HEADERS)

    async def news(request: Request) -> Response:
        return Response(await run_in_threadpool(live.news), media_type="application/json", headers=HEADERS)

    async def events(request: Request) -> Response:
        return StreamingResponse(changes(live), media_type="text/event-stream", headers=HEADERS)

    routes = [Route(f"/{token}/{name}", found) for name, found in (("", page), ("news", news), ("events", events))]
    here = [Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])]  # no name of another site leads here
    return Starlette(routes=routes, middleware=here)


async def changes(live: LivePage) -> AsyncIterator[str]:
    """Yields an event whenever the journal has grown, and a comment now and then."""
    told, silent = -1, 0.0
    while True:
        version = await asyncio.to_thread(lambda: live.version)
        if version != told:
            told, silent = version, 0.0
            yield f"data: {version}\n\n"
        elif silent >= SILENT_SECONDS:
            silent = 0.0
            yield ": still there\n\n"
        await asyncio.sleep(POLL_SECONDS)
        silent += POLL_SECONDS


def free_socket() -> socket.socket:
    """A listening socket on the first free port from FIRST_PORT on. Raises InputError where none is free."""
    for port in range(FIRST_PORT, FIRST_PORT + PORTS):
        listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((HOST, port))
            listening.listen()  # a browser that comes early waits
        except OSError:
            listening.close()
            continue
        return listening
    raise InputError(f"--serve: no port from {FIRST_PORT} to {FIRST_PORT + PORTS - 1} is free on {HOST}")


def serve(run_dir: Path, opens: bool = False) -> None:
    """Serves a run's page until Ctrl-C, also after its search has ended. Prints the link; `opens` it in a browser."""
    import uvicorn

    if not run_dir.is_dir() or (run_dir / FILE_NAME).exists():
        read_search(run_dir)  # raises InputError for another folder
    token = secrets.token_urlsafe(16)
    with free_socket() as listening:
        port = listening.getsockname()[1]
        link = f"http://{HOST}:{port}/{token}/"
        if port != FIRST_PORT:
            print(f"note: port {FIRST_PORT} is taken; this is {port}")
        print(f"live: {link}", flush=True)
        if os.environ.get("SSH_CONNECTION"):
            print(f"from your own machine, first: ssh -L {port}:{HOST}:{port} {socket.gethostname()}", flush=True)
        if opens:
            webbrowser.open(link)
        config = uvicorn.Config(
            application(LivePage(run_dir), token),
            log_level="error",
            access_log=False,
            timeout_graceful_shutdown=1,
            lifespan="off",
        )
        uvicorn.Server(config).run(sockets=[listening])
