"""GET /metrics and GET /props."""

import json

import pytest
from prometheus_client.parser import text_string_to_metric_families

from server import MIB, Server, budget

PROMPT = "A prompt of more than thirty-two tokens is streamed, so there is something to be counted. " * 4


def families(text: str) -> dict:
    """The exposition by family. prometheus_client refuses what is not in the format."""
    parsed = list(text_string_to_metric_families(text))
    by_name = {family.name: family for family in parsed}
    assert len(by_name) == len(parsed), "a family is there twice"
    return by_name


def value(by_name: dict, sample: str, **labels) -> float:
    found = [s.value for f in by_name.values() for s in f.samples if s.name == sample and s.labels == labels]
    assert len(found) == 1, f"{sample}{labels}: {found}"
    return found[0]


def scrape(server) -> dict:
    response = server.get("/metrics")
    assert response.status_code == 200
    assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    return families(response.text)


def test_metrics_are_well_formed_and_described(chat):
    by_name = scrape(chat.ours)
    ours = {name: family for name, family in by_name.items() if name.startswith("pipeshard_")}
    assert len(ours) > 20
    for name, family in ours.items():
        assert family.documentation and family.type in ("counter", "gauge"), name
        assert family.samples, name
        for sample in family.samples:
            assert (family.type == "counter") == sample.name.endswith("_total"), sample
            assert sample.value >= 0


def test_without_pipeshard_metrics_and_props_are_stocks(chat):
    stock, ours = scrape(chat.stock), scrape(chat.ours)
    assert set(stock) == {name for name in ours if not name.startswith("pipeshard_")}
    props, own = chat.stock.get("/props").json(), chat.ours.get("/props").json()
    assert "pipeshard" not in props
    assert set(own) == set(props) | {"pipeshard"}


def test_what_is_held_stays_within_the_budget(chat):
    chat.ours.complete(PROMPT, 2)
    now = scrape(chat.ours)
    limit = value(now, "pipeshard_budget_bytes")
    assert limit == 40 * MIB
    classes = ["resident", "kv", "slots", "scratch", "vision", "other"]
    held = [value(now, "pipeshard_held_bytes", **{"class": name}) for name in classes]
    assert all(part > 0 for part in held[:4])
    assert sum(held) <= value(now, "pipeshard_peak_total_bytes") <= limit
    for name, part in zip(classes, held):
        assert part <= value(now, "pipeshard_peak_bytes", **{"class": name})
    assert 0 < value(now, "pipeshard_minimum_budget_bytes") <= limit


def test_counters_count(chat):
    before = scrape(chat.ours)
    chat.ours.complete(PROMPT, 5, id_slot=0)
    after = scrape(chat.ours)

    def more(sample, **labels):
        return value(after, sample, **labels) - value(before, sample, **labels)

    assert more("pipeshard_passes_total", tier="prompt") >= 1
    # the first of the five comes with the prompt
    assert more("pipeshard_passes_total", tier="decode") == 4
    # what is not resident, and not the output head, was streamed at least once
    assert more("pipeshard_streamed_bytes_total") > 20 * MIB
    assert more("pipeshard_copies_total") > 0
    assert more("pipeshard_host_waits_total", reason="hand_over") > 0
    # tokens, positions and masks go in the compute stream's order
    assert more("pipeshard_host_waits_total", reason="user_input") == 0
    assert value(after, "pipeshard_units", tier="prompt", placement="streamed") > 0
    assert value(after, "pipeshard_units", tier="decode", placement="host") > 0
    for sample in ["errors", "reallocations", "declined_nodes"]:
        assert value(after, f"pipeshard_{sample}_total") == 0
    assert value(after, "pipeshard_engaged") == 1
    assert value(after, "pipeshard_models_total") == 1


def test_props_show_that_it_is_on(chat):
    shown = chat.ours.get("/props").json()["pipeshard"]
    assert shown["engaged"] is True and shown["reason"] is None
    assert shown["budget"] == 40 * MIB and 0 < shown["held"] <= 40 * MIB
    assert shown["device"].startswith("SIM0") and shown["version"] and shown["build"]
    labels = {label: shown[label] for label in ["version", "build", "device"]}
    assert value(scrape(chat.ours), "pipeshard_info", **labels) == 1


