"""The queue of the Climate Data Store, through its own client: submit, wait, and what goes wrong on the way.

A job outlives the program that submitted it: its number is noted beside the file it is for, and the next run goes on
waiting for the same job. The key goes to the service's own host and nowhere else.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import requests

from wm2cli.errors import NotYetError, RemoteError
from wm2cli.settings import settings
from wm2cli.sources import Progress
from wm2cli.transfer import USER_AGENT, reason_of, retry_after

URL = "https://cds.climate.copernicus.eu/api"
TOKEN = "PRIVATE-TOKEN"  # noqa: S105 (the name of the header)

_AGAIN = (408, 425, 429, 500, 502, 503, 504)
_REJECTED_PAUSE = 30.0  # times the first pause of the settings: 30 s, growing to 10 min
_HOW_TO_GET_A_KEY = (
    "register at https://cds.climate.copernicus.eu, copy the token from your profile, and write it to ~/.cdsapirc as "
    "two lines, `url: https://cds.climate.copernicus.eu/api` and `key: TOKEN`, or set CDSAPI_URL and CDSAPI_KEY; "
    "--source arco needs no key"
)

T = TypeVar("T")


class TooLargeError(RemoteError):
    """The request costs more than one may cost."""


class _GoneError(Exception):
    """The job, or its result, is no longer there."""


class _RejectedError(Exception):
    """The queue is full for now."""


class _UnsureError(Exception):
    """Nobody knows whether the job was made."""


def has_key() -> bool:
    """Whether a key for the Climate Data Store is set, in the environment or in cdsapi's file."""
    if os.environ.get("CDSAPI_KEY"):
        return True
    path = Path(os.environ.get("CDSAPI_RC") or "~/.cdsapirc").expanduser()
    try:
        return any(line.partition(":")[0].strip() == "key" for line in path.read_text().splitlines())
    except OSError:
        return False


