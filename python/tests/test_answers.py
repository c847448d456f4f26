"""Answers on a simulated GPU.

TEST_MODEL: a GGUF without a chat; TEST_PROMPT, TEST_TOKENS, TEST_EXPECTED: what stock llama.cpp says behind it. Without them nothing is
tested.
"""

import gc
import os
import threading
import unittest

import pipeshard

MODEL = os.environ.get("TEST_MODEL")
PROMPT = os.environ.get("TEST_PROMPT", "")
TOKENS = int(os.environ.get("TEST_TOKENS", "0"))
EXPECTED = os.environ.get("TEST_EXPECTED", "")
SIMULATED = "vram=1G"


@unittest.skipUnless(MODEL, "TEST_MODEL is not set")
class Answers(unittest.TestCase):
    def setUp(self) -> None:
        self.gpu = pipeshard.Device("200M", simulated=SIMULATED, threads=1)
        self.progress: "list[float]" = []
        self.model = self.gpu.open(str(MODEL), progress=self.progress.append)
        self.chat = self.model.session(context=512)

    def tearDown(self) -> None:
        # in any order
        self.gpu.close()
        self.chat.close()
        self.model.close()
        self.chat.close()

    def asked(self) -> pipeshard.Answer:
        self.chat.clear()
        self.chat.add(None, PROMPT)
        return self.chat.generate(max_tokens=TOKENS)

    def test_an_answer_is_that_of_stock(self) -> None:
        pieces = list(self.asked())
        self.assertEqual("".join(pieces), EXPECTED)
        self.assertGreater(len(pieces), 1)
        self.assertEqual(self.progress[-1], 1.0)
        state = self.chat.state
        self.assertEqual((state.generated_tokens, state.busy), (TOKENS, 0))
        self.assertGreater(self.model.info["layers"], 0)
        self.assertIn("pipeshard", self.gpu.metrics)
        self.assertEqual(self.gpu.report["simulated_device"]["unaccounted_bytes"], 0)

    def test_budgets_change_between_pieces(self) -> None:
        answer = self.asked()
        text = next(answer)
        minimum = self.gpu.limits.minimum
        for number, piece in enumerate(answer):
            text += piece
            now = self.gpu.set_budget(minimum if number % 2 else "200M")
            self.assertLessEqual(now.held, now.budget)
        self.assertEqual(text, EXPECTED)
        with self.assertRaises(pipeshard.BudgetTooSmall) as refused:
            self.gpu.set_budget(1)
        self.assertEqual(refused.exception.code, pipeshard.BUDGET_TOO_SMALL)
        self.assertGreater(refused.exception.minimum, 1)
        self.assertEqual(self.gpu.set_budget(refused.exception.minimum).budget, refused.exception.minimum)

    def test_two_threads(self) -> None:
        texts = {}
        with self.model.session(context=512) as other:

            def speak(name: str, session: pipeshard.Session) -> None:
                session.add(None, PROMPT)
                texts[name] = session.generate(max_tokens=TOKENS).text()

            threads = [threading.Thread(target=speak, args=pair) for pair in (("a", self.chat), ("b", other))]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        self.assertEqual(texts, {"a": EXPECTED, "b": EXPECTED})

    def test_an_answer_is_ended(self) -> None:
        answer = self.asked()
        begin = next(answer) + next(answer)
        with self.assertRaises(pipeshard.Error) as busy:
            self.chat.generate()
        self.assertEqual(busy.exception.code, pipeshard.BUSY)
        answer.close()
        self.assertTrue(answer.cancelled)
        self.assertTrue(EXPECTED.startswith(begin))
        self.assertEqual(self.asked().text(), EXPECTED)

    def test_predicted(self) -> None:
        foreseen = self.gpu.predict(str(MODEL), context=512)
        self.assertEqual((foreseen.context, foreseen.budget), (512, 200 << 20))
        self.assertGreater(foreseen.tokens_per_second, 0)
        with self.assertRaises(pipeshard.BudgetTooSmall) as small:
            self.gpu.predict(str(MODEL), context=512, budget=1)
        self.assertGreater(small.exception.minimum, 1)

    def test_sleep(self) -> None:
        answer = self.asked()
        with self.assertRaises(pipeshard.Error) as busy:
            self.gpu.sleep()
        self.assertEqual(busy.exception.code, pipeshard.BUSY)
        self.assertEqual(answer.text(), EXPECTED)
        self.gpu.sleep()
        now = self.gpu.limits
        self.assertEqual(now.asleep, 1)
        self.assertLess(now.held, 4096)
        self.assertEqual(self.asked().text(), EXPECTED)
        self.gpu.sleep()
        self.gpu.wake()
        self.assertEqual(self.gpu.limits.asleep, 0)

    def test_saved_and_restored(self) -> None:
        self.chat.add(None, PROMPT)
        first = self.chat.generate(max_tokens=TOKENS // 2).text()
        saved = self.chat.save()
        with self.model.session(context=512) as other:
            other.restore(saved)
            self.assertEqual(first + other.generate(max_tokens=TOKENS - TOKENS // 2).text(), EXPECTED)
            with self.assertRaises(pipeshard.Error) as damaged:
                other.restore(saved[:-1])
            self.assertEqual(damaged.exception.code, pipeshard.FILE)

    def test_errors(self) -> None:
        with self.assertRaises(pipeshard.Error) as second:
            pipeshard.Device(simulated=SIMULATED)
        self.assertEqual(second.exception.code, pipeshard.BUSY)
        with self.assertRaises(pipeshard.Error) as missing:
            self.gpu.open("/nowhere.gguf")
        self.assertEqual(missing.exception.code, pipeshard.FILE)
        self.assertIn("/nowhere.gguf", str(missing.exception))
        self.chat.add(None, PROMPT)
        with self.assertRaises(pipeshard.Error) as grammar:
            self.chat.generate(grammar="root ::= (").text()
        self.assertEqual(grammar.exception.code, pipeshard.INVALID)
        self.assertIn("expecting ')'", str(grammar.exception))
        with self.assertRaises(pipeshard.Error) as stopped:
            self.gpu.open(str(MODEL), progress=lambda done: False)
        self.assertEqual(stopped.exception.code, pipeshard.CANCELLED)
        for size in ("4X", "", "-1"):
            with self.assertRaises(ValueError):
                self.gpu.set_budget(size)

    def test_what_is_forgotten_is_closed(self) -> None:
        session = self.model.session(context=512)
        session.add(None, PROMPT)
        session.generate()
        del session
        gc.collect()
        self.assertEqual(self.asked().text(), EXPECTED)

    def test_log(self) -> None:
        said: "list[tuple[int, str]]" = []
        pipeshard.set_log(lambda level, text: said.append((level, text)), 3)
        self.gpu.open(str(MODEL)).close()
        pipeshard.set_log(None)
        count = len(said)
        self.assertGreater(count, 0)
        self.gpu.open(str(MODEL)).close()
        self.assertEqual(len(said), count)


class Sizes(unittest.TestCase):
    def test_sizes(self) -> None:
        from pipeshard._handles import bytes_of

        self.assertEqual([bytes_of(s) for s in (7, "7", "4G", "1.5G", "10MiB", "2 kb")], [7, 7, 4 << 30, 3 << 29, 10 << 20, 2048])


if __name__ == "__main__":
    unittest.main()
