"""`crs-fast serve`: who may use the server that its arguments describe, and what it starts."""

import subprocess
import sys
import urllib.request

import pytest

from crs_fast.cli import _parser, main
from crs_fast.cli.serve import _engine_options, access_of, limits_of
from crs_fast.crs.checkpoint import save_bundle
from crs_fast.serve.http.guard import Access
from crs_fast.serve.http.limits import Limits
from python_tests.crs.tiny_system import ITEMS, system

HERE = ("localhost", "127.0.0.1", "::1")


def parsed(*arguments):
    return _parser().parse_args(["serve", *arguments])


@pytest.fixture(autouse=True)
def no_tokens(monkeypatch):
    monkeypatch.delenv("CRS_FAST_TOKEN", raising=False)
    monkeypatch.delenv("CRS_FAST_ADMIN_TOKEN", raising=False)


@pytest.mark.parametrize(
    ("arguments", "access"),
    [
        ((), Access(hosts=(*HERE, "127.0.0.1"))),
        (("--host", "localhost"), Access(hosts=(*HERE, "localhost"))),
        (("--host", "::1", "--token", "t"), Access("t", hosts=(*HERE, "::1"))),
        (("--allowed-host", "a.example"), Access(hosts=(*HERE, "127.0.0.1", "a.example"))),
        (("--host", "0.0.0.0", "--token", "t"), Access("t", hosts=[])),
        (("--host", "0.0.0.0", "--open"), Access(changes=False, hosts=[])),
        (("--host", "::", "--open", "--admin-token", "a"), Access(None, "a", hosts=[])),
        (("--host", "10.0.0.7", "--token", "t", "--allowed-host", "a.example"),
         Access("t", hosts=["a.example"])),
    ],
    ids=["default", "localhost", "ipv6", "proxy", "token", "open", "admin", "named"],
)  # fmt: skip
def test_who_may_use_it(arguments, access):
    assert access_of(parsed(*arguments)) == access


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "films.example"])
def test_other_machines_need_a_token(host, capsys, tmp_path):
    assert main(["serve", "--model", str(tmp_path), "--host", host]) == 2
    assert "--host must be a loopback address unless --token or --open" in capsys.readouterr().err


def test_tokens_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("CRS_FAST_TOKEN", "t")
    monkeypatch.setenv("CRS_FAST_ADMIN_TOKEN", "a")
    access = access_of(parsed("--host", "0.0.0.0"))
    assert (access.token, access.admin_token, access.changes) == ("t", "a", True)


def test_limits():
    assert limits_of(parsed()) == Limits()
    assert limits_of(parsed("--max-beams", "9", "--max-seconds", "2.5")) == Limits(
        max_beams=9, max_seconds=2.5
    )


def test_options_of_the_engine():
    assert _engine_options(parsed()) == {}
    assert _engine_options(parsed("--cuda-graphs", "--cache-gib", "0.5")) == {
        "cuda_graphs": True,
        "cache_bytes": 1 << 29,
    }


@pytest.mark.parametrize("missing", ["fastapi", "uvicorn", "prometheus_client"])
def test_what_is_missing_is_named(missing, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, missing, None)
    assert main(["serve"]) == 2
    assert (
        f"needs {missing}: pip install fastapi uvicorn prometheus-client" in capsys.readouterr().err
    )


def test_replicas_need_a_port(capsys):
    assert main(["serve", "--replicas", "2", "--port", "0"]) == 2
    assert "--port must be above 0 with --replicas (got 0)" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parsed("--replicas", "0")


def test_replicas_need_ray(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["serve", "--replicas", "2"]) == 2
    assert "needs ray: pip install 'ray[serve,data]'" in capsys.readouterr().err


def test_the_command_serves_and_ends_when_told(tmp_path):
    """Some seconds: a process of its own loads everything, as it does for a user."""
    model, tokenizer, trie, vocab, control, _ = system()
    save_bundle(tmp_path / "films", (model, tokenizer), trie, vocab, control, ITEMS)
    command = [sys.executable, "-m", "crs_fast.cli", "serve", "--port", "0", "--device", "cpu"]
    with subprocess.Popen(
        [*command, "--model", str(tmp_path / "films")], stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        line = next(line for line in process.stderr if "running on" in line)
        url = next(word for word in line.split() if word.startswith("http://"))
        with urllib.request.urlopen(f"{url}/v1/models", timeout=30) as answer:
            assert b'"id":"films"' in answer.read()
        process.terminate()
        assert process.wait(30) in (0, -15)