@pytest.fixture(scope="module")
def sleeper(tmp_path_factory, tiny):
    """A server that unloads its model after a second without requests."""
    log = tmp_path_factory.mktemp("sleeper") / "log"
    args = ["-m", tiny, "-c", 512, "-np", 1, "--metrics", "--sleep-idle-seconds", 1]
    server = Server(log, *args, *budget(32 * MIB)).ready()
    yield server
    assert server.stop() == 0


def test_a_server_that_sleeps_shows_what_was_and_gives_its_memory_back(sleeper, wait_until):
    first = sleeper.complete("abc" * 20, 4)["tokens"]
    before = sleeper.get("/metrics").text
    wait_until(lambda: sleeper.get("/props").json()["is_sleeping"])
    # as with llama.cpp's own properties: what was true when it fell asleep, until it wakes
    assert sleeper.get("/props").json()["pipeshard"]["held"] > 16 * MIB
    asleep = scrape(sleeper)
    weights = [value(asleep, "pipeshard_held_bytes", **{"class": name}) for name in ["resident", "slots"]]
    assert weights == [0, 0] and "pipeshard_held_bytes" in before
    assert value(asleep, "pipeshard_held_bytes", **{"class": "kv"}) > 0
    assert sleeper.complete("abc" * 20, 4)["tokens"] == first
    awake = scrape(sleeper)
    # the model was not loaded again
    assert value(awake, "pipeshard_models_total") == 1
    held = [value(awake, "pipeshard_held_bytes", **{"class": name}) for name in ["resident", "kv", "slots", "scratch"]]
    assert 16 * MIB < sum(held) <= value(awake, "pipeshard_peak_total_bytes") <= 32 * MIB
    streamed = "pipeshard_streamed_bytes_total"
    assert value(awake, streamed) > value(asleep, streamed) > 0


def test_a_simulated_gpu_alone_shows_nothing(tmp_path, tiny):
    server = Server(tmp_path / "log", "-m", tiny, "-c", 256, "--metrics", "--pipeshard-sim", "vram=1G").ready()
    try:
        assert "pipeshard" not in server.get("/props").json()
        assert not any(name.startswith("pipeshard") for name in scrape(server))
    finally:
        assert server.stop() == 0


def test_the_report_agrees_with_the_metrics(tmp_path, tiny):
    file = tmp_path / "report.json"
    args = ["-m", tiny, "-c", 512, "-np", 1, "--metrics", "--pipeshard-report", file]
    server = Server(tmp_path / "log", *args, *budget(32 * MIB)).ready()
    try:
        server.complete("abc" * 30, 4)
        last = scrape(server)
    finally:
        assert server.stop() == 0
    report = json.loads(file.read_text())
    for sample, field in [("streamed_bytes", "bytes_streamed"), ("copies", "copies"), ("stalls", "stalls")]:
        assert value(last, f"pipeshard_{sample}_total") == report[field]
    for tier in ["prompt", "decode"]:
        assert value(last, "pipeshard_passes_total", tier=tier) == report["passes"][tier] > 0
    assert value(last, "pipeshard_peak_total_bytes") == report["simulated_device"]["peak_bytes"]


def test_a_router_passes_flags_and_questions_on(tmp_path, tiny):
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "tiny.gguf").symlink_to(tiny)
    args = ["--models-dir", folder, "-c", 512, "-np", 1, "--metrics"]
    server = Server(tmp_path / "log", *args, *budget(32 * MIB)).ready()
    try:
        made = server.client().chat.completions.create(
            model="tiny", max_tokens=4, messages=[{"role": "user", "content": "abc"}]
        )
        assert made.usage.completion_tokens > 0
        assert server.get("/props?model=tiny").json()["pipeshard"]["engaged"] is True
        shown = families(server.get("/metrics?model=tiny").text)
        assert value(shown, "pipeshard_budget_bytes") == 32 * MIB
    finally:
        assert server.stop() == 0
