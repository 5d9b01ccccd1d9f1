"""Report an LLM call over HTTP with the standard library, and read what its caller spent in the last hour."""

import json
import os
import urllib.request


def main() -> None:
    url = os.environ.get("TOKENTRACE_URL", "http://127.0.0.1:8700")
    span = {
        "name": "summarize",
        "model": "gpt-4o",
        "provider": "openai",
        "caller": "checkout",
        "prompt_tokens": 512,
        "comp_tokens": 128,
        "latency_ms": 1240,
    }
    # If a request with the same key and body is repeated within a day, the span still counts once.
    headers = {"Content-Type": "application/json", "Idempotency-Key": "post-spans-example"}
    request = urllib.request.Request(f"{url}/spans", json.dumps(span).encode(), headers)
    with urllib.request.urlopen(request, timeout=10) as response:
        print(response.status, response.read().decode())
    with urllib.request.urlopen(f"{url}/metrics/cost?window=1h&caller=checkout", timeout=10) as response:
        print(response.read().decode())


if __name__ == "__main__":
    main()
