"""The OpenAI package talks to llama-server with pipeshard, and hears what the stock server says."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

# Long enough to be streamed: 32 tokens and more.
STORY = (
    "Here is a story about a lighthouse keeper who lived alone on a small island in the north, mended his nets in the "
    "evening and wrote a letter every Sunday. What may he have written about? Answer in one sentence."
)
QUESTIONS = [
    "What is the capital of France? Answer in one word.",
    "Count from one to ten.",
    "Name three primary colours.",
    "What is the opposite of hot? Answer in one word.",
]


def messages(question: str) -> list:
    return [{"role": "system", "content": "You are brief."}, {"role": "user", "content": question}]


def chat_with(server, question: str, tokens: int = 16, **more):
    settings = {"model": "any", "max_tokens": tokens, "temperature": 0, "seed": 1, "extra_body": {"cache_prompt": False}}
    return server.client().chat.completions.create(messages=messages(question), **(settings | more))


def answer(server, question: str, **more) -> tuple:
    made = chat_with(server, question, **more)
    return made.choices[0].message.content, made.choices[0].finish_reason, made.usage.total_tokens


def test_chat(chat):
    said, _, tokens = chat.both(lambda server: answer(server, STORY))
    assert said.strip() and tokens > 48


def test_tokens_and_their_probabilities_are_the_same(chat):
    def ask(server):
        made = server.complete(STORY, 12, n_probs=3, id_slot=0, ignore_eos=True)
        return made["tokens"], made["completion_probabilities"]

    tokens, probabilities = chat.both(ask)
    assert len(tokens) == 12 and len(probabilities) == 12


def test_streaming(chat):
    def ask(server):
        pieces, last = [], None
        for event in chat_with(server, STORY, stream=True):
            if event.choices and event.choices[0].delta.content:
                pieces.append(event.choices[0].delta.content)
            if event.choices and event.choices[0].finish_reason:
                last = event.choices[0].finish_reason
        return pieces, last

    pieces, last = chat.both(ask)
    assert len(pieces) > 4 and last == "length"
    assert "".join(pieces) == answer(chat.ours, STORY)[0]


def test_completions_of_the_older_interface(chat):
    def ask(server):
        settings = {"model": "any", "max_tokens": 8, "temperature": 0, "seed": 1, "logprobs": 2}
        made = server.client().completions.create(prompt="The capital of France is", **settings)
        return made.choices[0].text, made.usage.completion_tokens

    assert "Paris" in chat.both(ask)[0]


def test_sampling_with_a_seed(chat):
    def ask(server):
        made = server.complete("Once upon a time", 16, temperature=0.9, top_k=40, seed=7, id_slot=1)
        return made["tokens"]

    assert len(chat.both(ask)) == 16


def test_parallel_requests(chat):
    alone = [answer(chat.stock, question) for question in QUESTIONS]
    with ThreadPoolExecutor(len(QUESTIONS)) as pool:
        together = list(pool.map(lambda question: answer(chat.ours, question), QUESTIONS))
    assert together == alone
    assert len({said for said, _, _ in together}) == len(QUESTIONS)


def test_more_requests_than_slots(chat):
    questions = QUESTIONS * 2
    with ThreadPoolExecutor(len(questions)) as pool:
        made = list(pool.map(lambda question: answer(chat.ours, question, tokens=4), questions))
    assert made[:4] == made[4:]


def idle(server) -> bool:
    return not any(slot["is_processing"] for slot in server.get("/slots").json())


def test_a_client_that_goes_away_in_mid_stream(chat):
    before = answer(chat.ours, QUESTIONS[1])
    stream = chat_with(chat.ours, STORY, tokens=1500, stream=True)
    for _, _ in zip(range(3), stream):
        pass
    assert not idle(chat.ours)
    stream.close()
    deadline = time.monotonic() + 20
    while not idle(chat.ours):
        assert time.monotonic() < deadline, "the request of a client that is gone is still being answered"
        time.sleep(0.05)
    assert answer(chat.ours, QUESTIONS[1]) == before == answer(chat.stock, QUESTIONS[1])


def test_a_client_that_goes_away_while_others_wait(chat):
    heard = []
    others = threading.Thread(target=lambda: heard.append(answer(chat.ours, QUESTIONS[1])))
    stream = chat_with(chat.ours, STORY, tokens=1500, stream=True)
    next(iter(stream))
    others.start()
    stream.close()
    others.join(30)
    assert heard == [answer(chat.stock, QUESTIONS[1])]


def test_json_schema(chat):
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 12}, "large": {"type": "boolean"}},
        "required": ["city", "large"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "city", "schema": schema, "strict": True}}
    said = chat.both(lambda server: answer(server, "Describe Paris.", tokens=48, response_format=wanted))[0]
    made = json.loads(said)
    assert set(made) == {"city", "large"} and isinstance(made["large"], bool)


def test_grammar(chat):
    def ask(server):
        made = server.complete("Is water wet? ", 4, grammar='root ::= ("yes" | "no") "!"', id_slot=2)
        return made["content"], made["tokens"]

    assert chat.both(ask)[0] in ("yes!", "no!")


def test_a_tool_that_must_be_called(chat):
    tool = {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather in a city",
            "parameters": {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]},
        },
    }

    def ask(server):
        made = chat_with(server, "How is the weather in Paris?", 32, tools=[tool], tool_choice="required")
        message = made.choices[0].message
        calls = [(call.function.name, call.function.arguments) for call in message.tool_calls or []]
        return message.content, calls, made.usage.completion_tokens

    # a model this small does not get to the end of a call: what it says within the call's grammar is compared
    assert chat.both(ask)[2] > 8


@pytest.mark.parametrize("bad", [{"messages": "x"}, {"messages": messages("x"), "max_tokens": "many"}, {"prompt": "x"}])
def test_bad_requests_are_refused_alike(chat, bad):
    def ask(server):
        response = requests.post(server.url("/v1/chat/completions"), json=bad, timeout=30)
        return response.status_code, response.json()["error"]["message"]

    assert 400 <= chat.both(ask)[0] < 600


def test_a_prompt_that_is_too_long_is_refused_alike(chat):
    def ask(server):
        response = requests.post(server.url("/completion"), json={"prompt": "a b " * 2000}, timeout=30)
        return response.status_code, response.json()["error"]["type"]

    assert chat.both(ask) == (400, "exceed_context_size_error")
    assert answer(chat.ours, QUESTIONS[0]) == answer(chat.stock, QUESTIONS[0])
