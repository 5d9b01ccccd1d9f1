"""Reports spans at a fixed rate: ``python -m bench.sender URL RATE SECONDS SEED`` prints JSON with what was sent."""

from __future__ import annotations

import json
import sys
import time

from bench.spans import make_spans, new_call
from tokentrace import Reporter


def main(url: str, rate: float, seconds: float, seed: int) -> None:
    """Report spans, wait up to 120 s until the pipeline has accepted them, and print the numbers."""
    template = make_spans(2000, seed=seed)
    sent = prompt = 0
    reporter = Reporter(f"bench-{seed}", url, max_queue_spans=400_000, max_queue_bytes=256 * 1024 * 1024)
    began = time.perf_counter()
    while (elapsed := time.perf_counter() - began) < seconds:
        now = time.time_ns()
        due = int(elapsed * rate)
        if reporter.stats().queue_depth > 200_000:
            # The pipeline is slower than *rate*, so wait for it.
            time.sleep(0.005)
            continue
        for _ in range(min(due - sent, 2000)):
            span = new_call(template[sent % len(template)], sent, now)
            reporter.report(span)
            prompt += span.prompt_tokens
            sent += 1
        time.sleep(0.002)
    complete = reporter.flush(120)
    took = time.perf_counter() - began
    stats = reporter.stats()
    reporter.close()
    print(json.dumps({"sent": sent, "acked": stats.acked, "prompt": prompt, "took_s": took, "complete": complete}))


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))
