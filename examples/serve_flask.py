"""Trace a Flask application: a request is a trace, and the calls that it makes are below it."""

import os

from anthropic import Anthropic
from flask import Flask, abort

from tokentrace import Tracer, WsgiTraceMiddleware, instrument

tracer = Tracer(source="flask-shop")
llm = instrument(Anthropic(), tracer=tracer)
app = Flask(__name__)
app.wsgi_app = WsgiTraceMiddleware(app.wsgi_app, tracer, route_names=True)  # type: ignore[method-assign]  # Flask's way


@app.get("/reviews/<product>")
def summarize(product: str) -> str:
    if not product.isalpha():
        abort(404)
    message = llm.messages.create(
        model="claude-sonnet-5",
        max_tokens=200,
        messages=[{"role": "user", "content": f"Summarize the reviews of {product}."}],
    )
    return "".join(block.text for block in message.content if block.type == "text")


if __name__ == "__main__":
    app.run(port=int(os.environ.get("PORT", "5000")))
