"""Where the service is, as people write it."""

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from fimlora_client import Client
from fimlora_client.addresses import base_url_of
from fimlora_client.errors import InvalidSettings


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("localhost:8000", "http://localhost:8000"),
        ("127.0.0.1:8000/", "http://127.0.0.1:8000"),
        ("//host", "http://host"),
        ("host.example", "http://host.example"),
        (" http://host:8000// ", "http://host:8000"),
        ("https://host/fimlora/", "https://host/fimlora"),
        ("HTTPS://host", "HTTPS://host"),
        ("[::1]:8000", "http://[::1]:8000"),
    ],
)
def test_an_address_may_be_short(given, url):
    """No scheme means http; slashes at the end mean nothing."""
    assert base_url_of(given) == url
    assert Client(given).base_url == url


@pytest.mark.parametrize(
    "given",
    ["", "http://", "ftp://host", "unix:///tmp/x", "host:99999", "host:0", "a b", "http://h?x=1",
     "http://h#x", "http://[::1"],
)  # fmt: skip
def test_what_is_no_address_is_refused_with_the_form(given):
    """Before anything is sent, and without repeating what may hold a password."""
    with pytest.raises(InvalidSettings, match="the address of the service") as refused:
        base_url_of(given)

    assert "localhost:8000" in refused.value.next_step
    assert not given or given not in str(refused.value)


def test_a_path_comes_before_every_route():
    """As behind a proxy that serves several services."""
    asked = []

    class Recorder(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            body = json.dumps({"fimlora": "1", "api": "v1"}).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Recorder)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        with Client(f"127.0.0.1:{server.server_port}/fimlora/") as client:
            client.version()
    finally:
        server.shutdown()
        server.server_close()

    assert asked == ["/fimlora/version"]
