"""A stand-in for the Climate Data Store: the API in one server, the files in another."""

from __future__ import annotations

import io
import json
import zipfile
from functools import cache
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import weather
from standins import Action, Handler, Server

from wm2cli.sources.era5 import NAMES, PRESSURE, SINGLE, STATIC_NAMES

KEY = "11111111-2222-3333-4444-555555555555"


@cache
def era5_message(name: str, level: float | None, time: np.datetime64, version: str = "0001", bits: int = 16) -> bytes:
    return weather.encode(name, level, time=time, bits=bits, keys={"experimentVersionNumber": version})


class Cds(Server):
    """The API. A job takes `polls` looks to be done; what becomes of it `fates` says in order."""

    def __init__(self, files: Server) -> None:
        super().__init__()
        self.files = files
        self.jobs: dict[str, dict[str, Any]] = {}
        self.licence = True
        self.limit = 60000
        self.last = "2026-11-15T00:00:00Z"
        self.polls = 2
        self.fates: list[str] = []
        self.versions: dict[str, str] = {}
        self.container = "grib"
        self.size_off = 0
        self.spoil = lambda body: body
        self.executions = 0

    @property
    def api(self) -> str:
        return f"{self.url}/api"

    def special(self, handler: Handler) -> bool:
        path = handler.key.removeprefix("api/")
        query = parse_qs(urlsplit(handler.path).query)
        if path == "catalogue/v1/messages":
            return self.say(handler, 200, {"messages": []})
        if path.startswith("catalogue/v1/collections/"):
            name = path.rsplit("/", 1)[1]
            return self.say(handler, 200, {
                "id": name, "title": name, "extent": {"temporal": {"interval": [["1940-01-01T00:00:00Z", self.last]]}},
                "links": [{"rel": "retrieve", "href": f"{self.api}/retrieve/v1/processes/{name}"}],
            })  # fmt: skip
        if handler.headers.get("PRIVATE-TOKEN") != KEY:
            title = "Authentication failed" if handler.headers.get("PRIVATE-TOKEN") else "permission denied"
            return self.say(
                handler, 401, {"type": title, "title": title, "status": 401, "detail": "operation not allowed"}
            )
        words = path.split("/")
        if words[:3] == ["retrieve", "v1", "processes"]:
            return self.process(handler, words[3], words[4] if len(words) > 4 else "")
        if words[:3] == ["retrieve", "v1", "jobs"]:
            return self.job(handler, words[3:], query)
        return False

    def say(self, handler: Handler, code: int, document: dict[str, Any]) -> bool:
        handler.answer(code, json.dumps(document).encode(), {"Content-Type": "application/json"})
        return True

    def refuse(self, handler: Handler, code: int, title: str, detail: str, kind: str = "about:blank") -> bool:
        return self.say(handler, code, {"type": kind, "title": title, "status": code, "detail": detail,
                                        "instance": handler.path, "trace_id": "t"})  # fmt: skip

    def process(self, handler: Handler, dataset: str, verb: str) -> bool:
        if dataset not in (PRESSURE, SINGLE):
            return self.refuse(handler, 404, "process not found", f"dataset {dataset} not found", "no-such-process")
        here = f"{self.api}/retrieve/v1/processes/{dataset}"
        if handler.command == "GET":
            return self.say(handler, 200, {"id": dataset, "links": [{"rel": "self", "href": here}]})
        request = json.loads(handler.payload)["inputs"]
        known = {*NAMES.values(), *STATIC_NAMES.values()}
        cost = len(request["variable"]) * len(request.get("pressure_level", [1])) * len(request["time"])
        if verb == "costing":
            return self.say(handler, 200, {"id": "size", "cost": cost, "limit": self.limit, "request_is_valid": True,
                                           "invalid_reason": None})  # fmt: skip
        if wrong := [name for name in request["variable"] if name not in known]:
            return self.refuse(handler, 400, "invalid request", f"{wrong} are not known")
        if cost > self.limit:
            return self.refuse(handler, 403, "cost limits exceeded",
                               "Your request is too large, please reduce your selection.")  # fmt: skip
        if not self.licence:
            return self.refuse(handler, 403, "required licences not accepted", "Not all the required licences have "
                               f"been accepted; please visit {self.url}/datasets/{dataset}?tab=download#manage-licences"
                               " to accept the required licence(s).")  # fmt: skip
        job = self.make(dataset, request)
        return self.say(handler, 201, self.info(job))

    def make(self, dataset: str, request: dict[str, Any]) -> str:
        with self.lock:
            self.executions += 1
            job = f"job-{self.executions}"
            fate = self.fates.pop(0) if self.fates else "successful"
            self.jobs[job] = {"dataset": dataset, "request": request, "looks": 0, "fate": fate}
        return job

    def info(self, job: str) -> dict[str, Any]:
        held = self.jobs[job]
        here = f"{self.api}/retrieve/v1/jobs/{job}"
        looks, early = held["looks"], held["fate"] == "rejected"
        status = "accepted" if looks <= self.polls // 2 else "running" if looks <= self.polls else held["fate"]
        status = held["fate"] if early and looks else status
        if status == "expired":
            status = "successful"
        links = [{"rel": "self", "href": here}, {"rel": "monitor", "href": here}]
        if status in ("successful", "failed"):
            links.append({"rel": "results", "href": f"{here}/results"})
        return {
            "processID": held["dataset"], "type": "process", "jobID": job, "status": status,
            "created": "2026-11-20T00:00:00", "started": None, "finished": None, "updated": "2026-11-20T00:00:00",
            "links": links,
            "metadata": {"origin": "api", "request": {"ids": held["request"], "labels": {}},
                         "log": [["2026-11-20T00:00:00", "INFO queued"]], "datasetMetadata": {"messages": []}},
        }  # fmt: skip

    def job(self, handler: Handler, words: list[str], query: dict[str, list[str]]) -> bool:
        if not words:
            return self.say(handler, 200, {"jobs": [self.info(job) for job in reversed(self.jobs)], "links": []})
        if words[0] not in self.jobs:
            return self.refuse(handler, 404, "job not found", f"job {words[0]} not found", "no-such-job")
        held = self.jobs[words[0]]
        if "log" in query:
            held["looks"] += 1
        if len(words) == 1:
            return self.say(handler, 200, self.info(words[0]))
        fate = held["fate"]
        if fate == "expired":
            return self.refuse(handler, 404, "results expired", "results of the job expired", "results-expired")
        if fate in ("failed", "embargo"):
            text = "MARS returned no data, please check your selection."
            return self.say(handler, 400, {"type": "job results failed", "title": "The job has failed", "status": 400,
                                           "traceback": text})  # fmt: skip
        if fate == "rejected":
            return self.say(handler, 400, {
                "type": "job results rejected", "title": "The job has been rejected", "status": 400,
                "traceback": "Number queued requests for this dataset is temporarily limited",
            })  # fmt: skip
        body, kind = self.pack(held["request"])
        self.files.objects[f"cache/{words[0]}.grib"] = self.spoil(body)
        return self.say(handler, 200, {"asset": {"value": {
            "type": kind, "href": f"{self.files.url}/cache/{words[0]}.grib", "file:size": len(body) + self.size_off,
            "file:checksum": "x", "file:local_path": "s3://x",
        }}})  # fmt: skip

    def pack(self, request: dict[str, Any]) -> tuple[bytes, str]:
        """What was asked for, and only that."""
        named = {name: short for short, name in NAMES.items()}
        if "pressure_level" not in request:
            named |= {name: short for short, name in STATIC_NAMES.items()}
        time = np.datetime64(
            f"{request['year'][0]}-{request['month'][0]}-{request['day'][0]}T{request['time'][0]}", "s"
        )
        levels = [float(level) for level in request.get("pressure_level", [])] or [None]
        messages = [
            era5_message(named[name], level, time, self.versions.get(named[name], self.versions.get("", "0001")))
            for name in request["variable"] for level in levels
        ]  # fmt: skip
        if self.container == "grib":
            return b"".join(messages), "application/x-grib"
        packed = io.BytesIO()
        half = len(messages) // 2
        with zipfile.ZipFile(packed, "w") as archive:
            archive.writestr("data_stream-oper_stepType-instant.grib", b"".join(messages[:half]))
            archive.writestr("data_stream-oper_stepType-accum.grib", b"".join(messages[half:]))
        return packed.getvalue(), "application/zip"


def made_but_504(cds: Cds) -> Action:
    """The job is made, and the answer gets lost."""

    def act(handler: Handler, found: bytes | None) -> bool:
        cds.make(handler.key.split("/")[-2], json.loads(handler.payload)["inputs"])
        handler.answer(504, b"gateway timeout")
        return True

    return act
