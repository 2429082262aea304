"""Weights from a file, the cache and a server (of this test's own): each failure is one clear line."""

from __future__ import annotations

import builtins
import hashlib
import http.server
import logging
import sys
import threading

import jax
import numpy as np
import pytest

from jaxdiff import platform, sums, weights
from jaxdiff.errors import UserError
from jaxdiff.models import inception
from tests.models import inception_again

SMALL = {"conv.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "bn.weight": np.ones(2, np.float32)}


@pytest.fixture
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  return tmp_path / "cache" / "jaxdiff"


@pytest.fixture
def any_network(monkeypatch):
  """Lets two small tensors pass for Inception's."""
  monkeypatch.setattr(inception, "from_torch", dict)


@pytest.fixture
def no_torch(monkeypatch):
  monkeypatch.setitem(sys.modules, "torch", None)


@pytest.fixture
def pth(tmp_path):
  return save(tmp_path / "mine.pth")


@pytest.fixture
def published(pth, monkeypatch):
  """The small file stands for the published one, on a server that is a folder."""
  monkeypatch.setattr(weights, "INCEPTION_SHA256", sums.sha256(pth))
  monkeypatch.setattr(weights, "INCEPTION_URL", pth.as_uri())
  return pth


def save(path, tensors=SMALL):
  torch = pytest.importorskip("torch")
  path.parent.mkdir(parents=True, exist_ok=True)
  torch.save({name: torch.from_numpy(tensor) for name, tensor in tensors.items()}, path)
  return path


def assert_small(found):
  assert set(found) == set(SMALL)
  for name, tensor in SMALL.items():
    np.testing.assert_array_equal(found[name], tensor)


def test_reads_a_whole_file_and_then_its_copy_without_torch(tmp_path, cache, monkeypatch):
  tensors = inception_again.random_tensors()
  path = save(tmp_path / "whole.pth", tensors | {"Mixed_5b.branch1x1.bn.num_batches_tracked": np.array(7)})
  first = weights.inception_weights(path)
  monkeypatch.setitem(sys.modules, "torch", None)
  again = weights.inception_weights(str(path))
  expected = inception.from_torch(tensors)
  for found in (first, again):
    assert jax.tree.all(jax.tree.map(np.array_equal, expected, found))
  for file in (path, *cache.iterdir()):
    file.unlink()  # 190 MB


def test_downloads_once(published, cache, any_network, caplog):
  caplog.set_level(logging.INFO, "jaxdiff")
  assert_small(weights.inception_weights())
  assert f"downloading {published.as_uri()} to {cache}" in caplog.text
  npz = f"inception-{weights.INCEPTION_SHA256[:16]}.npz"
  assert sorted(file.name for file in cache.iterdir()) == [npz, "pt_inception-2015-12-05-6726825d.pth"]
  published.unlink()
  assert_small(weights.inception_weights())
  assert_small(weights.inception_weights(cache / npz))


@pytest.mark.parametrize("name", weights.INCEPTION_FILES)
def test_finds_a_file_put_into_the_cache_by_hand(published, cache, any_network, name):
  cache.mkdir(parents=True)
  published.rename(cache / name)
  assert_small(weights.inception_weights())


def test_keeps_the_cache_under_home_without_xdg(monkeypatch, tmp_path):
  monkeypatch.delenv("XDG_CACHE_HOME")
  monkeypatch.setenv("HOME", str(tmp_path))
  assert platform.cache_dir() == tmp_path / ".cache" / "jaxdiff"


def test_another_file_than_the_published_one_is_read_with_a_warning(pth, cache, any_network, caplog):
  assert_small(weights.inception_weights(pth))
  assert "mine.pth is not the published Inception" in caplog.text
  assert not (cache / f"inception-{weights.INCEPTION_SHA256[:16]}.npz").exists()


def test_two_files_do_not_share_a_copy(pth, tmp_path, cache, any_network):
  weights.inception_weights(pth)
  other = save(tmp_path / "other" / "mine.pth", SMALL | {"bn.weight": np.zeros(2, np.float32)})
  np.testing.assert_array_equal(weights.inception_weights(other)["bn.weight"], [0, 0])


def test_half_precision_becomes_float32(tmp_path, cache, any_network):
  path = save(tmp_path / "half.pth", {"w": np.ones(2, np.float16)})
  assert weights.inception_weights(path)["w"].dtype == np.float32


def test_a_cache_that_cannot_be_written_costs_only_time(pth, cache, any_network, caplog):
  cache.parent.write_text("a file, not a folder")
  assert_small(weights.inception_weights(pth))
  assert "will be converted again" in caplog.text and "cannot write" in caplog.text


def test_without_torch_nothing_is_downloaded(no_torch, cache, monkeypatch):
  monkeypatch.setattr(weights, "download", lambda *_: pytest.fail("downloaded"))
  with pytest.raises(UserError, match=r"reading a \.pth file.*pip install torch"):
    weights.inception_weights()


def test_without_torch_a_pth_is_one_clear_line(no_torch, tmp_path, cache):
  (tmp_path / "a.pth").write_bytes(b"anything")
  with pytest.raises(UserError, match="pip install torch"):
    weights.inception_weights(tmp_path / "a.pth")


def test_offline(cache, monkeypatch):
  pytest.importorskip("torch")
  monkeypatch.setattr(weights, "INCEPTION_URL", "file:///nowhere/at-all.pth")
  with pytest.raises(UserError, match="cannot download file:///nowhere/at-all.pth: .*by hand as ") as caught:
    weights.inception_weights()
  assert str(cache / weights.INCEPTION_FILES[0]) in str(caught.value)
  assert not cache.exists() or not list(cache.iterdir())


def test_another_file_at_the_address(published, cache, monkeypatch):
  monkeypatch.setattr(weights, "INCEPTION_SHA256", hashlib.sha256(b"the right one").hexdigest())
  with pytest.raises(UserError, match=r"is another file: its sha256 should start with [0-9a-f]{8}, as at "):
    weights.inception_weights()
  assert not list(cache.iterdir())


class Server(http.server.BaseHTTPRequestHandler):
  """Promises 100 bytes, sends 40 and hangs up; anything but /short is not found."""

  def do_GET(self):
    if self.path != "/short":
      self.send_error(404)
      return
    self.send_response(200)
    self.send_header("Content-Length", "100")
    self.end_headers()
    self.wfile.write(b"x" * 40)

  def log_message(self, *args):
    del args


@pytest.fixture
def server():
  with http.server.HTTPServer(("127.0.0.1", 0), Server) as running:
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}"
    running.shutdown()


