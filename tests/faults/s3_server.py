"""An S3 server on loopback that can be told to fail: refusals, pauses, answers cut short, as on the wire."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

logging.getLogger("werkzeug").setLevel(logging.ERROR)


@dataclass(frozen=True)
class Trouble:
    """What happens to some requests in a row, counted from when it was set."""

    kind: str
    """`refuse` (503 SlowDown), `delay` or `cut` (the answer ends early)."""
    first: int
    length: int
    pause: float = 0.2


class S3Server:
    """Moto's S3 with trouble in front; each bucket is a new one."""

    def __init__(self) -> None:
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import make_server

        self.inner = DomainDispatcherApplication(create_backend_app)
        self.trouble: Trouble | None = None
        self.n = 0
        self.server = make_server("127.0.0.1", 0, self, threaded=True)
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"

    def set(self, trouble: Trouble | None) -> None:
        self.trouble, self.n = trouble, 0

    def __call__(self, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        trouble = self.trouble
        self.n += 1
        if trouble is None or not trouble.first <= self.n < trouble.first + trouble.length:
            return self.inner(environ, start)
        if trouble.kind == "delay":
            time.sleep(trouble.pause)
            return self.inner(environ, start)
        if trouble.kind == "cut" and environ["REQUEST_METHOD"] == "GET":
            body = b"".join(self.inner(environ, start))
            return [body[: len(body) // 2]]
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        start("503 Slow Down", [("Content-Type", "application/xml")])
        return [
            b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"
        ]

    @property
    def environment(self) -> tuple[tuple[str, str], ...]:
        return (
            ("AWS_ENDPOINT_URL", self.endpoint),
            ("AWS_ACCESS_KEY_ID", "testing"),
            ("AWS_SECRET_ACCESS_KEY", "testing"),
            ("AWS_DEFAULT_REGION", "us-east-1"),
        )

    def bucket(self) -> str:
        """A new bucket's URI; the environment must name this server."""
        import s3fs

        s3fs.S3FileSystem.clear_instance_cache()
        name = f"bucket-{uuid.uuid4().hex}"
        s3fs.S3FileSystem().mkdir(name)
        return f"s3://{name}"

    def stop(self) -> None:
        self.server.shutdown()
        self.thread.join()
