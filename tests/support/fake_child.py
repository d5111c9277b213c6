"""A child for tests of `Horse`: answers as its orders say, without RQ and without torch.

The queue name of an order is what to do: ``answer``, ``fail``, ``retire``, ``exit``,
``hang``, ``work`` (take it, and hang), ``print`` (and be killed) or ``dribble`` (the reply arrives in small pieces, after an answer to another one).
"""

import argparse
import os
import signal
import sys
import time

from fimlora_worker.process.messages import Reply, decode_order, encode


def main() -> int:
    parser = argparse.ArgumentParser()
    for name in ("--orders", "--replies", "--parent", "--logs"):
        parser.add_argument(name, type=int)
    given = parser.parse_args()
    drained: list[int] = []
    signal.signal(signal.SIGUSR1, lambda number, frame: drained.append(number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
    with os.fdopen(given.orders, "rb") as orders:
        for line in orders:
            order = decode_order(line)
            if order.queue == "exit":
                return 7
            if order.queue == "work":
                os.write(given.replies, encode(Reply(order.execution_id, None)))
            if order.queue in {"hang", "work"}:
                time.sleep(60)
            if order.queue == "print":
                sys.stdout.write("from python\n")
                sys.stdout.flush()
                os.write(2, b"from below \xff\n")
                os.kill(os.getpid(), signal.SIGKILL)
            if order.queue == "dribble":
                os.write(given.replies, encode(Reply("another", 0)))
                for byte in encode(Reply(order.execution_id, 0)):
                    os.write(given.replies, bytes([byte]))
                    time.sleep(0.01)
                continue
            code = len(drained) if order.queue == "count drains" else order.queue == "fail"
            reply = Reply(order.execution_id, int(code), retiring=order.queue == "retire")
            os.write(given.replies, encode(reply))
    return 0


if __name__ == "__main__":
    sys.exit(main())