@pytest.mark.parametrize(
  ("path", "words"), [("/short", "(broke off after 40 of 100 bytes|IncompleteRead)"), ("/", "404")]
)
def test_a_server_that_fails(server, cache, tmp_path, path, words):
  with pytest.raises(UserError, match=f"cannot download {server}{path}: .*{words}.* by hand as "):
    weights.download(server + path, tmp_path / "target.pth")
  assert not (tmp_path / "target.pth").exists()
  assert not list(tmp_path.glob(".target*"))


def test_progress_is_told(published, tmp_path, monkeypatch, caplog):
  caplog.set_level(logging.INFO, "jaxdiff")
  monkeypatch.setattr(weights, "TELL_EVERY", 1)
  weights.download(published.as_uri(), tmp_path / "target.pth")
  assert "downloaded 0 of " in caplog.text
  assert (tmp_path / "target.pth").read_bytes() == published.read_bytes()


def test_a_damaged_file_in_the_cache(published, cache, any_network):
  cache.mkdir(parents=True)
  (cache / weights.INCEPTION_FILES[1]).write_bytes(published.read_bytes()[:-1])
  with pytest.raises(
    UserError, match=r"weights-inception.*is damaged or another file.*Delete it, or replace"
  ):
    weights.inception_weights()


def test_a_truncated_pth(pth, cache):
  pth.write_bytes(pth.read_bytes()[:-50])
  with pytest.raises(UserError, match=r"cannot read .*mine\.pth as a PyTorch state dict.*truncated"):
    weights.inception_weights(pth)


def test_a_pth_that_would_run_code(tmp_path, cache):
  torch = pytest.importorskip("torch")
  torch.save({"w": builtins.print}, tmp_path / "evil.pth")
  with pytest.raises(UserError, match="cannot read .*evil.pth"):
    weights.inception_weights(tmp_path / "evil.pth")


def test_a_damaged_npz(published, cache, any_network):
  weights.inception_weights()
  (npz,) = cache.glob("*.npz")
  data = bytearray(npz.read_bytes())
  data[data.index(SMALL["conv.weight"].tobytes()) + 4] ^= 1  # one bit
  npz.write_bytes(data)
  with pytest.raises(UserError, match=r"cannot read .*\.npz: Bad CRC.*Delete it"):
    weights.inception_weights()


def test_an_npz_with_python_objects(tmp_path):
  np.savez(tmp_path / "a.npz", w=np.array([None], object))
  with pytest.raises(UserError, match="cannot read .*a.npz: .*allow_pickle=False"):
    weights.inception_weights(tmp_path / "a.npz")


def test_weights_of_another_network(tmp_path, pth, cache):
  with pytest.raises(
    UserError, match=r"mine\.pth: .*tensor 'Conv2d_1a_3x3.conv.weight' is missing.*https://"
  ):
    weights.inception_weights(pth)
  assert not cache.exists()


@pytest.mark.parametrize(
  ("name", "words"), [("none.pth", "there is no file"), ("image.png", "should be a .pth file")]
)
def test_what_is_not_there_or_not_weights(tmp_path, name, words):
  (tmp_path / "image.png").write_bytes(b"")
  with pytest.raises(UserError, match=words):
    weights.inception_weights(tmp_path / name)
