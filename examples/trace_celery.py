"""
Trace Celery tasks: a worker continues the trace of the program that sent it the task.

    export CELERY_BROKER_URL=redis://127.0.0.1
    celery --app trace_celery worker &
    python trace_celery.py
"""

from celery import Celery

from tokentrace import Tracer, instrument_celery

tracer = Tracer(source="celery-shop")
app = Celery("shop")
instrument_celery(app, tracer)


@app.task(name="summarize")
def summarize(document: str) -> str:
    with tracer.span("read", kind="retrieval"):
        text = f"the text of {document}"
    with tracer.span("summarize", model="gpt-4o", provider="openai") as call:
        call.set(prompt_tokens=len(text) // 4, completion_tokens=5)
    return text[:8]


def main() -> None:
    with tracer.trace("nightly run", session_id="night-1") as trace:
        for document in ("contract", "invoice"):
            summarize.delay(document)
    tracer.flush()
    print(f"trace {trace.id}")


if __name__ == "__main__":
    main()