class Queue:
    """A client of the Climate Data Store.

    Args:
        patience_hours: How long to wait for a job.

    Raises:
        RemoteError: There is no key, or one that the service no longer takes.
    """

    def __init__(self, patience_hours: float) -> None:
        import cdsapi

        url, key, verify = _credentials()
        self._network = settings().network
        self._deadline = time.monotonic() + 3600.0 * patience_hours
        self._patience = patience_hours
        self._site = url.removesuffix("/").removesuffix("/api")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # news that cannot be fetched are no reason to stop
            # One try a call: the client's own way is 500 tries two minutes apart, in silence.
            made = cdsapi.Client(
                url=url, key=key, verify=verify, quiet=True, progress=False, wait_until_complete=False, retry_max=1,
                timeout=self._network.read_seconds, session=_session(url), debug_callback=_silent,
                info_callback=_silent, warning_callback=_silent,
            )  # fmt: skip
        self._client = made.client

    def last_time(self, dataset: str) -> str | None:
        """ISO time of the last data there are, or None when the catalogue does not say."""
        try:
            end = self._call(dataset, lambda: self._client.get_collection(dataset).end_datetime)
        except RemoteError as error:
            if isinstance(error, KeyRefusedError):
                raise
            return None  # only a courtesy: the request itself will tell
        return None if end is None else str(end.strftime("%Y-%m-%dT%H:%M:%S"))

    def refuse_too_large(self, dataset: str, request: Mapping[str, Any]) -> None:
        """Asks what a request costs before it is submitted.

        Raises:
            TooLargeError: More than one may cost.
            RemoteError: The service says that it is not possible.
        """
        found = self._call(dataset, lambda: self._client.estimate_costs(dataset, dict(request)))
        cost, limit = found.get("cost"), found.get("limit")
        if cost is not None and limit is not None and float(cost) > float(limit):
            raise TooLargeError(f"the request to {dataset} costs {cost:g}, at most {limit:g} may one cost",
                                hint="ask for fewer variables or levels")  # fmt: skip
        if found.get("request_is_valid") is False:
            raise RemoteError(f"{dataset}: the Climate Data Store refuses the request: {found.get('invalid_reason')}")

    def result(
        self, dataset: str, request: Mapping[str, Any], note: Path, on_progress: Progress
    ) -> tuple[str, int, str]:
        """Waits for a request to be done, submitting it when that has not been done before.

        Args:
            note: File that remembers the job until it is done.

        Returns:
            Address, bytes, and the number of the job.

        Raises:
            RemoteError: Refused, failed, or not done in time; a later run goes on waiting.
            NotYetError: The data are not there yet.
        """
        gone = 0
        pause = _REJECTED_PAUSE * self._network.first_pause
        while True:
            job = self._remembered(note, request) or self._submit(dataset, request, note)
            try:
                results = self._results(dataset, job, note, on_progress)
            except _GoneError:
                gone += 1
                note.unlink(missing_ok=True)
                if gone > 1:
                    raise RemoteError(f"{dataset}: the job {job} and its result vanished, twice",
                                      hint="try again later") from None  # fmt: skip
            except _RejectedError as error:
                note.unlink(missing_ok=True)
                on_progress(f"{dataset}: the queue is full ({error}); trying again", 0, 1)
                self._sleep(pause * random.uniform(0.5, 1.0), dataset, job)
                pause = min(2 * pause, 10 * self._network.longest_pause)
            else:
                return results.location, results.content_length, job

    def _submit(self, dataset: str, request: Mapping[str, Any], note: Path) -> str:
        failed = 0
        while True:
            try:
                remote = self._call(dataset, lambda: self._client.submit(dataset, dict(request)), submits=True)
                job = str(remote.request_id)
                break
            except _UnsureError as error:
                # The service may have made the job before its answer got lost; a second one would only queue as well.
                found = self._find(dataset, request)
                if found is not None:
                    job = found
                    break
                failed += 1
                if failed >= self._network.attempts:
                    raise RemoteError(f"{dataset}: could not be submitted: {error} (tried {failed} times)",
                                      hint="try again later") from error  # fmt: skip
                time.sleep(self._pause(failed))
        note.write_text(json.dumps({"job": job, "request": dict(request)}))
        return job

    def _find(self, dataset: str, request: Mapping[str, Any]) -> str | None:
        """A job of one's own with this request that may still bring its result."""
        jobs = self._call(dataset, lambda: self._client.get_jobs(limit=20, sortby="-created"))
        for entry in jobs.json.get("jobs", []):
            if entry.get("processID") != dataset or entry.get("status") not in ("accepted", "running", "successful"):
                continue
            job = str(entry["jobID"])
            if self._call(dataset, partial(self._request_of, job)) == dict(request):
                return job
        return None

    def _results(self, dataset: str, job: str, note: Path, on_progress: Progress) -> Any:
        """Waits for a job, and shows what it waits for."""
        remote = self._call(dataset, lambda: self._client.get_remote(job))
        pause = self._network.first_pause
        began = time.monotonic()
        while True:
            status = self._call(dataset, lambda: remote.status)
            with contextlib.suppress(OSError):
                os.utime(note)
            if status in ("failed", "rejected"):
                note.unlink(missing_ok=True)  # the next run shall not come back to it
            if status in ("successful", "failed", "rejected"):
                return self._call(dataset, remote.get_results)  # when it failed, these say why
            if status not in ("accepted", "running"):
                raise _GoneError
            age = time.monotonic() - began
            on_progress(f"{dataset}: {status} for {age / 60:.0f} min (job {job})", 0, 1)
            self._sleep(pause, dataset, job)
            pause = min(1.5 * pause, 2 * self._network.longest_pause)

    def _sleep(self, seconds: float, dataset: str, job: str) -> None:
        if time.monotonic() + seconds > self._deadline:
            raise RemoteError(f"{dataset}: job {job} was not done within {self._patience:g} h",
                              hint="run the same command again: it goes on waiting for this job; --option "
                              "timeout=HOURS waits longer")  # fmt: skip
        time.sleep(seconds)

    def _request_of(self, job: str) -> Any:
        return self._client.get_remote(job).request

    def _remembered(self, note: Path, request: Mapping[str, Any]) -> str | None:
        try:
            account = json.loads(note.read_text())
            return str(account["job"]) if account["request"] == dict(request) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _pause(self, failed: int) -> float:
        most = min(self._network.longest_pause, self._network.first_pause * 2.0 ** (failed - 1))
        return most * random.uniform(0.5, 1.0)

    def _call(self, dataset: str, action: Callable[[], T], *, submits: bool = False) -> T:
        """One call of the client, with patience for what may pass."""
        failed = 0
        while True:
            after: float | None = None
            try:
                return action()
            except requests.HTTPError as error:
                answer = error.response
                code = 0 if answer is None else answer.status_code
                if code not in _AGAIN:
                    raise self._explain(dataset, error) from error
                if submits and code >= 500:
                    raise _UnsureError(f"{code} {answer.reason}") from error
                after = retry_after(answer.headers.get("Retry-After"))
                words = f"answered {code} {answer.reason}"
            except requests.exceptions.SSLError as error:
                raise RemoteError(f"{self._site}: cannot trust the server ({reason_of(error)})", hint="where a proxy "
                                  "inspects traffic, set REQUESTS_CA_BUNDLE to its certificate") from error  # fmt: skip
            except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
                words = f"cannot be reached ({reason_of(error)})"
                refused = "refused" in words or "no such host" in words
                if submits and not refused:
                    raise _UnsureError(words) from error
                failed += 2 if refused else 0
            except Exception as error:  # of an answer it did not expect, the client raises whatever comes
                raise RemoteError(f"{self._site}: gave an answer that cannot be understood ({error})",
                                  hint="check `url` in ~/.cdsapirc or CDSAPI_URL") from error  # fmt: skip
            failed += 1
            if failed >= self._network.attempts:
                hint = "check the network, or HTTPS_PROXY; or try again later; --source arco is another way"
                raise RemoteError(f"{self._site}: {words} (tried {failed} times)", hint=hint) from None
            time.sleep(after if after is not None else self._pause(failed))

    def _explain(self, dataset: str, error: requests.HTTPError) -> Exception:
        """What an answer of the service means for the user."""
        code = error.response.status_code
        try:
            payload = error.response.json()
        except ValueError:
            payload = {}
        if not isinstance(payload, dict):
            payload = {}
        title, kind = str(payload.get("title", "")), str(payload.get("type", ""))
        said = [str(payload[name]).strip() for name in ("detail", "traceback") if payload.get(name)]
        text = " ".join(" ".join(said).split()) or title or f"{code} {error.response.reason}"
        low = f"{title} {text}".lower()
        if code == 401:
            return KeyRefusedError("the Climate Data Store refused the key", hint=_HOW_TO_GET_A_KEY)
        if code == 403 and "licence" in low:
            link = re.search(r"https?://\S+", text)
            place = link[0].rstrip(".,") if link else f"{self._site}/datasets/{dataset}?tab=download#manage-licences"
            return RemoteError(f"the licence of {dataset} is not accepted yet",
                               hint=f"log in, accept it once at {place}, and run this again")  # fmt: skip
        if code == 403 and ("cost" in low or "too large" in low):
            return TooLargeError(f"{dataset}: {text}", hint="ask for fewer variables or levels")
        if code == 404 and ("no-such-job" in kind or "expired" in low or "job not found" in low):
            return _GoneError()
        if code == 404:
            return RemoteError(f"{dataset}: {title or text} at {self._site}",
                               hint=f"check `url` in ~/.cdsapirc or CDSAPI_URL: it should be {URL}")  # fmt: skip
        if "rejected" in title.lower():
            return _RejectedError(text)
        if any(sign in low for sign in ("latest date available", "not available yet", "embargo")):
            return NotYetError(f"{dataset}: {text}", hint="ERA5 follows about five days behind; --source gfs is there "
                               "after hours")  # fmt: skip
        what = "the job failed" if "failed" in title.lower() else f"refused ({code})"
        return RemoteError(f"{dataset}: {what}: {text}", hint="look at your requests on the site of the Climate Data "
                           "Store, or try --source arco")  # fmt: skip


