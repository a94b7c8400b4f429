"""Whether a server answers, asked before what would wait for it much longer."""

import queue
import threading
import urllib.error
import urllib.request

ANSWER_TIMEOUT_S = 6.0


def unreachable(url: str) -> str | None:
    """Returns why a server does not answer, None if it does.

    It takes no more than a second beyond `ANSWER_TIMEOUT_S`.

    Args:
        url: Of anything on the server.
    """
    request = urllib.request.Request(url, method="HEAD")
    outcome: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def ask() -> None:
        try:
            urllib.request.urlopen(request, timeout=ANSWER_TIMEOUT_S).close()
        except urllib.error.HTTPError as error:
            error.close()
            # Some servers refuse HEAD; who downloads retries on 5xx only.
            outcome.put(str(error) if error.code >= 500 else None)
        except Exception as error:
            outcome.put(str(error))
        else:
            outcome.put(None)

    # In a thread, since the timeout of urlopen does not cover the name lookup.
    threading.Thread(target=ask, daemon=True).start()
    try:
        return outcome.get(timeout=ANSWER_TIMEOUT_S + 1)
    except queue.Empty:
        return f"no answer in {ANSWER_TIMEOUT_S + 1:.0f} s"
