"""Chats on the terminal inside a VRAM budget. A line such as "/budget 2G" changes it.

    python chat.py model.gguf 4G [vram=8G for a simulated GPU]
"""

import sys

import pipeshard


def main() -> int:
    if len(sys.argv) < 3:
        print(__doc__, file=sys.stderr)
        return 2
    simulated = sys.argv[3] if len(sys.argv) > 3 else None
    with pipeshard.Device(sys.argv[2], simulated=simulated) as gpu, gpu.open(sys.argv[1]) as model, model.session() as chat:
        while True:
            try:
                line = input("> ")
            except (EOFError, KeyboardInterrupt):
                return 0
            command, _, size = line.partition(" ")
            if command == "/budget":
                try:
                    now = gpu.set_budget(size)
                    print(f"[{now.held >> 20} MiB of {now.budget >> 20} in use]", file=sys.stderr)
                except pipeshard.BudgetTooSmall as why:
                    print(f"[{why.minimum} bytes are needed]", file=sys.stderr)
                except ValueError as why:
                    print(f"[{why}]", file=sys.stderr)
                continue
            chat.add("user", line)
            with chat.generate() as answer:
                try:
                    for piece in answer:
                        print(piece, end="", flush=True)
                except KeyboardInterrupt:
                    answer.cancel()
            print()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except pipeshard.Error as why:
        sys.exit(f"chat: {why}")