class KeyRefusedError(RemoteError):
    """There is no key, or not a good one."""


def _credentials() -> tuple[str, str, bool]:
    from cdsapi.api import get_url_key_verify

    try:
        url, key, verify = get_url_key_verify(None, None, None)
    except Exception as error:  # a bare Exception is what cdsapi raises
        if not has_key():
            raise KeyRefusedError("ERA5 from the Climate Data Store needs a key, and there is none",
                                  hint=_HOW_TO_GET_A_KEY) from error  # fmt: skip
        url, key, verify = get_url_key_verify(URL, None, None)
    if ":" in key:
        raise KeyRefusedError("the key for the Climate Data Store is of the old form UID:KEY, which is no longer taken",
                              hint=_HOW_TO_GET_A_KEY)  # fmt: skip
    if re.search(r"/api/v\d", url):
        raise RemoteError(f"{url} is the address of the old Climate Data Store", hint=f"set `url` in ~/.cdsapirc or "
                          f"CDSAPI_URL to {URL}")  # fmt: skip
    return str(url).rstrip("/"), str(key), bool(verify)


def _session(url: str) -> requests.Session:
    home = urlsplit(url).netloc

    class OneHost(requests.Session):
        """Gives the key to its own host only, whatever links and redirects say."""

        def send(self, request: requests.PreparedRequest, **how: Any) -> requests.Response:
            if urlsplit(str(request.url)).netloc != home:
                request.headers.pop(TOKEN, None)
            request.headers["User-Agent"] = f"{USER_AGENT} {request.headers.get('User-Agent', '')}".strip()
            return super().send(request, **how)

    made = OneHost()
    made.auth = lambda request: request  # else requests takes credentials from ~/.netrc
    return made


def _silent(*args: Any, **how: Any) -> None:
    """The client's own words, which may hold the key."""
