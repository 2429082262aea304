"""A server that speaks the protocol of Google Cloud Storage on this machine, for tests."""

import contextlib
import socket
from http import HTTPStatus

import pytest

REFUSED: list[str] = []  # parts of the names of objects that may not be read


@contextlib.contextmanager
def serving(bucket):
  """The address of a bucket kept in memory, which this process and those that it starts reach as if it were Google's."""
  from gcp_storage_emulator import server

  with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(server, "HANDLERS", _with_generations(server.HANDLERS))
    serves = server.create_server("127.0.0.1", port, in_memory=True, default_bucket=bucket)
    patch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")  # gcsfs
    patch.setenv("TENSORSTORE_GCS_HTTP_URL", f"http://127.0.0.1:{port}")
    patch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "any")  # TensorStore looks for no other
    patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # gcsfs does not ask Google about the bucket
    with serves:
      yield f"gs://{bucket}"


def _with_generations(handlers):
  """With the preconditions and the header of generations, which the emulator leaves out and TensorStore writes by."""
  return tuple((path, {method: _wrapped(call) for method, call in calls.items()}) for path, calls in handlers)


def _wrapped(call):
  def handle(request, response, storage):
    if "bucket_name" not in request.params:
      return call(request, response, storage)
    name = request.params.get("object_id") or request.query.get("name", [""])[0]
    now = _generation(storage, request.params["bucket_name"], name)
    wanted, known = (
      request.query.get(key, [None])[0] for key in ("ifGenerationMatch", "ifGenerationNotMatch")
    )
    if request.method == "GET" and any(part in name for part in REFUSED):
      response.status = HTTPStatus.FORBIDDEN
    elif wanted is not None and wanted != now:
      response.status = HTTPStatus.PRECONDITION_FAILED
    elif known is not None and known == now:
      response.status = HTTPStatus.NOT_MODIFIED
    else:
      call(request, response, storage)
      response["x-goog-generation"] = now
    return None

  return handle


def _generation(storage, bucket, name):
  """That of an object; 0 where there is none."""
  from gcp_storage_emulator.exceptions import NotFound

  try:
    return storage.get_file_obj(bucket, name)["generation"]
  except NotFound:
    return "0"
